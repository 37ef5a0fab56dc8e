// What the frame of a lab holds at a point, along a line, and as a table.

const number = (value) => (value === undefined || value === null || Number.isNaN(value) ? null : value);
const NAMES = ["mean", "low", "high", "difference", "difference_low", "difference_high", "p"];

/** A point is an edit: a method's, or its control. */
export const isEdit = (point) => point.kind === "method" || point.kind === "control";

/** Whether two points are one setting. */
export function same(a, b) {
  return Boolean(a && b) && ["kind", "method", "layer", "strength"].every((name) => (a[name] ?? null) === (b[name] ?? null));
}

/** Every computed point, with its place in the frame's arrays. */
export function pointsOf(frame) {
  const { kind, method, layer, strength } = frame.points;
  return kind.map((_, i) => ({ i, kind: kind[i], method: method[i], layer: layer[i], strength: strength[i] }));
}

/** Whether the chosen methods, layers and marks let a point (or a line of them) be seen. */
export function wanted(point, spec, meta) {
  if (!isEdit(point)) return true;
  if (point.kind === "control" && !spec.controls) return false;
  // a method that takes no layer is its whole edit, in every choice of layers
  const whole = point.layer === null && !meta.layers.includes(null);
  return spec.methods.includes(point.method) && (whole || spec.layers.includes(point.layer));
}

/** A metric at a point. */
export function figureOf(frame, metric, i) {
  const count = frame.points.kind.length, at = (name) => number(frame[name].values[metric * count + i]);
  const [mean, low, high, difference, differenceLow, differenceHigh, p] = NAMES.map(at);
  return { mean, low, high, difference, differenceLow, differenceHigh, p, differs: Boolean(at("differs")) };
}

/** Points to draw, each with its two figures; those without both numbers are left out. */
export function drawnOf(frame, spec, meta) {
  return pointsOf(frame).filter((point) => wanted(point, spec, meta))
    .map((point) => ({ ...point, x: figureOf(frame, spec.x, point.i), y: figureOf(frame, spec.y, point.i) }))
    .filter(({ x, y }) => x.mean !== null && y.mean !== null);
}

const lineKey = ({ kind, method, layer }) => JSON.stringify([kind, method, layer]);

/** Points joined along strength, a line for each method, layer and kind. */
export function linesOf(points) {
  const found = new Map();
  for (const point of points) {
    const key = lineKey(point);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(point);
  }
  return [...found.values()].map((line) => line.sort((a, b) => a.strength - b.strength));
}

/** How much of the chosen methods and layers is there. */
export function countOf(frame, spec, meta) {
  const lines = frame.lines.filter((line) => wanted(line.of, { ...spec, controls: true }, meta));
  return { done: sum(lines, "done"), total: sum(lines, "total") };
}

const sum = (lines, name) => lines.reduce((all, line) => all + line[name], 0);

/** Failed settings in words, those of one reason together. */
export function failuresOf(frame, spec, meta) {
  const points = pointsOf(frame);
  return frame.errors.flatMap(([words, places]) => {
    const seen = places.map((i) => points[i]).filter((point) => wanted(point, spec, meta));
    if (!seen.length) return [];
    const methods = [...new Set(seen.map((point) => point.method))].join(", ");
    return [`${methods}, ${seen.length} setting${seen.length === 1 ? "" : "s"}: ${words}`];
  });
}

const plain = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

/** A point in words. */
export function named(point) {
  if (!isEdit(point)) return point.kind === "base" ? "baseline" : "prompting";
  return [point.method, point.layer === null ? "" : `layer ${point.layer}`, `strength ${plain(point.strength)}`,
    point.kind === "control" ? "random direction" : ""].filter(Boolean).join(", ");
}

/** The edit of a point as Python, and the unit of its strength; null where it is none or was not fitted. */
export function recipeOf(frame, point) {
  const found = isEdit(point) && frame.recipes.find(([method, layer]) => method === point.method && layer === point.layer);
  if (!found) return null;
  const fit = `${found[2]}.at(${Number.isInteger(point.strength) ? `${point.strength}.0` : point.strength})`;
  return { unit: found[3], code: point.kind === "control" ? null : fit };
}

/** Where the point's continuations and the baseline's begin among the frame's texts, or null. */
export function textsOf(frame, point) {
  const base = frame.slots[frame.points.kind.indexOf("base")] ?? -1, own = frame.slots[point.i] ?? -1;
  return own < 0 || base < 0 || !frame.kept ? null : { frame, kept: frame.kept, base: base * frame.kept, other: own * frame.kept };
}

/** Every computed number, a line per setting and metric. */
export function rows(frame, meta) {
  const out = [["kind", "method", "layer", "strength", "metric", "unit", ...NAMES]];
  for (const point of pointsOf(frame)) {
    meta.metrics.forEach((about, m) => {
      const { mean, low, high, difference, differenceLow, differenceHigh, p } = figureOf(frame, m, point.i);
      if (mean !== null) out.push([point.kind, point.method, point.layer, point.strength, about.name, about.unit, mean, low, high, difference, differenceLow, differenceHigh, p]);
    });
  }
  return out;
}
