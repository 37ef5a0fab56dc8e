// A grid as a file: a picture of all its cells, a table of all its numbers.

import { h, s, short } from "./dom.js";
import { csv, svgText } from "./export.js";
import { clipped, layout } from "./grid_canvas.js";
import { css, inkOn } from "./palette.js";

const MOST_IN_TABLE = 20000;

/** Every cell as SVG text, black on white so that it prints. */
export function gridSvg(picture, label) {
  const [rows, cols] = picture.shape;
  const plan = layout(picture, 1e9, 1e9);
  const { cellWidth, cellHeight, gutter, header } = plan;
  const svg = s("svg", { xmlns: "http://www.w3.org/2000/svg", width: plan.fullWidth, height: plan.fullHeight + 20,
    viewBox: `0 0 ${plan.fullWidth} ${plan.fullHeight + 20}`, "font-family": "ui-monospace, DejaVu Sans Mono, monospace", "font-size": 11 });
  const title = s("title");
  title.textContent = label;
  svg.append(title, s("rect", { width: "100%", height: "100%", fill: "#fff" }));
  const put = (x, y, text, attributes = {}) => {
    const node = s("text", { x, y, "xml:space": "preserve", ...attributes });
    node.textContent = text;
    svg.append(node);
  };
  for (let r = 0; r < rows; r++) {
    const y = header + r * cellHeight;
    put(gutter - 5, y + cellHeight / 2 + 4, clipped(String(picture.rows[r]), gutter - 8), { "text-anchor": "end" });
    for (const { from, to, colour } of runs(picture, r)) {
      svg.append(s("rect", { x: gutter + from * cellWidth, y, width: (to - from) * cellWidth, height: cellHeight, fill: css(colour) }));
    }
    if (picture.texts) {
      for (let c = 0; c < cols; c++) {
        const colour = picture.colours[r * cols + c], text = picture.texts(r, c);
        if (text) put(gutter + c * cellWidth + 4, y + cellHeight / 2 + 4, clipped(text, cellWidth - 6), { fill: colour ? inkOn(colour) : "#000" });
      }
    }
  }
  for (let c = 0; c < cols; c++) {
    const x = gutter + c * cellWidth, text = String(picture.cols[c]);
    if (plan.upright) put(0, 0, clipped(text, header - 6), { transform: `translate(${x + cellWidth / 2 + 4},${header - 4}) rotate(-90)` });
    else put(x + 4, header / 2 + 5, clipped(text, cellWidth - 5));
  }
  const { lo, hi } = picture.scale;
  put(gutter, plan.fullHeight + 14, `${picture.unit ? `${picture.unit}: ` : ""}${short(lo)} to ${short(hi)}`);
  return svgText(svg);
}

function runs({ shape: [, cols], colours }, row) {
  const found = [];
  for (let c = 0; c < cols; c++) {
    const colour = colours[row * cols + c], last = found.at(-1);
    if (!colour) continue;
    if (last && last.to === c && last.colour === colour) last.to = c + 1;
    else found.push({ from: c, to: c + 1, colour });
  }
  return found;
}

/** A line per cell: labels, indices, value, text. */
export function gridCsv(picture) {
  const { rowName, colName, texts, unit } = picture;
  return csv([[rowName, `${colName} index`, colName, unit || "value", ...(texts ? ["text"] : [])], ...lines(picture)]);
}

/** Several grids in one table: the first column says which, another what its numbers are. */
export function gridsCsv(pictures) {
  const head = ["grid", "row", "column index", "column", "value", "text", "quantity"];
  return csv([head, ...pictures.flatMap((picture) => lines(picture).map(([row, c, column, value, text]) =>
    [`${picture.rowName} by ${picture.colName}`, row, c, column, value, text, picture.unit || "value"]))]);
}

function lines({ shape: [rows, cols], rows: rowLabels, cols: colLabels, numbers, texts }) {
  return Array.from({ length: rows * cols }, (_, i) => {
    const r = Math.floor(i / cols), c = i % cols;
    // no number: an empty field, as a table without one reads it
    return [rowLabels[r], c, colLabels[c], Number.isNaN(numbers[i]) ? null : numbers[i], ...(texts ? [texts(r, c)] : [])];
  });
}

/** The same as a table of the page, for those who cannot see colours or a canvas. */
export function gridTable(picture) {
  const { shape: [rows, cols], rows: rowLabels, cols: colLabels, numbers, rowName } = picture;
  const texts = picture.textsAreValues ? null : picture.texts;
  const most = Math.max(1, Math.floor(MOST_IN_TABLE / Math.max(1, cols)));
  const head = h("tr", {}, h("th", { scope: "col" }, rowName), ...colLabels.slice(0, cols).map((label) => h("th", { scope: "col" }, String(label))));
  const body = Array.from({ length: Math.min(rows, most) }, (_, r) => h("tr", {}, h("th", { scope: "row" }, String(rowLabels[r])),
    ...Array.from({ length: cols }, (_, c) => h("td", {}, `${texts ? `${texts(r, c)} ` : ""}${short(numbers[r * cols + c])}`))));
  const table = h("table", {}, h("thead", {}, head), h("tbody", {}, ...body));
  return rows > most ? h("div", {}, table, h("p", { class: "wb-quiet" }, `the first ${most} of ${rows} rows; CSV has all`)) : table;
}
