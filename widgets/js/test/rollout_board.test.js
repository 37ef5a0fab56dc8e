// @vitest-environment happy-dom
import { afterEach, describe, expect, it, vi } from "vitest";
import { boardSvg, linesAsRows } from "../../rollout_board/pictures.js";
import { lineOf, roundOf, textNumber } from "../../rollout_board/reading.js";
import { trainings, unfinished, waits } from "../../rollout_board/training.js";
import { cells } from "../cells.js";
import { about, sideBySide, textAt, transcript } from "../transcripts.js";

afterEach(() => document.body.replaceChildren());
const listening = () => ({ listen: (target, type, handler) => target.addEventListener(type, handler) });
const line = (arm, metric, mean, more = {}) => ({ arm, metric, mean, low: mean - 0.1, high: mean + 0.1, difference: null, difference_low: null, difference_high: null, p: null, p_holm: null, differs: false, n: 8, ...more });
const META = { metrics: [{ name: "accuracy", unit: "fraction" }, { name: "pass@2", unit: "fraction" }], base: "base" };
const FRAME = {
  arms: [{ name: "base", kind: "baseline" }, { name: "<script>x", kind: "arm" }], measures: ["accuracy", "pass@2"],
  lines: [line("base", "accuracy", 0.5), line("<script>x", "accuracy", 0.25, { difference: -0.25, difference_low: -0.3, difference_high: -0.2, differs: true }), line("base", "pass@2", 0.75)],
  rounds: [["base", 0], ["base", 7], ["<script>x", 0]], kept: 3,
};

describe("reading a frame", () => {
  it("finds lines, rounds and transcripts", () => {
    expect(lineOf(FRAME, "base", "pass@2").mean).toBe(0.75);
    expect(lineOf(FRAME, "<script>x", "pass@2")).toBe(null);
    expect(roundOf(FRAME, "base", 7)).toBe(1);
    expect(textNumber(FRAME, "<script>x", 0, 2)).toBe(8);
    expect(textNumber(FRAME, "<script>x", 0, 3)).toBe(-1);
    expect(textNumber(FRAME, "<script>x", 7, 0)).toBe(-1);
  });

  it("reads texts back from their arrays", () => {
    const frame = {
      text_ids: { values: Uint16Array.from([5, 6, 5]) }, text_logprobs: { values: Float32Array.from([-1, -2, -0.5]) },
      text_ends: { values: Int32Array.from([0, 2, 2, 3]) }, text_right: { values: Uint8Array.from([1, 0, 2]) }, text_stop: ["eos", "length", "text"], pieces: { 5: "a", 6: "<b>" },
    };
    expect(textAt(frame, 0)).toEqual({ ids: [5, 6], tokens: ["a", "<b>"], logprobs: [-1, -2], right: 1, stop: "eos" });
    expect(textAt(frame, 1).ids).toEqual([]);
    expect(textAt(frame, 2).logprobs).toEqual([-0.5]);
    expect([textAt(frame, 3), textAt(frame, -1), textAt(null, 0)]).toEqual([null, null, null]);
    expect(about(textAt(frame, 0))).toBe("right, 2 tokens, ended by itself");
    expect(about(textAt(frame, 2))).toBe("1 token, ended at a stop text");
  });
});

describe("two transcripts", () => {
  const text = (ids) => ({ ids, tokens: ids.map(String), logprobs: ids.map((id) => -id) });
  it("stand aligned: every token of both, gaps, and marks at what changed", () => {
    const { above, below, changed } = sideBySide(text([1, 2, 3, 4]), text([1, 9, 4, 5]));
    expect(above.filter(Boolean).map((one) => one.text)).toEqual(["1", "2", "3", "4"]);
    expect(below.filter(Boolean).map((one) => one.text)).toEqual(["1", "9", "4", "5"]);
    expect(above.length).toBe(below.length);
    expect(changed).toBe(3);
    above.forEach((one, i) => expect(Boolean(one?.changed || below[i]?.changed)).toBe(one?.text !== below[i]?.text));
  });
});

describe("a transcript as a file", () => {
  it("has the tokens of both texts, and none where nothing is shown", () => {
    const one = transcript({ ...listening(), spec: {} });
    expect(one.svg()).toBe("");
    const text = (tokens) => ({ ids: tokens.map((_, i) => i), tokens, logprobs: tokens.map(() => -1), right: 1, stop: "eos" });
    one.show({ name: "base", text: text(["<b>", "two"]) }, { name: "steered", text: text(["<b>", "2"]) });
    const file = one.svg();
    expect(file).toContain("&lt;b&gt;");
    expect(file).toContain("base: right, 2 tokens, ended by itself");
    expect(file).toContain("steered: ");
  });
});

