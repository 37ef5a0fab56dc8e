// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import lab from "../../steering_lab/main.js";
import { colourOf, mark } from "../../steering_lab/marks.js";
import { opened } from "../../steering_lab/opened.js";
import { axesOf, plot, throughBase } from "../../steering_lab/plot.js";
import { countOf, drawnOf, failuresOf, figureOf, linesOf, named, pointsOf, recipeOf, rows, same, textsOf } from "../../steering_lab/reading.js";
import { fakeModel, packed } from "./fake-model.js";

const META = {
  title: "x", methods: ["mean", "<script>ace"], layers: [1, 3], metrics: [{ name: "accuracy", unit: "fraction", better: "higher" }, { name: "kl_nats", unit: "nats" }],
  prompts: ["p <b>", "q"], n_prompts: 3, opened: "", complete: true, but: "",
};
const SPEC = { v: 1, methods: ["mean", "<script>ace"], layers: [1, 3], x: 1, y: 0, controls: true, chosen: null, go: 0 };
const POINTS = {
  kind: ["base", "method", "method", "method", "control", "method", "prompting"], method: ["base", "mean", "mean", "mean", "mean", "<script>ace", "prompting"],
  layer: [null, 1, 1, 3, 1, null, null], strength: [0, 2, -1, 0.1 + 0.2, 2, 1, 1],
};
const COUNT = 7, NAMES = ["mean", "low", "high", "difference", "difference_low", "difference_high", "p"];
// [metric, point]: the value names its place
const FIGURES = Object.fromEntries(NAMES.map((name, k) => [name, { dtype: "<f4", shape: [2, COUNT], values: Float32Array.from({ length: 2 * COUNT }, (_, i) => (i + 100 * k) / 1000) }]));
const of = (kind, method, layer, done, total) => ({ of: { kind, method, layer, strength: 0 }, done, total });
const PLAIN = {
  points: POINTS, done: 7, total: 11, lines: [of("base", "base", null, 1, 1), of("prompting", "prompting", null, 1, 1), of("method", "mean", 1, 2, 2), of("method", "mean", 3, 1, 2), of("control", "mean", 1, 1, 2), of("method", "<script>ace", null, 1, 3)],
  errors: [["<b>no</b> rows", [3, 5]]], notes: ["a note"], recipes: [["mean", 1, "wb.steering.fit('mean', model, data).only('L1.resid_post')", "class differences"]],
  slots: [0, 1, -1, -1, -1, -1, -1], kept: 2, text_stop: ["eos", "eos", "length", "length"], pieces: { 5: "a", 6: "<b>" },
};
const ARRAYS = {
  ...FIGURES, differs: { dtype: "|u1", shape: [2, COUNT], values: Uint8Array.from({ length: 2 * COUNT }, (_, i) => (i === 1 ? 1 : 0)) },
  text_ids: { dtype: "<u2", shape: [4], values: Uint16Array.from([5, 6, 6, 5]) }, text_logprobs: { dtype: "<f4", shape: [4], values: Float32Array.from([-1, -2, -3, -4]) },
  text_ends: { dtype: "<i4", shape: [5], values: Int32Array.from([0, 1, 2, 3, 4]) }, text_right: { dtype: "|u1", shape: [4], values: Uint8Array.from([1, 0, 2, 1]) },
};
const FRAME = { ...PLAIN, ...ARRAYS };
const without = (places) => {
  const mean = { ...FIGURES.mean, values: FIGURES.mean.values.slice() };
  places.forEach((i) => { mean.values[i] = NaN; });
  return { ...FRAME, mean };
};

afterEach(() => document.body.replaceChildren());

