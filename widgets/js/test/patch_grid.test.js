import { describe, expect, it } from "vitest";
import { brief, chosen, fitted, keptAt, openedOf, panelOf, patchWords, picked, picture, placeAt, placeWords, runNames, scaleOf } from "../../patch_grid/shown.js";

// two measures, two parts, two layers, three positions: 0 to 23
const axes = [
  { name: "part", labels: ["attn", "mlp"], shown: ["attn", "mlp"] },
  { name: "layer", labels: [0, 1], shown: ["0", "1"] },
  { name: "pos", labels: [-3, -2, -1], shown: ["-3", "-2 ' x'", "-1 \"it's\""] },
];
const meta = { axes, measures: [{ name: "recovered", unit: "fraction" }, { name: "gap", unit: "logits" }], n_cases: 4 };
const counted = (start = 0) => ({ shape: [2, 2, 2, 3], values: Float32Array.from({ length: 24 }, (_, i) => start + i) });
const frame = { mean: counted(), low: counted(-1), high: counted(1), n: { shape: [2, 2, 2, 3], values: new Float32Array(24).fill(4) }, of: { place: null, case: null, strength: 1 } };
const spec = { place: null, case: null, strength: 1 };

describe("a panel", () => {
  it("is a measure and a label of every axis before the last two", () => {
    expect(chosen(meta, { measure: 7, panel: [1] })).toEqual({ measure: 1, panels: [1] });
    expect(chosen(meta, undefined)).toEqual({ measure: 0, panels: [0] });
    expect(panelOf(meta, { measure: 1, panels: [1] })).toEqual({ rows: 2, cols: 3, start: 18 });
  });
  it("has the first layer at the bottom", () => {
    const made = picture(frame, meta, { measure: 1, panels: [0] }, spec);
    expect(made.rows).toEqual(["1", "0"]);
    expect([...made.values.values]).toEqual([15, 16, 17, 12, 13, 14]);
    expect(made.cols).toEqual(["-3", "−2 ·x", "−1 it's"]);
    expect(made.say(0, 1)).toBe("layer 1, pos −2 ·x: gap 16.0 [15.0, 17.0]");
  });
  it("opens the place under a cell", () => {
    expect(placeAt(meta, { panels: [1] }, 2, { row: 0, col: 2 })).toEqual([1, 1, 2]);
    expect(placeAt({ axes: axes.slice(2) }, { panels: [] }, 1, { row: 0, col: 2 })).toEqual([2]);
    const made = picture(frame, meta, { measure: 0, panels: [1] }, { ...spec, place: [1, 1, 2] });
    expect([made.marks(0, 2), made.marks(1, 2), made.chosen]).toEqual([true, false, { row: 0, col: 2 }]);
    expect(picture(frame, meta, { measure: 0, panels: [0] }, { ...spec, place: [1, 1, 2] }).marks(0, 2)).toBe(false);
  });
  it("shows one case where its values are there", () => {
    const one = { ...frame, one: counted(100), of: { ...frame.of, case: 2 } };
    const made = picture(one, meta, { measure: 0, panels: [0] }, { ...spec, case: 2 });
    expect([...made.values.values]).toEqual([103, 104, 105, 100, 101, 102]);
    expect([...picture(one, meta, { measure: 0, panels: [0] }, { ...spec, case: 1 }).values.values][0]).toBe(3);
  });
});

it("an opened place says every measure with its interval", () => {
  const { title, numbers } = placeWords(frame, meta, { ...spec, place: [1, 0, 1] });
  expect(title).toBe("part mlp, layer 0, pos −2 ·x");
  expect(numbers).toEqual(["recovered 7.00 [6.00, 8.00] fraction over 4 cases", "gap 19.0 [18.0, 20.0] logits over 4 cases"]);
});

