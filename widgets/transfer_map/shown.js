// From a frame to what the grid, the scatter and the panel show. No elements here.

import { short } from "../js/dom.js";
import { textWidth, layout } from "../js/grid_canvas.js";
import { words } from "../js/intervals.js";
import { brief, scaleOf } from "../patch_grid/shown.js";

export const COLOURS = ["forecast", "measured change", "difference of ranks"];
const NARROWEST = 12; // px
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** What the browser chose: which numbers colour the grid, and whether all sources are plotted together. */
export function chosen(meta, view) {
  const colour = Math.max(0, Math.min(2, Number(view?.colour) || 0));
  return { colour: meta.measured ? colour : 0, pooled: Boolean(view?.pooled) };
}

/** One pair's numbers; null where there is none. */
export function pairOf(frame, meta, source, target) {
  const at = source * meta.targets.length + target;
  const read = (name) => { const value = frame[name].values[at]; return known(value) ? value : null; };
  return {
    source, target, score: read("score"), low: read("score_low"), high: read("score_high"),
    randomLow: read("random_low"), randomHigh: read("random_high"),
    change: read("change"), changeLow: read("change_low"), changeHigh: read("change_high"), ranks: read("ranks"),
  };
}

/** A change of a fraction in points: `+12.5`. */
export function points(value) {
  if (!known(value)) return "–";
  const text = Math.abs(100 * value).toFixed(1).replace(/\.0$/, "");
  return text === "0" ? "0" : `${value > 0 ? "+" : "−"}${text}`;
}

export function pointsWords(mean, low, high) {
  return known(low) && known(high) ? `${points(mean)} [${points(low)}, ${points(high)}]` : points(mean);
}

/** What a pair says, for the eye and the ear; a line per part. */
export function pairWords(frame, meta, source, target) {
  const pair = pairOf(frame, meta, source, target), out = [`${meta.sources[source]} → ${meta.targets[target]}`];
  out.push(`forecast ${words(pair.score, pair.low, pair.high)} ${meta.unit}`.trim());
  if (known(pair.randomLow)) out.push(`as many random features ${short(pair.randomLow)} to ${short(pair.randomHigh)}`);
  if (!meta.measured) return out;
  out.push(known(pair.change) ? `measured change ${pointsWords(pair.change, pair.changeLow, pair.changeHigh)} points` : "change not measured");
  if (known(pair.ranks)) out.push(pair.ranks === 0 ? "forecast and measurement give it the same rank" : `the forecast ranks it ${places(Math.abs(pair.ranks))} ${pair.ranks > 0 ? "higher" : "lower"} than the measurement`);
  return out;
}

const places = (n) => `${Number(n.toFixed(1))} place${n === 1 ? "" : "s"}`;

/** What `grid.paint` takes, its cells as wide as `room` px allow. */
export function picture(frame, meta, about, spec, room) {
  const name = ["score", "change", "ranks"][about.colour], shape = [meta.sources.length, meta.targets.length];
  const factor = name === "change" ? 100 : 1, values = Float32Array.from(frame[name].values, (value) => factor * value);
  const scale = scaleOf(values), at = (r, c) => values[r * shape[1] + c];
  const unit = [`forecast score${meta.unit ? `, ${meta.unit}` : ""}`, "measured change of accuracy, points",
    "ranks that the forecast puts a target above its measured place"][about.colour];
  const signed = (text, value) => (name !== "score" && value > 0 ? `+${text}` : text);
  return fitted({
    rows: meta.sources, cols: meta.targets, values: { shape, values }, scale, unit, rowName: "source", colName: "target",
    texts: (r, c) => (known(at(r, c)) ? signed(name === "score" ? brief(at(r, c), scale) : trimmed(at(r, c)), at(r, c)) : ""),
    cellHeight: 22, textsAreValues: true,
    marks: (r, c) => r === spec.source && c === spec.target,
    chosen: { row: spec.source, col: spec.target ?? -1 },
    say: (r, c) => pairWords(frame, meta, r, c).join("; "), tip: (r, c) => pairWords(frame, meta, r, c).join("\n"),
  }, room);
}

