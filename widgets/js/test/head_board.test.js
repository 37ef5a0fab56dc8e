import { describe, expect, it } from "vitest";
import { activeTable, board, isOpen, keptAt, numbersOf, patternOf, picked, ranked, runNames, scoreOf, warmth } from "../../head_board/shown.js";

const meta = { layers: [0, 1], heads: 2, scores: [{ name: "a", unit: "x" }, { name: "b", unit: "y" }] };
const array = (values) => ({ shape: [2, 2, 2], values: Float32Array.from(values) });
const frame = { mean: array([1, -5, 3, NaN, 0, 1, 2, 3]), low: array(Array(8).fill(-9)), high: array(Array(8).fill(9)), n: array(Array(8).fill(4)) };

describe("the board", () => {
  it("has the last layer on top and marks the open head", () => {
    const made = board(frame, meta, 0, [1, 0]);
    expect([...made.values.values]).toEqual([3, NaN, 1, -5]);
    expect([made.marks(0, 0), made.marks(1, 0), made.texts(0, 1)]).toEqual([true, false, ""]);
    expect(made.scale).toEqual({ kind: "diverging", lo: -5, hi: 5 });
    expect(made.say(1, 1)).toBe("layer 0 head 1: −5.00 [−9.00, 9.00] x");
    expect(board(frame, meta, 1, null).marks(0, 0)).toBe(false);
  });
  it("is sorted by absolute value, without heads that have none", () => {
    expect(ranked(frame, meta, 0).map(({ layer, head }) => [layer, head])).toEqual([[0, 1], [1, 0], [0, 0]]);
    expect(numbersOf(frame, meta, [1, 0]).map(({ name, rank }) => [name, rank])).toEqual([["a", 2], ["b", 2]]);
    expect(numbersOf(frame, meta, [1, 1])[0].rank).toBe(0);
  });
  it("shows a score there is", () => expect([scoreOf(meta, { score: 9 }), scoreOf(meta, null)]).toEqual([1, 0]));
});

describe("without a kernel", () => {
  const own = { ...frame, of: { head: [0, 0], prompt: 0, strength: 1 }, opened: { own: true }, tokens: ["a", "b"] };
  const sweep = { grid: [0, 1], prompt: 0, tokens: ["x", "y"], opened: { "1,0": [{ s: 0 }, { s: 1 }] },
    patterns: { shape: [2, 2, 2, 2], values: Uint8Array.from({ length: 16 }, (_, i) => 10 * i) } };
  it("a kept head opens at the nearest strength with its own pattern", () => {
    const found = picked(sweep, { head: [1, 0], prompt: 0, strength: 0.9 }, own);
    expect([found.opened, found.of.strength, found.tokens]).toEqual([{ s: 1 }, 1, ["x", "y"]]);
    expect([...found.pattern.values].map((v) => Math.round(255 * v))).toEqual([80, 90, 100, 110]);
    const made = patternOf(found, { head: [1, 0], prompt: 0 });
    expect([...made.values.values].map((v) => Math.round(255 * v) || 0)).toEqual([80, 0, 100, 110]);
  });
  it("a head that was not kept has its pattern alone, another prompt nothing", () => {
    const found = picked(sweep, { head: [1, 1], prompt: 0, strength: 1 }, own);
    expect([found.opened, found.pattern.values.length]).toEqual([null, 4]);
    const other = picked(sweep, { head: [1, 0], prompt: 1, strength: 1 }, own);
    expect([other.opened, other.pattern]).toEqual([null, null]);
    expect(keptAt(null, { head: [0, 0], prompt: 0 })).toBe(null);
  });
  it("the page's own head is shown as it came", () => {
    expect(picked(sweep, { head: [0, 0], prompt: 0, strength: 1 }, own)).toBe(own);
    expect(isOpen(own, { head: [0, 0], prompt: 0 })).toBe(true);
    expect(isOpen(own, { head: [0, 1], prompt: 0 })).toBe(false);
    expect(patternOf(own, { head: [0, 0], prompt: 0 })).toBe(null);
  });
});

it("names what is taken away", () => {
  expect([runNames(1), runNames(0.5)]).toEqual([["with the head", "without it"], ["with the head", "0.500 of it taken away"]]);
});

it("warmth is a share of the strongest on its side of 0", () => {
  const rows = [{ values: [1, -2] }, { values: [4, 0] }];
  expect(warmth(2, rows)).toEqual({ side: "hot", share: 0.5 });
  expect(warmth(-1, rows)).toEqual({ side: "cold", share: 0.5 });
  expect(warmth(0, rows).side).toBe("none");
});

it("the most active tokens are a table with their places in the prompt", () => {
  const rows = [{ prompt: 4, at: 1, before: 7, pieces: [" a", "b"], values: [0.5, 2] }];
  expect(activeTable({ unit: "logits", rows })).toEqual([["prompt", "token", "text", "logits", "strongest"], [4, 7, " a", 0.5, 0], [4, 8, "b", 2, 1]]);
  expect(activeTable(undefined)).toHaveLength(1);
});
