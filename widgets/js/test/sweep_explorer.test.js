import { describe, expect, it, vi } from "vitest";
import { choose, follow } from "../../sweep_explorer/linked.js";
import { cellOf, curveOf, rows, textsOf } from "../../sweep_explorer/reading.js";

const META = { layers: [3, 5], strengths: [-1, 0, 2], metrics: [{ name: "accuracy", unit: "fraction" }, { name: "kl_nats", unit: "nats/token" }], control: true };
// [metric, layer, strength]: the value names its place
const filled = (plus = 0) => ({ shape: [2, 2, 3], values: Float32Array.from({ length: 12 }, (_, i) => i + plus) });
const NAMES = ["mean", "low", "high", "difference", "difference_low", "difference_high"];
const frame = () => ({
  ...Object.fromEntries(NAMES.flatMap((name, i) => [[name, filled(100 * i)], [`control_${name}`, filled(1000 + 100 * i)]])),
  differs: { shape: [2, 2, 3], values: Uint8Array.from({ length: 12 }, (_, i) => i % 2) },
  state: { shape: [2, 3], values: Uint8Array.from([1, 1, 2, 0, 1, 1]) }, errors: { "0,2": "too strong" },
  base: { shape: [2, 3], values: Float32Array.from([0.5, 0.4, 0.6, 0, NaN, NaN]) },
  slots: { base: 0, "0,0": 2, "1,2": 1 }, kept: 4,
});

describe("a cell", () => {
  it("is read at its metric, layer and strength", () => {
    const cell = cellOf(frame(), META, { metric: 1, layer: 1, strength: 2 });
    expect(cell).toMatchObject({ layer: 5, strength: 2, mean: 11, low: 111, high: 211, difference: 311, differs: true, state: 1, error: "" });
    expect(cellOf(frame(), META, { metric: 0, layer: 0, strength: 2 })).toMatchObject({ state: 2, error: "too strong", mean: 2 });
  });

  it("has no number where none was computed", () => {
    const one = frame();
    one.mean.values[3] = NaN;
    expect(cellOf(one, META, { metric: 0, layer: 1, strength: 0 }).mean).toBe(null);
  });
});

describe("a layer's curve", () => {
  it("stands beside its control and the baseline", () => {
    const { series, base, xs, chosen } = curveOf(frame(), META, { metric: 0, layer: 1, strength: 2 });
    expect(xs).toEqual([-1, 0, 2]);
    expect(chosen).toBe(2);
    expect(series.map((one) => one.mean)).toEqual([[3, 4, 5], [1003, 1004, 1005]]);
    expect(base.mean).toBe(0.5);
    expect(curveOf(frame(), META, { metric: 1, layer: 0, strength: 0 }).base).toMatchObject({ mean: 0, low: null });
  });

  it("leaves a control out that is not there", () => {
    const one = frame();
    one.control_mean.values.fill(NaN);
    one.control_mean.values[4] = 0.5; // strength 0 is the baseline for both
    expect(curveOf(one, META, { metric: 0, layer: 1, strength: 0 }).series.length).toBe(1);
  });
});

describe("linked widgets", () => {
  const view = (selection) => ({ meta: META, selection, spec: { layer: 0, strength: 1 }, ask: vi.fn(), select: vi.fn() });

  it("see the layer of the chosen cell", () => {
    const one = view({});
    choose(one, 1, 2);
    expect(one.ask).toHaveBeenCalledWith({ layer: 1, strength: 2 });
    expect(one.select).toHaveBeenCalledWith({ layer: 5 });
  });

  it("are followed to a layer that the sweep has, once", () => {
    const [there, here, elsewhere, none] = [{ layer: 5 }, { layer: 3 }, { layer: 4 }, { layer: null }].map(view);
    [there, here, elsewhere, none].forEach(follow);
    expect(there.ask.mock.calls).toEqual([[{ layer: 1 }]]);
    for (const one of [here, elsewhere, none]) expect(one.ask).not.toHaveBeenCalled();
  });
});

describe("texts", () => {
  it("are found by the cell's slot, the baseline's at strength 0", () => {
    expect(textsOf(frame(), META, { layer: 1, strength: 2 })).toMatchObject({ base: 0, other: 4, kept: 4 });
    expect(textsOf(frame(), META, { layer: 0, strength: 1 })).toMatchObject({ base: 0, other: 0 });
    expect(textsOf(frame(), META, { layer: 1, strength: 0 })).toBe(null);
  });
});

describe("the table", () => {
  it("has a line for every kind, setting and metric, the baseline once per layer", () => {
    const [head, ...lines] = rows(frame(), META);
    expect(head.length).toBe(11);
    expect(lines.length).toBe(2 * 2 * 3 * 2 - 2 * 2);
    expect(lines.find(([kind, layer, strength, metric]) => kind === "control" && layer === 5 && strength === -1 && metric === "kl_nats")[5]).toBe(1009);
    expect(lines.filter(([kind]) => kind === "base").every(([, , strength]) => strength === 0)).toBe(true);
  });
});
