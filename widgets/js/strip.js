// A run of tokens as text: each a span with its value as background. One row, or two aligned ones.

import { h, short } from "./dom.js";
import { csv, svgText } from "./export.js";
import { categorical, css, inkOn } from "./palette.js";
import { picture } from "./strip_picture.js";
import { colourOf, ends, written } from "./strip_tokens.js";

/** Tokens drawn at once; a button in words shows as many again. */
export const CHUNK = 1000;

/**
 * @typedef {import("./strip_tokens.js").Token} Token
 * @typedef {import("./strip_tokens.js").Scale} Scale
 *
 * @param {import("./base.js").View} view
 * @param {{
 *   label: string,
 *   onSelect?: (index: number, row: number) => void,                       Enter or a click
 *   onSpan?: (span: {start: number, stop: number} | null) => void,  shift + arrows, or a drag
 * }} options
 */
export function strip(view, options) {
  return new Strip(view, options);
}

class Strip {
  constructor(view, { label, onSelect = () => {}, onSpan = null }) {
    adoptStyle();
    Object.assign(this, { view, label, onSelect, onSpan, rows: [[]], scale: null, cursor: 0, row: 0 });
    this.id = `wb-strip-${Math.random().toString(36).slice(2, 9)}`;
    this.columns = []; // {key, node, cells, line}
    this.limit = CHUNK;
    this.selected = null;
    this.span = null;
    this.list = h("div", {
      class: "wb-strip-list", role: "listbox", tabindex: 0, "aria-label": label,
      "aria-multiselectable": onSpan ? "true" : null,
    });
    this.more = h("button", { type: "button", class: "wb-strip-more", hidden: true });
    this.said = h("span", { class: "wb-sr", "aria-live": "polite" });
    this.element = h("div", { class: "wb-strip" }, this.list, this.more, this.said);
    view.listen(this.list, "keydown", (event) => this.key(event));
    view.listen(this.list, "focus", () => this.move(this.cursor, this.row));
    view.listen(this.more, "click", () => { this.limit += CHUNK; this.draw(); });
    this.listenToPointer();
  }

  // --- what a widget calls -------------------------------------------------------------------

  /**
   * @param {(Token|null)[]} tokens null leaves a gap, where `below` has a token of its own
   * @param {Scale} [scale] @param {(Token|null)[]} [below] a second row, token by token under the first
   */
  show(tokens, scale = null, below = null) {
    const rows = below ? [tokens, below] : [tokens];
    if (rows.length !== this.rows.length) this.forget();
    this.rows = rows;
    this.scale = scale;
    this.draw();
  }

  /** Mark one token as chosen, without telling anyone. @param {number|null} index */
  select(index, row = 0) {
    this.selected = index === null ? null : { index, row };
    this.mark();
  }

  /** Mark a run of tokens, of both rows, as chosen. @param {{start: number, stop: number} | null} span */
  choose(span) {
    this.span = span;
    this.mark();
  }

  /** The numbers as a table: a line for each token, or for each aligned pair. */
  csv() {
    const two = this.rows.length > 1, unit = this.scale?.unit ? ` (${this.scale.unit})` : "";
    const names = ["position", "token", `value${unit}`, "changed", "note"];
    const head = two ? [...names, ...names.map((name) => `other ${name}`)] : names;
    return csv([head, ...this.rows[0].map((_, i) => this.rows.flatMap((row) => fields(row[i], i)))]);
  }

  /** A picture of its own: dark on white. @param {string} [title] @param {number} [columns] characters a line */
  svg(title = this.label, columns = 100) {
    return svgText(picture(this.rows, this.scale, title, columns));
  }

  // --- drawing -------------------------------------------------------------------------------

  forget() {
    this.columns = [];
    this.list.replaceChildren();
    this.limit = CHUNK;
  }

