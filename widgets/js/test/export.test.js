// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { s } from "../dom.js";
import { svgText, toPng } from "../export.js";

describe("an SVG file", () => {
  it("holds no character that XML forbids, and keeps every other", () => {
    const text = "a\u0000\u0008\u000b\u000c\u001f\ufffe\uffff\ud800b\t\n\u0085\u{1f600}";
    const file = svgText(s("svg", { "aria-label": "\u0001" }, s("text", {}, text)));
    expect(file).toContain("a\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdb\t\n\u0085\u{1f600}");
    expect(file).not.toMatch(/\u0001/);
    expect(() => encodeURIComponent(file)).not.toThrow();
  });
});

describe("a PNG file", () => {
  const made = { blob: null };
  let size;
  beforeEach(() => {
    vi.stubGlobal("Image", class { width = size[0]; height = size[1]; decode() { return Promise.resolve(); } });
    vi.spyOn(document, "createElement").mockImplementation(() => {
      made.canvas = { getContext: () => ({ drawImage() {} }), toBlob: (done) => done(made.blob) };
      return made.canvas;
    });
  });
  afterEach(() => { vi.unstubAllGlobals(); vi.restoreAllMocks(); });

  it.each([
    [[300, 100], [600, 200]],
    [[40000, 300], [16384, 123]],
    [[300, 9000], [546, 16384]],
    [[100000, 1], [16384, 1]],
  ])("of %j is %j pixels: twice the size, or as large as a canvas may be", async (given, want) => {
    size = given;
    made.blob = new Blob(["x"]);
    expect(await toPng("<svg/>")).toBe(made.blob);
    expect([made.canvas.width, made.canvas.height]).toEqual(want);
  });

  it("says in words that the picture is too large", async () => {
    [size, made.blob] = [[10, 10], null];
    await expect(toPng("<svg/>")).rejects.toThrow("the picture is too large for PNG; save SVG");
  });
});