describe("reading a frame", () => {
  it("finds every figure at its metric and point", () => {
    const found = figureOf(FRAME, 1, 2);
    expect(Object.values(found).slice(0, 7).map((v) => Math.round(1000 * v))).toEqual([9, 109, 209, 309, 409, 509, 609]);
    expect(figureOf(FRAME, 0, 1).differs).toBe(true);
    expect(figureOf(without([9]), 1, 2).mean).toBe(null);
  });

  it("draws what is chosen and has both numbers", () => {
    const places = (spec, frame = FRAME, meta = META) => drawnOf(frame, { ...SPEC, ...spec }, meta).map((point) => point.i);
    expect(places({})).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(places({ controls: false })).toEqual([0, 1, 2, 3, 5, 6]);
    expect(places({ methods: ["mean"], layers: [3] })).toEqual([0, 3, 6]);
    expect(places({ layers: [] })).toEqual([0, 5, 6]); // a method without layers is in every choice of them
    expect(places({ layers: [1] }, FRAME, { ...META, layers: [1, null] })).toEqual([0, 1, 2, 4, 6]);
    expect(places({}, without([1, 9]))).toEqual([0, 3, 4, 5, 6]);
  });

  it("joins points along strength, a line per kind, method and layer", () => {
    const lines = linesOf(drawnOf(FRAME, SPEC, META));
    expect(lines.map((line) => line.map((point) => point.i))).toEqual([[0], [2, 1], [3], [4], [5], [6]]);
    const [base] = lines[0];
    expect(throughBase(lines[1], base).map((point) => point.i)).toEqual([2, 0, 1]);
    expect(throughBase(lines[2], base).map((point) => point.i)).toEqual([0, 3]);
    expect(throughBase(lines[2], undefined)).toEqual(lines[2]);
  });

  it("counts what is chosen, controls that are not shown too", () => {
    expect(countOf(FRAME, { ...SPEC, controls: false }, META)).toEqual({ done: 7, total: 11 });
    expect(countOf(FRAME, { ...SPEC, methods: ["mean"], layers: [3] }, META)).toEqual({ done: 3, total: 4 });
  });

  it("says failures of the chosen, once per reason", () => {
    expect(failuresOf(FRAME, SPEC, META)).toEqual(["mean, <script>ace, 2 settings: <b>no</b> rows"]);
    expect(failuresOf(FRAME, { ...SPEC, methods: ["mean"], layers: [1] }, META)).toEqual([]);
  });

  it("knows a point again by all that names it", () => {
    const [, point, other] = pointsOf(FRAME);
    expect(same(point, { kind: "method", method: "mean", layer: 1, strength: 2 })).toBe(true);
    expect(same(point, other)).toBe(false);
    expect(same(null, null)).toBe(false);
    expect(pointsOf(FRAME).map(named)).toEqual(["baseline", "mean, layer 1, strength 2", "mean, layer 1, strength −1", "mean, layer 3, strength 0.3", "mean, layer 1, strength 2, random direction", "<script>ace, strength 1", "prompting"]);
  });

  it("writes the edit of a method's point, and none of its control", () => {
    const points = pointsOf(FRAME);
    expect(recipeOf(FRAME, points[1])).toEqual({ unit: "class differences", code: "wb.steering.fit('mean', model, data).only('L1.resid_post').at(2.0)" });
    expect(recipeOf(FRAME, points[2]).code).toMatch(/\.at\(-1\.0\)$/);
    expect(recipeOf(FRAME, points[4]).code).toBe(null);
    expect([0, 3].map((i) => recipeOf(FRAME, points[i]))).toEqual([null, null]);
  });

  it("finds continuations by slot", () => {
    const points = pointsOf(FRAME);
    expect(textsOf(FRAME, points[1])).toMatchObject({ base: 0, other: 2, kept: 2 });
    expect(textsOf(FRAME, points[2])).toBe(null);
  });

  it("has a line for every number", () => {
    const [head, ...lines] = rows(without([1]), META);
    expect(head.length).toBe(13);
    expect(lines.length).toBe(2 * COUNT - 1);
    expect(lines[1].slice(0, 6)).toEqual(["base", "base", null, 0, "kl_nats", "nats"]);
  });
});

describe("marks", () => {
  it("differ for 42 methods", () => {
    const looks = Array.from({ length: 42 }, (_, i) => `${colourOf(i)} ${mark(i).getAttribute("d")}`);
    expect(new Set(looks).size).toBe(42);
    expect(mark(0, 0, 0, { hollow: true }).getAttribute("fill-opacity")).toBe("0");
  });
});

