// @vitest-environment happy-dom
import { expect, it } from "vitest";
import { curve, path, planOf, PAGE } from "../../probe_strip/curve.js";
import { differing, drawnOf, passedAt, probability, probeOf, reach, scaleOf, settingsOf, tableOf, tokensOf, verdict, wordsOf, written } from "../../probe_strip/shown.js";

const side = (more = {}) => ({
  ids: [1, 5, 6, 7], tokens: ["<bos>", "a", " b", "c"], n_prompt: 2, skip: 1, stop: "length",
  scores: [{ score: [90, -1, 2, 3], smooth: [null, -1, 0.5, 2.5], running: [null, -1, 0.5, 2.5] }, { score: [5, 6, 7, 8], low: [4, 5, 6, 7], high: [6, 7, 8, 9] }],
  ...more,
});
const meta = {
  probes: [{ name: "truth", number: false, so_far: false, window: null, classes: ["no", "yes"], linear: true }, { name: "size", number: true, so_far: false, window: null, classes: [], linear: false }],
  edits: [{ name: "push", unit: "x", reach: 4 }],
};
const spec = { prompt: 0, probe: "truth", edit: "probe", scope: "all", strength: 2, window: 4, threshold: 1, max_new_tokens: 8 };

it("finds the probe of a spec, and the first where there is none of that name", () => {
  expect(probeOf(meta, { probe: "size" }).k).toBe(1);
  expect(probeOf(meta, { probe: "?" }).k).toBe(0);
});

it("puts the threshold in the middle of the colours, and leaves out the token that begins the sequence", () => {
  const scale = scaleOf({ base: side(), edited: null }, 0, meta.probes[0], "score", 1);
  expect(scale).toMatchObject({ kind: "diverging", lo: -2, hi: 2, unit: "from the threshold" });
  const tokens = tokensOf(side(), 0, meta.probes[0], "score", 1);
  expect(tokens.map((t) => t.value)).toEqual([89, -2, 1, 2]);
  expect(scaleOf({ base: side(), edited: side({ skip: 0 }) }, 0, meta.probes[0], "score", 0).hi).toBe(90);
});

it("colours numbers from the least to the most, whatever the threshold", () => {
  expect(scaleOf({ base: side() }, 1, meta.probes[1], "score", 9)).toMatchObject({ kind: "sequential", lo: 6, hi: 8 });
  expect(tokensOf(side(), 1, meta.probes[1], "score", 9).map((t) => t.value)).toEqual([5, 6, 7, 8]);
  expect(wordsOf(side(), 1, meta.probes[1], 1)).toBe("predicted 6.00, quantiles 5.00 to 7.00");
});

it("says where the score so far passes, and never where it does not", () => {
  expect(passedAt(side(), 0, 0.5)).toBe(2);
  expect(verdict(side(), 0, meta.probes[0], 0.5)).toBe("ends at 2.50, passes the threshold at token 2 “·b”");
  expect(verdict(side(), 0, meta.probes[0], 3)).toBe("ends at 2.50, never passes the threshold");
  expect(verdict(side(), 1, meta.probes[1], 0)).toBe("ends at 8.00");
});

it("knows probabilities, and no number", () => {
  expect(probability(0)).toBe(0.5);
  expect(probability(null)).toBe(null);
  expect(wordsOf(side(), 0, meta.probes[0], 0)).toContain("smoothed –");
});

it("marks tokens that differ; what the other has not reached yet is no difference", () => {
  const base = side(), edited = side({ ids: [1, 5, 9, 7, 8], stop: "length" });
  expect(differing({ base, edited }, "base")).toEqual([false, false, true, false]);
  expect(differing({ base, edited }, "edited")).toEqual([false, false, true, false, true]);
  expect(differing({ base, edited: side({ ids: [1, 5], stop: "" }) }, "base")).toEqual([false, false, false, false]);
  expect(differing({ base, edited: null }, "base")).toEqual([]);
});

it("walks over precomputed strengths only where all else is as they were made", () => {
  const sweep = { grid: [-1, 0, 1], of: spec };
  expect(settingsOf(sweep, { ...spec, strength: 1, threshold: 9 })).toEqual([-1, 0, 1]);
  for (const other of [{ prompt: 1 }, { probe: "size" }, { scope: "generated" }, { window: 2 }, { edit: "0" }]) expect(settingsOf(sweep, { ...spec, ...other })).toBe(null);
  const given = { grid: [0, 1], of: { ...spec, edit: "0" } };
  expect(settingsOf(given, { ...spec, edit: "0", probe: "size" })).toEqual([0, 1]);
  expect(settingsOf(null, spec)).toBe(null);
});

it("says in words what is written", () => {
  expect(written(spec, meta)).toBe("direction of truth × 2.00");
  expect(written({ ...spec, edit: "0", strength: -1 }, meta)).toBe("push × −1.00");
  expect(written({ ...spec, strength: 0 }, meta)).toBe("");
});

it("breaks a line where there is no number, and holds every point inside the picture", () => {
  const plan = planOf(4, reach([side()], 0, ["score"]));
  expect(path([1, null, 2, 3], plan)).toMatch(/^M[^L]*M[^L]*L[^L]*$/);
  expect(plan.y(1e9)).toBe(plan.y(plan.hi));
  expect(plan.at(plan.x(2))).toBe(2);
  expect([plan.at(-50), plan.at(1e6)]).toEqual([0, 3]);
});

it("draws a line each, the threshold where it is in sight, and the chosen token", () => {
  const lines = side().scores[0], plan = planOf(4, [-1, 3]);
  const drawn = curve({ lines, n_prompt: 2, threshold: 1, chosen: 3, label: "x" }, plan, PAGE);
  expect(["score", "smooth", "running"].map((name) => drawn.querySelectorAll(`.wb-line-${name}`).length)).toEqual([1, 1, 1]);
  expect(drawn.querySelectorAll(".wb-chosen").length).toBe(1);
  const dashes = (threshold) => [...curve({ lines, n_prompt: 2, threshold, chosen: null, label: "x" }, plan, PAGE).querySelectorAll("path")].filter((one) => one.getAttribute("style").includes("3 3")).length;
  expect([dashes(1), dashes(99), dashes(null)]).toEqual([1, 0, 0]);
});

it("writes every probe, side and token", () => {
  const rows = tableOf({ base: side(), edited: side() }, meta);
  expect(rows.length).toBe(1 + 2 * 2 * 4);
  expect(rows[2].slice(0, 9)).toEqual(["truth", "base", 1, 5, "a", "prompt", -1, -1, -1]);
});

it("a mean of one token is not drawn beside the token's own score", () => {
  const lines = { score: [1], smooth: [1], running: [1] };
  expect(drawnOf(lines, { window: null }, 1).smooth).toBeUndefined();
  expect([drawnOf(lines, { window: null }, 2), drawnOf(lines, { window: 4 }, 1)]).toEqual([lines, lines]);
});
