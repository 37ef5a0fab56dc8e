// One position through the layers: a line per side over the layers, their first choices below.

import { s, short, visible } from "../js/dom.js";
import { categorical } from "../js/palette.js";

const LEFT = 48, TOP = 18, HIGH = 120, BELOW = 34, BELOW_UPRIGHT = 66, RIGHT = 24, ADVANCE = 6.2;
const MARKS = [(x, y) => s("circle", { cx: x, cy: y, r: 3 }), (x, y) => s("rect", { x: x - 3, y: y - 3, width: 6, height: 6 })];

// Attributes are the colours of a file; on a page the style sheet goes before them.

/**
 * @param {SVGElement} svg filled anew
 * @param {{name: string, values: number[], first: string[]}[]} lines
 * @param {{layers: number[], label: string, scale: {lo, hi, log?}, layer: number|null, width: number}} about
 */
export function drawChart(svg, lines, { layers, label, scale, layer, width }) {
  const step = Math.min(44, (width - LEFT - RIGHT) / Math.max(1, layers.length - 1));
  const x = (i) => LEFT + i * step, place = scale.log ? (v) => Math.log(Math.max(v, scale.lo)) : (v) => v;
  const y = (v) => TOP + HIGH * (1 - (place(v) - place(scale.lo)) / (place(scale.hi) - place(scale.lo) || 1));
  const end = x(layers.length - 1), legend = 74 * lines.length;
  const texts = lines.at(-1).first.map((text) => cut(visible(text)));
  const flat = step >= 4 + ADVANCE * Math.max(...texts.map((text) => text.length));
  set(svg, { "font-family": "system-ui, sans-serif", "font-size": 11, width: Math.max(end + RIGHT, LEFT + legend), height: TOP + HIGH + (flat ? BELOW : BELOW_UPRIGHT), "aria-label": label });
  svg.replaceChildren(...axis(scale, y, end));
  if (layers.includes(layer)) {
    svg.append(s("line", { x1: x(layers.indexOf(layer)), x2: x(layers.indexOf(layer)), y1: TOP, y2: TOP + HIGH, stroke: "#0072b2", "stroke-dasharray": "2 3", class: "wb-pin" }));
  }
  const every = Math.ceil(14 / step);
  layers.forEach((n, i) => { if (i % every === 0) svg.append(words(x(i), TOP + HIGH + 14, String(n), { "text-anchor": "middle" })); });
  lines.forEach((line, k) => svg.append(path(line, k, x, y), words(LEFT + 12 + 74 * k, 10, line.name), mark(k, LEFT + 4 + 74 * k, 6)));
  texts.forEach((text, i) => { if (i % every === 0) svg.append(choice(text, x(i), flat)); });
}

function axis(scale, y, end) {
  const middle = scale.log ? Math.round(Math.sqrt(scale.lo * scale.hi)) : (scale.lo + scale.hi) / 2;
  return [scale.lo, middle, scale.hi].flatMap((value) => [
    s("line", { x1: LEFT, x2: end, y1: y(value), y2: y(value), stroke: "#ccc", class: "wb-rule" }),
    words(LEFT - 6, y(value) + 4, short(value), { "text-anchor": "end" }),
  ]);
}

function path({ values, name }, k, x, y) {
  const points = values.map((v, i) => [x(i), y(v)]).filter(([, at]) => Number.isFinite(at));
  const group = s("g", { class: "wb-line", fill: categorical(k), style: { "--wb-colour": `var(--wb-${name}-line, ${categorical(k)})` } });
  group.append(s("polyline", { points: points.map((p) => p.join(",")).join(" "), fill: "none", stroke: categorical(k), "stroke-dasharray": k ? "5 3" : "none" }));
  for (const [a, b] of points) group.append(MARKS[k](a, b));
  return group;
}

function mark(k, x, y) {
  const name = ["base", "edited"][k];
  const group = s("g", { class: "wb-line", fill: categorical(k), style: { "--wb-colour": `var(--wb-${name}-line, ${categorical(k)})` } });
  group.append(MARKS[k](x, y));
  return group;
}

/** A token below its layer, upright where layers are narrow. */
function choice(text, x, flat) {
  const y = TOP + HIGH + 20;
  if (flat) return words(x, y + 10, text, { "text-anchor": "middle", class: "wb-token" });
  return words(0, 0, text, { transform: `translate(${x + 3},${y}) rotate(-90)`, "text-anchor": "end", class: "wb-token" });
}

function words(x, y, text, attributes = {}) {
  const node = s("text", { x, y, ...attributes });
  node.textContent = text;
  return node;
}

const cut = (text) => (text.length > 6 ? `${text.slice(0, 5)}…` : text);
const set = (element, attributes) => Object.entries(attributes).forEach(([k, v]) => element.setAttribute(k, v));
