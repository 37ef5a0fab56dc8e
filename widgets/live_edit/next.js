import { h, short, visible } from "../js/dom.js";

/** Two bars per token: its probability without and with the edits. */
export function drawNext(element, next) {
  const most = Math.max(...next.base, ...next.edited, 1e-9);
  const bar = (p, kind) => h("span", { class: `bar ${kind}` },
    h("i", { style: { width: `${100 * (p ?? 0) / most}%` } }), h("em", {}, short(p)));
  element.replaceChildren(...next.tokens.map((token, k) =>
    h("div", { class: "token" }, h("code", { title: JSON.stringify(token) }, visible(token)),
      h("div", { class: "bars" }, bar(next.base[k], "base"), bar(next.edited[k], "edited")))));
  element.setAttribute("aria-label", `next token, base and edited: ${next.tokens.slice(0, 3).map((t, k) =>
    `${JSON.stringify(t)} ${short(next.base[k])} and ${short(next.edited[k])}`).join("; ")}`);
}
