import { describe, expect, it } from "vitest";
import { History } from "../../live_edit/history.js";
import { nearest, putAt, strengthOf, walk } from "../nearest.js";
import { marked } from "../../live_edit/texts.js";
import { toCsv } from "../../live_edit/pictures.js";

describe("history", () => {
  it("goes back and forth, and forgets what was undone when something new comes", () => {
    const history = new History();
    history.push("a");
    history.push("b");
    expect(history.undo("c")).toBe("b");
    expect(history.undo("b")).toBe("a");
    expect(history.undo("a")).toBe(null);
    expect(history.redo("a")).toBe("b");
    history.push("b");
    expect(history.redo("d")).toBe(null);
  });

  it("takes the events of one drag as one step", () => {
    const history = new History();
    for (let i = 0; i < 40; i++) history.push(`at ${i}`, "slider e0", 1000 + 25 * i);
    history.push("rest", "slider e1", 2100);
    history.push("later", "slider e1", 9000);
    expect(history.past).toEqual(["at 0", "rest", "later"]);
  });
});

it("snaps to the nearest precomputed value", () => {
  expect([-9, -1.1, -0.9, 0.2, 9].map((v) => nearest([-2, -1, 0, 3], v))).toEqual([0, 1, 1, 2, 3]);
});

describe("marks", () => {
  it("are on what the other side lacks", () => {
    const frame = { done: true, base: { ids: [1, 2, 3] }, edited: { ids: [1, 9, 3, 4] } };
    expect(marked(frame)).toEqual({ base: [false, true, false], edited: [false, true, false, true] });
  });

  it("wait for what is still to come", () => {
    const frame = { done: false, base: { ids: [1, 2, 3, 4] }, edited: { ids: [1, 2] } };
    expect(marked(frame).base).toEqual([false, false, false, false]);
  });
});

it("writes tokens that hold commas and quotes so that they can be read back", () => {
  const side = { ids: [5], tokens: ['a,"b'], logprobs: [-0.5] };
  expect(toCsv({ base: side })).toContain('base,0,5,"a,""b",-0.5,,');
});

describe("a slider of a page without a kernel", () => {
  const range = { min: -2, max: 2, step: 0.02 };
  const stand = (settings) => {
    const input = { dataset: {}, value: "" };
    walk(input, range, settings);
    return input;
  };
  it("has a step per setting, so that a key reaches the next one", () => {
    const input = stand([-2, 0, 0.5, 2]);
    expect([input.min, input.max, input.step]).toEqual([0, 3, 1]);
    putAt(input, 0.4);
    expect([input.value, strengthOf(input)]).toEqual(["2", 0.5]);
    input.value = "3";
    expect(strengthOf(input)).toBe(2);
  });
  it("has strengths again when a kernel comes", () => {
    const input = stand([-2, 2]);
    expect(walk(input, range, null)).toBe(true);
    expect(walk(input, range, null)).toBe(false);
    putAt(input, 0.4);
    expect([input.step, strengthOf(input)]).toEqual([0.02, 0.4]);
  });
});
