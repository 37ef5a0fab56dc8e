// @vitest-environment happy-dom
import { afterEach, describe, expect, it } from "vitest";
import { inkOn } from "../palette.js";
import { visible } from "../dom.js";
import { CHUNK, strip } from "../strip.js";
import { cells } from "../strip_picture.js";
import { colourOf } from "../strip_tokens.js";

const stop = [];
afterEach(() => { stop.splice(0).forEach((one) => one.abort()); document.body.replaceChildren(); });

function made(options = {}) {
  const abort = new AbortController();
  stop.push(abort);
  const view = { listen: (target, type, handler) => target.addEventListener(type, handler, { signal: abort.signal }) };
  const one = strip(view, { label: "tokens", ...options });
  document.body.append(one.element);
  return one;
}

const press = (one, key, more = {}) => one.list.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const spans = (one) => [...one.element.querySelectorAll(".wb-tok")];
const SCALE = { kind: "sequential", lo: 0, hi: 10, unit: "nats" };

describe("a strip", () => {
  it("shows every token as text, with its value behind it", () => {
    const one = made();
    one.show([{ text: "a", value: 0 }, { text: " b\n", value: 10, changed: true }, { text: "", value: NaN }], SCALE);
    expect(spans(one).map((span) => span.textContent)).toEqual(["a", "·b⏎\n", "∅"]);
    expect(spans(one)[0].style.background.replaceAll(" ", "")).toContain("rgb(0,34,78)");
    expect(spans(one)[1].style.background.replaceAll(" ", "")).toContain("rgb(254,232,56)");
    expect(spans(one)[1].style.color).toBe("#000");
    expect(spans(one)[2].style.background).toBe("");
    expect(spans(one)[1].title).toBe("token 1 ·b⏎: 10.0 nats, changed");
    expect(spans(one)[1].classList.contains("wb-tok-changed")).toBe(true);
  });

  it("never makes markup of a token, and shows what hides", () => {
    const one = made();
    one.show([{ text: "<img src=x onerror=alert(1)>" }, { text: "\u202egnp" }, { text: "\u0000" }, { text: "\ta" }]);
    expect(one.element.querySelector("img")).toBe(null);
    expect(spans(one)[0].textContent).toBe("<img·src=x·onerror=alert(1)>");
    expect(spans(one)[1].textContent).toBe("⟨U+202E⟩gnp");
    expect(spans(one)[2].textContent).toBe("⟨U+0000⟩");
    expect(visible("\ta b\r")).toBe("⇥a·b␍");
    expect(visible("\u2066x\u0007\u2028\u00a0")).toBe("⟨U+2066⟩x⟨U+0007⟩⟨U+2028⟩⟨U+00A0⟩");
  });

  it("is one tab stop; arrows move, Enter selects, and a text says where it is", () => {
    const chosen = [], one = made({ onSelect: (...at) => chosen.push(at) });
    one.show([{ text: "a", value: 1 }, { text: "b", value: 2 }, { text: "c", value: 3 }], SCALE);
    expect(one.element.querySelectorAll("[tabindex]").length).toBe(1);
    press(one, "ArrowRight"); press(one, "ArrowRight"); press(one, "ArrowRight");
    expect(one.cursor).toBe(2);
    expect(one.said.textContent).toBe("token 2 c: 3.00 nats");
    expect(one.list.getAttribute("aria-activedescendant")).toBe(spans(one)[2].id);
    press(one, "Enter"); press(one, "Home");
    expect(one.cursor).toBe(0);
    spans(one)[1].dispatchEvent(new MouseEvent("click", { bubbles: true }));
    expect(chosen).toEqual([[2, 0], [1, 0]]);
  });

  it("takes a span by shift and arrows, and lets it go by Escape", () => {
    const told = [], one = made({ onSpan: (span) => told.push(span) });
    one.show([..."abcde"].map((text) => ({ text })));
    press(one, "ArrowRight");
    press(one, "ArrowRight", { shiftKey: true }); press(one, "ArrowRight", { shiftKey: true });
    expect(told.at(-1)).toEqual({ start: 1, stop: 4 });
    press(one, "ArrowLeft", { shiftKey: true }); press(one, "ArrowLeft", { shiftKey: true }); press(one, "ArrowLeft", { shiftKey: true });
    expect(told.at(-1)).toEqual({ start: 0, stop: 2 });
    expect(spans(one).map((span) => span.getAttribute("aria-selected"))).toEqual(["true", "true", "false", "false", "false"]);
    press(one, "Escape");
    expect(told.at(-1)).toBe(null);
  });

  it("draws 4,000 tokens a thousand at a time, and says how many are left", () => {
    const one = made();
    one.show(Array.from({ length: 4000 }, (_, i) => ({ text: ` ${i}`, value: i })), { ...SCALE, hi: 4000 });
    expect(spans(one).length).toBe(CHUNK);
    expect(one.more.textContent).toBe("… 3,000 more");
    one.more.click();
    expect(spans(one).length).toBe(2 * CHUNK);
    expect(one.more.textContent).toBe("… 2,000 more");
    expect(one.csv().split("\n").length).toBe(4002);
  });

  it("keeps the spans that did not change as tokens stream in", () => {
    const one = made(), tokens = [{ text: "a", value: 1 }];
    one.show(tokens, SCALE);
    const first = spans(one)[0];
    one.show([...tokens, { text: "b", value: 2 }], SCALE);
    expect(spans(one)[0]).toBe(first);
    one.show([{ text: "x" }]);
    expect(spans(one).map((span) => span.textContent)).toEqual(["x"]);
    one.show([]);
    expect(spans(one)).toEqual([]);
    press(one, "ArrowRight"); press(one, "Enter");
  });

  it("puts two texts under each other with gaps, and moves between them", () => {
    const one = made();
    one.show([{ text: "a", note: "0\n#5" }, null], null, [{ text: "a", note: "0\n#5" }, { text: "b", note: "1\n#6", changed: true }]);
    expect(one.element.querySelectorAll(".wb-strip-column").length).toBe(2);
    expect(spans(one).map((span) => [span.dataset.i, span.dataset.row, span.classList.contains("wb-gap")])).toEqual(
      [["0", "0", false], ["0", "1", false], ["1", "0", true], ["1", "1", false]]);
    expect(one.element.querySelectorAll(".wb-strip-note").length).toBe(4);
    press(one, "ArrowRight");
    expect(one.said.textContent).toBe("gap");
    press(one, "ArrowDown");
    expect(one.said.textContent).toBe("token 1 b, changed");
    expect(one.csv().trim().split("\n").at(-1)).toBeTruthy();
    one.show([{ text: "z" }]);
    expect(spans(one).length).toBe(1);
  });
});

