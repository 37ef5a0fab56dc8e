import { describe, expect, it } from "vitest";
import { layout } from "../grid_canvas.js";
import { axesOf, placed } from "../../transfer_map/scatter.js";
import { chosen, featureOf, fitted, openedOf, pairOf, pairWords, picked, picture, points, pointsOf, rows } from "../../transfer_map/shown.js";

const META = { sources: ["add", "sort"], targets: ["add", "sub", "sort"], unit: "codes", measured: true };
const of = (...values) => ({ shape: [2, 3], values: Float32Array.from(values) });
const frame = () => ({
  score: of(6, 4, 1, 2, 3, 9), score_low: of(5, 3, 0, 1, 2, 8), score_high: of(7, 5, 2, 3, 4, 10),
  random_low: of(0, 0, 0, 0, 0, 0), random_high: of(2, 2, 2, 2, 2, 2),
  change: of(0.25, -0.125, 0.01, NaN, NaN, NaN), change_low: of(0.1, -0.2, -0.02, NaN, NaN, NaN), change_high: of(0.4, -0.05, 0.03, NaN, NaN, NaN),
  ranks: of(0, 1, -1, NaN, NaN, NaN), mix: { shape: [3, 3], values: Float32Array.from({ length: 9 }, () => 1 / 3) },
});
const SPEC = { source: 0, target: 1, feature: null, strength: -1 };

describe("a pair", () => {
  it("is read at its source and target", () => {
    expect(pairOf(frame(), META, 0, 1)).toMatchObject({ score: 4, low: 3, high: 5, change: -0.125, ranks: 1, randomHigh: 2 });
    expect(pairOf(frame(), META, 1, 2)).toMatchObject({ score: 9, change: null, changeLow: null, ranks: null });
  });

  it("says its numbers, changes in points with their sign", () => {
    const said = pairWords(frame(), META, 0, 1);
    expect(said[0]).toBe("add → sub");
    expect(said[1]).toContain("4.00 [3.00, 5.00] codes");
    expect(said).toContain("measured change −12.5 [−20, −5] points");
    expect(said.at(-1)).toBe("the forecast ranks it 1 place higher than the measurement");
    expect(pairWords(frame(), META, 0, 2).at(-1)).toContain("lower");
    expect(pairWords(frame(), META, 1, 0)).toContain("change not measured");
    expect(pairWords(frame(), { ...META, measured: false }, 0, 1)).toEqual(["add → sub", "forecast 4.00 [3.00, 5.00] codes", "as many random features 0 to 2.00"]);
    expect([points(0.1), points(-0.0004), points(null)]).toEqual(["+10", "0", "–"]);
  });
});

describe("the grid", () => {
  it("shows the score, the change in points, or the ranks", () => {
    const shown = (colour) => picture(frame(), META, { colour, pooled: false }, SPEC, 600);
    const [score, change, ranks] = [0, 1, 2].map(shown);
    expect([...score.values.values]).toEqual([6, 4, 1, 2, 3, 9]);
    expect(score.scale).toMatchObject({ kind: "sequential", lo: 1, hi: 9 });
    expect(change.scale).toMatchObject({ kind: "diverging", lo: -25, hi: 25 });
    expect([change.texts(0, 0), change.texts(0, 1), change.texts(0, 2), change.texts(1, 0)]).toEqual(["+25", "−13", "+1", ""]);
    expect([ranks.texts(0, 0), ranks.texts(0, 1), ranks.texts(0, 2)]).toEqual(["0", "+1", "−1"]);
    expect(score.marks(0, 1)).toBe(true);
    expect(score.marks(1, 1)).toBe(false);
  });

  it("shows the forecast where nothing was measured", () => {
    expect(chosen({ ...META, measured: false }, { colour: 2 })).toEqual({ colour: 0, pooled: false });
    expect(chosen(META, { colour: 2, pooled: true })).toEqual({ colour: 2, pooled: true });
  });

  it("may have upright labels over wide cells", () => {
    const given = { rows: ["a"], cols: ["numerals"], shape: [1, 1], rowName: "", texts: null, cellWidth: 50 };
    expect([layout(given, 600, 600).upright, layout({ ...given, upright: true }, 600, 600).upright]).toEqual([false, true]);
    expect(layout({ ...given, upright: true }, 600, 600).header).toBeGreaterThan(layout(given, 600, 600).header);
  });

  it("turns labels upright where cells are narrower, and leaves numbers out where they have no room", () => {
    const many = Array.from({ length: 13 }, (_, i) => `numerals${i}`);
    const given = { rows: many, cols: many, values: { shape: [13, 13], values: new Float32Array(169) }, texts: () => "0.25", rowName: "source" };
    const wide = fitted(given, 1400), middle = fitted(given, 640), narrow = fitted(given, 320);
    expect([wide.upright, middle.upright, narrow.upright]).toEqual([true, true, true]);
    expect(middle.texts).not.toBe(null);
    expect(narrow.texts).toBe(null);
    for (const [one, room] of [[middle, 640], [narrow, 320]]) expect(13 * one.cellWidth + 85).toBeLessThanOrEqual(room);
    expect(fitted({ ...given, cols: many.map((_, i) => `t${i}`) }, 900).upright).toBe(false);
  });
});

