// From a frame to what the board, the list and an opened head show. No elements here.

import { pattern } from "../attention_view/shown.js";
import { short } from "../js/dom.js";
import { words } from "../js/intervals.js";
import { nearest } from "../js/nearest.js";
import { brief, scaleOf } from "../patch_grid/shown.js";

const LISTED = 80;
const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

export const scoreOf = (meta, view) => Math.max(0, Math.min(meta.scores.length - 1, Number(view?.score) || 0));

/** A head's number in a score. */
function at(frame, meta, score, layer, head) {
  const i = (score * meta.layers.length + layer) * meta.heads + head;
  return { mean: frame.mean.values[i], low: frame.low.values[i], high: frame.high.values[i], n: frame.n.values[i] };
}

const said = ({ mean, low, high }) => words(mean, low, high);

/** Heads across, layers down with the last on top. */
export function board(frame, meta, score, head) {
  const count = meta.layers.length, across = meta.heads, about = meta.scores[score];
  const of = (r, c) => at(frame, meta, score, count - 1 - r, c);
  const values = Float32Array.from({ length: count * across }, (_, i) => of(Math.floor(i / across), i % across).mean);
  const scale = scaleOf(values);
  return {
    rows: meta.layers.map(String).reverse(), cols: Array.from({ length: across }, (_, i) => String(i)),
    values: { shape: [count, across], values }, scale, unit: `${about.name}, ${about.unit}`,
    texts: (r, c) => brief(values[r * across + c], scale),
    rowName: "layer", colName: "head", cellWidth: 40, cellHeight: 21, textsAreValues: true,
    marks: (r, c) => Boolean(head) && count - 1 - r === head[0] && c === head[1],
    chosen: head ? { row: count - 1 - head[0], col: head[1] } : {},
    say: (r, c) => `layer ${count - 1 - r} head ${c}: ${said(of(r, c))} ${about.unit}`,
    tip: (r, c) => `layer ${count - 1 - r} head ${c}\n${said(of(r, c))} ${about.unit}\n95 % interval over ${of(r, c).n}`,
  };
}

/** All heads of a score, the largest absolute mean first; those without a number are left out. */
export function ranked(frame, meta, score) {
  const all = meta.layers.flatMap((layer) => Array.from({ length: meta.heads }, (_, head) => ({ layer, head, ...at(frame, meta, score, layer, head) })));
  return all.filter(({ mean }) => Number.isFinite(mean)).sort((a, b) => Math.abs(b.mean) - Math.abs(a.mean));
}

export const listed = (rows) => rows.slice(0, LISTED);

/** Every score of one head, and its rank in it. */
export function numbersOf(frame, meta, [layer, head]) {
  return meta.scores.map(({ name, unit }, score) => {
    const rank = ranked(frame, meta, score).findIndex((one) => one.layer === layer && one.head === head) + 1;
    return { name, unit, rank, value: said(at(frame, meta, score, layer, head)) };
  });
}

/** Whether what a frame opened is what is asked for. */
export const isOpen = (frame, spec) => Boolean(spec.head) && same(frame.of?.head, spec.head) && frame.of.prompt === spec.prompt;

/** What the pattern's grid paints, or null where it is not here. */
export function patternOf(frame, spec) {
  if (!isOpen(frame, spec) || !frame.pattern) return null;
  const [layer, head] = spec.head;
  return pattern({ base: frame.pattern.values }, { tab: "base", tokens: frame.tokens, layer, head, selection: {} });
}

export const runNames = (strength) => ["with the head", strength === 1 ? "without it" : `${short(strength)} of it taken away`];

/** The frame of a precomputed head and strength; else the page's own. */
export function picked(sweep, spec, base) {
  const own = base?.of;
  if (!base || own && same(own.head, spec.head) && own.prompt === spec.prompt && own.strength === spec.strength) return base;
  const kept = keptAt(sweep, spec), here = spec.head && spec.prompt === sweep.prompt;
  const i = nearest(sweep.grid, spec.strength);
  return {
    ...base, of: { ...spec, strength: kept ? sweep.grid[i] : spec.strength }, tokens: sweep.tokens,
    opened: kept ? kept[i] : null, pattern: here && sweep.patterns ? patternIn(sweep.patterns, spec.head) : null,
  };
}

/** An ablation at every precomputed strength, or null. */
export const keptAt = (sweep, spec) => (sweep?.opened && spec.head && spec.prompt === sweep.prompt ? sweep.opened[spec.head.join(",")] ?? null : null);

function patternIn({ shape: [, heads, n], values }, [layer, head]) {
  const start = (layer * heads + head) * n * n;
  return { shape: [n, n], values: Float32Array.from(values.subarray(start, start + n * n), (v) => v / 255) };
}

/** The share of the strongest value, and on which side of 0. */
export function warmth(value, rows) {
  const all = rows.flatMap((row) => row.values), most = Math.max(0, ...all), least = Math.min(0, ...all);
  if (!Number.isFinite(value) || value === 0) return { side: "none", share: 0 };
  return value > 0 ? { side: "hot", share: value / most } : { side: "cold", share: value / least };
}

/** The most active tokens for a file: a line for each token that is shown. */
export function activeTable(found) {
  const lines = (found?.rows ?? []).flatMap(({ prompt, at, before, pieces, values }) =>
    pieces.map((text, i) => [prompt, before + i, text, values[i], i === at ? 1 : 0]));
  return [["prompt", "token", "text", found?.unit ?? "activation", "strongest"], ...lines];
}