describe("files of a strip", () => {
  it("holds the exact values in CSV, quoted where needed", () => {
    const one = made();
    one.show([{ text: 'a,"b', value: 0.1234567 }, { text: "\n", value: null }], SCALE);
    expect(one.csv()).toBe('position,token,value (nats),changed,note\n0,"a,""b",0.1234567,,\n1,"\n",,,\n');
  });

  it("draws an SVG of every token, without markup and without characters that XML cannot hold", () => {
    const one = made();
    one.show([{ text: "<b>&", value: 3 }, { text: "\u0001", value: 5 }], SCALE);
    const file = new DOMParser().parseFromString(one.svg("t"), "image/svg+xml");
    const texts = [...file.querySelectorAll("text")].map((text) => text.textContent);
    expect(texts).toContain("<b>&");
    expect(texts).toContain("⟨U+0001⟩");
    expect(file.querySelectorAll("b").length).toBe(0);
    expect(one.svg("t\u0001")).not.toMatch(/[\u0000-\u0008]/);
  });

  it("counts wide characters twice", () => expect(cells("a日😀")).toBe(5));
});

describe("colours", () => {
  it("has none for a token without a number", () => {
    for (const value of [null, undefined, NaN]) expect(colourOf(value, SCALE)).toBe(null);
    expect(colourOf(1, null)).toBe(null);
  });
  it("runs from the smallest number to the largest, and no further", () => {
    const scale = { kind: "sequential", lo: -4, hi: -2 };
    expect([-4, -2, -9, 5].map((value) => colourOf(value, scale))).toEqual(
      [[0, 34, 78], [254, 232, 56], [0, 34, 78], [254, 232, 56]]);
    expect(colourOf(7, { ...scale, lo: 7, hi: 7 })).toEqual([0, 34, 78]);
  });
  it("has its middle at 0 where numbers are signed", () => {
    const scale = { kind: "diverging", lo: -1, hi: 4 };
    expect(colourOf(0, scale)).toEqual([247, 247, 247]);
    expect(inkOn(colourOf(4, scale))).toBe("#fff");
  });
});