  draw() {
    const total = this.rows[0].length, shown = Math.min(total, this.limit);
    const wide = this.rows.length > 1 || this.rows[0].some((token) => token?.note !== undefined);
    this.list.classList.toggle("wb-wide", wide);
    for (let i = 0; i < shown; i++) this.drawColumn(i, wide);
    for (const column of this.columns.splice(shown)) column.nodes.forEach((node) => node.remove());
    this.more.hidden = shown >= total;
    this.more.textContent = `… ${(total - shown).toLocaleString("en")} more`;
    this.cursor = Math.max(0, Math.min(this.cursor, shown - 1));
    this.mark();
  }

  drawColumn(i, wide) {
    const tokens = this.rows.map((row) => row[i] ?? null);
    const key = JSON.stringify([tokens, this.scale, wide]);
    const before = this.columns[i];
    if (before?.key === key) return;
    const cells = tokens.map((token, row) => this.cell(token, i, row, wide));
    const nodes = wide ? this.wideColumn(cells, tokens) : cells;
    if (before) before.nodes.slice(1).forEach((node) => node.remove());
    if (before) before.nodes[0].replaceWith(...nodes);
    else this.list.append(...nodes);
    this.columns[i] = { key, nodes, cells };
  }

  wideColumn(cells, tokens) {
    const noted = tokens.find((token) => token?.note !== undefined)?.note;
    // a gap takes as many lines as its neighbours, or the rows would shift
    const blank = noted?.replace(/[^\n]+/g, "\u00a0");
    const parts = cells.flatMap((cell, row) => (noted === undefined ? [cell]
      : [cell, h("span", { class: "wb-strip-note", "aria-hidden": "true" }, tokens[row]?.note ?? blank)]));
    const column = h("span", { class: noted === undefined ? "wb-strip-column" : "wb-strip-column wb-strip-chip", role: "none" }, ...parts);
    return tokens.some((token) => token?.text.includes("\n")) ? [column, h("br")] : [column];
  }

  cell(token, i, row, wide) {
    const about = { class: "wb-tok", role: "option", id: `${this.id}-${row}-${i}`, "aria-selected": "false", dataset: { i, row } };
    if (!token) return h("span", { ...about, class: "wb-tok wb-gap", "aria-label": "gap" }, " ");
    const colour = colourOf(token.value, this.scale), style = {};
    if (colour) Object.assign(style, { background: css(colour), color: inkOn(colour) });
    if (token.kind !== undefined && token.kind !== null) style["border-bottom-color"] = categorical(token.kind);
    const shown = written(token);
    return h("span", {
      ...about, class: token.changed ? "wb-tok wb-tok-changed" : "wb-tok", style,
      title: this.words(token, i), "aria-label": this.words(token, i),
    }, wide ? shown : shown.replace(/⏎/g, "⏎\n"));
  }

  words(token, i) {
    const number = token.value === undefined ? "" : `: ${short(token.value)}${this.scale?.unit ? ` ${this.scale.unit}` : ""}`;
    const more = [token.changed ? "changed" : "", token.title ?? ""].filter(Boolean).join(", ");
    return `token ${token.index ?? i} ${written(token)}${number}${more ? `, ${more}` : ""}`;
  }

  mark() {
    this.columns.forEach(({ cells }, i) => cells.forEach((cell, row) => {
      const inSpan = this.span && i >= this.span.start && i < this.span.stop && this.rows[row][i];
      const chosen = this.selected?.index === i && this.selected.row === row;
      const is = String(Boolean(inSpan || chosen));
      if (cell.getAttribute("aria-selected") !== is) cell.setAttribute("aria-selected", is);
      cell.classList.toggle("wb-tok-at", i === this.cursor && row === this.row);
    }));
    const at = this.columns[this.cursor]?.cells[this.row];
    if (at) this.list.setAttribute("aria-activedescendant", at.id);
    else this.list.removeAttribute("aria-activedescendant");
  }

  // --- keys and pointer ----------------------------------------------------------------------

