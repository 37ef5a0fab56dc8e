// @vitest-environment happy-dom
import { describe, expect, it, vi } from "vitest";
import { colourOf, grid, moved } from "../grid.js";
import { clipped, layout } from "../grid_canvas.js";
import { sequential } from "../palette.js";

function viewOf() {
  const stop = new AbortController();
  return { theme: { ink: "#000", paper: "#fff", line: "#ccc", accent: "#06c" }, signal: stop.signal, atEnd: () => {},
    listen: (target, type, handler) => target.addEventListener(type, handler) };
}

function picture(rows, cols, more = {}) {
  return {
    rows: Array.from({ length: rows }, (_, i) => String(i)), cols: Array.from({ length: cols }, (_, i) => `t${i}`),
    values: { shape: [rows, cols], values: Float32Array.from({ length: rows * cols }, (_, i) => i) },
    scale: { kind: "sequential", lo: 0, hi: rows * cols - 1 }, rowName: "layer", colName: "token", ...more,
  };
}

const key = (target, name) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));

describe("cells", () => {
  it("give back number, text and colour", () => {
    const made = grid(viewOf(), { label: "demo" });
    made.paint(picture(3, 4, { texts: (r, c) => `${r}${c}` }));
    expect(made.cell(2, 1)).toEqual({ value: 9, text: "21", rgb: sequential(9 / 11) });
  });
  it("without a number have no colour", () => {
    expect(colourOf(NaN, { kind: "sequential", lo: 0, hi: 1 })).toBe(null);
  });
  it("are coloured by the logarithm, low bright, where asked", () => {
    const scale = { kind: "sequential", lo: 1, hi: 100, log: true, reverse: true };
    expect(colourOf(1, scale)).toEqual(sequential(1));
    expect(colourOf(10, scale)).toEqual(sequential(0.5));
  });
  it("of both signs are coloured around zero, the larger end at full colour", () => {
    const scale = { kind: "diverging", lo: -1, hi: 4 };
    expect(colourOf(0, scale)).toEqual([247, 247, 247]);
    expect(colourOf(4, scale)).toEqual([45, 0, 75]);
    expect(colourOf(-4, scale)).toEqual([127, 59, 8]);
  });
});

describe("keys", () => {
  it("stay inside", () => {
    expect(moved({ row: 0, col: 0 }, "ArrowUp", [3, 4])).toEqual({ row: 0, col: 0 });
    expect(moved({ row: 1, col: 2 }, "End", [3, 4])).toEqual({ row: 1, col: 3 });
    expect(moved({ row: 1, col: 2 }, "PageDown", [3, 4])).toEqual({ row: 2, col: 2 });
    expect(moved({ row: 1, col: 2 }, "x", [3, 4])).toBe(null);
  });
  it("move one cursor, say the cell, and select", () => {
    const onSelect = vi.fn(), onCursor = vi.fn();
    const made = grid(viewOf(), { label: "demo", onSelect, onCursor });
    made.paint(picture(3, 4));
    for (const name of ["ArrowDown", "ArrowRight", "ArrowRight", "Enter"]) key(made.canvas, name);
    expect(onSelect).toHaveBeenCalledWith({ row: 1, col: 2 });
    expect(onCursor).toHaveBeenCalledTimes(3);
    expect(made.element.querySelector("[aria-live]").textContent).toBe("layer 1 token t2: 6.00");
    expect(made.element.querySelectorAll("[tabindex='0']:not([hidden])").length).toBe(1);
  });
  it("keep the cursor inside a smaller picture", () => {
    const made = grid(viewOf(), { label: "demo" });
    made.paint(picture(3, 4));
    key(made.canvas, "End");
    made.paint(picture(2, 2));
    expect(made.cursor).toEqual({ row: 0, col: 1 });
  });
});

describe("sizes", () => {
  const sized = (rows, cols, texts) => ({ shape: [rows, cols], rows: ["0"], cols: ["abc"], rowName: "layer", texts });
  it("leave room for texts and never exceed the box", () => {
    const plan = layout(sized(24, 64, () => ""), 900, 600);
    expect(plan.fullWidth).toBeGreaterThan(900);
    expect(plan.width).toBe(900);
    expect(plan.upright).toBe(false);
  });
  it("turn labels upright above narrow columns", () => {
    expect(layout(sized(64, 64, null), 900, 600).upright).toBe(true);
  });
  it("cut long tokens", () => {
    expect(clipped("incomprehensible", 50)).toBe("incomp…");
    expect(clipped("the", 50)).toBe("the");
    expect(clipped("日本語日本語", 50)).toBe("日本語…");
  });
});

describe("files", () => {
  const hostile = '</text><script>alert(1)</script>"';
  it("hold every number and only text", () => {
    const made = grid(viewOf(), { label: hostile });
    made.paint(picture(2, 2, { cols: [hostile, "a,b"], texts: () => hostile }));
    const csv = made.csv().split("\n");
    expect(csv[0]).toBe("layer,token index,token,value,text");
    expect(csv.length).toBe(6);
    expect(csv[2].startsWith('0,1,"a,b",1,')).toBe(true);
    const svg = made.svg();
    expect(svg).not.toContain("<script");
    expect(svg).toContain("&lt;script");
    made.element.querySelector("button").click();
    expect(made.element.querySelector("table").textContent).toContain(hostile);
    expect(made.element.querySelector("script")).toBe(null);
  });
});

it("a cell without a number is blank on every picture", () => {
  const made = grid(viewOf(), { label: "demo" });
  for (const none of [null, undefined, NaN]) {
    made.paint(picture(1, 2, { values: { shape: [1, 2], values: [none, 1] } }));
    expect(made.picture.colours[0]).toBe(null);
    expect(made.picture.colours[1]).not.toBe(null);
    expect(made.svg().match(/<rect x/g).length).toBe(1);
    expect(made.csv().split("\n")[1]).toBe("0,0,t0,");
    made.showTable(true);
    expect([...made.table.querySelectorAll("td")].map((cell) => cell.textContent)).toEqual(["–", "1.00"]);
  }
});
