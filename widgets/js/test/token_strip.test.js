import { describe, expect, it } from "vitest";
import { placeOf, rowsOf, tableOf } from "../../token_strip/tokens.js";

const array = (values, shape) => ({ values: Float32Array.from(values), shape });
const one = {
  names: ["p", "q"], scales: [{ unit: "nats" }, { unit: "" }],
  sides: [{ text: ["a", "", "c"], shown: ["", "⟨F0⟩", ""], first: 5 }], values: array([1, 2, 3, 4, NaN, 6], [2, 3]),
};
const two = {
  ...one,
  sides: [...one.sides, { text: ["a", "c"], shown: ["", ""], first: 7 }], other_values: array([10, 20, 30, 40], [2, 2]),
  pairs: { values: Int32Array.from([0, 0, 1, -1, 2, 1]), shape: [3, 2] },
};

describe("tokens of a TokenStrip", () => {
  it("takes the row that the spec names, and absolute positions", () => {
    expect(placeOf(one, { row: "q" })).toBe(1);
    expect(placeOf(one, { row: "gone" })).toBe(0);
    expect(placeOf({ names: [] }, { row: "" })).toBe(-1);
    expect(rowsOf(one, 0)[0].map((token) => [token.index, token.value])).toEqual([[5, 1], [6, 2], [7, 3]]);
    expect(rowsOf(one, 1)[0][1].value).toBeNaN();
    expect(rowsOf(one, 0)[0][1].shown).toBe("⟨F0⟩");
  });

  it("aligns two texts with gaps and marks what differs", () => {
    const [upper, lower] = rowsOf(two, 0);
    expect(lower[1]).toBe(null);
    expect(upper.map((token) => token.changed)).toEqual([false, true, false]);
    expect(lower.map((token) => token?.value)).toEqual([10, undefined, 20]);
  });

  it("writes every row into the table, nothing where there is no number", () => {
    expect(tableOf(one)).toEqual([["position", "token", "p (nats)", "q"], [5, "a", 1, 4], [6, "⟨F0⟩", 2, ""], [7, "c", 3, 6]]);
    expect(tableOf(two)[2]).toEqual([6, "⟨F0⟩", 2, "", "", "", "", ""]);
    expect(tableOf(two)[3]).toEqual([7, "c", 3, 6, 8, "c", 20, 40]);
  });
});
