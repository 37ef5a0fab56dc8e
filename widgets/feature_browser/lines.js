// Lines of tokens, each in the warmth of a feature's activation: one tab stop, arrows read out every number.

import { h, short, visible } from "../js/dom.js";
import { shareOf } from "./shown.js";

/**
 * @typedef {{head: string, say: string, pieces: string[], values: (number|null)[], peak?: number}} Line
 * @param {import("../js/base.js").View} view
 * @param {{label: string}} options
 */
export function lines(view, { label }) {
  return new Lines(view, label);
}

class Lines {
  constructor(view, label) {
    this.id = `wb-lines-${Math.random().toString(36).slice(2, 9)}`;
    this.at = { line: 0, token: 0 };
    this.nodes = [];
    this.list = h("div", { class: "wb-lines", role: "listbox", tabindex: 0, "aria-label": label });
    this.said = h("span", { class: "wb-sr", "aria-live": "polite" });
    this.element = h("div", {}, this.list, this.said);
    view.listen(this.list, "keydown", (event) => this.key(event));
    view.listen(this.list, "focus", () => this.mark());
    view.listen(this.list, "click", (event) => this.click(event));
  }

  /** @param {Line[]} all @param {number} largest the activation that is drawn warmest */
  show(all, largest) {
    const key = JSON.stringify([all, largest]);
    if (key === this.key_) return;
    this.key_ = key;
    this.all = all;
    this.nodes = all.map((line, l) => line.pieces.map((text, t) => this.token(line, text, l, t, largest)));
    this.list.replaceChildren(...all.map(({ head, say }, l) => h("div", { class: "wb-line", role: "group", "aria-label": say },
      head ? h("span", { class: "wb-line-head", "aria-hidden": "true" }, head) : null,
      h("span", { class: "wb-line-text", role: "none" }, ...this.nodes[l]))));
    this.at = { line: 0, token: all[0]?.peak ?? 0 };
    this.list.hidden = !all.length;
    this.mark();
  }

  token({ values, peak }, text, l, t, largest) {
    const share = shareOf(values[t], largest), said = `${visible(text)}: ${values[t] === null ? "not read" : short(values[t])}`;
    return h("span", {
      class: `wb-token${share ? " wb-hot" : ""}${t === peak ? " wb-peak" : ""}`, role: "option", id: `${this.id}-${l}-${t}`, "aria-selected": "false",
      "aria-label": said, title: said, dataset: { l, t }, style: share ? { "--wb-share": `${(100 * share).toFixed(0)}%` } : {},
    }, visible(text));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.nodes.length) return;
    const { line, token } = this.at, last = this.nodes[line].length - 1;
    const to = {
      ArrowLeft: [line, token - 1], ArrowRight: [line, token + 1], Home: [line, 0], End: [line, last],
      ArrowUp: [line - 1, null], ArrowDown: [line + 1, null],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.move(...to);
  }

  /** Another line is entered at its peak. */
  move(line, token) {
    const l = Math.max(0, Math.min(this.nodes.length - 1, line));
    const wanted = token ?? (l === this.at.line ? this.at.token : this.all[l].peak ?? 0);
    this.at = { line: l, token: Math.max(0, Math.min(this.nodes[l].length - 1, wanted)) };
    this.mark();
    const node = this.node();
    node?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
    if (node) this.said.textContent = node.getAttribute("aria-label");
  }

  click(event) {
    const hit = event.target.closest?.("[data-t]");
    if (hit) this.move(Number(hit.dataset.l), Number(hit.dataset.t));
  }

  node() { return this.nodes[this.at.line]?.[this.at.token]; }

  mark() {
    this.marked?.setAttribute("aria-selected", "false");
    this.marked = this.node();
    this.marked?.setAttribute("aria-selected", "true");
    if (this.marked) this.list.setAttribute("aria-activedescendant", this.marked.id);
    else this.list.removeAttribute("aria-activedescendant");
  }
}
