import { describe, expect, it } from "vitest";
import { align, distance } from "../align.js";

/** b, from a and the steps alone. */
function replay(a, b, steps) {
  const back = { a: [], b: [] };
  for (const step of steps) {
    if (step.a !== null) back.a.push(a[step.a]);
    if (step.b !== null) back.b.push(b[step.b]);
  }
  return back;
}

/** Levenshtein's recursion, written down as it is defined. */
function slow(a, b) {
  if (!a.length || !b.length) return a.length + b.length;
  if (a[0] === b[0]) return slow(a.slice(1), b.slice(1));
  return 1 + Math.min(slow(a.slice(1), b), slow(a, b.slice(1)), slow(a.slice(1), b.slice(1)));
}

function random(seed) {
  let state = seed;
  return (n) => { state = (state * 1103515245 + 12345) % 2147483648; return Math.floor((state / 2147483648) * n); };
}

describe("align", () => {
  it("names what happened to each token", () => {
    const steps = align(["a", "b", "c", "d"], ["a", "x", "c", "d", "e"]);
    expect(steps).toEqual([
      { kind: "same", a: 0, b: 0 }, { kind: "changed", a: 1, b: 1 }, { kind: "same", a: 2, b: 2 },
      { kind: "same", a: 3, b: 3 }, { kind: "added", a: null, b: 4 }]);
    expect(align([], [7])).toEqual([{ kind: "added", a: null, b: 0 }]);
    expect(align([7], [])).toEqual([{ kind: "removed", a: 0, b: null }]);
    expect(align([], [])).toEqual([]);
  });

  it("gives both sequences back, in order, in as few steps as there can be", () => {
    const next = random(3);
    for (let trial = 0; trial < 400; trial++) {
      const make = () => Array.from({ length: next(7) }, () => next(3));
      const a = make(), b = make(), steps = align(a, b);
      expect(replay(a, b, steps)).toEqual({ a, b });
      expect(distance(steps)).toBe(slow(a, b));
      for (const step of steps) {
        const same = step.a !== null && step.b !== null && a[step.a] === b[step.b];
        expect(step.kind === "same").toBe(same);
      }
    }
  });

  it("takes 4,000 tokens against 4,000 others", () => {
    const next = random(5), a = Array.from({ length: 4000 }, () => next(50)), b = a.slice();
    b.splice(10, 1); b[2000] = -1; b.push(-2);
    const steps = align(a, b);
    expect(replay(a, b, steps)).toEqual({ a, b });
    expect(distance(steps)).toBe(3);
  });

  it("pairs place by place what is too long for a table, and loses nothing", () => {
    const a = Array.from({ length: 7000 }, (_, i) => i), b = Array.from({ length: 6500 }, (_, i) => -i - 1);
    const steps = align(a, b);
    expect(replay(a, b, steps)).toEqual({ a, b });
  });
});
