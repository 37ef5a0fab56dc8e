// From a frame to what the list and an opened feature show. No elements here.

import { short } from "../js/dom.js";
import { words } from "../js/intervals.js";

export const percent = (share) => (share === null || share === undefined ? "–" : `${short(100 * share)} %`);

/** What a search looks at, as about.py writes it. */
export function searched(one) {
  return [one.label, one.promoted.map(({ text }) => text).join(" "), ...one.examples.map(({ pieces }) => pieces.join(""))].join("\n").toLowerCase();
}

/** The features that a page without a kernel keeps, searched and sorted as finding.py does with all of them. */
export function listOf(features, spec) {
  const terms = spec.query.toLowerCase().split(/\s+/).filter(Boolean);
  const numbers = terms.filter((term) => /^#\d+$/.test(term)).map((term) => Number(term.slice(1)));
  const wanted = (one) => (numbers.length ? numbers.includes(one.feature)
    : isShown(one, spec.show) && (!terms.length || holds(searched(one), terms)));
  const rows = sorted(features.filter(wanted), spec);
  return { rows: rows.map((one) => ({ ...one, score: scoreOf(one, spec.sort) })), matched: rows.length };
}

const holds = (text, terms) => terms.every((term) => text.includes(term));

function isShown({ density }, show) {
  const dense = density > 0.1;
  return { alive: density > 0, sparse: density > 0 && !dense, dense, dead: density === 0, all: true }[show];
}

function sorted(features, { sort, reverse }) {
  const key = (one) => (sort === "number" ? -one.feature : sort === "density" || sort === "largest" ? one[sort]
    : sort === "label" ? one.f1 : -(scoreOf(one, sort)?.rank ?? NaN));
  const keyed = features.map((one) => ({ one, k: key(one) }));
  const known = keyed.filter(({ k }) => Number.isFinite(k)), rest = keyed.filter(({ k }) => !Number.isFinite(k));
  known.sort((a, b) => (reverse ? a.k - b.k : b.k - a.k) || a.one.feature - b.one.feature);
  return [...known, ...rest.sort((a, b) => a.one.feature - b.one.feature)].map(({ one }) => one);
}

const scoreOf = (one, sort) => one.scores.find(({ name }) => name === sort) ?? null;

/** The opened feature in a page without a kernel; its own text where that was kept. */
export function picked(sweep, spec, base) {
  const found = base?.one?.feature === spec.feature ? base.one : keptOf(sweep, spec.feature);
  const { own } = sweep, values = own?.values[String(spec.feature)];
  return { ...base, of: spec, one: found ?? null, own: values ? { ...own, values } : base?.one === found ? base.own ?? null : null };
}

export const keptOf = (sweep, feature) => sweep?.features.find((one) => one.feature === feature) ?? null;

/** The list that is shown: all that a kernel finds, or what the page keeps. */
export function listed(view, frame) {
  return !view.live && view.sweep ? listOf(view.sweep.features, view.spec) : frame.list;
}

/** The cells of a list's row besides its name. */
export function cellsOf(row, ranked) {
  const texts = [percent(row.density), short(row.largest)];
  if (ranked) texts.push(row.score ? words(row.score.score, row.score.low, row.score.high) : "–");
  const names = ["active on", "largest", "score"];
  return texts.map((text, i) => ({ parts: [text], say: `feature ${row.feature}, ${row.label}: ${names[i]} ${text}` }));
}

/** How a token's value is drawn: a share of the feature's largest activation, 0 to 1. */
export const shareOf = (value, largest) => (value > 0 && largest > 0 ? Math.min(1, value / largest) : 0);

/** What is known of a feature, a pair of name and value each. */
export function factsOf(one, n_tokens) {
  const active = one.histogram.reduce((sum, n) => sum + n, 0);
  const said = (n) => n.toLocaleString("en");
  const facts = [["active on", active ? `${percent(one.density)}: ${said(active)} of ${said(n_tokens)} tokens` : `none of ${said(n_tokens)} tokens`]];
  if (active) facts.push(["largest", short(one.largest)], ["mean when active", short(one.mean)]);
  for (const { name, score, low, high, p, rank, of, unit } of one.scores) {
    facts.push([name, `${words(score, low, high)}${unit ? ` ${unit}` : ""}, rank ${rank} of ${of}${p === null ? "" : `, p ${short(p)}`}`]);
  }
  return facts;
}

/** The setting of the edit in words. */
export function settingOf({ mode, strength }, modes) {
  const about = modes.find(({ name }) => name === mode);
  return about ? `${about.words} ${short(strength)} ${about.unit}` : "";
}

/** Everything of the opened feature as a table of one column of kinds. */
export function tableOf(one, own) {
  const rows = [["kind", "example", "token", "text", "feature", "value"]];
  one.histogram.forEach((n, i) => rows.push(["histogram", "", i, "", one.feature, n]));
  for (const kind of ["promoted", "suppressed"]) one[kind].forEach(({ text, value }, i) => rows.push([kind, "", i, text, one.feature, value]));
  for (const kind of ["correlated", "neighbours"]) one[kind].forEach(({ feature, value, label }) => rows.push([kind, "", "", label ?? "", feature, value]));
  one.examples.forEach(({ pieces, values, peak, position }, k) => pieces.forEach((text, i) => rows.push(["example", k, position - peak + i, text, one.feature, values[i]])));
  if (own?.pieces) own.pieces.forEach((text, i) => rows.push(["own text", "", i, text, one.feature, own.values[i]]));
  return rows;
}
