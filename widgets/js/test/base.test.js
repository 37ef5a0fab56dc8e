// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { mount } from "../base.js";
import { h } from "../dom.js";
import { fakeModel, packed } from "./fake-model.js";

let stop, el, drawn;

beforeEach(() => {
  vi.useFakeTimers();
  stop = new AbortController();
  el = document.createElement("div");
  document.body.append(el);
  drawn = [];
});

afterEach(() => {
  stop.abort();
  el.remove();
  vi.useRealTimers();
});

/** A widget with one slider that notes what it draws. */
function shown(state = {}, more = {}) {
  const model = fakeModel({ data: packed({ x: 0 }), ...state });
  const view = mount({ model, el, signal: stop.signal }, {
    name: "probe",
    build: (v) => v.body.append(h("input", { type: "range" })),
    draw: (_view, frame) => drawn.push(frame.x),
    ...more,
  });
  return { model, view, root: el.querySelector(".wb") };
}

const frame = (x, seq) => ({ data: packed({ x }), seq, status: { state: "idle", requested_seq: seq } });
const words = (root) => root.querySelector(".wb-mode").textContent;

describe("the handshake", () => {
  it("asks for the kernel, and is live only when it answers", () => {
    const { model, root, view } = shown();
    expect(model.sent).toEqual([{ type: "hello" }]);
    expect(root.dataset.mode).toBe("kernel");
    expect(words(root)).toBe("needs a running kernel");
    view.ask({ a: 1 });
    expect(model.saved).toBe(0);
    model.say({ type: "ack" });
    expect([root.dataset.mode, words(root)]).toEqual(["live", "live"]);
    view.ask({ a: 2 });
    expect(model.get("spec")).toEqual({ v: 1, a: 2 });
    expect(model.saved).toBe(1);
  });

  it("survives a page whose send throws", () => {
    const model = fakeModel();
    model.send = () => { throw new Error("no comm"); };
    mount({ model, el, signal: stop.signal }, { name: "probe", build() {}, draw() {} });
    vi.advanceTimersByTime(20000);
    expect(el.querySelector(".wb").dataset.mode).toBe("kernel");
  });

  it("asks again while no kernel answers, and says when a live one falls silent", () => {
    const { model, root } = shown();
    vi.advanceTimersByTime(5000);
    expect(model.sent).toEqual([{ type: "hello" }, { type: "hello" }]);
    model.say({ type: "ack" });
    vi.advanceTimersByTime(5000);
    expect(model.sent.at(-1)).toEqual({ type: "beat" });
    model.say({ type: "beat" });
    vi.advanceTimersByTime(2500);
    expect(words(root)).toBe("live");
    vi.advanceTimersByTime(2500 + 2000);
    expect(words(root)).toBe("live, but the kernel is busy or gone");
    expect(root.dataset.kernel).toBe("silent");
    model.say({ type: "beat" });
    expect(words(root)).toBe("live");
    expect(root.dataset.kernel).toBe(undefined);
  });
});

describe("a question that a model would not send", () => {
  it("is not asked, so that no silence follows", () => {
    const { model, view, root } = shown();
    model.say({ type: "ack" });
    view.ask({ a: 1 });
    model.say({ type: "beat" });
    vi.advanceTimersByTime(100);
    view.ask({ a: 1 });
    expect(model.saved).toBe(1);
    vi.advanceTimersByTime(2500);
    expect([words(root), root.dataset.kernel]).toEqual(["live", undefined]);
    view.ask({ a: 2 });
    expect(model.saved).toBe(2);
    vi.advanceTimersByTime(2100);
    expect(root.dataset.kernel).toBe("silent");
  });
});

describe("modes in words", () => {
  const sweep = packed({ grid: [1, 2, 3], frames: [{ x: 10 }, { x: 20 }, { x: 30 }] });
  const pick = (made, spec) => made.frames[spec.i ?? 0];

  it("says how many settings are there, and moves among them without a kernel", () => {
    const { model, view, root } = shown({ sweep }, { pick });
    expect([root.dataset.mode, words(root)]).toEqual(["sweep", "precomputed: 3 settings, no kernel"]);
    view.ask({ i: 2 });
    expect(drawn.at(-1)).toBe(30);
    expect(model.get("spec")).toEqual({ v: 1 });
    expect(model.saved).toBe(0);
  });

  it("says that a complete picture needs no kernel", () => {
    const { root } = shown({ meta: { complete: true } });
    expect([root.dataset.mode, words(root)]).toEqual(["sweep", "complete: no kernel needed"]);
  });

  it("shows the kernel's frame, not the sweep's, when live", () => {
    const { model } = shown({ sweep }, { pick });
    model.say({ type: "ack" });
    model.update(frame(7, 1));
    expect(drawn.at(-1)).toBe(7);
  });
});

