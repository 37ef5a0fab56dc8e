// A grid of coloured cells on one canvas: layers by tokens, heads by layers, queries by keys.
//
// Only what is in sight is painted; labels of rows and columns stay in sight while the cells scroll.

import { h, short } from "./dom.js";
import { layout, paintGrid, textWidth } from "./grid_canvas.js";
import { gridCsv, gridSvg, gridTable } from "./grid_files.js";
import { css, diverging, sequential } from "./palette.js";

const STYLE = `
.wb-grid { position: relative; max-width: 100% }
.wb-grid-head { display: flex; gap: 10px; align-items: center; font-size: 11px; color: var(--wb-quiet); margin: 2px 0 }
.wb-grid-head button { font-size: 11px; padding: 0 6px; margin-left: auto; white-space: nowrap }
.wb-grid-bar { width: 110px; height: 9px; border-radius: 2px }
.wb-grid-scroll { overflow: auto; max-width: 100% }
.wb-grid-scroll canvas { position: sticky; left: 0; top: 0; display: block; cursor: crosshair; outline-offset: -2px !important }
.wb-grid-tip { position: absolute; z-index: 5; pointer-events: none; background: var(--wb-raised); color: var(--wb-ink);
  border: 1px solid var(--wb-line); border-radius: 4px; padding: 4px 8px; font-size: 12px; white-space: pre; max-width: 360px; overflow: hidden;
  box-shadow: 0 2px 8px #0003 }
.wb-grid table { border-collapse: collapse; font-size: 12px }
.wb-grid td, .wb-grid th { border: 1px solid var(--wb-line); padding: 1px 6px; text-align: right; white-space: pre; font-weight: 400 }
.wb-grid th { color: var(--wb-quiet) }`;

const TONES = 511;
const LONG = 7; // characters; longer texts are cut
const STEPS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  PageUp: [-8, 0], PageDown: [8, 0], Home: [0, -Infinity], End: [0, Infinity],
};

const within = (value, count) => Math.max(0, Math.min(count - 1, value));

/** Where a key takes the cursor, or null where it is no key of the grid. */
export function moved({ row, col }, key, [rows, cols]) {
  const step = STEPS[key];
  if (!step) return null;
  return { row: within(row + step[0], rows), col: within(col + step[1], cols) };
}

const missing = (value) => value === null || value === undefined || Number.isNaN(value);

/** The colour of a value, or null where it is no number. */
export function colourOf(value, { kind, lo, hi, log = false, reverse = false }) {
  if (missing(value)) return null;
  if (kind === "diverging") return diverging(value / (Math.max(Math.abs(lo), Math.abs(hi)) || 1));
  const place = log ? Math.log : (x) => x;
  const t = hi > lo ? (place(value) - place(lo)) / (place(hi) - place(lo)) : 0;
  return sequential(reverse ? 1 - t : t);
}

/** The same for many: few colours shared by all cells, so that a million of them need no memory each. */
function coloursOf(values, scale) {
  const { kind, lo, hi, log } = scale, signed = kind === "diverging";
  const most = Math.max(Math.abs(lo), Math.abs(hi)) || 1;
  const place = log ? Math.log : (x) => x;
  const from = signed ? -most : place(lo), to = signed ? most : place(hi);
  const table = Array.from({ length: TONES + 1 }, (_, i) => {
    const at = from + ((to - from) * i) / TONES;
    return colourOf(log ? Math.exp(at) : at, scale);
  });
  return Array.from(values, (value) => {
    if (missing(value)) return null;
    const t = to > from ? (place(value) - from) / (to - from) : 0;
    return table[Math.round(TONES * Math.max(0, Math.min(1, t)))];
  });
}

/**
 * @param {import("./base.js").View} view
 * @param {{label: string, onCursor?: (cell: {row: number, col: number}|null) => void,
 *   onSelect?: (cell: {row: number, col: number}) => void, maxHeight?: number}} options
 *   label: what a screen reader calls it. onCursor: the mouse or the arrows are on a cell (null: left).
 *   onSelect: click or Enter. maxHeight: px, above it the rows scroll.
 *
 * `paint` takes {rows, cols: [labels], values: {shape: [r, c], values}, scale: {kind: "sequential"|"diverging",
 *   lo, hi, log: colours by the logarithm, reverse: low is bright}, and optionally texts: [[string]] | (r, c) => string, rowName, colName, unit: words beside the
 *   colour bar, marks: (r, c) => bool (outlined), chosen: {row, col} (labels in the accent colour),
 *   tip: (r, c) => string (hover, lines by \n), say: (r, c) => string (screen reader), cellWidth, cellHeight, upright: column labels turned (by their width where left out), textsAreValues: the table has the value alone}.
 *   Rows are drawn from the top in the order given. Labels and texts are shown as they are: use `visible` on tokens.
 */
