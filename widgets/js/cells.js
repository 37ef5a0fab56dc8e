// A table that keys move through: one tab stop, arrows, Enter; what is chosen stays marked.

import { h } from "./dom.js";
import { moved } from "./grid.js";

const STYLE = `
.wb-cells { overflow: auto; max-height: 340px; max-width: 100% }
.wb-cells table { border-collapse: collapse; font-size: 12px }
.wb-cells thead th { position: sticky; top: 0; background: var(--wb-field); z-index: 1; font-weight: 500; color: var(--wb-quiet); text-align: left; white-space: nowrap }
.wb-cells th, .wb-cells td { padding: 2px 8px; border-bottom: 1px solid var(--wb-line) }
.wb-cells tbody th { text-align: left; font-weight: 400; max-width: 22em; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; cursor: pointer }
.wb-cells td { cursor: pointer; white-space: nowrap; font-variant-numeric: tabular-nums }
.wb-cells tr.wb-chosen > * { background: color-mix(in srgb, var(--wb-accent) 13%, transparent) }
.wb-cells tr.wb-chosen > th { box-shadow: inset 3px 0 var(--wb-accent) }
.wb-cells td[aria-selected="true"] { box-shadow: inset 0 -2px var(--wb-accent) }
.wb-cells table:focus-visible td.wb-at { outline: 2px solid var(--wb-accent); outline-offset: -2px }
.wb-right { color: light-dark(#00684a, #2fc494); font-weight: 600 }
.wb-wrong { color: light-dark(#a40000, #ff8a80); font-weight: 600 }`;

/**
 * @typedef {{parts: (Node|string)[], say: string, kind?: string}} Cell `say` is for a screen reader; `kind` a class
 * @param {import("./base.js").View} view
 * @param {{label: string, onSelect: (row: number, col: number) => void}} options
 */
export function cells(view, options) {
  return new Cells(view, options);
}

class Cells {
  constructor(view, { label, onSelect }) {
    Object.assign(this, { onSelect, cursor: { row: 0, col: 0 }, rows: [], chosen: {} });
    this.id = `wb-cells-${Math.random().toString(36).slice(2, 9)}`;
    this.table = h("table", { role: "grid", tabindex: 0, "aria-label": label });
    this.said = h("span", { class: "wb-sr", "aria-live": "polite" });
    this.element = h("div", { class: "wb-cells" }, h("style", {}, STYLE), this.table, this.said);
    view.listen(this.table, "keydown", (event) => this.key(event));
    view.listen(this.table, "focus", () => this.mark());
    view.listen(this.table, "click", (event) => this.click(event));
  }

  /** @param {string[]} head @param {{title: (Node|string)[], cells: Cell[], kind?: string}[]} rows @param {{row?: number, col?: number}} chosen */
  show(head, rows, chosen) {
    this.rows = rows;
    this.chosen = chosen;
    const top = h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)));
    this.nodes = rows.map(({ cells }, r) => cells.map((cell, c) => h("td", {
      id: `${this.id}-${r}-${c}`, role: "gridcell", class: cell.kind ?? null, "aria-label": cell.say, dataset: { r, c },
    }, ...cell.parts)));
    const body = rows.map(({ title, kind }, r) => h("tr", { class: kind ?? null }, h("th", { scope: "row", dataset: { r, c: 0 } }, ...title), ...this.nodes[r]));
    this.table.replaceChildren(h("thead", {}, top), h("tbody", {}, ...body));
    this.cursor = { row: Math.min(this.cursor.row, Math.max(0, rows.length - 1)), col: Math.min(this.cursor.col, Math.max(0, (rows[0]?.cells.length ?? 1) - 1)) };
    this.mark();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.rows.length) return;
    const next = moved(this.cursor, event.key, [this.rows.length, this.rows[0].cells.length]);
    if (next) this.move(next);
    else if (event.key === "Enter" || event.key === " ") this.onSelect(this.cursor.row, this.cursor.col);
    else return;
    event.preventDefault();
  }

  move(to) {
    this.cursor = to;
    this.mark();
    this.nodes[to.row][to.col]?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
    this.said.textContent = this.rows[to.row].cells[to.col]?.say ?? "";
  }

  click(event) {
    const hit = event.target.closest?.("[data-r]");
    if (!hit) return;
    this.cursor = { row: Number(hit.dataset.r), col: Number(hit.dataset.c) };
    this.onSelect(this.cursor.row, this.cursor.col);
  }

  mark() {
    const { row, col } = this.cursor, { chosen } = this;
    this.nodes?.forEach((line, r) => line.forEach((node, c) => {
      node.classList.toggle("wb-at", r === row && c === col);
      const is = r === chosen.row && (chosen.col === undefined || c === chosen.col);
      node.setAttribute("aria-selected", String(is));
      if (c === 0) node.parentElement.classList.toggle("wb-chosen", r === chosen.row);
    }));
    const at = this.nodes?.[row]?.[col];
    if (at) this.table.setAttribute("aria-activedescendant", at.id);
  }
}