describe("frames", () => {
  it("are drawn once each, and an older one never after a newer", () => {
    const { model, root } = shown();
    model.say({ type: "ack" });
    drawn.length = 0;
    model.update(frame(1, 1));
    model.update(frame(2, 2));
    expect(drawn).toEqual([1, 2]);
    model.update({ data: packed({ x: 99 }), seq: 1 });
    expect(drawn).toEqual([1, 2]);
    expect(root.dataset.seq).toBe("2");
  });

  it("come from bytes at any offset", () => {
    const { model } = shown();
    model.update({ data: packed({ x: 5 }, {}, 3), seq: 1 });
    expect(drawn.at(-1)).toBe(5);
  });

  it("do not redraw for a status", () => {
    const { model } = shown();
    model.say({ type: "ack" });
    drawn.length = 0;
    for (let i = 0; i < 5; i++) model.update({ status: { state: "running", i, n: 5 } });
    expect(drawn).toEqual([]);
  });
});

describe("status", () => {
  it("shows progress and a Cancel while the model works, and what went wrong as text", () => {
    const { model, root } = shown();
    model.say({ type: "ack" });
    const cancel = root.querySelector(".wb-cancel");
    model.update({ status: { state: "running", i: 2, n: 8, msg: "layer 2" } });
    expect(root.querySelector(".wb-state").textContent).toBe("running 2/8 layer 2");
    expect(cancel.hidden).toBe(false);
    cancel.click();
    expect(model.sent.at(-1)).toEqual({ type: "cancel" });
    model.update({ status: { state: "cancelled" } });
    expect([root.querySelector(".wb-state").textContent, cancel.hidden]).toEqual(["cancelled", true]);
    model.update({ status: { state: "error", msg: "<img src=x onerror=alert(1)>" } });
    const problem = root.querySelector(".wb-problem");
    expect([problem.hidden, problem.textContent, problem.children.length]).toEqual([false, "<img src=x onerror=alert(1)>", 0]);
    model.update({ status: { state: "idle", t_model_ms: 12.4 } });
    expect([problem.hidden, root.querySelector(".wb-state").textContent]).toEqual([true, "model 12 ms"]);
  });
});

describe("keys", () => {
  const press = (target, key, more = {}) => {
    let outside = 0;
    const count = () => outside++;
    el.addEventListener("keydown", count);
    target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
    el.removeEventListener("keydown", count);
    return outside;
  };

  it("stay inside, but for Escape and those with Ctrl or Cmd", () => {
    const input = shown().root.querySelector("input");
    expect(["d", "x", "a", "0", "ArrowUp", "Enter"].map((key) => press(input, key))).toEqual([0, 0, 0, 0, 0, 0]);
    expect(press(input, "Escape")).toBe(1);
    expect(press(input, "s", { ctrlKey: true })).toBe(1);
    expect(press(input, "s", { metaKey: true })).toBe(1);
  });
});

describe("parts fetched on demand", () => {
  it("resolve to the answer of their own question", async () => {
    const { model, view } = shown();
    model.say({ type: "ack" });
    const one = view.fetch("pattern", { head: 1 }), two = view.fetch("pattern", { head: 2 });
    const [first, second] = model.sent.slice(-2);
    expect(first).toMatchObject({ type: "fetch", what: "pattern", arguments: { head: 1 } });
    model.say({ type: "fetched", id: second.id }, [packed({ head: 2 })]);
    model.say({ type: "fetched", id: first.id, error: "no such head" });
    await expect(two).resolves.toEqual({ head: 2 });
    await expect(one).rejects.toThrow("no such head");
  });

  it("say that they need a kernel where there is none", async () => {
    await expect(shown().view.fetch("pattern")).rejects.toThrow("needs a running kernel");
  });
});

describe("a linked selection", () => {
  it("reaches widgets of the same link and no others", () => {
    const elsewhere = document.createElement("div");
    document.body.append(elsewhere);
    const a = shown({ link: "l" });
    const models = ["l", "other", ""].map((link) => fakeModel({ link, data: packed({ x: 0 }) }));
    for (const model of models) {
      const place = document.createElement("div");
      elsewhere.append(place);
      mount({ model, el: place, signal: stop.signal }, { name: "probe", build() {}, draw() {} });
    }
    a.view.select({ layer: 3, head: 1 });
    expect(models.map((m) => m.get("selection"))).toEqual([{ layer: 3, head: 1 }, {}, {}]);
    elsewhere.remove();
  });
});

describe("when the output goes", () => {
  it("no listener, no timer and no draw is left", () => {
    const { model } = shown();
    expect(model.listening()).toBeGreaterThan(5);
    stop.abort();
    expect(model.listening()).toBe(0);
    const sent = model.sent.length;
    drawn.length = 0;
    vi.advanceTimersByTime(60000);
    model.update(frame(1, 1));
    expect([model.sent.length - sent, drawn, vi.getTimerCount()]).toEqual([0, [], 0]);
  });
});
