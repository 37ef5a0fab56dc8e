// Two metrics against each other: a line per method and layer along strength, landmarks, and the
// intervals of the point that is looked at. One tab stop; arrows walk along lines and between them.

import { h, s, short } from "../js/dom.js";
import { fileOf, span, ticks, words } from "../js/intervals.js";
import { linesOf, named, same } from "./reading.js";
import { colourOf, landmark, mark } from "./marks.js";

const SIZE = { width: 640, height: 400, left: 58, right: 20, top: 12, bottom: 42 };
const NEAR_PX = 22;
/** More lines than this are named only when looked at. */
const NAMED = 14;
const HELP = "Left and right arrows: along strength. Up and down arrows: another line. Enter: open the point.";

/**
 * @typedef {{points: any[], metrics: {x: any, y: any}, methods: string[], chosen: any, root: boolean}} State `points` as `drawnOf` gives them
 * @param {import("../js/base.js").View} view
 * @param {{onSelect: (point: any) => void}} options
 */
export function plot(view, options) {
  return new Plot(view, options);
}

class Plot {
  constructor(view, { onSelect }) {
    Object.assign(this, { view, onSelect, state: null, cursor: null, hovered: null, places: [] });
    this.svgs = h("div", { class: "wb-lab-svg", tabindex: 0, role: "application", "aria-roledescription": "trade-off plot", "aria-label": `trade-off plot. ${HELP}` });
    this.tip = h("div", { class: "wb-lab-tip", hidden: true });
    this.said = h("span", { class: "wb-sr", "aria-live": "polite" });
    this.element = h("div", { class: "wb-lab-plot" }, this.svgs, this.tip, this.said);
    view.listen(this.svgs, "mousemove", (event) => this.hover(this.under(event)));
    view.listen(this.svgs, "mouseleave", () => this.hover(null));
    view.listen(this.svgs, "click", (event) => this.pick(this.under(event)));
    view.listen(this.svgs, "keydown", (event) => this.press(event));
    view.listen(this.svgs, "blur", () => { this.cursor = null; this.look(); });
  }

  /** @param {State} state */
  paint(state) {
    const { points, metrics } = state;
    this.state = state;
    this.lines = linesOf(points);
    this.axes = axesOf(points, metrics, state.root);
    this.places = points.map((point) => ({ point, x: this.axes.x(point.x.mean), y: this.axes.y(point.y.mean) }));
    this.hovered = null;
    this.picture = drawing(state, this.lines, this.axes);
    this.over = s("g", { "pointer-events": "none" });
    this.picture.append(this.over);
    this.svgs.replaceChildren(this.picture);
    this.look();
  }

  /** The picture as a file, with a legend. */
  svg() {
    if (!this.picture) return "";
    const copy = this.picture.cloneNode(true), { methods, points } = this.state;
    const seen = methods.filter((name) => points.some((point) => point.method === name));
    const height = SIZE.height + 18 * seen.length + 6;
    copy.setAttribute("height", height);
    copy.setAttribute("viewBox", `0 0 ${SIZE.width} ${height}`);
    copy.append(...seen.flatMap((name, i) => {
      const y = SIZE.height + 10 + 18 * i;
      return [mark(methods.indexOf(name), SIZE.left, y), text(SIZE.left + 12, y + 4, name, "start")];
    }));
    return fileOf(copy);
  }

  // --- pointing at a point ------------------------------------------------------------------

  under(event) {
    const box = this.picture?.getBoundingClientRect();
    if (!box?.width) return null;
    const scale = SIZE.width / box.width, x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = (NEAR_PX * scale) ** 2;
    for (const place of this.places) {
      const away = (place.x - x) ** 2 + (place.y - y) ** 2;
      if (away < least) [best, least] = [place.point, away];
    }
    return best;
  }

  hover(point) {
    if (same(point, this.hovered)) return;
    this.hovered = point;
    this.look();
  }

