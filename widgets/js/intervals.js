// Means with their 95 % intervals: in words, as a bar in a table, and as curves over an axis.

import { s, short } from "./dom.js";
import { svgText } from "./export.js";
import { categorical } from "./palette.js";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
/** Series differ by dash and marker too, for eyes that see no colours. */
const DASHES = ["", "5 3", "2 3", "8 3 2 3"];
const SIZE = { width: 460, height: 210, left: 52, right: 12, top: 12, bottom: 36 };
const BAR = { width: 120, height: 16, pad: 5 };

/** `0.62 [0.51, 0.72]`; without an interval the mean alone. `sign` marks a difference: `+0.11 [...]`. */
export function words(mean, low, high, sign = false) {
  const number = (value) => (sign && value > 0 ? "+" : "") + short(value);
  return known(low) && known(high) ? `${number(mean)} [${number(low)}, ${number(high)}]` : number(mean);
}

/** The least and the greatest known number, widened where they are one. @returns {[number, number]} */
export function span(values) {
  const found = values.filter(known);
  if (!found.length) return [0, 1];
  const lo = Math.min(...found), hi = Math.max(...found);
  return lo === hi ? [lo - (Math.abs(lo) || 1) / 2, hi + (Math.abs(hi) || 1) / 2] : [lo, hi];
}

/** Round numbers within [lo, hi], about `n` of them. */
export function ticks(lo, hi, n = 4) {
  const raw = (hi - lo) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999) ?? raw;
  const found = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/**
 * A mean and its interval on an axis from `lo` to `hi`, a line at `base`.
 * @param {{mean: number, low: number|null, high: number|null}} value @param {{lo: number, hi: number, base?: number|null, kind?: number|null}} axis `kind` null: the colour of text
 */
