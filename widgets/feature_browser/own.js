// A text of the user's: its tokens in the warmth of the opened feature, and the features strongest in it.

import { h, short, visible } from "../js/dom.js";
import { lines } from "./lines.js";

const WAIT_MS = 350;

/** @param {import("../js/base.js").View} view @param {(feature: number) => void} open */
export function ownText(view, open) {
  const input = h("textarea", { rows: 2, "aria-label": "own text", placeholder: "type a text to see where the feature is active", spellcheck: "false", maxlength: 20000 });
  const shown = lines(view, { label: "own text by the feature" });
  const note = h("div", { class: "wb-quiet wb-small", role: "status" });
  const strong = h("div", { class: "wb-row wb-strong" });
  let waits = null;
  view.listen(input, "input", () => { clearTimeout(waits); waits = setTimeout(() => view.ask({ text: input.value }), WAIT_MS); });
  view.listen(strong, "click", (event) => {
    const hit = event.target.closest?.("button[data-feature]");
    if (hit) open(Number(hit.dataset.feature));
  });
  view.atEnd(() => clearTimeout(waits));
  const draw = (frame) => {
    const { own, one } = frame, found = own?.pieces && one ? own : null;
    input.disabled = !view.live || !view.meta.own;
    if (document.activeElement !== input) input.value = own?.text ?? view.spec.text;
    note.textContent = noteOf(view, own, found, one);
    shown.show(found ? [{ head: "", say: "tokens", pieces: found.pieces, values: found.values }] : [], one?.largest ?? 0);
    strong.replaceChildren(...(found?.strongest.length ? [h("span", { class: "wb-quiet" }, "strongest here"), ...found.strongest.map((row) => chip(view, row, found.pieces))] : []));
  };
  return { element: h("section", {}, h("h4", {}, "own text"), input, note, shown.element, strong), input, shown, draw };
}

function noteOf(view, own, found, one) {
  if (!view.meta.own) return "reading a text needs dictionary= and model=";
  if (own?.problem) return own.problem;
  if (!found) return view.live ? "" : "reading a text needs a running kernel";
  const read = found.values.filter((v) => v !== null), top = Math.max(0, ...read);
  return top ? `active on ${read.filter((v) => v > 0).length} of ${read.length} tokens, up to ${short(top)} (${short(100 * top / (one.largest || top))} % of its largest)` : `not active on any of ${read.length} tokens`;
}

function chip(view, { feature, label, share, value, token }, pieces) {
  const where = visible(pieces[token] ?? "");
  return h("button", { type: "button", disabled: !view.usable, dataset: { feature }, title: `${label}; ${short(value)} at “${where}”, ${short(100 * share)} % of its largest` },
    h("b", {}, String(feature)), ` ${short(100 * share)} %`);
}
