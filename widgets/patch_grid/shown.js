// From a frame to what the grid paints and what an opened place says. No elements here.

import { short, visible } from "../js/dom.js";
import { layout, textWidth } from "../js/grid_canvas.js";
import { span, words } from "../js/intervals.js";
import { nearest } from "../js/nearest.js";

const LEAST = 30, NARROWEST = 10; // px; below the first a grid turns its column labels upright
const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
const bounded = (value, count) => Math.max(0, Math.min(count - 1, Number(value) || 0));
// a position is written with its token as Python writes a text
const tick = (text) => text.replace(/^(-?\d+) (['"])(.*)\2$/s, (_, at, _quote, token) => `${at.replace("-", "−")} ${visible(token)}`);

/** What the browser chose of a map: a measure, and an index of every axis before the last two. */
export function chosen(meta, view) {
  const panels = meta.axes.slice(0, -2).map((axis, i) => bounded(view?.panel?.[i], axis.labels.length));
  return { measure: bounded(view?.measure, meta.measures.length), panels };
}

/** Where the shown panel lies in arrays `[measure, ...axes]`, and its size. */
export function panelOf({ axes }, { measure, panels }) {
  const sizes = axes.map((axis) => axis.labels.length);
  const cols = sizes.at(-1), rows = sizes.length > 1 ? sizes.at(-2) : 1;
  let start = measure;
  sizes.slice(0, -2).forEach((size, i) => { start = start * size + panels[i]; });
  return { rows, cols, start: start * rows * cols };
}

/** The first label stands at the bottom, as a model is read. */
export const rowOf = (rows, down) => rows - 1 - down;

export const placeAt = ({ axes }, { panels }, rows, { row, col }) =>
  [...panels, ...(axes.length > 1 ? [rowOf(rows, row)] : []), col];

/** What `grid.paint` takes. */
export function picture(frame, meta, about, spec) {
  const { rows, cols, start } = panelOf(meta, about), { axes } = meta, measure = meta.measures[about.measure];
  const one = showsCase(frame, spec) ? frame.one.values : null;
  const at = (r, c) => start + rowOf(rows, r) * cols + c;
  const values = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) values[r * cols + c] = (one ?? frame.mean.values)[at(r, c)];
  const across = axes.at(-1), down = axes.length > 1 ? axes.at(-2) : { name: "", labels: [""], shown: [""] };
  const where = (r, c) => `${down.name} ${tick(down.shown[rowOf(rows, r)])}, ${across.name} ${tick(across.shown[c])}`.replace(/^[ ,]+/, "");
  const value = (r, c) => number(frame, one, at(r, c));
  const place = spec.place, n = axes.length, scale = scaleOf(values);
  const here = place && about.panels.every((p, i) => p === place[i]);
  return {
    rows: down.shown.map(tick).reverse(), cols: across.shown.map(tick),
    values: { shape: [rows, cols], values },
    texts: cols <= 60 ? (r, c) => brief(values[r * cols + c], scale) : null,
    scale, unit: `${measure.name}, ${measure.unit}${one ? `, case ${spec.case}` : ""}`,
    rowName: down.name, colName: across.name, cellWidth: 40, cellHeight: 21, textsAreValues: true,
    marks: (r, c) => here && c === place[n - 1] && (n === 1 || rowOf(rows, r) === place[n - 2]),
    chosen: here ? { row: n > 1 ? rowOf(rows, place[n - 2]) : 0, col: place[n - 1] } : {},
    say: (r, c) => `${where(r, c)}: ${measure.name} ${value(r, c)}`,
    tip: (r, c) => `${where(r, c)}\n${measure.name} ${value(r, c)}\n${one ? `case ${spec.case}` : `${frame.n.values[at(r, c)]} cases, 95 % interval`}`,
  };
}

/**
 * What `grid.paint` takes, its cells so narrow that all columns fit in `room` px: as narrow as the longest number,
 * or colours alone, which the mouse and the arrows read out.
 */
export function fitted(picture, room) {
  const { values: { shape: [rows, cols] }, texts } = picture;
  let longest = 0;
  for (let r = 0; texts && r < rows; r++) for (let c = 0; c < cols; c++) longest = Math.max(longest, texts(r, c).length);
  const need = Math.max(LEAST, textWidth(longest) - 4), usual = Math.max(picture.cellWidth, need);
  const { gutter } = layout({ ...picture, shape: [rows, cols] }, room, Infinity);
  const most = room ? Math.floor((room - gutter - 1) / cols) : Infinity;
  if (texts && need <= most) return { ...picture, cellWidth: usual <= most ? usual : need };
  return { ...picture, texts: null, cellWidth: Math.max(NARROWEST, Math.min(LEAST - 2, most)) };
}

/** A number as a narrow cell writes it: decimals that matter on this scale. */
export function brief(value, { lo, hi }) {
  if (!Number.isFinite(value)) return "";
  const most = Math.max(Math.abs(lo), Math.abs(hi));
  if (!most || most < 0.01 || most >= 1e4) return value ? short(value) : "0";
  const text = value.toFixed(most >= 100 ? 0 : most >= 10 ? 1 : most >= 0.1 ? 2 : 3);
  return Number(text) ? text.replace("-", "−") : "0";
}

/** Whether single values of the chosen case are there. */
export const showsCase = (frame, spec) => spec.case !== null && Boolean(frame.one) && frame.of.case === spec.case;

function number(frame, one, at) {
  return one ? short(one[at]) : words(frame.mean.values[at], frame.low.values[at], frame.high.values[at]);
}

/** Around 0 where values lie on both sides, else from the least to the greatest. */
export function scaleOf(values) {
  const [lo, hi] = span([...values]), least = Math.min(...[...values].filter(Number.isFinite)), most = Math.max(...[...values].filter(Number.isFinite));
  if (least < 0 && most > 0) return { kind: "diverging", lo: -Math.max(-least, most), hi: Math.max(-least, most) };
  return { kind: "sequential", lo, hi };
}

/** The place in words, and every measure there with its interval. */
export function placeWords(frame, meta, spec) {
  const sizes = meta.axes.map((axis) => axis.labels.length), size = sizes.reduce((a, b) => a * b, 1);
  const at = spec.place.reduce((sum, i, k) => sum * sizes[k] + i, 0), one = showsCase(frame, spec) ? frame.one.values : null;
  const numbers = meta.measures.map(({ name, unit }, m) => {
    const n = frame.n.values[m * size + at];
    return `${name} ${number(frame, one, m * size + at)} ${unit}${one ? "" : ` over ${n} case${n === 1 ? "" : "s"}`}`;
  });
  return { title: meta.axes.map((axis, i) => `${axis.name} ${tick(axis.shown[spec.place[i]])}`).join(", "), numbers };
}

/** The opened place, where it is the one that is asked for. */
export function openedOf(frame, spec) {
  const found = frame.opened;
  return found && same(frame.of.place, spec.place) && same(frame.of.case, spec.case) ? found : null;
}

/** What the columns are called. */
export function runNames({ runs, direction, unit }, strength) {
  const base = { denoising: "corrupted (base)", noising: "clean (base)" }[direction] ?? "clean (base)";
  const source = direction === "denoising" ? "clean (source)" : "corrupted (source)";
  const names = { base, source, corrupted: "corrupted", patched: "patched", edited: `edited × ${short(strength)}` };
  return runs.map((run) => names[run]);
}

/** What was patched, in a sentence. */
export function patchWords(found) {
  const said = [];
  const { clean, corrupted } = found.tokens_at;
  if (clean) said.push(`token ${list(clean)}${corrupted ? ` in the clean prompt, ${list(corrupted)} in the corrupted one` : ""}`);
  if (found.runs.includes("patched")) said.push(`${found.site}: ${found.direction === "denoising" ? "the clean run's value put into the corrupted run" : "the corrupted run's value put into the clean run"}`);
  else if (found.site) said.push(`edited at ${found.site}`);
  if (found.no_edit && !found.does_nothing) said.push(`no edit: ${found.no_edit}`);
  if (found.does_nothing) said.push("both runs have the same value here: the patch does nothing");
  if (found.left_out) said.push(`next tokens of the first ${found.cases} cases, ${found.left_out} are left out`);
  return said.join(". ");
}

const list = (texts) => (texts.length ? texts.map((text) => `“${visible(text)}”`).join(", ") : "none");

/** Rows beside the map's own number: its control, exact values. */
export const besideWords = (found) => found.beside.map((row) => `${row.of}: ${row.measure} ${words(row.mean, row.low, row.high)} ${row.unit}`);

/** The frame of a precomputed place and strength; else the page's own. */
export function picked(sweep, spec, base) {
  const own = base?.of;
  if (!base || own && same(own.place, spec.place) && same(own.case, spec.case) && own.strength === spec.strength) return base;
  const kept = keptAt(sweep, spec), i = nearest(sweep.grid, spec.strength);
  return { ...base, one: singleOf(sweep, spec.case), of: { ...spec, strength: kept ? sweep.grid[i] : spec.strength }, opened: kept ? kept[i] : null };
}

/** An opened place at every precomputed strength, or null. */
export const keptAt = (sweep, spec) => (sweep?.opened && spec.place && same(sweep.case, spec.case) ? sweep.opened[spec.place.join(",")] ?? null : null);

/** The values of one case among those that came with the page. */
function singleOf(sweep, index) {
  if (index === null || !sweep.cases) return undefined;
  const [n, ...shape] = sweep.cases.shape, size = sweep.cases.values.length / n;
  return { shape, values: sweep.cases.values.subarray(index * size, (index + 1) * size) };
}