  move(index, row = this.row) {
    if (!this.columns.length) return;
    this.cursor = Math.max(0, Math.min(this.columns.length - 1, index));
    this.row = Math.max(0, Math.min(this.rows.length - 1, row));
    this.mark();
    this.columns[this.cursor].cells[this.row].scrollIntoView?.({ block: "nearest", inline: "nearest" });
    const token = this.rows[this.row][this.cursor];
    this.said.textContent = token ? this.words(token, this.cursor) : "gap";
  }

  key(event) {
    const end = this.columns.length - 1, from = this.cursor;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: end }[event.key];
    if (to !== undefined) this.move(to);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") this.moveLine(event.key === "ArrowUp" ? -1 : 1);
    else if (event.key === "Enter" || event.key === " ") this.enter();
    else if (event.key === "Escape" && this.span) this.take(null);
    else return;
    event.preventDefault();
    if (to === undefined && !event.key.startsWith("Arrow")) return;
    if (event.shiftKey && this.onSpan) this.extend(this.anchor ?? from, this.cursor);
    else this.anchor = undefined;
  }

  /** The row above or below; where there is one row, the nearest token on the next line of text. */
  moveLine(by) {
    const row = this.row + by;
    if (row >= 0 && row < this.rows.length) return this.move(this.cursor, row);
    const here = this.columns[this.cursor]?.cells[0].getBoundingClientRect();
    if (!here) return undefined;
    let best = null;
    for (let i = this.cursor + by; i >= 0 && i < this.columns.length; i += by) {
      const there = this.columns[i].cells[0].getBoundingClientRect(), down = (there.top - here.top) * by;
      if (down < 4) continue;
      if (best && Math.abs(there.top - best.top) > 4) break;
      const off = Math.abs(there.left - here.left);
      if (!best || off < best.off) best = { i, off, top: there.top };
    }
    return best ? this.move(best.i, this.rows.length > 1 ? (by > 0 ? 0 : 1) : 0) : undefined;
  }

  enter() {
    if (this.columns.length) this.onSelect(this.cursor, this.row);
  }

  extend(anchor, to) {
    this.anchor = anchor;
    this.take({ start: Math.min(anchor, to), stop: Math.max(anchor, to) + 1 });
  }

  take(span) {
    this.choose(span);
    this.onSpan?.(span);
  }

  listenToPointer() {
    const found = (event) => {
      const cell = event.target.closest?.(".wb-tok");
      return cell ? { i: Number(cell.dataset.i), row: Number(cell.dataset.row) } : null;
    };
    const { view, list } = this;
    view.listen(list, "click", (event) => {
      const at = found(event);
      if (!at || this.dragged) return;
      if (event.shiftKey && this.onSpan) {
        const anchor = this.anchor ?? this.cursor;
        this.move(at.i, at.row);
        return this.extend(anchor, at.i);
      }
      this.anchor = undefined;
      this.move(at.i, at.row);
      return this.enter();
    });
    if (!this.onSpan) return;
    view.listen(list, "pointerdown", (event) => {
      this.from = event.shiftKey ? null : found(event);
      this.dragged = false;
    });
    view.listen(list, "pointermove", (event) => {
      const at = this.from && (event.buttons & 1) ? found(event) : null;
      if (!at || (at.i === this.from.i && !this.dragged)) return;
      this.dragged = true;
      event.preventDefault();
      this.move(at.i, at.row);
      this.choose({ start: Math.min(this.from.i, at.i), stop: Math.max(this.from.i, at.i) + 1 });
    });
    view.listen(document, "pointerup", () => {
      if (this.from && this.dragged) { this.anchor = this.from.i; this.onSpan(this.span); }
      this.from = null;
    });
  }
}

// --- legends and files -------------------------------------------------------------------------