describe("the table", () => {
  it("moves as the grid does, within its bounds", () => {
    const one = cells(listening(), { label: "rows", onSelect: vi.fn() });
    one.show(["a", "b"], Array.from({ length: 12 }, (_, i) => ({ title: [String(i)], cells: [{ parts: ["x"], say: `row ${i}` }] })), {});
    const press = (key) => one.table.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    press("PageDown");
    expect(one.cursor).toEqual({ row: 8, col: 0 });
    press("PageDown");
    expect(one.cursor).toEqual({ row: 11, col: 0 });
    press("End");
    press("x");
    expect(one.cursor).toEqual({ row: 11, col: 0 });
  });

  it("has one tab stop, says where it is, and chooses with Enter and clicks", () => {
    const chosen = vi.fn(), one = cells(listening(), { label: "arms", onSelect: chosen });
    document.body.append(one.element);
    const row = (name) => ({ title: [name], cells: ["a", "b"].map((c) => ({ parts: [c], say: `${name}: ${c}` })) });
    one.show(["arm", "x", "y"], [row("<img src=x>"), row("two")], { row: 1 });
    expect(one.element.querySelectorAll("[tabindex]").length).toBe(1);
    expect(one.element.querySelector("img")).toBe(null);
    const press = (key) => one.table.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    press("ArrowDown");
    press("ArrowRight");
    expect(one.said.textContent).toBe("two: b");
    expect(one.table.getAttribute("aria-activedescendant")).toBe(one.nodes[1][1].id);
    press("Enter");
    expect(chosen).toHaveBeenLastCalledWith(1, 1);
    one.nodes[0][1].click();
    expect(chosen).toHaveBeenLastCalledWith(0, 1);
    expect(one.table.querySelectorAll("tr.wb-chosen").length).toBe(1);
  });
});

describe("the pictures", () => {
  it("hold every number, names as text", () => {
    const svg = boardSvg(FRAME, META, { baseline: null, arm: 0 });
    expect(svg).not.toContain("<script>");
    expect(svg).toContain("&lt;script&gt;x");
    expect(svg).toContain("−0.250 [−0.300, −0.200] *");
    const [head, ...lines] = linesAsRows(FRAME, META);
    expect(lines.length).toBe(3);
    expect(lines[1][head.indexOf("difference")]).toBe(-0.25);
  });
});

describe("an arm to train", () => {
  const training = { name: "rl", steps: 3, edits: ["shift <b>"], runs: [{ name: "rl", error: "", made: false, mean: [], low: [], high: [] }] };
  const view = (live) => ({ ...listening(), live, spec: { train: [], go: 4 }, ask: vi.fn() });

  it("has a button that asks for it, without a kernel none that works", () => {
    const on = view(true), panel = trainings(on);
    panel.draw({ trainings: [training] }, false);
    const button = panel.element.querySelector("button");
    expect(button.textContent).toBe("Train 3 steps");
    button.click();
    expect(on.ask).toHaveBeenCalledWith({ train: ["rl"], go: 5 });
    const off = trainings(view(false));
    off.draw({ trainings: [training] }, false);
    expect(off.element.querySelector("button").disabled).toBe(true);
    expect(off.element.textContent).toContain("needs a running kernel");
  });

  it("is to be continued where it was asked for and is neither made nor failed", () => {
    const runs = (...states) => ({ ...training, runs: states.map((state) => ({ ...training.runs[0], made: state === "made", error: state === "error" ? "no reward" : "" })) });
    const asked = { ...view(true), spec: { train: ["rl"], go: 5 }, meta: { seeds: [0, 1] } };
    const said = (one) => {
      const panel = trainings(asked);
      panel.draw({ trainings: [one] }, false);
      return panel.element.querySelector(".wb-quiet").textContent;
    };
    const arms = [{ done: 2, error: "" }, { done: 0, error: "wild" }];
    for (const [one, waiting, words] of [[runs("made", ""), true, "asked for; press Continue"], [runs("made", "error"), false, "failed in part"],
      [runs("error", "error"), false, "failed"], [runs("made", "made"), false, "trained"]]) {
      expect(waits(one, asked.spec)).toBe(waiting);
      expect(unfinished(asked, { arms, trainings: [one] })).toBe(waiting);
      expect(said(one).startsWith(words)).toBe(true);
    }
    expect(waits(runs(""), { train: [] })).toBe(false);
    expect(unfinished(asked, { arms: [{ done: 1, error: "" }], trainings: [] })).toBe(true);
  });

  it("gives its curve as a file", () => {
    const panel = trainings(view(true)), run = { ...training.runs[0], name: "<b>rl", mean: [3, 5], low: [2, 4], high: [4, 6] };
    panel.draw({ trainings: [{ ...training, runs: [run] }] }, false);
    const [file] = panel.svgs();
    expect(file).toContain("&lt;b&gt;rl");
    expect(file.startsWith("<svg")).toBe(true);
  });

  it("keeps its button while nothing changes, and draws the rewards as they come", () => {
    const panel = trainings(view(true));
    panel.draw({ trainings: [training] }, false);
    const before = panel.element.querySelector("button");
    panel.draw({ trainings: [training] }, false);
    expect(panel.element.querySelector("button")).toBe(before);
    const run = { ...training.runs[0], mean: [0.1, 0.4], low: [0, 0.3], high: [0.2, 0.5] };
    panel.draw({ trainings: [{ ...training, runs: [run] }] }, true);
    expect(panel.element.querySelector("svg").getAttribute("aria-label")).toContain("step 2 0.400 [0.300, 0.500]");
  });
});
