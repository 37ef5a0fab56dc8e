// A score over tokens as lines: each token's own, smoothed, and so far; the threshold, and where the prompt ends.

import { s, short } from "../js/dom.js";
import { svgText } from "../js/export.js";
import { nameOf } from "./shown.js";

const TALL = 132, TOP = 8, BOTTOM = 18, LEFT = 40, RIGHT = 8, NARROWEST = 300;

/** Colours on the page, which follow its theme, and those of a file. */
export const PAGE = { paper: "none", ink: "var(--wb-ink)", quiet: "var(--wb-quiet)", shade: "var(--wb-raised)", score: "var(--wb-quiet)", smooth: "var(--wb-smooth)", running: "var(--wb-so-far)", band: "var(--wb-smooth)" };
export const FILE = { paper: "#fff", ink: "#111", quiet: "#555", shade: "#f0f0f0", score: "#777", smooth: "#0072b2", running: "#d55e00", band: "#0072b2" };
const DASHES = { running: "6 2" };
const WIDTHS = { score: 1, smooth: 2.2, running: 1.8 };

/** Where things lie: `n` tokens, values from `lo` to `hi`. */
export function planOf(n, [lo, hi], room = 600) {
  const step = Math.max(4, Math.min(22, (Math.max(room, NARROWEST) - LEFT - RIGHT) / Math.max(1, n)));
  const pad = (hi - lo || 1) * 0.06, from = lo - pad, to = hi + pad;
  return {
    n, step, lo: from, hi: to, width: Math.max(NARROWEST, LEFT + RIGHT + n * step), height: TALL,
    x: (i) => LEFT + (i + 0.5) * step,
    y: (v) => TOP + (TALL - TOP - BOTTOM) * (1 - (Math.max(from, Math.min(to, v)) - from) / (to - from)),
    at: (px) => Math.max(0, Math.min(n - 1, Math.floor((px - LEFT) / step))),
  };
}

/** @param {{lines: Object, n_prompt: number, threshold: number|null, chosen: number|null, label: string}} what @param {ReturnType<typeof planOf>} plan */
export function curve(what, plan, paint) {
  const { lines, n_prompt, threshold, chosen } = what, floor = TALL - BOTTOM;
  const inside = (v) => v >= plan.lo && v <= plan.hi;
  const root = s("svg", { xmlns: "http://www.w3.org/2000/svg", width: plan.width, height: TALL, viewBox: `0 0 ${plan.width} ${TALL}`,
    role: "img", "aria-label": what.label, "font-family": "system-ui, sans-serif", "font-size": 10 });
  if (paint.paper !== "none") root.append(s("rect", { width: plan.width, height: TALL, fill: paint.paper }));
  const edge = LEFT + n_prompt * plan.step;
  root.append(s("rect", { x: LEFT, y: TOP, width: edge - LEFT, height: floor - TOP, style: `fill: ${paint.shade}` }),
    text("prompt", LEFT + 3, floor + 12, paint), ...(n_prompt < plan.n ? [text("generated", edge + 3, floor + 12, paint)] : []),
    ...[plan.hi, plan.lo].map((v) => text(short(v), LEFT - 4, plan.y(v) + (v === plan.hi ? 8 : 0), paint, "end")),
    stroke(`M${LEFT},${TOP}V${floor}H${plan.width - RIGHT}`, paint.quiet, 0.7));
  if (lines.low) root.append(s("path", { d: area(lines.low, lines.high, plan), style: `fill: ${paint.band}; opacity: .2` }));
  if (threshold !== null && inside(threshold)) {
    const y = plan.y(threshold);
    root.append(stroke(`M${LEFT},${y}H${plan.width - RIGHT}`, paint.ink, 1, "3 3"));
    if (y > TOP + 14 && y < floor - 8) root.append(text(short(threshold), LEFT - 4, y + 3, paint, "end"));
  }
  for (const name of ["score", "smooth", "running"]) {
    if (!lines[name]) continue;
    root.append(stroke(path(lines[name], plan), paint[name], WIDTHS[name], DASHES[name], `wb-line-${name}`));
    if (name === "score" && plan.step > 6) {
      lines.score.forEach((v, i) => v !== null && inside(v) && root.append(s("circle", { cx: plan.x(i), cy: plan.y(v), r: 1.8, style: `fill: ${paint.score}` })));
    }
  }
  if (chosen !== null && chosen >= 0 && chosen < lines.score.length) root.append(stroke(`M${plan.x(chosen)},${TOP}V${floor}`, paint.ink, 1, null, "wb-chosen"));
  return root;
}

export const curveText = (what, plan) => svgText(curve(what, plan, FILE));

function stroke(d, colour, width, dash = null, name = null) {
  return s("path", { d, class: name, style: `fill: none; stroke: ${colour}; stroke-width: ${width}${dash ? `; stroke-dasharray: ${dash}` : ""}` });
}

const text = (content, x, y, paint, anchor = "start") => s("text", { x, y, "text-anchor": anchor, style: `fill: ${paint.quiet}` }, content);

/** A line with a gap where there is no number. */
export function path(values, plan) {
  let on = false;
  return values.map((v, i) => {
    const d = v === null ? "" : `${on ? "L" : "M"}${plan.x(i).toFixed(1)},${plan.y(v).toFixed(1)}`;
    on = v !== null;
    return d;
  }).join("");
}

function area(low, high, plan) {
  const known = low.map((v, i) => i).filter((i) => low[i] !== null && high[i] !== null);
  const points = [...known.map((i) => [i, high[i]]), ...known.reverse().map((i) => [i, low[i]])];
  return points.length ? `M${points.map(([i, v]) => `${plan.x(i).toFixed(1)},${plan.y(v).toFixed(1)}`).join("L")}Z` : "";
}

/** A sample of each line that is drawn, with its name. */
export function keys(lines, about, window, threshold) {
  const shown = ["score", "smooth", "running"].filter((name) => lines[name]).map((name) => [nameOf(name, about, window), PAGE[name], WIDTHS[name], DASHES[name]]);
  if (threshold !== null) shown.push([`threshold ${short(threshold)}`, PAGE.ink, 1, "3 3"]);
  return shown.map(([name, colour, width, dash]) => {
    const sample = s("svg", { width: 24, height: 8, "aria-hidden": "true" });
    sample.append(stroke("M0,4H24", colour, width, dash));
    return [sample, name];
  });
}
