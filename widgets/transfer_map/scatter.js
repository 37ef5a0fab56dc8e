// Forecast against the size of the measured change: a point per target, named where there is room.
// One tab stop; the arrows walk from point to point along the forecast.

import { h, s } from "../js/dom.js";
import { fileOf, span, ticks, words } from "../js/intervals.js";

const plain = (tick) => String(tick).replace("-", "−");
const SIZE = { width: 460, height: 300, left: 46, right: 14, top: 12, bottom: 40 };
const NEAR_PX = 20, ADVANCE = 6.1, LETTER = 11;
const HELP = "Left and right arrows: from point to point. Enter: open the pair.";

/**
 * @param {import("../js/base.js").View} view
 * @param {{onSelect: (point: any) => void}} options
 *
 * `paint` takes {points: as `pointsOf` gives them, unit, title, chosen: {source, target}, pooled}.
 */
export function scatter(view, { onSelect }) {
  return new Scatter(view, onSelect);
}

class Scatter {
  constructor(view, onSelect) {
    Object.assign(this, { view, onSelect, state: null, cursor: null, hovered: null });
    this.box = h("div", { class: "wb-scatter", tabindex: 0, role: "application", "aria-roledescription": "scatter plot" });
    this.tip = h("div", { class: "wb-scatter-tip", hidden: true });
    this.said = h("span", { class: "wb-sr", "aria-live": "polite" });
    this.element = h("div", { class: "wb-scatter-all" }, this.box, this.tip, this.said);
    view.listen(this.box, "mousemove", (event) => this.hover(this.under(event)));
    view.listen(this.box, "mouseleave", () => this.hover(null));
    view.listen(this.box, "click", (event) => this.pick(this.under(event)));
    view.listen(this.box, "keydown", (event) => this.press(event));
    view.listen(this.box, "blur", () => { this.cursor = null; this.look(); });
  }

  paint(state) {
    this.state = state;
    this.hovered = this.cursor = null;
    this.axes = axesOf(state.points);
    this.named = drawing(state, this.axes);
    this.picture = this.named.svg;
    this.over = s("g", { "pointer-events": "none" });
    this.picture.append(this.over);
    this.box.setAttribute("aria-label", `${state.title}. ${state.points.map(tell).join(". ")}. ${HELP}`);
    this.box.replaceChildren(this.picture);
    this.look();
  }

  svg() { return this.picture ? fileOf(this.picture) : ""; }

  under(event) {
    const box = this.picture?.getBoundingClientRect();
    if (!box?.width) return null;
    const scale = SIZE.width / box.width, x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = (NEAR_PX * scale) ** 2;
    for (const point of this.state.points) {
      const away = (this.axes.x(point.x.mean) - x) ** 2 + (this.axes.y(point.y.mean) - y) ** 2;
      if (away < least) [best, least] = [point, away];
    }
    return best;
  }

  hover(point) {
    if (point === this.hovered) return;
    this.hovered = point;
    this.look();
  }

  pick(point) { if (point) this.onSelect(point); }

  press(event) {
    const all = this.state?.points ?? [];
    if (event.ctrlKey || event.metaKey || event.altKey || !all.length) return;
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined) {
      const from = this.cursor ?? this.chosen(), at = all.indexOf(from);
      this.cursor = all[at < 0 ? 0 : Math.max(0, Math.min(all.length - 1, at + step))];
      this.said.textContent = tell(this.cursor);
      this.look();
    } else if (event.key === "Enter" || event.key === " ") this.pick(this.cursor ?? this.chosen() ?? all[0]);
    else return;
    event.preventDefault();
  }

  chosen() {
    const { points, chosen } = this.state;
    return points.find((point) => point.source === chosen.source && point.target === chosen.target) ?? null;
  }

  /** Show what is pointed at: both intervals and its words. */
  look() {
    if (!this.picture) return;
    const chosen = this.chosen(), seen = this.hovered ?? this.cursor, shown = [...new Set([chosen, seen].filter(Boolean))];
    this.over.replaceChildren(...shown.flatMap((point) => [...bars(point, this.axes), ring(point, this.axes, point === chosen)]));
    this.tip.hidden = !seen;
    if (!seen) return;
    this.tip.textContent = tell(seen).replaceAll("; ", "\n");
    const box = this.picture.getBoundingClientRect(), x = this.axes.x(seen.x.mean) / SIZE.width, y = this.axes.y(seen.y.mean) / SIZE.height;
    this.tip.style.left = x > 0.55 ? "auto" : `${x * box.width + 14}px`;
    this.tip.style.right = x > 0.55 ? `${Math.max(0, this.element.clientWidth - x * box.width) + 14}px` : "auto";
    this.tip.style.top = `${Math.max(0, y * box.height - 12)}px`;
  }
}

const tell = ({ name, own, x, y }) =>
  `${name}${own ? " (the source itself)" : ""}; forecast ${words(x.mean, x.low, x.high)}; change of ${words(y.mean, y.low, y.high)} points`;

// --- the drawing -------------------------------------------------------------------------------

