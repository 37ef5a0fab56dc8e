// From a frame to what is drawn: a probe's lines, the colours of tokens, and where a score passes.

import { short, visible } from "../js/dom.js";

/** The lines there can be, with what they are called. */
export const LINES = { score: "score", smooth: "smoothed", running: "score so far" };

/** The lines of a probe that are drawn: a mean of one token is the token's own score. */
export function drawnOf(lines, about, window) {
  return (about.window ?? window) === 1 ? { ...lines, smooth: undefined } : lines;
}

/** Place and description of the probe that the spec names. */
export function probeOf(meta, spec) {
  const k = Math.max(0, meta.probes.findIndex((one) => one.name === spec.probe));
  return { k, about: meta.probes[k] };
}

/** What a line is called, by what the probe does. */
export function nameOf(line, about, window) {
  if (line === "smooth") return `mean of the last ${about.window ?? window}`;
  if (line === "running") return "score so far";
  return about.number ? "predicted number" : about.so_far ? "score so far" : "score of the token";
}

/** The largest and the smallest finite number of both sides' lines; the token that begins a sequence is about nothing. */
export function reach(sides, k, names) {
  const all = sides.filter(Boolean).flatMap((side) => names.flatMap((name) => (side.scores[k][name] ?? []).slice(side.skip)))
    .filter((v) => v !== null);
  return all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
}

/** @returns {import("../js/strip_tokens.js").Scale} around the threshold for classes, from least to most for numbers */
export function scaleOf(frame, k, about, line, threshold) {
  const [lo, hi] = reach([frame.base, frame.edited], k, [line]);
  if (about.number) return { kind: "sequential", lo, hi, unit: "predicted" };
  const most = Math.max(Math.abs(lo - threshold), Math.abs(hi - threshold)) || 1;
  return { kind: "diverging", lo: -most, hi: most, unit: threshold ? "from the threshold" : "score" };
}

export const probability = (score) => (score === null || score === undefined ? null : 1 / (1 + Math.exp(-score)));

/** Everything that is known of one token, in words. */
export function wordsOf(side, k, about, i) {
  const at = side.scores[k], said = [`${about.number ? "predicted" : "score"} ${short(at.score[i])}`];
  if (at.low) said.push(`quantiles ${short(at.low[i])} to ${short(at.high[i])}`);
  if (!about.number) said.push(`probability ${short(probability(at.score[i]))}`);
  if (at.smooth) said.push(`smoothed ${short(at.smooth[i])}`);
  if (at.running) said.push(`so far ${short(at.running[i])}`);
  return said.join(", ");
}

/** @returns {import("../js/strip_tokens.js").Token[]} */
export function tokensOf(side, k, about, line, threshold, changed = []) {
  const values = side?.scores[k][line] ?? side?.scores[k].score ?? [], off = about.number ? 0 : threshold;
  return (side?.tokens ?? []).map((text, i) => ({
    text, index: i, value: values[i] === null || values[i] === undefined ? null : values[i] - off, changed: changed[i] ?? false,
    title: `${i < side.n_prompt ? "prompt" : "generated"}, ${wordsOf(side, k, about, i)}`,
  }));
}

/** The first token at which the score so far is at or above the threshold; -1 for never. */
export function passedAt(side, k, threshold) {
  const found = side.scores[k].running ?? side.scores[k].score;
  return found.findIndex((v) => v !== null && v >= threshold);
}

/** Where one side ends, and where it passes the threshold. */
export function verdict(side, k, about, threshold) {
  const at = side.scores[k], last = (at.running ?? at.smooth ?? at.score).at(-1);
  const ends = `ends at ${short(last)}`;
  if (about.number) return ends;
  const i = passedAt(side, k, threshold);
  const where = i < 0 ? "never passes the threshold" : `passes the threshold at token ${i} “${visible(side.tokens[i])}”`;
  return `${ends}, ${where}`;
}

/** Which generated tokens differ from those at the same place of the other side, once it has ended. */
export function differing(frame, side) {
  const { base, edited } = frame;
  if (!edited || !base) return [];
  const a = frame[side].ids, b = frame[side === "base" ? "edited" : "base"];
  return a.map((id, i) => (i < b.ids.length ? b.ids[i] !== id : b.stop !== ""));
}

/** Strengths that a page without a kernel can show for this spec, or null. */
export function settingsOf(sweep, spec) {
  return sweep?.grid?.length && rest(spec) === rest(sweep.of) ? sweep.grid : null;
}

/** All that a sweep of strengths takes as given; every probe is in it, but a direction is that of one. */
function rest(spec) {
  return JSON.stringify(["prompt", "edit", "scope", "window", "max_new_tokens"].map((name) => spec[name])
    .concat(spec.edit === "probe" ? [spec.probe] : []));
}

/** What is written, in words; "" for nothing. */
export function written(of, meta) {
  if (!of || of.edit === "none" || !of.strength) return "";
  if (of.edit === "probe") return `direction of ${of.probe} × ${short(of.strength)}${of.scope === "all" ? "" : `, ${of.scope}`}`;
  return `${meta.edits[Number(of.edit)].name} × ${short(of.strength)}`;
}

/** One line per probe, side and token. */
export function tableOf(frame, meta) {
  const rows = [["probe", "side", "position", "id", "token", "part", "score", "smoothed", "score so far", "probability", "low", "high"]];
  meta.probes.forEach((about, k) => {
    for (const name of ["base", "edited"]) {
      const side = frame[name];
      side?.tokens.forEach((text, i) => {
        const at = side.scores[k];
        rows.push([about.name, name, i, side.ids[i], text, i < side.n_prompt ? "prompt" : "generated", at.score[i], at.smooth?.[i], at.running?.[i],
          about.number ? null : probability(at.score[i]), at.low?.[i], at.high?.[i]]);
      });
    }
  });
  return rows;
}