describe("the plot", () => {
  const painted = (spec = {}, more = {}) => {
    const onSelect = vi.fn(), one = plot({ listen: (target, type, act) => target.addEventListener(type, act) }, { onSelect });
    one.paint({ points: drawnOf(FRAME, { ...SPEC, ...spec }, META), metrics: { x: META.metrics[1], y: META.metrics[0] }, methods: META.methods, chosen: null, root: false, ...more });
    document.body.append(one.element);
    return { one, onSelect, key: (name) => one.svgs.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true })) };
  };

  it("puts points where their numbers are", () => {
    const { one } = painted();
    const places = Object.fromEntries(one.places.map(({ point, x, y }) => [point.i, [x, y]]));
    expect(places[1][0]).toBeGreaterThan(places[0][0]);
    expect(places[2][1]).toBeLessThan(places[1][1]); // up is more
    const gap = (a, b) => places[b][0] - places[a][0];
    expect(gap(1, 2)).toBeCloseTo(gap(4, 5), 3); // equal steps
  });

  it("spreads small amounts on a root scale, never of what may be negative", () => {
    const point = (x) => ({ x: { mean: x }, y: { mean: 0 } }), metrics = { x: { unit: "nats" }, y: { unit: "nats" } };
    const at = (values, root) => { const { x } = axesOf(values.map(point), metrics, root); return (v) => (x(v) - x(values[0])) / (x(values[2]) - x(values[0])); };
    expect(at([0, 1, 4], false)(1)).toBeCloseTo(0.25, 6);
    expect(at([0, 1, 4], true)(1)).toBeCloseTo(0.5, 6);
    expect(at([-4, 0, 4], true)(0)).toBeCloseTo(0.5, 6);
  });

  it("walks with arrows and opens with Enter", () => {
    const { one, onSelect, key } = painted();
    key("ArrowRight"); // the first stop
    expect(one.cursor.i).toBe(0);
    key("ArrowDown");
    expect(one.cursor.i).toBe(2);
    key("ArrowRight");
    expect(one.cursor.i).toBe(1);
    expect(one.said.textContent).toBe("mean, layer 1, strength 2; accuracy 0.001 [0.101, 0.201]; kl_nats 0.008 [0.108, 0.208]");
    expect(one.picture.querySelectorAll(".wb-lab-bar").length).toBe(2);
    expect(one.tip.hidden).toBe(false);
    key("Enter");
    expect(onSelect.mock.calls[0][0].i).toBe(1);
    key("End");
    expect(one.cursor.i).toBe(1);
    ["ArrowUp", "ArrowUp", "ArrowUp"].forEach(key);
    expect(one.cursor.i).toBe(0);
  });

  it("shows the intervals of the chosen point, hollow controls, and its legend in the file", () => {
    const { one } = painted({}, { chosen: { kind: "control", method: "mean", layer: 1, strength: 2 } });
    expect(one.picture.querySelectorAll(".wb-lab-bar").length).toBe(2);
    expect(one.picture.querySelectorAll("[fill-opacity='0']").length).toBe(1);
    expect(one.svg()).toContain("&lt;script&gt;ace");
    expect(one.svg()).not.toContain("<script>");
  });
});

