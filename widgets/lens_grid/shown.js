// From a frame to what the grid paints: which numbers, texts, colours and words. No elements here.

import { short, visible } from "../js/dom.js";
import { isOwn, placeIn, settingOf } from "../js/sides.js";

export const STATISTICS = {
  p: "probability of the first choice",
  rank: "rank of the model's own choice",
  kl: "KL to the model's own distribution, nats",
  entropy: "entropy, nats",
};
const PLACES = Object.keys(STATISTICS);

/** One side of a frame. Everything is lowest layer first here; the grid draws the last on top. */
export function side(frame, name) {
  const { shape: [layers, tokens, k], values: top } = frame[`${name}_top`];
  const words = frame[`${name}_words`] ?? frame.words;
  const p = frame[`${name}_top_p`].values, statistics = frame[`${name}_statistics`].values;
  return {
    layers, tokens,
    first: (layer, token) => words[top[(layer * tokens + token) * k]],
    choices: (layer, token) => Array.from({ length: k }, (_, i) => {
      const at = (layer * tokens + token) * k + i;
      return { text: words[top[at]], p: p[at] };
    }),
    of: (statistic, layer, token) => statistics[(PLACES.indexOf(statistic) * layers + layer) * tokens + token],
  };
}

/** The least of 1, 2, 5 times a power of ten that is not below. */
export function rounded(value) {
  if (!(value > 0) || !Number.isFinite(value)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((one) => one >= value * 0.999999);
}

/** What `grid.paint` takes. */
export function shown(frame, { tab, statistic, layers, tokens, selection }) {
  const base = side(frame, "base"), edited = frame.edited_top ? side(frame, "edited") : null;
  const one = tab === "base" || !edited ? base : edited;
  const apart = tab === "difference" && edited;
  const count = layers.length, layerOf = (row) => count - 1 - row;
  const value = apart ? (l, t) => change(statistic, base.of(statistic, l, t), edited.of(statistic, l, t)) : (l, t) => one.of(statistic, l, t);
  const values = new Float32Array(count * tokens.length);
  for (let r = 0; r < count; r++) for (let t = 0; t < tokens.length; t++) values[r * tokens.length + t] = value(layerOf(r), t);
  const text = (r, t) => {
    const l = layerOf(r);
    return apart && base.first(l, t) === edited.first(l, t) ? "" : visible(one.first(l, t));
  };
  return {
    rows: layers.map(String).reverse(),
    cols: tokens.map(visible),
    values: { shape: [count, tokens.length], values },
    texts: text,
    scale: apart ? signed(values) : scaleOf(statistic, base, edited),
    unit: apart ? `edited − base: ${statistic === "rank" ? "log10 of the rank" : STATISTICS[statistic]}` : STATISTICS[statistic],
    rowName: "layer",
    colName: "token",
    marks: (r, t) => t === selection.token && layers[layerOf(r)] === selection.layer,
    chosen: { row: count - 1 - layers.indexOf(selection.layer), col: selection.token },
    tip: (r, t) => hover(layers[layerOf(r)], layerOf(r), t, tokens, apart ? [["base", base], ["edited", edited]] : [["", one]]),
    say: (r, t) => `layer ${layers[layerOf(r)]} token ${t} “${visible(tokens[t])}”: “${visible(one.first(layerOf(r), t))}”, ${statistic} ${short(values[r * tokens.length + t])}`,
  };
}

/** What a statistic gained; ranks count by orders of magnitude. */
export function change(statistic, before, after) {
  return statistic === "rank" ? Math.log10(after / before) : after - before;
}

function signed(values) {
  const most = rounded(values.reduce((m, v) => Math.max(m, Math.abs(v) || 0), 0));
  return { kind: "diverging", lo: -most, hi: most };
}

function scaleOf(statistic, ...sides) {
  if (statistic === "p") return { kind: "sequential", lo: 0, hi: 1 };
  let most = 0;
  for (const one of sides.filter(Boolean)) {
    for (let l = 0; l < one.layers; l++) for (let t = 0; t < one.tokens; t++) most = Math.max(most, one.of(statistic, l, t) || 0);
  }
  // bright is settled in all four: sure, first, close
  return statistic === "rank" ? { kind: "sequential", lo: 1, hi: Math.max(2, most), log: true, reverse: true }
    : { kind: "sequential", lo: 0, hi: rounded(most), reverse: true };
}

function hover(layer, l, t, tokens, sides) {
  const lines = [`layer ${layer}, token ${t} “${visible(tokens[t])}”`];
  for (const [name, one] of sides) {
    if (name) lines.push(`${name}:`);
    for (const { text, p } of one.choices(l, t)) lines.push(`  ${p.toFixed(3)}  ${visible(text)}`);
    lines.push(`  rank ${one.of("rank", l, t)}, KL ${short(one.of("kl", l, t))}, entropy ${short(one.of("entropy", l, t))} nats`);
  }
  return lines.join("\n");
}

/** A position through the layers: a line per side. */
export function trajectory(frame, statistic, token) {
  return ["base", "edited"].filter((name) => frame[`${name}_top`]).map((name) => {
    const one = side(frame, name);
    const along = Array.from({ length: one.layers }, (_, l) => l);
    return { name, values: along.map((l) => one.of(statistic, l, token)), first: along.map((l) => one.first(l, token)) };
  });
}

/** The same as a grid, layers down and sides across, for a file. */
export function trajectoryGrid(lines, { layers, tokens, token, statistic }) {
  const order = layers.map((_, i) => layers.length - 1 - i);
  return {
    rows: order.map((i) => String(layers[i])), cols: lines.map((line) => line.name), shape: [layers.length, lines.length],
    numbers: order.flatMap((i) => lines.map((line) => line.values[i])), texts: (r, c) => visible(lines[c].first[order[r]]),
    rowName: "layer", colName: `side of token ${token} “${visible(tokens[token])}”`, unit: STATISTICS[statistic],
  };
}

/** The frame of a precomputed strength: the base as it is, the edited side from the sweep; else the page's own. */
export function picked(sweep, spec, base) {
  const i = !base || isOwn(base, spec) ? -1 : placeIn(sweep, spec);
  if (i < 0) return base;
  const size = sweep.top.shape[1] * sweep.top.shape[2];
  const part = (name) => sweep[name].values.subarray(i * size, (i + 1) * size);
  const statistics = new Float32Array(4 * size);
  PLACES.forEach((name, place) => statistics.set(part(name), place * size));
  const shape = sweep.top.shape.slice(1);
  return {
    ...base,
    of: settingOf(sweep, i, spec),
    edited_words: sweep.words,
    edited_top: { shape: [...shape, 1], values: part("top") },
    edited_top_p: { shape: [...shape, 1], values: part("p") },
    edited_statistics: { shape: [4, ...shape], values: statistics },
  };
}
