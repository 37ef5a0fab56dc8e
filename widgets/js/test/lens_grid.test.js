import { describe, expect, it } from "vitest";
import { change, picked, rounded, shown, trajectory, trajectoryGrid } from "../../lens_grid/shown.js";
import { gridsCsv } from "../grid_files.js";
import { nearest } from "../nearest.js";
import { placeIn, settings } from "../sides.js";

// two layers, three tokens, two choices
const frame = {
  words: ["a", " b", "c"],
  base_top: { shape: [2, 3, 2], values: Uint16Array.from([0, 1, 1, 2, 2, 0, 0, 1, 1, 0, 2, 1]) },
  base_top_p: { shape: [2, 3, 2], values: Float32Array.from([0.5, 0.1, 0.6, 0.1, 0.7, 0.1, 0.8, 0.1, 0.9, 0.1, 1, 0]) },
  base_statistics: { shape: [4, 2, 3], values: Float32Array.from([0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 10, 100, 1, 1, 1, 1, 2, 3, 0, 0, 0, 2, 2, 2, 1, 1, 1]) },
};
const edited = {
  ...frame,
  edited_top: { shape: [2, 3, 2], values: Uint16Array.from([0, 1, 1, 2, 2, 0, 2, 1, 1, 0, 2, 1]) },
  edited_top_p: frame.base_top_p,
  edited_statistics: { shape: [4, 2, 3], values: frame.base_statistics.values.map((v, i) => (i === 3 ? 0.25 : v)) },
};
const about = { tab: "base", statistic: "p", layers: [4, 5], tokens: ["x", "y", "z"], selection: {} };

describe("what is painted", () => {
  it("has the last layer on top", () => {
    const made = shown(frame, about);
    expect(made.rows).toEqual(["5", "4"]);
    expect([...made.values.values].map((v) => +v.toFixed(2))).toEqual([0.8, 0.9, 1, 0.5, 0.6, 0.7]);
    expect(made.texts(1, 1)).toBe("·b");
  });
  it("marks what is selected in layers of the model", () => {
    const made = shown(frame, { ...about, selection: { token: 2, layer: 4 } });
    expect(made.marks(1, 2)).toBe(true);
    expect(made.marks(0, 2)).toBe(false);
  });
  it("shows differences with a sign and only the texts that changed", () => {
    const made = shown(edited, { ...about, tab: "difference" });
    expect(made.scale.kind).toBe("diverging");
    expect(made.values.values[0]).toBeCloseTo(-0.55);
    expect(made.texts(0, 0)).toBe("c");
    expect(made.texts(0, 1)).toBe("");
  });
  it("falls back to the base where nothing was edited", () => {
    expect(shown(frame, { ...about, tab: "difference" }).scale.kind).toBe("sequential");
  });
  it("colours ranks by their order of magnitude", () => {
    expect(shown(frame, { ...about, statistic: "rank" }).scale).toMatchObject({ lo: 1, hi: 100, log: true, reverse: true });
    expect(change("rank", 10, 1000)).toBeCloseTo(2);
  });
  it("lists choices with probabilities in the hover", () => {
    expect(shown(frame, about).tip(0, 0)).toContain("0.800  a\n  0.100  ·b");
  });
});

describe("numbers", () => {
  it("end scales at round numbers", () => {
    expect([0.03, 0.5, 7, 11].map(rounded)).toEqual([0.05, 0.5, 10, 20]);
    expect(rounded(0)).toBe(1);
  });
  it("snap to the nearest setting, never between", () => {
    expect(nearest([-1, 0, 2], 1.2)).toBe(2);
    expect(nearest([-1, 0, 2], 0.9)).toBe(1);
  });
  it("follow a position through the layers on both sides", () => {
    const lines = trajectory(edited, "p", 0);
    expect(lines.map((line) => line.name)).toEqual(["base", "edited"]);
    expect(lines[0].values[1]).toBeCloseTo(0.8);
    expect(lines[1].values[1]).toBeCloseTo(0.25);
    expect(lines[1].first).toEqual(["a", "c"]);
  });
});

it("a precomputed strength becomes a frame", () => {
  const part = (values) => ({ shape: [2, 2, 3], values: Float32Array.from(values) });
  const from = (start) => part(Array.from({ length: 12 }, (_, i) => start + i));
  const sweep = { grid: [0, 1], words: ["q", "r"], top: { shape: [2, 2, 3], values: Uint16Array.from([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]) },
    p: from(0), rank: from(100), kl: from(200), entropy: from(300) };
  const made = picked(sweep, { strengths: [0.8] }, frame);
  const view = shown(made, { ...about, tab: "edited", statistic: "kl" });
  expect([...view.values.values]).toEqual([209, 210, 211, 206, 207, 208]);
  expect(view.texts(0, 0)).toBe("r");
});

describe("without a kernel", () => {
  const part = (from) => ({ shape: [2, 2, 3], values: Float32Array.from({ length: 12 }, (_, i) => from + i) });
  const sweep = { grid: [0, 1], others: [0.5], words: ["q"], top: { shape: [2, 2, 3], values: new Uint16Array(12) },
    p: part(0), rank: part(100), kl: part(200), entropy: part(300) };
  const base = { ...edited, of: { v: 1, strengths: [0.8, 0.5] } };
  it("the frame that came with the page is shown as it came", () => {
    expect(picked(sweep, { strengths: [0.8, 0.5] }, base)).toBe(base);
  });
  it("a frame says which strengths it shows", () => {
    const made = picked(sweep, { strengths: [0.7, 0.5] }, base);
    expect(made.of.strengths).toEqual([1, 0.5]);
    expect(made.edited_statistics.values[12]).toBe(206);
  });
  it("settings made with other later edits are not taken for these", () => {
    expect(picked(sweep, { strengths: [0, 0.25] }, base)).toBe(base);
    expect(placeIn(sweep, { strengths: [0, 0.25] })).toBe(-1);
    expect(placeIn(sweep, { strengths: [0.2, 0.5] })).toBe(0);
  });
  it("the slider also stops at the page's own strength", () => {
    expect(settings(sweep, base, [0.8, 0.5])).toEqual([0, 0.8, 1]);
    expect(settings(sweep, base, [0.8, 0.25])).toBe(null);
  });
});

it("a followed position is a table of layers by sides for a file", () => {
  const made = trajectoryGrid(trajectory(edited, "p", 0), { ...about, token: 0 });
  expect(made.rows).toEqual(["5", "4"]);
  expect(made.numbers.map((v) => +v.toFixed(2))).toEqual([0.8, 0.25, 0.5, 0.5]);
  expect(gridsCsv([made]).split("\n")[1]).toMatch(/^layer by side of token 0 “x”,5,0,base,0\.8\d*,a,probability/);
});
