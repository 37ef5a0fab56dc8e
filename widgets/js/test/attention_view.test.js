import { describe, expect, it } from "vitest";
import { keptPattern, overview, pattern, picked } from "../../attention_view/shown.js";

// four statistics, two layers, two heads: 0 to 15
const counted = (start) => ({ shape: [4, 2, 2], values: Float32Array.from({ length: 16 }, (_, i) => start + i) });
const frame = { base: counted(0) };
const both = { ...frame, edited: counted(0.5) };
const about = { tab: "base", statistic: "first", layers: [0, 1], heads: 2, tokens: ["x", " y"], selection: { layer: 1, head: 0 } };

describe("heads", () => {
  it("have the last layer on top", () => {
    const made = overview(frame, about);
    expect(made.rows).toEqual(["1", "0"]);
    expect([...made.values.values]).toEqual([6, 7, 4, 5]);
    expect(made.marks(0, 0)).toBe(true);
    expect(made.marks(1, 0)).toBe(false);
  });
  it("show weights from 0 to 1 and the rest up to their largest", () => {
    expect(overview(frame, about).scale).toEqual({ kind: "sequential", lo: 0, hi: 1 });
    expect(overview(both, { ...about, statistic: "distance" }).scale.hi).toBe(15.5);
  });
  it("differ by what the edit did", () => {
    const made = overview(both, { ...about, tab: "difference" });
    expect([...made.values.values]).toEqual([0.5, 0.5, 0.5, 0.5]);
    expect(made.scale).toEqual({ kind: "diverging", lo: -0.5, hi: 0.5 });
  });
  it("say layer, head and number", () => {
    expect(overview({ base: { shape: [4, 2, 2], values: new Float32Array(16).fill(0.42) } }, about).say(0, 1)).toBe("layer 1 head 1: 0.420");
  });
});

describe("a pattern", () => {
  it("has no number where a query cannot look", () => {
    const made = pattern({ base: Float32Array.from([1, 0, 0.25, 0.75]) }, { ...about, layer: 1, head: 0 });
    expect([...made.values.values]).toEqual([1, NaN, 0.25, 0.75]);
    expect(made.say(0, 1)).toBe("query 0 “x”, key 1 “·y”: not seen");
  });
  it("of a precomputed setting is read at its own place", () => {
    const tokens = 2, heads = 2, kept = Uint8Array.from({ length: 16 }, (_, i) => i);
    const swept = Uint8Array.from({ length: 32 }, (_, i) => 100 + i);
    const sweep = { grid: [0, 1], base_patterns: { shape: [2, 2, 2, 2], values: kept }, edited_patterns: { shape: [2, 2, 2, 2, 2], values: swept } };
    const found = keptPattern(sweep, { strengths: [0.7] }, { layer: 1, head: 0, heads, tokens });
    expect([...found.base].map((v) => Math.round(v * 255))).toEqual([8, 9, 10, 11]);
    expect([...found.edited].map((v) => Math.round(v * 255))).toEqual([124, 125, 126, 127]);
    expect(keptPattern({ grid: [0] }, { strengths: [0] }, { layer: 0, head: 0, heads, tokens })).toBe(null);
  });
});

it("a precomputed strength becomes a frame", () => {
  const sweep = { grid: [-1, 1], edited: { shape: [2, 4, 2, 2], values: Float32Array.from({ length: 32 }, (_, i) => i) } };
  expect([...picked(sweep, { strengths: [0.2] }, frame).edited.values].slice(0, 3)).toEqual([16, 17, 18]);
  expect(picked({ grid: [] }, { strengths: [] }, frame)).toBe(frame);
});

describe("without a kernel", () => {
  const sweep = { grid: [-1, 1], others: [2], edited: { shape: [2, 4, 2, 2], values: Float32Array.from({ length: 32 }, (_, i) => i) },
    base_patterns: { shape: [2, 2, 2, 2], values: new Uint8Array(16) }, edited_patterns: { shape: [2, 2, 2, 2, 2], values: new Uint8Array(32).fill(255) } };
  const own = { ...both, of: { strengths: [0.6, 2] } }, place = { layer: 0, head: 0, heads: 2, tokens: 2, tab: "edited" };
  it("the page's own heads are shown as they came, another setting snaps and says so", () => {
    expect(picked(sweep, { strengths: [0.6, 2] }, own)).toBe(own);
    expect(picked(sweep, { strengths: [0.4, 2] }, own).of.strengths).toEqual([1, 2]);
    expect(picked(sweep, { strengths: [-1, 0] }, own)).toBe(own);
  });
  it("no pattern of another strength stands beside them", () => {
    expect(keptPattern(sweep, { strengths: [0.6, 2] }, place, own)).toBe(null);
    expect(Object.keys(keptPattern(sweep, { strengths: [0.6, 2] }, { ...place, tab: "base" }, own))).toEqual(["base"]);
    expect(keptPattern(sweep, { strengths: [1, 0] }, place, own)).toBe(null);
    expect([...keptPattern(sweep, { strengths: [1, 2] }, place, own).edited]).toEqual([1, 1, 1, 1]);
  });
});
