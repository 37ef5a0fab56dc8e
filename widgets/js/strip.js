// A run of tokens as text: each a span with its value as background. One row, or two aligned ones.

import { h, s, short } from "./dom.js";
import { csv, svgText } from "./export.js";
import { categorical, css, diverging, inkOn, sequential } from "./palette.js";

/** Tokens drawn at once; a button in words shows as many again. */
export const CHUNK = 1000;

/**
 * @typedef {{text: string, value?: number|null, changed?: boolean, title?: string, kind?: number, note?: string, index?: number}} Token
 *   `text` may be shown as something else with `shown`; `note` is small print below, in as many lines as it has; `kind` a stripe in
 *   a colour of Okabe-Ito; `index` the position to name, else the place in the strip
 * @typedef {{kind: "sequential"|"diverging", lo: number, hi: number, unit?: string}} Scale
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

// --- text and colour ---------------------------------------------------------------------------

const NAMED = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };
// what moves, hides or turns other characters would make two texts look alike
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u00a0]/gu;

/** A token as people read it: every space and hidden character visible; ∅ for none. */
export function shown(text) {
  return text.replace(/[ \n\t\r]/g, (c) => NAMED[c])
    .replace(HIDDEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`) || "∅";
}

const written = (token) => token.shown ?? shown(token.text);

/** @param {number|null|undefined} value @param {Scale|null} scale @returns {number[]|null} red, green, blue */
export function colourOf(value, scale) {
  if (!scale || value === null || value === undefined || Number.isNaN(value)) return null;
  if (scale.kind === "diverging") return diverging(value / (Math.max(Math.abs(scale.lo), Math.abs(scale.hi)) || 1));
  return sequential((value - scale.lo) / (scale.hi - scale.lo || 1));
}

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

function ends(scale) {
  const most = Math.max(Math.abs(scale.lo), Math.abs(scale.hi));
  return scale.kind === "diverging" ? [-most, most] : [scale.lo, scale.hi];
}

function fields(token, i) {
  if (!token) return ["", "", "", "", ""];
  return [token.index ?? i, token.text, token.value, token.changed ? "changed" : "", token.note];
}

// --- picture -----------------------------------------------------------------------------------

const EM = 7.8, LINE = 20, NOTE = 12, FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u;

/** Characters of a monospaced line that a text takes. */
export function cells(text) {
  return [...text].reduce((n, c) => n + (WIDE.test(c) ? 2 : 1), 0);
}

/** The whole run as one SVG element, wrapped at `columns` characters. */
export function picture(rows, scale, title, columns) {
  const notes = rows.map((row) => row.reduce((most, token) => Math.max(most, token?.note?.split("\n").length ?? 0), 0));
  const tall = rows.reduce((sum, _, r) => sum + LINE + NOTE * notes[r], 0) + 6;
  const out = [], width = columns * EM + 24;
  let x = 0, y = 34;
  rows[0].forEach((_, i) => {
    const tokens = rows.map((row) => row[i] ?? null);
    const size = Math.max(...tokens.map((token) => Math.max(token ? cells(written(token)) : 1, ...(token?.note ?? "").split("\n").map((line) => cells(line) * 0.75))));
    if (x > 0 && x + size > columns) { x = 0; y += tall; }
    let top = y;
    tokens.forEach((token, r) => {
      out.push(...drawn(token, 12 + x * EM, top, size * EM, scale));
      top += LINE + NOTE * notes[r];
    });
    x += size + (notes.some(Boolean) ? 0.7 : 0.25);
    const breaks = Math.max(...tokens.map((token) => (token?.text.match(/\n/g) ?? []).length));
    if (breaks) { x = 0; y += tall * breaks; }
  });
  const height = y + tall + 8 + (scale ? 24 : 0);
  return s("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT, "font-size": 13 },
    s("rect", { width, height, fill: "#fff" }),
    text(title, 12, 20, { "font-family": "system-ui, sans-serif", "font-weight": 600 }), ...out,
    ...(scale ? scaleBar(scale, height - 16) : []));
}

function drawn(token, x, y, width, scale) {
  if (!token) return [s("rect", { x: x + 0.5, y: y + 0.5, width: width - 1, height: LINE - 4, fill: "none", stroke: "#999", "stroke-dasharray": "2 2" })];
  const colour = colourOf(token.value, scale), written_ = written(token), size = cells(written_) * EM;
  // a chip is as wide as its widest line, each line in its middle
  const from = token.note === undefined ? x : x + (width - size) / 2, middle = x + width / 2;
  const out = [s("rect", { x, y, width, height: LINE - 3, rx: 2, fill: colour ? css(colour) : "#f0f0f0" }),
    text(written_, from, y + 13, { fill: colour ? inkOn(colour) : "#111", textLength: size, lengthAdjust: "spacingAndGlyphs" })];
  if (token.kind !== undefined && token.kind !== null) out.push(s("rect", { x, y: y + LINE - 3, width, height: 2, fill: categorical(token.kind) }));
  if (token.changed) out.push(s("rect", { x: from, y: y + LINE - 6, width: size, height: 2, fill: colour ? inkOn(colour) : "#111" }));
  (token.note ?? "").split("\n").forEach((line, k) => line && out.push(text(line, middle, y + LINE + 8 + NOTE * k, { "font-size": 9, fill: "#555", "text-anchor": "middle" })));
  return out;
}

function scaleBar(scale, y) {
  const [lo, hi] = ends(scale), steps = 40, wide = 160;
  const left = text(short(lo), 12, y + 9, { "font-size": 11 }), from = 22 + short(lo).length * 7;
  const blocks = Array.from({ length: steps }, (_, i) => s("rect", {
    x: from + (i * wide) / steps, y, width: wide / steps + 0.5, height: 11, fill: css(colourOf(lo + ((hi - lo) * i) / (steps - 1), scale)),
  }));
  return [left, ...blocks, text(`${short(hi)} ${scale.unit ?? ""}`, from + wide + 8, y + 9, { "font-size": 11 })];
}

const text = (content, x, y, more = {}) => s("text", { x, y, "xml:space": "preserve", fill: "#111", ...more }, clean(content));

// an SVG file is XML, which cannot hold these at all
const clean = (content) => content.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd");

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
