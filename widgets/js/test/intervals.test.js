// @vitest-environment happy-dom
import { describe, expect, it, vi } from "vitest";
import { bar, curve, fileOf, span, stacked, ticks, words } from "../intervals.js";

const SERIES = [{ name: "edit", kind: 0, mean: [0.1, null, 0.5], low: [0, null, 0.4], high: [0.2, null, null] },
  { name: "</text><script>", kind: 1, mean: [0.3, 0.3, 0.3], low: [0.2, 0.2, 0.2], high: [0.4, 0.4, 0.4] }];
const PLOT = { label: "accuracy", xs: [-1, 0, 2], xName: "strength", yName: "accuracy (fraction)", series: SERIES, base: { name: "baseline", mean: 0.5, low: 0.4, high: 0.6 } };

describe("words", () => {
  it("give the mean with its interval, and signs to differences", () => {
    expect(words(0.625, 0.5, 0.75)).toBe("0.625 [0.500, 0.750]");
    expect(words(0.1, -0.2, 0.4, true)).toBe("+0.100 [−0.200, +0.400]");
    expect(words(0.5, null, NaN)).toBe("0.500");
    expect(words(null, null, null)).toBe("–");
  });
});

describe("axes", () => {
  it("span what is known", () => {
    expect(span([3, null, NaN, -1, Infinity])).toEqual([-1, 3]);
    expect(span([])).toEqual([0, 1]);
    const [lo, hi] = span([2, 2]);
    expect(lo).toBeLessThan(2);
    expect(hi).toBeGreaterThan(2);
  });

  it("tick at round numbers within the range", () => {
    expect(ticks(0, 1)).toEqual([0, 0.5, 1]);
    expect(ticks(-2.1, 2.1, 4)).toEqual([-2, 0, 2]);
    expect(ticks(0, 0.003).every((tick) => tick >= 0 && tick <= 0.003)).toBe(true);
  });
});

describe("a bar", () => {
  it("puts mean, interval and baseline where the axis says", () => {
    const svg = bar({ mean: 0.5, low: 0, high: 1 }, { lo: 0, hi: 1, base: 1 });
    expect(svg.querySelector("circle").getAttribute("cx")).toBe("60");
    const [, base, interval] = svg.querySelectorAll("line");
    expect([interval.getAttribute("x1"), interval.getAttribute("x2")]).toEqual(["5", "115"]);
    expect(base.getAttribute("x1")).toBe("115");
  });

  it("draws no interval where there is none", () => {
    expect(bar({ mean: 0.5, low: null, high: null }, { lo: 0, hi: 1 }).querySelectorAll("line").length).toBe(1);
  });
});

describe("a curve", () => {
  it("draws the known points, breaks at unknown ones, and says all of it", () => {
    const svg = curve(PLOT);
    const path = svg.querySelectorAll("path")[0].getAttribute("d");
    expect(path.match(/M/g).length).toBe(2);
    expect(path).not.toContain("L");
    expect(svg.getAttribute("aria-label")).toContain("edit: strength -1 0.100 [0, 0.200]");
    expect(svg.getAttribute("aria-label")).toContain("baseline 0.500 [0.400, 0.600]");
  });

  it("places by value on both axes", () => {
    const [a, b, c] = [...curve({ ...PLOT, series: [SERIES[1]] }).querySelectorAll("rect")].filter((r) => r.getAttribute("width") === "6").map((r) => Number(r.getAttribute("x")));
    expect((c - b) / (b - a)).toBeCloseTo(2, 5);
    const high = curve({ ...PLOT, series: [{ ...SERIES[1], mean: [0, 0.5, 1] }] });
    const ys = [...high.querySelectorAll("rect")].filter((r) => r.getAttribute("width") === "6").map((r) => Number(r.getAttribute("y")));
    expect(ys[0] - ys[1]).toBeCloseTo(ys[1] - ys[2], 5);
    expect(ys[0]).toBeGreaterThan(ys[2]);
  });

  it("shows at least the range asked for, and all numbers that leave it", () => {
    const drawn = (mean, within, yName = "mean reward") => {
      const svg = curve({ ...PLOT, base: null, xs: [0, 1, 2], yName, within, series: [{ name: "a", kind: 1, mean, low: mean, high: mean }] });
      return [...svg.querySelectorAll("rect")].filter((r) => r.getAttribute("width") === "6").map((r) => Number(r.getAttribute("y")) + 3).slice(0, -1); // the last one is the legend's
    };
    expect(drawn([0, 0.5, 1], [0, 1])).toEqual([174, 93, 12]);
    const rewards = drawn([0, 1, 5], [0, 1]);
    rewards.forEach((y) => { expect(y).toBeGreaterThanOrEqual(12); expect(y).toBeLessThanOrEqual(174); });
    expect(rewards[0]).toBe(174);
    const [low] = drawn([-3, 0, 0.5], [0, 1]);
    expect(low).toBeLessThanOrEqual(174);
    expect(drawn([0.2, null, 0.2], [0, 1]).length).toBe(2);
    expect(drawn([5, 6, 7], null, "a fraction of reward").every((y) => y > 12 && y < 174)).toBe(true);
  });

  it("tells which place was clicked", () => {
    const picked = vi.fn();
    const svg = curve({ ...PLOT, onPick: picked });
    [...svg.querySelectorAll("rect")].filter((r) => r.getAttribute("fill") === "transparent")[2].dispatchEvent(new Event("click"));
    expect(picked).toHaveBeenCalledWith(2);
  });

  it("keeps names as text in the file", () => {
    const text = fileOf(curve(PLOT));
    expect(text).not.toContain("<script>");
    expect(text).toContain("color:#222");
    const both = stacked([text, text]);
    expect(Number(both.match(/height="(\d+)/)[1])).toBe(2 * (Number(curve(PLOT).getAttribute("height")) + 8));
    expect(both.match(/y="(\d+)"/g).length).toBeGreaterThan(1);
  });
});