  pick(point) {
    if (!point) return;
    this.cursor = point;
    this.onSelect(point);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.lines?.length) return;
    const next = this.moved(event.key);
    if (next) {
      this.cursor = next;
      this.said.textContent = this.tell(next);
      this.look();
    } else if (event.key === "Enter" || event.key === " ") this.pick(this.cursor ?? this.chosen() ?? this.lines[0][0]);
    else return;
    event.preventDefault();
  }

  /** Where a key takes the cursor, or null where it is no key of the plot. */
  moved(key) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] };
    const step = steps[key], from = this.cursor ?? this.chosen();
    if (!step) return null;
    const at = from ? this.lines.findIndex((line) => line.some((point) => same(point, from))) : -1;
    if (at < 0) return this.lines[0][0];
    const along = this.lines[at].findIndex((point) => same(point, from));
    const line = this.lines[clamp(at + step[0], this.lines.length)];
    return line[clamp((step[0] ? Math.min(along, line.length - 1) : along) + step[1], line.length)];
  }

  chosen() { return this.state.points.find((point) => same(point, this.state.chosen)) ?? null; }

  tell({ x, y, ...point }) {
    const { metrics } = this.state, of = (about, value) => `${about.name} ${words(value.mean, value.low, value.high)}`;
    return [named(point), of(metrics.y, y), of(metrics.x, x)].join("; ");
  }

  /** Show what is pointed at: its line in front, its intervals, its words. */
  look() {
    if (!this.picture) return;
    const chosen = this.chosen(), seen = this.hovered ?? this.cursor, shown = [chosen, seen].filter(Boolean);
    this.over.replaceChildren(
      ...shown.flatMap((point) => bars(point, this.axes, this.state.methods)),
      ...(chosen ? [ring(chosen, this.axes, 9, 2)] : []), ...(seen && !same(seen, chosen) ? [ring(seen, this.axes, 8, 1)] : []));
    const lines = this.picture.querySelectorAll(".wb-lab-line");
    this.lines.forEach((line, i) => {
      const front = !seen || line.some((point) => same(point, seen));
      lines[i].setAttribute("opacity", front ? 1 : 0.3);
    });
    this.showTip(seen);
  }

  showTip(point) {
    this.tip.hidden = !point;
    if (!point) return;
    this.tip.textContent = this.tell(point).replaceAll("; ", "\n");
    const x = this.axes.x(point.x.mean) / SIZE.width, y = this.axes.y(point.y.mean) / SIZE.height;
    const box = this.picture.getBoundingClientRect();
    this.tip.style.left = x > 0.6 ? "auto" : `${x * box.width + 14}px`;
    this.tip.style.right = x > 0.6 ? `${Math.max(0, this.element.clientWidth - x * box.width) + 14}px` : "auto";
    this.tip.style.top = `${Math.max(0, y * box.height - 12)}px`;
  }
}

const clamp = (i, n) => Math.max(0, Math.min(n - 1, i));

// --- the drawing -------------------------------------------------------------------------------

/** The scales of both axes. `root` spreads small amounts of a metric that is never negative. */
export function axesOf(points, metrics, root) {
  const { left, right, top, bottom, width, height } = SIZE;
  const along = (name, rooted) => {
    const about = metrics[name], values = points.map((point) => point[name].mean);
    const within = about.unit.startsWith("fraction") ? [0, 1] : [];
    const [lo, hi] = span([...values, ...within]), even = rooted && lo >= 0;
    const pad = 0.04 * (hi - lo), from = even ? Math.max(0, lo - pad) : lo - pad;
    const scale = even ? (v) => Math.sqrt(Math.max(0, v)) : (v) => v;
    return { from, to: hi + pad, share: (v) => (scale(v) - scale(from)) / (scale(hi + pad) - scale(from)) };
  };
  const across = along("x", root), up = along("y", false);
  return {
    across, up,
    x: (value) => left + (width - left - right) * across.share(value),
    y: (value) => height - bottom - (height - top - bottom) * up.share(value),
  };
}

function drawing(state, lines, axes) {
  const { width, height } = SIZE;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", "font-family": "system-ui, sans-serif", "font-size": 11 });
  svg.append(...grid(state.metrics, axes));
  const few = lines.filter(([first]) => first.kind === "method").length <= NAMED;
  const base = state.points.find((point) => point.kind === "base");
  for (const line of lines) svg.append(drawnLine(line, axes, state.methods, few, base));
  return svg;
}

const ARROWS = { x: { higher: " → better", lower: " ← better" }, y: { higher: " ↑ better", lower: " ↓ better" } };

