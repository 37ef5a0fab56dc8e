import { describe, expect, it } from "vitest";
import { at, unpack } from "../frames.js";
import { packed } from "./fake-model.js";

const f4 = (values, shape) => ({ dtype: "<f4", shape, values: Float32Array.from(values) });

describe("unpack", () => {
  it("gives plain values and arrays back", () => {
    const frame = unpack(packed({ tokens: ["a", "b"], n: null }, { p: f4([0.5, -1, 2, 3], [2, 2]) }));
    expect(frame.tokens).toEqual(["a", "b"]);
    expect(frame.n).toBe(null);
    expect(frame.p.shape).toEqual([2, 2]);
    expect([...frame.p.values]).toEqual([0.5, -1, 2, 3]);
  });

  it.each([0, 1, 2, 3, 5, 7])("reads bytes that start %i into their buffer", (before) => {
    const arrays = { p: f4([1, 2, 3], [3]), q: { dtype: "<u2", shape: [2], values: Uint16Array.of(7, 8) } };
    const frame = unpack(packed({ word: "né" }, arrays, before));
    expect(frame.word).toBe("né");
    expect([...frame.p.values]).toEqual([1, 2, 3]);
    expect([...frame.q.values]).toEqual([7, 8]);
  });

  it("keeps what it read when the wire's buffer is used again", () => {
    const data = packed({}, { p: f4([1, 2], [2]) });
    const frame = unpack(data);
    new Uint8Array(data.buffer).fill(0);
    expect([...frame.p.values]).toEqual([1, 2]);
  });

  it("reads half floats, their zeros, smallest, infinite and missing values", () => {
    const bits = Uint16Array.of(0x3c00, 0xc000, 0x8000, 0x0001, 0x7c00, 0xfc00, 0x7e00);
    const { values } = unpack(packed({}, { h: { dtype: "<f2", shape: [7], values: bits } })).h;
    expect([...values]).toEqual([1, -2, -0, 2 ** -24, Infinity, -Infinity, NaN]);
  });

  it("gives null for no bytes", () => {
    for (const nothing of [null, undefined, new DataView(new ArrayBuffer(0))]) expect(unpack(nothing)).toBe(null);
  });
});

it("cuts one entry from the first axis without copying", () => {
  const whole = { shape: [3, 2], values: Float32Array.of(0, 1, 2, 3, 4, 5) };
  const part = at(whole, 1);
  expect(part.shape).toEqual([2]);
  expect([...part.values]).toEqual([2, 3]);
  expect(part.values.buffer).toBe(whole.values.buffer);
});