/** A bar of the scale's colours between its ends. @param {Scale} scale */
export function legend(scale) {
  adoptStyle();
  const [lo, hi] = ends(scale), steps = Array.from({ length: 11 }, (_, i) => css(colourOf(lo + ((hi - lo) * i) / 10, scale)));
  const bar = h("span", { class: "wb-legend-bar", style: { background: `linear-gradient(90deg, ${steps.join(", ")})` } });
  return h("span", { class: "wb-legend" }, short(lo), bar, short(hi), h("span", { class: "wb-quiet" }, scale.unit ?? ""));
}

/** What each stripe means, in words. @param {{kind: number, name: string}[]} kinds */
export function kindsLegend(kinds) {
  adoptStyle();
  return h("span", { class: "wb-kinds" }, ...kinds.map(({ kind, name }) =>
    h("span", {}, h("i", { style: { "border-color": categorical(kind) } }), name)));
}

function fields(token, i) {
  if (!token) return ["", "", "", "", ""];
  return [token.index ?? i, token.text, token.value, token.changed ? "changed" : "", token.note];
}

// --- style -------------------------------------------------------------------------------------

const STYLE = `
.wb-strip-list { font: 13px/1.75 var(--jp-code-font-family, ui-monospace, Menlo, Consolas, monospace); white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 28em; overflow-y: auto; padding: 3px; border-radius: 4px; outline-offset: 0 }
.wb-tok { padding: 1px 0 0; margin: 0 1px 1px 0; border-radius: 2px; border-bottom: 2px solid transparent; background: var(--wb-raised);
  cursor: default; -webkit-box-decoration-break: clone; box-decoration-break: clone }
.wb-tok::before { content: "\\200b" }
.wb-tok-changed { text-decoration: underline 2px; text-underline-offset: 3px; font-weight: 700 }
.wb-tok-changed:not([style*="background"]) { background: var(--wb-changed) }
.wb-tok:hover { box-shadow: 0 0 0 1px var(--wb-quiet) }
.wb-strip-list .wb-tok[aria-selected="true"] { box-shadow: 0 0 0 2px var(--wb-accent); position: relative }
.wb-strip-list:focus-visible .wb-tok-at { outline: 2px dashed var(--wb-ink); outline-offset: 1px; position: relative }
.wb-gap { background: none; border: 1px dashed var(--wb-line) }
.wb-wide { line-height: 1.4; overflow-wrap: normal }
.wb-strip-column { display: inline-flex; flex-direction: column; vertical-align: top; margin: 0 2px 5px 0; min-width: 1ch; max-width: 100% }
.wb-strip-column .wb-tok { min-height: 1.5em; text-align: left; margin: 0 0 2px; padding: 0 1px; overflow-wrap: anywhere }
.wb-strip-note { font-size: 10px; line-height: 1.15; white-space: pre; color: var(--wb-quiet); text-align: center; font-variant-numeric: tabular-nums }
.wb-strip-chip { margin: 0 5px 9px 0; min-width: 1.8em }
.wb-strip-chip .wb-tok { text-align: center; padding: 0 4px; border-radius: 3px }
.wb-strip-chip .wb-strip-note + .wb-tok { margin-top: 4px }
.wb-kinds { display: inline-flex; flex-wrap: wrap; gap: 4px 12px; font-size: 12px; color: var(--wb-quiet) }
.wb-kinds i { display: inline-block; width: 14px; border-bottom: 3px solid; margin-right: 5px; vertical-align: 3px }
.wb-strip-more { margin-top: 3px }
.wb-legend { display: inline-flex; gap: 5px; align-items: center; font-size: 12px; font-variant-numeric: tabular-nums }
.wb-legend-bar { display: inline-block; width: 110px; height: 10px; border-radius: 2px }
`;

let style = null;

/** Once per page, as a sheet of its own: a page's content policy may refuse style elements. */
function adoptStyle() {
  if (style || typeof CSSStyleSheet === "undefined" || !document.adoptedStyleSheets) return;
  style = new CSSStyleSheet();
  style.replaceSync(STYLE);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, style];
}