describe("a LiveEdit below", () => {
  const view = { signal: new AbortController().signal };

  it("is drawn by the page where it can, once per edit", async () => {
    const render = vi.fn(async ({ el }) => { el.textContent = "sliders"; }), getWidget = vi.fn(async () => ({ render }));
    const one = opened(view, { getWidget });
    await one.draw("");
    await one.draw("IPY_MODEL_a");
    await one.draw("IPY_MODEL_a");
    expect(getWidget.mock.calls).toEqual([["anywidget:a"]]);
    expect(one.element.textContent).toBe("sliders");
    const [{ signal }] = render.mock.calls[0];
    await one.draw("IPY_MODEL_b");
    expect([signal.aborted, one.element.querySelectorAll(".wb-lab-child > div").length]).toEqual([true, 1]);
  });

  it("is found under the prefix of a report too", async () => {
    const render = async ({ el }) => { el.textContent = "sliders"; };
    const one = opened(view, { getWidget: async (name) => { if (name !== "IPY_MODEL_a") throw new Error(name); return { render }; } });
    await one.draw("IPY_MODEL_a");
    expect(one.element.textContent).toBe("sliders");
  });

  it("is named where it cannot", async () => {
    const one = opened(view, undefined), other = opened(view, { getWidget: async () => { throw new Error("no binding"); } });
    await one.draw("anywidget:a");
    await other.draw("anywidget:a");
    for (const { element } of [one, other]) expect(element.textContent).toContain("lab.live()");
  });
});

describe("the widget", () => {
  let model, el, root;
  beforeEach(() => {
    model = fakeModel({ spec: SPEC, meta: META, data: packed(PLAIN, ARRAYS), seq: 1 });
    el = document.createElement("div");
    document.body.append(el);
    lab.render({ model, el, signal: new AbortController().signal });
    root = el.querySelector(".wb");
  });
  const button = (name) => [...root.querySelectorAll("button")].find((one) => one.textContent === name);
  const choose = (chosen) => { model.update({ spec: { ...SPEC, chosen } }); };
  const POINT = { kind: "method", method: "mean", layer: 1, strength: 2 };

  it("works without a kernel: boxes, axes, points, texts and the short code", () => {
    expect(root.dataset.mode).toBe("sweep");
    expect(button("Continue").hidden).toBe(true);
    root.querySelectorAll("input[type=checkbox]")[0].click();
    expect(root.__debug().places.map(({ point }) => point.i)).toEqual([0, 5, 6]);
    root.querySelectorAll("input[type=checkbox]")[0].click();
    for (const key of ["ArrowDown", "ArrowDown", "End", "Enter"]) {
      root.querySelector(".wb-lab-svg").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    }
    const { about, code, transcript } = root.__debug();
    expect(about).toBe("mean, layer 1, strength 2 (class differences)");
    expect(code).toBe("edit = wb.steering.fit('mean', model, data).only('L1.resid_post').at(2.0)");
    expect([transcript.base.text.ids, transcript.other.text.ids]).toEqual([[5], [6]]);
    expect([button("Open LiveEdit").hidden, button("Copy as Python").hidden]).toEqual([true, false]);
    expect(model.get("spec")).toEqual(SPEC); // all of it is local: no kernel hears of it
  });

  it("asks a kernel to train and to go on", () => {
    model.say({ type: "ack" });
    expect(button("Continue").hidden).toBe(false);
    button("Continue").click();
    expect(model.get("spec").go).toBe(1);
    model.update({ status: { state: "running" } });
    expect(button("Continue").hidden).toBe(true);
  });

  it("keeps the focus inside when a button goes", () => {
    model.say({ type: "ack" });
    button("Continue").focus();
    model.update({ status: { state: "running" } });
    expect(document.activeElement).toBe(root);
  });

  it("offers no edit of a prompt, a baseline or a failure", () => {
    model.say({ type: "ack" });
    const tools = (chosen) => { choose(chosen); return [button("Copy as Python").hidden, button("Open LiveEdit").hidden]; };
    expect(tools(POINT)).toEqual([false, false]);
    expect(tools({ kind: "base", method: "base", layer: null, strength: 0 })).toEqual([true, false]);
    expect(tools({ kind: "prompting", method: "prompting", layer: null, strength: 1 })).toEqual([true, true]);
    expect(tools({ ...POINT, layer: 3, strength: 0.1 + 0.2 })).toEqual([true, true]);
  });

  it("shows hostile names as text", () => {
    expect(root.querySelector("script, b:not(.wb-transcript b)")).toBe(null);
    expect(root.textContent).toContain("<script>ace");
    expect(root.textContent).toContain("<b>no</b> rows");
  });
});