const trimmed = (value) => (Math.abs(value) >= 10 ? value.toFixed(0) : value.toFixed(1).replace(/\.0$/, "")).replace(/^-0$/, "0").replace("-", "−");

/** Cells with room for their numbers where they fit, labels upright where cells are narrower than these. */
export function fitted(given, room) {
  const { values: { shape: [rows, cols] }, texts } = given;
  let longest = 0;
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) longest = Math.max(longest, texts(r, c).length);
  const label = textWidth(given.cols.reduce((most, text) => Math.max(most, text.length), 0)) - 4;
  const need = Math.max(26, textWidth(longest) - 3);
  const { gutter } = layout({ ...given, cellWidth: need, shape: [rows, cols] }, 1e6, 1e6);
  const most = room ? Math.floor((room - gutter - 1) / (cols || 1)) : Infinity;
  if (need > most) return { ...given, texts: null, upright: true, cellWidth: Math.max(NARROWEST, most) };
  const wide = Math.max(need, label);
  return wide <= Math.min(most, 64) ? { ...given, cellWidth: wide, upright: false } : { ...given, cellWidth: Math.min(most, need + 4), upright: true };
}

/** Points of the scatter: score against the size of the measured change, of one source or of all. */
export function pointsOf(frame, meta, spec, pooled) {
  const out = [];
  meta.sources.forEach((source, s) => {
    if (!pooled && s !== spec.source) return;
    meta.targets.forEach((target, t) => {
      const pair = pairOf(frame, meta, s, t);
      if (!known(pair.score) || !known(pair.change)) return;
      const [low, high] = sizes(pair);
      out.push({ ...pair, name: pooled ? `${source} → ${target}` : target, label: target, own: source === target,
        x: { mean: pair.score, low: pair.low, high: pair.high }, y: { mean: 100 * Math.abs(pair.change), low, high } });
    });
  });
  return out.sort((a, b) => a.x.mean - b.x.mean);
}

/** The interval of a change as one of its size: from 0 where it holds both signs. */
function sizes({ changeLow: low, changeHigh: high }) {
  if (!known(low) || !known(high)) return [null, null];
  const ends = [100 * Math.abs(low), 100 * Math.abs(high)];
  return [low < 0 && high > 0 ? 0 : Math.min(...ends), Math.max(...ends)];
}

/** The opened pair, where it is the one that is asked for. */
export function openedOf(frame, spec) {
  const found = frame.opened;
  return found && spec.target !== null && found.source === spec.source && found.target === spec.target ? found : null;
}

/** The frame of a spec in a page without a kernel. */
export function picked(sweep, spec, saved) {
  if (!saved) return null;
  const pair = spec.target === null ? null : sweep.pairs[`${spec.source},${spec.target}`];
  if (!pair) return saved;
  const ids = pair.contributions.map(({ feature }) => feature);
  const features = Object.fromEntries(ids.map((id) => [id, sweep.features[id]]).filter(([, about]) => about));
  return { ...saved, of: spec, opened: { ...pair, features } };
}

/** Which of the listed features is looked at: the chosen one, else the first. */
export function featureOf(found, spec) {
  const ids = found.contributions.map(({ feature }) => feature);
  return ids.includes(spec.feature) ? spec.feature : ids[0] ?? null;
}

/** Every number as a table: a line per pair. */
export function rows(frame, meta) {
  const head = ["source", "target", "forecast", "forecast low", "forecast high", "random low", "random high",
    "measured change (fraction)", "change low", "change high", "difference of ranks"];
  return [head, ...meta.sources.flatMap((source, s) => meta.targets.map((target, t) => {
    const pair = pairOf(frame, meta, s, t);
    return [source, target, pair.score, pair.low, pair.high, pair.randomLow, pair.randomHigh, pair.change, pair.changeLow, pair.changeHigh, pair.ranks];
  }))];
}
