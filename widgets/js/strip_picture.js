// A strip as an SVG picture of its own: dark on white, wrapped at a number of characters.

import { s, short } from "./dom.js";
import { categorical, css, inkOn } from "./palette.js";
import { colourOf, ends, written } from "./strip_tokens.js";

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

const text = (content, x, y, more = {}) => s("text", { x, y, "xml:space": "preserve", fill: "#111", ...more }, content);