describe("what is opened", () => {
  const own = { ...frame, opened: { a: 1 }, of: { place: [0, 0, 0], case: null, strength: 1 } };
  it("is shown only for the place and the cases it is of", () => {
    expect(openedOf(own, { ...spec, place: [0, 0, 0] })).toEqual({ a: 1 });
    expect(openedOf(own, { ...spec, place: [0, 0, 1] })).toBe(null);
    expect(openedOf(own, { ...spec, place: [0, 0, 0], case: 0 })).toBe(null);
  });
  const sweep = { grid: [0, 1, 2], case: null, opened: { "0,0,1": [{ s: 0 }, { s: 1 }, { s: 2 }] }, cases: { shape: [2, 2, 2, 2, 3], values: Float32Array.from({ length: 48 }, (_, i) => i) } };
  it("snaps to the nearest kept strength and says so", () => {
    const found = picked(sweep, { place: [0, 0, 1], case: null, strength: 1.7 }, own);
    expect([found.opened, found.of.strength]).toEqual([{ s: 2 }, 2]);
    expect(picked(sweep, { place: [0, 0, 0], case: null, strength: 1 }, own)).toBe(own);
    expect(picked(sweep, { place: [1, 1, 1], case: null, strength: 1 }, own).opened).toBe(null);
  });
  it("is kept for the cases it was made of; single cases come with the page", () => {
    const found = picked(sweep, { place: [0, 0, 1], case: 1, strength: 1 }, own);
    expect([found.opened, found.one.values[0], found.of.case]).toEqual([null, 24, 1]);
    expect(keptAt(null, { place: [0, 0, 1], case: null })).toBe(null);
  });
});

it("runs are named by their direction", () => {
  const runs = ["base", "source", "patched", "edited"];
  expect(runNames({ runs, direction: "denoising" }, 0.5)).toEqual(["corrupted (base)", "clean (source)", "patched", "edited × 0.500"]);
  expect(runNames({ runs, direction: "noising" }, 1).slice(0, 2)).toEqual(["clean (base)", "corrupted (source)"]);
  expect(runNames({ runs: ["base", "corrupted", "edited"], direction: null }, 1)).toEqual(["clean (base)", "corrupted", "edited × 1.00"]);
});

it("what was patched is said in a sentence", () => {
  const found = { tokens_at: { clean: [" a"], corrupted: [] }, direction: "noising", runs: ["base", "source", "patched"], site: "L1.z", does_nothing: true, left_out: 2, cases: 32, no_edit: "" };
  expect(patchWords(found)).toBe("token “·a” in the clean prompt, none in the corrupted one. L1.z: the corrupted run's value put into the clean run. "
    + "both runs have the same value here: the patch does nothing. next tokens of the first 32 cases, 2 are left out");
});

it("colours are around 0 where values lie on both sides", () => {
  expect(scaleOf(Float32Array.from([-1, 3, NaN]))).toEqual({ kind: "diverging", lo: -3, hi: 3 });
  expect(scaleOf(Float32Array.from([1, 3]))).toEqual({ kind: "sequential", lo: 1, hi: 3 });
  expect(scaleOf(Float32Array.from([NaN])).kind).toBe("sequential");
});

it("cells write the decimals that matter on their scale", () => {
  expect([brief(-0.0004, { lo: -1, hi: 1 }), brief(-0.256, { lo: -1, hi: 1 }), brief(12.34, { lo: 0, hi: 40 }), brief(NaN, { lo: 0, hi: 1 })]).toEqual(["0", "−0.26", "12.3", ""]);
  expect(brief(0.0004, { lo: 0, hi: 0.001 })).toBe("4.0e−4");
});

describe("a map in little room", () => {
  const numbers = Float32Array.from([0, 0.5, -0.25, 1, 0, 0, 0, 0, 0, 0]);
  const ten = { axes: [{ name: "layer", labels: [0], shown: ["0"] }, { name: "pos", labels: [...Array(10).keys()], shown: [...Array(10).keys()].map(String) }], measures: meta.measures };
  const flat = (values) => ({ shape: [1, 1, 10], values });
  const made = picture({ mean: flat(numbers), low: flat(numbers), high: flat(numbers), n: flat(numbers), of: spec }, ten, { measure: 0, panels: [] }, spec);
  const at = (room) => { const { cellWidth, texts } = fitted(made, room); return [cellWidth, texts ? texts(0, 2) : null]; };
  it("has cells of the usual width where they fit, or where nothing is known of the room", () => {
    expect([at(500), at(0)]).toEqual([[40, "−0.25"], [40, "−0.25"]]);
  });
  it("has colours alone where its numbers do not fit", () => expect([at(300), at(60)]).toEqual([[25, null], [10, null]]));
  it("has narrower cells before it drops short numbers", () => {
    const short = { ...made, texts: () => "0.25" };
    expect(fitted(short, 400).cellWidth).toBe(33);
    expect(fitted({ ...made, texts: () => "−1.2e−4" }, 0).cellWidth).toBe(53);
  });
});

it("a patch that does nothing says so once", () => {
  const found = { tokens_at: {}, direction: "denoising", runs: ["base", "source", "patched"], site: "L1.z", does_nothing: true, left_out: 0, cases: 2, no_edit: "changes nothing" };
  expect(patchWords(found).match(/nothing/g)).toHaveLength(1);
});
