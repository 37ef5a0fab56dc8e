// From a frame to what the two grids paint. No elements here.

import { short, visible } from "../js/dom.js";
import { isOwn, placeIn, settingOf } from "../js/sides.js";

export const STATISTICS = {
  entropy: "entropy, nats",
  first: "attention to the first token",
  previous: "attention to the token before",
  distance: "mean distance looked back, tokens",
};
const PLACES = Object.keys(STATISTICS);

const minus = (a, b) => a.map((value, i) => value - b[i]);
const decimals = (value) => (Number.isNaN(value) ? "–" : value.toFixed(2).replace("-", "−"));
const most = (values) => values.reduce((m, v) => Math.max(m, Math.abs(v) || 0), 0);

/** Heads across, layers down with the last on top. */
export function overview(frame, { tab, statistic, layers, heads, selection }) {
  const count = layers.length, size = count * heads, from = PLACES.indexOf(statistic) * size;
  const of = (side) => frame[side].values.subarray(from, from + size);
  const apart = tab === "difference" && frame.edited;
  const plain = apart ? minus(of("edited"), of("base")) : of(tab === "base" || !frame.edited ? "base" : "edited");
  const values = new Float32Array(size);
  for (let r = 0; r < count; r++) values.set(plain.subarray((count - 1 - r) * heads, (count - r) * heads), r * heads);
  const all = [of("base"), frame.edited ? of("edited") : of("base")];
  const bound = statistic === "first" || statistic === "previous" ? 1 : Math.max(...all.map(most)) || 1;
  const layerOf = (row) => layers[count - 1 - row];
  return {
    rows: layers.map(String).reverse(),
    cols: Array.from({ length: heads }, (_, i) => String(i)),
    values: { shape: [count, heads], values },
    texts: (r, c) => decimals(values[r * heads + c]),
    scale: apart ? { kind: "diverging", lo: -(most(values) || 1), hi: most(values) || 1 } : { kind: "sequential", lo: 0, hi: bound },
    unit: (apart ? "edited − base: " : "") + STATISTICS[statistic],
    rowName: "layer", colName: "head", cellWidth: 46, cellHeight: 20,
    marks: (r, c) => layerOf(r) === selection.layer && c === selection.head,
    chosen: { row: count - 1 - layers.indexOf(selection.layer), col: selection.head },
    say: (r, c) => `layer ${layerOf(r)} head ${c}: ${short(values[r * heads + c])}`,
  };
}

/** A head's pattern: queries down, keys across; what a query cannot see has no colour. */
export function pattern(sides, { tab, tokens, layer, head, selection }) {
  const apart = tab === "difference" && sides.edited;
  const plain = tab === "base" || !sides.edited ? sides.base : sides.edited;
  const found = Float32Array.from(apart ? minus(sides.edited, sides.base) : plain), n = tokens.length;
  for (let q = 0; q < n; q++) found.fill(NaN, q * n + q + 1, (q + 1) * n);
  const labels = tokens.map(visible);
  const bound = most(found) || 1;
  return {
    rows: labels, cols: labels,
    values: { shape: [n, n], values: found },
    scale: apart ? { kind: "diverging", lo: -bound, hi: bound } : { kind: "sequential", lo: 0, hi: 1 },
    unit: `${apart ? "edited − base: " : ""}attention weight, layer ${layer} head ${head}`,
    rowName: "query", colName: "key", cellHeight: n <= 40 ? 16 : 12, cellWidth: n <= 40 ? 16 : 12,
    chosen: { row: selection.token, col: selection.token },
    say: (q, k) => `query ${q} “${labels[q]}”, key ${k} “${labels[k]}”: ${k > q ? "not seen" : short(found[q * n + k])}`,
  };
}

/** The frame of a precomputed strength; else the page's own. */
export function picked(sweep, spec, base) {
  const i = !base || !sweep.edited || isOwn(base, spec) ? -1 : placeIn(sweep, spec);
  if (i < 0) return base;
  const size = base.base.values.length, values = sweep.edited.values.subarray(i * size, (i + 1) * size);
  return { ...base, of: settingOf(sweep, i, spec), edited: { shape: base.base.shape, values } };
}

/** A head's pattern among precomputed ones, or null where the shown side's was not kept. */
export function keptPattern(sweep, spec, { layer, head, heads, tokens, tab }, base) {
  if (!sweep?.base_patterns) return null;
  const n = tokens * tokens, at = layer * heads + head;
  const read = (array, setting) => {
    const start = (setting * (array.values.length / settings(array)) + at * n) | 0;
    return Float32Array.from(array.values.subarray(start, start + n), (v) => v / 255);
  };
  const settings = (array) => (array.shape.length === 5 ? array.shape[0] : 1);
  const found = { base: read(sweep.base_patterns, 0) };
  if (!sweep.edited_patterns) return found;
  const i = placeIn(sweep, spec);
  // the page's own heads may be at a strength between two settings
  const kept = i >= 0 && (!isOwn(base, spec) || sweep.grid[i] === spec.strengths[0]);
  if (!kept) return tab === "base" ? found : null;
  return { ...found, edited: read(sweep.edited_patterns, i) };
}