export function grid(view, { label, onCursor, onSelect, maxHeight = 620 }) {
  return new Grid(view, { label, onCursor: onCursor ?? (() => {}), onSelect: onSelect ?? (() => {}), maxHeight });
}

class Grid {
  constructor(view, options) {
    this.view = view;
    this.options = options;
    this.cursor = { row: 0, col: 0 };
    this.hovered = null;
    this.picture = null;
    this.lastPaintMs = 0;
    this.widest = 32;
    this.asTable = false;
    this.build();
    this.hear();
  }

  build() {
    const { label, maxHeight } = this.options;
    this.canvas = h("canvas", { tabindex: 0, role: "application", "aria-roledescription": "grid", "aria-label": label });
    this.space = h("div", {}, this.canvas);
    this.scroll = h("div", { class: "wb-grid-scroll", style: { "max-height": `${maxHeight}px` } }, this.space);
    this.bar = h("span", { class: "wb-grid-bar" });
    this.lo = h("span");
    this.hi = h("span");
    this.unit = h("span");
    this.toggle = h("button", { type: "button", "aria-pressed": "false" }, "show as table");
    this.table = h("div", { class: "wb-grid-scroll", tabindex: 0, hidden: true, style: { "max-height": `${maxHeight}px` } });
    this.tip = h("div", { class: "wb-grid-tip", hidden: true });
    this.said = h("span", { class: "wb-sr", "aria-live": "polite" });
    this.element = h("div", { class: "wb-grid" }, h("style", {}, STYLE),
      h("div", { class: "wb-grid-head" }, this.unit, this.lo, this.bar, this.hi, this.toggle),
      this.scroll, this.table, this.tip, this.said);
  }

  hear() {
    const { view, canvas } = this;
    view.listen(canvas, "keydown", (event) => this.press(event));
    view.listen(canvas, "mousemove", (event) => this.hover(this.under(event), event));
    view.listen(canvas, "mouseleave", () => this.hover(null));
    view.listen(canvas, "click", (event) => this.click(this.under(event)));
    view.listen(canvas, "focus", () => this.redraw());
    view.listen(canvas, "blur", () => this.redraw());
    view.listen(this.scroll, "scroll", () => this.redraw());
    view.listen(this.toggle, "click", () => this.showTable(!this.asTable));
    if (globalThis.ResizeObserver) {
      const observer = new ResizeObserver(() => this.redraw());
      observer.observe(this.scroll);
      view.atEnd(() => observer.disconnect());
    }
  }

  /** Show these values; see `grid`. */
  paint(state) {
    const { values: numbers, shape: [rows, cols] } = state.values;
    const colours = coloursOf(numbers, state.scale);
    const texts = typeof state.texts === "function" ? state.texts
      : state.texts ? (r, c) => state.texts[r]?.[c] ?? "" : null;
    this.picture = { rowName: "row", colName: "column", unit: "", ...state, texts, numbers, colours, shape: [rows, cols] };
    if (texts) this.picture.cellWidth = state.cellWidth ?? this.roomFor(this.picture);
    const { row, col } = this.cursor;
    this.cursor = { row: within(row, rows), col: within(col, cols) };
    this.showLegend();
    if (this.asTable) this.showTable(true);
    this.redraw();
  }

  /** Wide enough for the longest text, within limits; never narrower than before, so that nothing jumps. */
  roomFor({ texts, cols, shape }) {
    let longest = cols.reduce((most, label) => Math.max(most, label.length), 0);
    for (let r = 0; r < shape[0]; r++) for (let c = 0; c < shape[1] && longest < LONG; c++) longest = Math.max(longest, texts(r, c).length);
    this.widest = Math.max(this.widest, textWidth(Math.min(LONG, longest)));
    return this.widest;
  }

  /** What is drawn at a cell. */
  cell(row, col) {
    const { numbers, texts, shape, scale } = this.picture;
    const value = numbers[row * shape[1] + col];
    return { value, text: texts ? texts(row, col) : "", rgb: colourOf(value, scale) };
  }

  svg() { return gridSvg(this.picture, this.options.label); }
  csv() { return gridCsv(this.picture); }