export function bar({ mean, low, high }, { lo, hi, base = null, kind = 0 }) {
  const { width, height, pad } = BAR, middle = height / 2;
  const x = (value) => pad + ((width - 2 * pad) * (value - lo)) / (hi - lo || 1);
  const colour = kind === null ? "currentColor" : categorical(kind);
  const svg = s("svg", { class: "wb-bar", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  svg.append(s("line", { x1: pad, x2: width - pad, y1: middle, y2: middle, stroke: "currentColor", "stroke-opacity": 0.15 }));
  if (known(base)) svg.append(s("line", { x1: x(base), x2: x(base), y1: 0, y2: height, stroke: "currentColor", "stroke-opacity": 0.6, "stroke-dasharray": "2 2" }));
  if (known(low) && known(high)) {
    svg.append(s("line", { x1: x(low), x2: x(high), y1: middle, y2: middle, stroke: colour, "stroke-width": 4, "stroke-opacity": 0.55, "stroke-linecap": "round" }));
  }
  if (known(mean)) svg.append(s("circle", { cx: x(mean), cy: middle, r: 3.5, fill: colour, stroke: "currentColor", "stroke-width": 0.7 }));
  return svg;
}

/**
 * Curves with intervals, and a horizontal band for the baseline.
 * @param {{
 *   label: string, xs: number[], xName: string, yName: string,
 *   series: {name: string, mean: number[], low: number[], high: number[], kind: number}[],
 *   base?: {name: string, mean: number, low: number, high: number}|null, chosen?: number|null, onPick?: (i: number) => void,
 *   within?: [number, number]|null,
 * }} plot `kind` chooses colour, dash and marker; `chosen` the place in `xs` that is marked; the axis shows `within`, and more where the numbers leave it
 * @returns {SVGElement} draws in the colour of the text around it
 */
export function curve(plot) {
  const axes = place(plot), { width, height } = SIZE;
  const svg = s("svg", {
    class: "wb-curve", width, height: axes.fullHeight, viewBox: `0 0 ${width} ${axes.fullHeight}`, role: "img",
    "aria-label": said(plot), "font-family": "system-ui, sans-serif", "font-size": 11,
  });
  svg.append(...frame(plot, axes));
  if (plot.base && known(plot.base.mean)) svg.append(...baseline(plot.base, axes));
  plot.series.forEach((one, i) => svg.append(...line(one, plot.xs, axes, (i - (plot.series.length - 1) / 2) * 3)));
  svg.append(...legend(plot, height + 4));
  if (plot.onPick) svg.append(...targets(plot, axes));
  return svg;
}

/** The picture as a file of its own, dark on white. */
export function fileOf(svg) {
  const copy = svg.cloneNode(true);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("style", "color:#222;background:#fff");
  return svgText(copy);
}

/** Pictures one under the other as one SVG text. @param {string[]} texts each with width and height */
export function stacked(texts) {
  let y = 0, widest = 0;
  const parts = texts.map((text) => {
    const [width, height] = ["width", "height"].map((name) => Number(text.match(new RegExp(`<svg[^>]*? ${name}="([\\d.]+)`))?.[1] ?? 0));
    const part = text.replace("<svg", `<svg x="0" y="${y}"`);
    y += height + 8;
    widest = Math.max(widest, width);
    return part;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${widest}" height="${y}" viewBox="0 0 ${widest} ${y}">`
    + `<rect width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>`;
}

// --- parts of a curve --------------------------------------------------------------------------

function place({ xs, series, base, within }) {
  const { left, right, top, bottom, width, height } = SIZE;
  const all = [...series.flatMap((one) => [...one.mean, ...one.low, ...one.high]), ...(base ? [base.mean, base.low, base.high] : [])];
  const [lo, hi] = within ? widened(within, all.filter(known)) : padded(span(all));
  const [x0, x1] = padded(span([...xs]), 0.03);
  return {
    lo, hi, x0, x1, fullHeight: height + 8 + 15 * (series.length + (base ? 1 : 0)),
    x: (value) => left + ((width - left - right) * (value - x0)) / (x1 - x0),
    y: (value) => top + ((height - top - bottom) * (hi - value)) / (hi - lo),
  };
}

/** `range`, with room for what lies outside. */
function widened(range, values) {
  const [lo, hi] = padded(span([...range, ...values]));
  return [Math.min(...values, range[0]) < range[0] ? lo : range[0], Math.max(...values, range[1]) > range[1] ? hi : range[1]];
}

function padded([lo, hi], share = 0.05) {
  const pad = (hi - lo) * share;
  return [lo >= 0 && lo - pad < 0 ? 0 : lo - pad, hi + pad];
}

function frame({ xs, xName, yName, chosen }, { lo, hi, x0, x1, x, y }) {
  const { left, right, top, bottom, width, height } = SIZE, out = [];
  const faint = { stroke: "currentColor", "stroke-opacity": 0.15 };
  if (known(xs[chosen])) {
    out.push(s("rect", { x: x(xs[chosen]) - 7, y: top, width: 14, height: height - top - bottom, fill: "currentColor", "fill-opacity": 0.1 }));
  }
  for (const tick of ticks(lo, hi)) {
    out.push(s("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), ...faint }), label(left - 5, y(tick) + 4, short(tick), "end"));
  }
  const across = xs.length <= 9 ? xs : ticks(x0, x1, 6);
  for (const tick of across) out.push(label(x(tick), height - bottom + 14, String(tick).replace("-", "−"), "middle"));
  out.push(label((left + width - right) / 2, height - 6, xName, "middle"));
  const up = label(0, 0, yName, "middle");
  up.setAttribute("transform", `translate(11,${(top + height - bottom) / 2}) rotate(-90)`);
  return [...out, up];
}

function baseline({ mean, low, high }, { y }) {
  const { left, right, width } = SIZE, out = [];
  if (known(low) && known(high)) {
    out.push(s("rect", { x: left, width: width - left - right, y: y(high), height: Math.max(1, y(low) - y(high)), fill: "currentColor", "fill-opacity": 0.08 }));
  }
  return [...out, s("line", { x1: left, x2: width - right, y1: y(mean), y2: y(mean), stroke: "currentColor", "stroke-dasharray": "1 3", "stroke-width": 1.5 })];
}

function line({ mean, low, high, kind }, xs, { x, y }, shift) {
  const colour = categorical(kind), out = [];
  let path = "";
  xs.forEach((value, i) => {
    if (!known(mean[i])) return;
    const at = x(value) + shift;
    path += `${path && known(mean[i - 1]) ? "L" : "M"}${at.toFixed(1)},${y(mean[i]).toFixed(1)}`;
    if (known(low[i]) && known(high[i])) {
      out.push(s("line", { x1: at, x2: at, y1: y(low[i]), y2: y(high[i]), stroke: colour, "stroke-width": 1.5, "stroke-opacity": 0.7 }));
    }
    out.push(marker(at, y(mean[i]), kind));
  });
  return [s("path", { d: path, fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": DASHES[kind % DASHES.length] }), ...out];
}

function marker(x, y, kind) {
  const look = { fill: categorical(kind), stroke: "currentColor", "stroke-width": 0.6 };
  if (kind % 3 === 0) return s("circle", { cx: x, cy: y, r: 3.5, ...look });
  if (kind % 3 === 1) return s("rect", { x: x - 3, y: y - 3, width: 6, height: 6, ...look });
  return s("path", { d: `M${x},${y - 4}l4,7h-8z`, ...look });
}

function legend({ series, base }, top) {
  const names = [...series.map(({ name, kind }) => ({ name, kind })), ...(base ? [{ name: base.name, kind: null }] : [])];
  return names.flatMap(({ name, kind }, i) => {
    const y = top + 15 * i, x = SIZE.left;
    const look = kind === null ? { stroke: "currentColor", "stroke-dasharray": "1 3" } : { stroke: categorical(kind), "stroke-dasharray": DASHES[kind % DASHES.length] };
    const dash = s("line", { x1: x, x2: x + 24, y1: y, y2: y, "stroke-width": 1.8, ...look });
    return [dash, ...(kind === null ? [] : [marker(x + 12, y, kind)]), label(x + 30, y + 4, name, "start")];
  });
}

function targets({ xs, onPick }, { x }) {
  const { top, bottom, height } = SIZE;
  return xs.map((value, i) => {
    const hit = s("rect", { x: x(value) - 8, y: top, width: 16, height: height - top - bottom, fill: "transparent", style: "cursor:pointer" });
    hit.addEventListener("click", () => onPick(i));
    return hit;
  });
}

function label(x, y, text, anchor) {
  const node = s("text", { x, y, "text-anchor": anchor, fill: "currentColor" });
  node.textContent = text;
  return node;
}

function said({ label: name, xs, series, base, xName }) {
  const parts = series.map((one) => `${one.name}: ${xs.map((x, i) => `${xName} ${x} ${words(one.mean[i], one.low[i], one.high[i])}`).join("; ")}`);
  return [name, ...parts, base ? `${base.name} ${words(base.mean, base.low, base.high)}` : ""].filter(Boolean).join(". ");
}