/** Scales over the points; intervals may leave the picture, the points do not. */
export function axesOf(points) {
  const { left, right, top, bottom, width, height } = SIZE;
  const along = (name, least) => {
    const [lo, hi] = span([...points.map((point) => point[name].mean), ...least]), pad = 0.06 * (hi - lo);
    return { lo: least.length && lo >= 0 ? 0 : lo - pad, hi: hi + pad };
  };
  const across = along("x", []), up = along("y", [0]);
  return {
    across, up,
    x: (value) => left + ((width - left - right) * (value - across.lo)) / (across.hi - across.lo),
    y: (value) => height - bottom - ((height - top - bottom) * (value - up.lo)) / (up.hi - up.lo),
  };
}

function drawing({ points, unit, pooled, chosen }, axes) {
  const { width, height } = SIZE;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", "font-family": "system-ui, sans-serif", "font-size": LETTER });
  svg.append(...frame(axes, unit));
  const front = (point) => !pooled || point.source === chosen.source;
  for (const point of [...points].sort((a, b) => front(a) - front(b))) svg.append(mark(point, axes, front(point)));
  const names = placed(points.filter(front), axes, points);
  svg.append(...names.map(({ point, x, y, anchor }) => label(x, y, point.label, anchor, "wb-scatter-name")));
  return { svg, names };
}

function frame({ across, up, x, y }, unit) {
  const { left, right, top, bottom, width, height } = SIZE, faint = { stroke: "currentColor", "stroke-opacity": 0.14 }, out = [];
  for (const tick of ticks(up.lo, up.hi, 5)) {
    out.push(s("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), ...faint }), label(left - 6, y(tick) + 4, plain(tick), "end"));
  }
  for (const tick of ticks(across.lo, across.hi, 5)) {
    out.push(s("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - bottom, ...faint }), label(x(tick), height - bottom + 15, plain(tick), "middle"));
  }
  const side = label(0, 0, "size of the measured change, points", "middle");
  side.setAttribute("transform", `translate(12,${(top + height - bottom) / 2}) rotate(-90)`);
  return [...out, side, label((left + width - right) / 2, height - 8, `forecast score${unit ? `, ${unit}` : ""}`, "middle")];
}

/** The source itself is a square: its own gain is no transfer. */
function mark({ x: across, y: up, own }, axes, front) {
  const x = axes.x(across.mean), y = axes.y(up.mean);
  const look = front ? { class: own ? "wb-scatter-own" : "wb-scatter-other", fill: own ? "#d55e00" : "#0072b2", stroke: "currentColor", "stroke-width": 0.7 }
    : { fill: "none", stroke: "currentColor", "stroke-opacity": 0.45 };
  return own ? s("rect", { x: x - 4, y: y - 4, width: 8, height: 8, ...look }) : s("circle", { cx: x, cy: y, r: front ? 4.5 : 3.2, ...look });
}

/** Names beside their points, each where it covers no point and no other name; left out where it has no room. */
export function placed(named, axes, all) {
  const boxes = all.map((point) => around(axes.x(point.x.mean), axes.y(point.y.mean), 5)), out = [];
  for (const point of named) {
    const x = axes.x(point.x.mean), y = axes.y(point.y.mean), wide = ADVANCE * point.label.length;
    const tries = [[x + 11, y + 4, "start"], [x - 11, y + 4, "end"], [x, y - 11, "middle"], [x, y + 19, "middle"], [x + 7, y - 6, "start"], [x + 7, y + 13, "start"], [x - 7, y - 6, "end"], [x - 7, y + 13, "end"]];
    for (const [left, base, anchor] of tries) {
      const from = anchor === "start" ? left : anchor === "end" ? left - wide : left - wide / 2;
      const box = { x0: from, x1: from + wide, y0: base - 9, y1: base + 2 };
      const own = boxes[all.indexOf(point)];
      if (!inside(box) || boxes.some((other) => other !== own && meet(box, other))) continue;
      boxes.push(box);
      out.push({ point, x: left, y: base, anchor });
      break;
    }
  }
  return out;
}

const around = (x, y, r) => ({ x0: x - r, x1: x + r, y0: y - r, y1: y + r });
const meet = (a, b) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
const inside = (box) => box.x0 > SIZE.left && box.x1 < SIZE.width && box.y0 > 0 && box.y1 < SIZE.height - SIZE.bottom;

function bars({ x, y }, axes) {
  const { left, right, top, bottom, width, height } = SIZE, cx = axes.x(x.mean), cy = axes.y(y.mean), out = [];
  const across = (v) => Math.max(left, Math.min(width - right, axes.x(v))), up = (v) => Math.max(top, Math.min(height - bottom, axes.y(v)));
  const look = { stroke: "currentColor", "stroke-width": 1.6, "stroke-opacity": 0.75 };
  if (x.low !== null && x.high !== null) out.push(s("line", { x1: across(x.low), x2: across(x.high), y1: cy, y2: cy, ...look }));
  if (y.low !== null && y.high !== null) out.push(s("line", { x1: cx, x2: cx, y1: up(y.low), y2: up(y.high), ...look }));
  return out;
}

const ring = ({ x, y }, axes, chosen) => s("circle", { cx: axes.x(x.mean), cy: axes.y(y.mean), r: 8, fill: "none", stroke: "currentColor", "stroke-width": chosen ? 2 : 1 });

function label(x, y, words_, anchor, kind = null) {
  const node = s("text", { x, y, "text-anchor": anchor, fill: "currentColor", class: kind });
  node.textContent = words_;
  return node;
}