  redraw() {
    if (!this.picture || this.asTable) return;
    const began = performance.now();
    const plan = layout(this.picture, this.scroll.clientWidth || 640, this.options.maxHeight);
    this.plan = plan;
    this.space.style.width = `${plan.fullWidth}px`;
    this.space.style.height = `${plan.fullHeight}px`;
    const focused = document.activeElement === this.canvas;
    paintGrid(this.canvas, this.picture, plan, {
      left: this.scroll.scrollLeft, top: this.scroll.scrollTop, theme: this.view.theme,
      cursor: focused ? this.cursor : null, hovered: this.hovered,
    });
    this.lastPaintMs = performance.now() - began;
  }

  showLegend() {
    const { scale, unit } = this.picture;
    const ends = scale.kind === "diverging" ? Math.max(Math.abs(scale.lo), Math.abs(scale.hi)) || 1 : null;
    const [lo, hi] = ends ? [-ends, ends] : [scale.lo, scale.hi];
    const stops = Array.from({ length: 11 }, (_, i) => css(colourOf(scale.log ? lo * (hi / lo) ** (i / 10) : lo + ((hi - lo) * i) / 10, scale)));
    this.bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    this.lo.textContent = short(lo);
    this.hi.textContent = short(hi);
    this.unit.textContent = unit;
  }

  showTable(on) {
    this.asTable = on;
    this.toggle.textContent = on ? "show as grid" : "show as table";
    this.toggle.setAttribute("aria-pressed", String(on));
    this.table.hidden = !on;
    this.scroll.hidden = on;
    this.tip.hidden = true;
    if (on && this.picture) this.table.replaceChildren(gridTable(this.picture));
    else this.redraw();
  }

  under(event) {
    if (!this.plan) return null;
    const { gutter, header, cellWidth, cellHeight } = this.plan, [rows, cols] = this.picture.shape;
    const x = event.offsetX - gutter, y = event.offsetY - header;
    if (x < 0 || y < 0) return null;
    const row = Math.floor((y + this.scroll.scrollTop) / cellHeight), col = Math.floor((x + this.scroll.scrollLeft) / cellWidth);
    return row < rows && col < cols ? { row, col } : null;
  }

  press(event) {
    if (!this.picture || event.ctrlKey || event.metaKey || event.altKey) return;
    const [rows, cols] = this.picture.shape;
    if (!rows || !cols) return;
    const next = moved(this.cursor, event.key, [rows, cols]);
    if (next) this.moveTo(next);
    else if (event.key === "Enter" || event.key === " ") this.options.onSelect(this.cursor);
    else return;
    event.preventDefault();
  }

  /** Put the cursor there, in sight, and say what is there. */
  moveTo(cell) {
    this.cursor = { row: cell.row, col: cell.col };
    this.intoSight();
    this.said.textContent = this.words(cell);
    this.options.onCursor(this.cursor);
    this.redraw();
  }

  click(cell) {
    if (!cell) return;
    this.cursor = cell;
    this.said.textContent = this.words(cell);
    this.options.onSelect(cell);
    this.redraw();
  }

  words({ row, col }) {
    const { say, rowName, colName, rows, cols } = this.picture;
    if (say) return say(row, col);
    const { value, text } = this.cell(row, col);
    return `${rowName} ${rows[row]} ${colName} ${cols[col]}: ${text ? `${text} ` : ""}${short(value)}`;
  }

  hover(cell, event) {
    const before = this.hovered;
    this.hovered = cell;
    this.tip.hidden = !cell;
    if (cell) {
      this.tip.textContent = this.picture.tip ? this.picture.tip(cell.row, cell.col) : this.words(cell);
      this.placeTip(event);
    }
    if (before?.row === cell?.row && before?.col === cell?.col) return;
    this.options.onCursor(cell);
    this.redraw();
  }

  placeTip(event) {
    const box = this.element.getBoundingClientRect(), { offsetWidth: w, offsetHeight: high } = this.tip;
    const x = event.clientX - box.left, y = event.clientY - box.top;
    this.tip.style.left = `${x + 14 + w > box.width ? Math.max(0, x - w - 10) : x + 14}px`;
    this.tip.style.top = `${event.clientY + 16 + high > innerHeight ? y - high - 10 : y + 16}px`;
  }

  intoSight() {
    if (!this.plan) return;
    const { cellWidth, cellHeight, gutter, header } = this.plan, { row, col } = this.cursor;
    const { clientWidth: width, clientHeight: height } = this.scroll; // without its scroll bars
    const seen = (now, at, size, room) => (at < now ? at : at + size > now + room ? at + size - room : now);
    this.scroll.scrollLeft = seen(this.scroll.scrollLeft, col * cellWidth, cellWidth, width - gutter);
    this.scroll.scrollTop = seen(this.scroll.scrollTop, row * cellHeight, cellHeight, height - header);
  }
}