describe("the scatter", () => {
  it("has the measured pairs of a source, or of all, by the size of the change", () => {
    const found = pointsOf(frame(), META, SPEC, false);
    expect(found.map(({ label, own }) => [label, own])).toEqual([["sort", false], ["sub", false], ["add", true]]);
    const sub = found[1];
    expect(sub.x).toEqual({ mean: 4, low: 3, high: 5 });
    expect([sub.y.mean, sub.y.low, sub.y.high].map((v) => Number(v.toFixed(3)))).toEqual([12.5, 5, 20]);
    // an interval around 0 is one of sizes from 0
    expect([found[0].y.low, found[0].y.high].map((v) => Number(v.toFixed(3)))).toEqual([0, 3]);
    expect(pointsOf(frame(), META, { ...SPEC, source: 1 }, false)).toEqual([]);
    expect(pointsOf(frame(), META, SPEC, true).map(({ name }) => name)).toEqual(["add → sort", "add → sub", "add → add"]);
  });

  it("names points where a name covers nothing", () => {
    const point = (x, y, label) => ({ x: { mean: x }, y: { mean: y }, label });
    const apart = [point(0, 0, "a"), point(5, 5, "b"), point(10, 10, "c")];
    expect(placed(apart, axesOf(apart), apart).length).toBe(3);
    const heap = Array.from({ length: 30 }, (_, i) => point(1 + i / 1e4, 1 + i / 1e4, `long name ${i}`));
    const all = [point(0, 0, "a"), ...heap, point(9, 9, "z")], axes = axesOf(all), found = placed(all, axes, all);
    expect(found.length).toBeGreaterThan(2);
    expect(found.length).toBeLessThan(15);
    expect(found.map(({ point: one }) => one.label)).toContain("z");
    const [first] = found, boxes = found.map(({ x, y, anchor, point: one }) => {
      const wide = 6.1 * one.label.length, from = anchor === "start" ? x : anchor === "end" ? x - wide : x - wide / 2;
      return [from, y - 9, from + wide, y + 2];
    });
    expect(first).toBeDefined();
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => expect(a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]).toBe(false)));
  });
});

describe("an opened pair", () => {
  const opened = { source: 0, target: 1, contributions: [{ feature: 7 }, { feature: 3 }], features: { 7: {}, 3: {} } };

  it("is shown only where it is the one asked for", () => {
    expect(openedOf({ opened }, SPEC)).toBe(opened);
    expect(openedOf({ opened }, { ...SPEC, target: 2 })).toBe(null);
    expect(openedOf({ opened }, { ...SPEC, target: null })).toBe(null);
    expect(openedOf({}, SPEC)).toBe(null);
  });

  it("looks at the chosen feature, else at the first", () => {
    expect(featureOf(opened, { ...SPEC, feature: 3 })).toBe(3);
    expect(featureOf(opened, { ...SPEC, feature: 4 })).toBe(7);
    expect(featureOf({ contributions: [] }, SPEC)).toBe(null);
  });

  it("comes from what was computed ahead, its features with it", () => {
    const sweep = { pairs: { "0,1": { source: 0, target: 1, contributions: [{ feature: 7 }] } }, features: { 7: { label: "digits" }, 9: {} } };
    const saved = { ...frame(), of: {} };
    const found = picked(sweep, SPEC, saved);
    expect(found.opened.features).toEqual({ 7: { label: "digits" } });
    expect(found.score).toBe(saved.score);
    expect(picked(sweep, { ...SPEC, target: 2 }, saved)).toBe(saved);
    expect(picked(sweep, { ...SPEC, target: null }, saved)).toBe(saved);
    expect(picked(sweep, SPEC, null)).toBe(null);
  });
});

describe("the table", () => {
  it("has a line for every pair, empty where nothing was measured", () => {
    const [head, ...lines] = rows(frame(), META);
    expect(lines.length).toBe(6);
    expect(lines[1].slice(0, 5)).toEqual(["add", "sub", 4, 3, 5]);
    expect(lines[1][head.indexOf("measured change (fraction)")]).toBe(-0.125);
    expect(lines[5][head.indexOf("measured change (fraction)")]).toBe(null);
  });
});
