// The board's numbers as a file: a picture with a panel per measure, a table with a line per arm and measure.

import { s } from "../js/dom.js";
import { svgText } from "../js/export.js";
import { bar, span, words } from "../js/intervals.js";
import { lineOf } from "./reading.js";

const ROW = 20, NAME = 260, WIDTH = 700;
const FIELDS = ["mean", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm", "differs", "n"];

/** A line per arm and measure. */
export function linesAsRows(frame, meta) {
  const units = Object.fromEntries(meta.metrics.map((about) => [about.name, about.unit]));
  return [["arm", "metric", "unit", ...FIELDS], ...frame.lines.map((line) => [line.arm, line.metric, units[line.metric], ...FIELDS.map((name) => line[name])])];
}

/** Dark on white, a panel for each measure. @param {Record<string, number>} colours of each kind of arm */
export function boardSvg(frame, meta, colours) {
  const out = [];
  let y = 18;
  for (const about of meta.metrics.filter(({ name }) => frame.measures.includes(name))) {
    out.push(text(8, y, `${about.name} (${about.unit})`, { "font-weight": 600 }));
    const lines = frame.arms.map((arm) => [arm, lineOf(frame, arm.name, about.name)]).filter(([, line]) => line);
    const [lo, hi] = about.unit.startsWith("fraction") ? [0, 1] : span(lines.flatMap(([, line]) => [line.mean, line.low, line.high]));
    const base = lineOf(frame, meta.base, about.name)?.mean;
    for (const [arm, line] of lines) {
      y += ROW;
      const picture = bar(line, { lo, hi, base, kind: colours[arm.kind] });
      picture.setAttribute("x", String(NAME));
      picture.setAttribute("y", String(y - 12));
      const gap = line.difference === null ? "" : `   ${words(line.difference, line.difference_low, line.difference_high, true)}${line.differs ? " *" : ""}`;
      out.push(text(16, y, arm.name.length > 38 ? `${arm.name.slice(0, 37)}…` : arm.name), picture, text(NAME + 130, y, words(line.mean, line.low, line.high) + gap));
    }
    y += ROW + 8;
  }
  return svgText(s("svg", {
    xmlns: "http://www.w3.org/2000/svg", width: WIDTH, height: y, viewBox: `0 0 ${WIDTH} ${y}`, style: "color:#222",
    "font-family": "system-ui, sans-serif", "font-size": 12,
  }, s("rect", { width: "100%", height: "100%", fill: "#fff" }), ...out));
}

function text(x, y, words_, attributes = {}) {
  const node = s("text", { x, y, fill: "#222", "xml:space": "preserve", ...attributes });
  node.textContent = words_;
  return node;
}
