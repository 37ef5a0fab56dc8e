// What one token of a strip shows: its text, and its value as a colour.

import { visible } from "./dom.js";
import { diverging, sequential } from "./palette.js";

/**
 * @typedef {{text: string, value?: number|null, changed?: boolean, title?: string, kind?: number, note?: string, index?: number}} Token
 *   `text` may be shown as something else with `shown`; `note` is small print below, in as many lines as it has; `kind` a stripe in
 *   a colour of Okabe-Ito; `index` the position to name, else the place in the strip
 * @typedef {{kind: "sequential"|"diverging", lo: number, hi: number, unit?: string}} Scale
 */

/** A token in words: what it is shown as, else its text with nothing hidden. @param {Token} token */
export const written = (token) => token.shown ?? visible(token.text);

/** @param {number|null|undefined} value @param {Scale|null} scale @returns {number[]|null} red, green, blue */
export function colourOf(value, scale) {
  if (!scale || value === null || value === undefined || Number.isNaN(value)) return null;
  if (scale.kind === "diverging") return diverging(value / (Math.max(Math.abs(scale.lo), Math.abs(scale.hi)) || 1));
  return sequential((value - scale.lo) / (scale.hi - scale.lo || 1));
}

/** The smallest and the largest number that a scale's colours stand for. @param {Scale} scale */
export function ends(scale) {
  const most = Math.max(Math.abs(scale.lo), Math.abs(scale.hi));
  return scale.kind === "diverging" ? [-most, most] : [scale.lo, scale.hi];
}
