// @vitest-environment happy-dom
import { describe, expect, it } from "vitest";
import { histogram } from "../../feature_browser/charts.js";
import { cellsOf, factsOf, keptOf, listOf, percent, picked, searched, settingOf, shareOf, tableOf } from "../../feature_browser/shown.js";

const feature = (feature, label, density, largest, f1, more = {}) => ({
  feature, label, density, largest, f1, mean: 1, control: 0.1, histogram: density ? [3, 1] : [0, 0], scores: [],
  promoted: [{ text: " five", value: 0.5 }], suppressed: [{ text: "no", value: -0.25 }], correlated: [{ feature: 9, value: 0.5, label: null }], neighbours: [],
  examples: [{ pieces: ["a", " b"], values: [0, 2], peak: 1, prompt: 4, position: 7 }], ...more,
});
const score = (score, rank) => ({ name: "mine", score, low: score - 1, high: score + 1, p: 0.01, rank, of: 2, unit: "nats" });
const kept = [
  feature(3, "after a two", 0.2, 4, 0.9, { scores: [score(1, 2)] }), feature(5, "all over", 0.9, 3, 0.5),
  feature(8, "unlabelled", 0, 0, 0, { promoted: [] }), feature(9, "Weak", 0.1, 0.5, 0.25, { scores: [score(-2, 1)] }),
];
const spec = { query: "", sort: "label", reverse: false, show: "alive" };
const order = (changes) => listOf(kept, { ...spec, ...changes }).rows.map((one) => one.feature);

describe("the list of a page without a kernel is the kernel's own", () => {
  it.each([
    [{}, [3, 5, 9]], [{ show: "all" }, [3, 5, 9, 8]], [{ show: "dead" }, [8]], [{ show: "dense" }, [3, 5]], [{ show: "sparse" }, [9]],
    [{ sort: "largest" }, [3, 5, 9]], [{ sort: "density" }, [5, 3, 9]], [{ sort: "density", reverse: true }, [9, 3, 5]],
    [{ sort: "number", reverse: true, show: "all" }, [9, 8, 5, 3]], [{ sort: "mine" }, [9, 3, 5]], [{ sort: "mine", reverse: true }, [3, 9, 5]],
    [{ query: "TWO after" }, [3]], [{ query: "five" }, [3, 5, 9]], [{ query: "five nowhere" }, []], [{ query: "#8" }, [8]], [{ query: "a b weak" }, [9]],
  ])("%j", (changes, found) => expect(order(changes)).toEqual(found));
  it("has the scores of the chosen ranking", () => {
    const { rows, matched } = listOf(kept, { ...spec, sort: "mine" });
    expect([matched, rows[0].score.score, rows[2].score]).toEqual([3, -2, null]);
    expect(cellsOf(rows[0], true).map(({ parts }) => parts[0])).toEqual(["10.0 %", "0.500", "−2.00 [−3.00, −1.00]"]);
    expect(cellsOf(rows[2], true)[2].parts).toEqual(["–"]);
    expect(cellsOf(rows[0], false)).toHaveLength(2);
  });
  it("looks at label, promoted tokens and examples in lower case", () => expect(searched(kept[3])).toBe("weak\n five\na b"));
});

describe("an opened feature without a kernel", () => {
  const own = { text: "x", pieces: ["x"], strongest: [], values: { 3: [1], 5: [2] } };
  const base = { list: {}, one: kept[1], own: { ...own, values: [2] } };
  it("is the kept one with its own text", () => {
    const found = picked({ features: kept, own }, { feature: 3 }, base);
    expect([found.one, found.own.values]).toEqual([kept[0], [1]]);
  });
  it("is the page's own where that is asked for, and nothing where it was not kept", () => {
    expect(picked({ features: [], own: undefined }, { feature: 5 }, base)).toMatchObject({ one: kept[1], own: { values: [2] } });
    expect(picked({ features: kept }, { feature: 77 }, base)).toMatchObject({ one: null, own: null });
    expect([keptOf(null, 3), keptOf({ features: kept }, 9)]).toEqual([null, kept[3]]);
  });
});

describe("in words", () => {
  it("says how often and how much, and every score", () => {
    expect(factsOf(kept[0], 2000)).toEqual([
      ["active on", "20.0 %: 4 of 2,000 tokens"], ["largest", "4.00"], ["mean when active", "1.00"], ["mine", "1.00 [0, 2.00] nats, rank 2 of 2, p 0.010"],
    ]);
    expect(factsOf(kept[2], 2000)).toEqual([["active on", "none of 2,000 tokens"]]);
  });
  it("names the edit", () => {
    const modes = [{ name: "add", words: "add", unit: "largest activations" }];
    expect([settingOf({ mode: "add", strength: -1.5 }, modes), settingOf({ mode: "x" }, modes)]).toEqual(["add −1.50 largest activations", ""]);
    expect([percent(0.001), percent(null)]).toEqual(["0.100 %", "–"]);
  });
  it("warmth is a share of the largest", () => {
    expect([shareOf(1, 4), shareOf(9, 4), shareOf(0, 4), shareOf(null, 4), shareOf(1, 0)]).toEqual([0.25, 1, 0, 0, 0]);
  });
});

it("the histogram has a bar for every step and none for an empty one", () => {
  const heights = [...histogram([99, 0, 9], 3).querySelectorAll("rect")].map((bar) => Number(bar.getAttribute("height")));
  expect([heights.length, heights[1], heights[0] / heights[2]]).toEqual([3, 0, 2]);
  expect(histogram([99, 0, 9], 3).querySelector("title").textContent).toBe("0 to 1.00: 99 tokens");
});

it("everything of a feature is a table", () => {
  const rows = tableOf(kept[0], { pieces: ["x"], values: [0.5] });
  expect(rows.filter(([kind]) => kind === "example")).toEqual([["example", 0, 6, "a", 3, 0], ["example", 0, 7, " b", 3, 2]]);
  expect(rows.at(-1)).toEqual(["own text", "", 0, "x", 3, 0.5]);
  expect(rows.filter(([kind]) => kind === "correlated")).toEqual([["correlated", "", "", "", 9, 0.5]]);
});
