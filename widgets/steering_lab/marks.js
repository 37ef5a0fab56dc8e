// A mark for each method: seven colours and six shapes, so that 42 of them differ.

import { s } from "../js/dom.js";
import { OKABE_ITO } from "../js/palette.js";

// black is the ink of light themes and the ground of dark ones
const COLOURS = OKABE_ITO.slice(0, 7);
const SHAPES = [
  (r) => `M${-r},0a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
  (r) => polygon(4, r * 1.25, Math.PI / 4),
  (r) => polygon(3, r * 1.35, -Math.PI / 2),
  (r) => polygon(4, r * 1.35, 0),
  (r) => polygon(3, r * 1.35, Math.PI / 2),
  (r) => polygon(5, r * 1.25, -Math.PI / 2),
];

function polygon(n, r, from) {
  const corners = Array.from({ length: n }, (_, i) => from + (2 * Math.PI * i) / n);
  return `M${corners.map((a) => `${(r * Math.cos(a)).toFixed(2)},${(r * Math.sin(a)).toFixed(2)}`).join("L")}z`;
}

export const colourOf = (index) => COLOURS[index % COLOURS.length];

/** A method's mark at a place; hollow is its control. */
export function mark(index, x = 0, y = 0, { hollow = false, r = 4 } = {}) {
  const colour = colourOf(index), look = hollow
    ? { fill: colour, "fill-opacity": 0, stroke: colour, "stroke-width": 1.4 }
    : { fill: colour, stroke: "currentColor", "stroke-width": 0.6 };
  return s("path", { d: SHAPES[index % SHAPES.length](hollow ? r * 0.9 : r), transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, ...look });
}

/** What stands for the unedited model, and for a prompt that asks for the same. */
export function landmark(kind, x, y) {
  const d = kind === "base" ? "M-7,0H7M0,-7V7" : "M-6,-6L6,6M6,-6L-6,6";
  return s("path", { d, transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, fill: "none", stroke: "currentColor", "stroke-width": 2.4 });
}

/** A mark beside a name. */
export function swatch(index, hollow = false) {
  const svg = s("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" });
  svg.append(mark(index, 0, 0, { hollow, r: 4.5 }));
  return svg;
}