function grid(metrics, { across, up, x, y }) {
  const { left, right, top, bottom, width, height } = SIZE, faint = { stroke: "currentColor", "stroke-opacity": 0.14 }, out = [];
  for (const tick of ticks(up.from, up.to, 5)) {
    out.push(s("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), ...faint }), text(left - 6, y(tick) + 4, short(tick), "end"));
  }
  for (const tick of ticks(across.from, across.to, 6)) {
    out.push(s("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - bottom, ...faint }), text(x(tick), height - bottom + 15, short(tick), "middle"));
  }
  const called = (axis) => `${metrics[axis].name} (${metrics[axis].unit})${ARROWS[axis][metrics[axis].better] ?? ""}`;
  const side = text(0, 0, called("y"), "middle");
  side.setAttribute("transform", `translate(13,${(top + height - bottom) / 2}) rotate(-90)`);
  return [...out, text((left + width - right) / 2, height - 8, called("x"), "middle"), side];
}

/** Strength 0 is the baseline: a line starts there, or passes it from one sign to the other. */
export function throughBase(line, base) {
  if (!base) return line;
  return [...line.filter((point) => point.strength < 0), base, ...line.filter((point) => point.strength > 0)];
}

function drawnLine(line, axes, methods, few, base) {
  const [first] = line, last = line[line.length - 1], group = s("g", { class: "wb-lab-line" });
  const at = (point) => [axes.x(point.x.mean), axes.y(point.y.mean)];
  if (first.kind === "base" || first.kind === "prompting") {
    const [x, y] = at(first), { left, right, top, bottom, width, height } = SIZE;
    const faint = { stroke: "currentColor", "stroke-opacity": 0.45, "stroke-dasharray": "2 4" };
    if (first.kind === "base") group.append(s("line", { x1: left, x2: width - right, y1: y, y2: y, ...faint }), s("line", { x1: x, x2: x, y1: top, y2: height - bottom, ...faint }));
    group.append(landmark(first.kind, x, y), halo(x, y - 8, named(first), 9));
    return group;
  }
  const index = methods.indexOf(first.method), hollow = first.kind === "control";
  const path = throughBase(line, base).map((point, i) => `${i ? "L" : "M"}${at(point).map((v) => v.toFixed(1)).join(",")}`).join("");
  group.append(s("path", { d: path, fill: "none", stroke: colourOf(index), "stroke-width": hollow ? 1 : 1.8, "stroke-dasharray": hollow ? "2 3" : "", "stroke-opacity": hollow ? 0.7 : 0.9 }));
  for (const point of line) group.append(mark(index, ...at(point), { hollow }));
  if (few && !hollow && last.layer !== null) {
    const [x, y] = at(last);
    group.append(halo(x, y + 4, `L${last.layer}`, 7));
  }
  return group;
}

/** Both intervals of a point. */
function bars({ x, y, kind, method }, axes, methods) {
  const stroke = kind === "base" || kind === "prompting" ? "currentColor" : colourOf(methods.indexOf(method)), out = [];
  const [cx, cy] = [axes.x(x.mean), axes.y(y.mean)], { left, right, top, bottom, width, height } = SIZE;
  const across = (v) => Math.max(left, Math.min(width - right, axes.x(v))), up = (v) => Math.max(top, Math.min(height - bottom, axes.y(v)));
  const look = { stroke, "stroke-width": 2, "stroke-opacity": 0.85, class: "wb-lab-bar" };
  if (x.low !== null && x.high !== null) out.push(s("line", { x1: across(x.low), x2: across(x.high), y1: cy, y2: cy, ...look }));
  if (y.low !== null && y.high !== null) out.push(s("line", { x1: cx, x2: cx, y1: up(y.low), y2: up(y.high), ...look }));
  return out;
}

const ring = ({ x, y }, axes, r, width) => s("circle", { cx: axes.x(x.mean), cy: axes.y(y.mean), r, fill: "none", stroke: "currentColor", "stroke-width": width });

/** A name beside a mark, inside the picture, that stays legible over lines. */
function halo(x, y, name, gap) {
  const left = x > SIZE.width - 70;
  const node = text(left ? x - gap : x + gap, y, name, left ? "end" : "start");
  node.setAttribute("class", "wb-lab-name");
  return node;
}

function text(x, y, words, anchor) {
  const node = s("text", { x, y, "text-anchor": anchor, fill: "currentColor" });
  node.textContent = words;
  return node;
}
