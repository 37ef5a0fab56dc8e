// What several runs say next, side by side: a row per token, a column per run, a bar in every cell.

import { h, short, visible } from "./dom.js";
import { colourOf } from "./grid.js";
import { words } from "./intervals.js";

const STYLE = `
.wb-next { overflow-x: auto; max-width: 100%; --wb-wide: 84px } /* of a probability of 1 */
.wb-next table { border-collapse: collapse; font-size: 12px }
.wb-next th, .wb-next td { padding: 2px 10px 2px 0; text-align: left; font-weight: 400; vertical-align: baseline }
.wb-next thead th { color: var(--wb-quiet); border-bottom: 1px solid var(--wb-line); max-width: 11em }
.wb-next td { font-variant-numeric: tabular-nums; min-width: calc(var(--wb-wide) + 8px) }
.wb-next tbody tr.wb-marked th { font-weight: 600 }
.wb-next tbody tr.wb-sum > * { border-top: 1px solid var(--wb-line); color: var(--wb-quiet) }
.wb-next .wb-mark { color: var(--wb-quiet); font-weight: 400; margin-left: 6px }
.wb-next i { display: block; width: max(1px, var(--wb-wide) * var(--wb-p)); height: 4px; border-radius: 2px; margin-top: 1px; background: var(--wb-run) }
.wb-next [data-run="0"] { --wb-run: light-dark(#767676, #a0a0a0) }
.wb-next [data-run="1"] { --wb-run: light-dark(#0072b2, #56b4e9) }
.wb-next [data-run="2"] { --wb-run: light-dark(#009e73, #2fc494) }
.wb-next [data-run="3"] { --wb-run: light-dark(#d55e00, #e69f00) }
@container (max-width: 520px) { .wb-next table { --wb-wide: 52px } }`;

const COLOUR = { base: 0, source: 1, corrupted: 1, patched: 2, edited: 3 };

/** @returns {{element: HTMLElement, show: (found: any, names: string[]) => void}} `found` as widgets/next_tokens.py makes it */
export function nextTokens(label) {
  const table = h("table", { "aria-label": label });
  const element = h("div", { class: "wb-next" }, h("style", {}, STYLE), table);
  return { element, show: (found, names) => table.replaceChildren(...filled(found, names)) };
}

function filled(found, names) {
  const head = h("tr", {}, h("th", { scope: "col" }, "next token"), ...names.map((name) => h("th", { scope: "col" }, name)));
  const body = found.tokens.map((row) => h("tr", { class: row.mark ? "wb-marked" : null },
    h("th", { scope: "row" }, ...titleOf(row)), ...row.p.map((p, i) => cell(p, COLOUR[found.runs[i]] ?? 0))));
  return [h("thead", {}, head), h("tbody", {}, ...body, ...sums(found))];
}

function titleOf({ text, mark, own }) {
  const shown = own ? text : h("span", { class: "wb-token" }, visible(text));
  return mark ? [shown, h("span", { class: "wb-mark" }, mark)] : [shown];
}

const cell = (p, run) => h("td", { dataset: { run } }, p.toFixed(3), h("i", { style: { "--wb-p": p.toFixed(4) } }));

/** Rows below the tokens: the logit difference with its interval, and the divergence from the base. */
function sums({ difference, kl }) {
  const row = (name, texts) => h("tr", { class: "wb-sum" }, h("th", { scope: "row" }, name), ...texts.map((text) => h("td", {}, text)));
  const rows = difference[0] ? [row("logit difference", difference.map((gap) => words(...gap)))] : [];
  return kl.length > 1 ? [...rows, row("KL(base ‖ run), nats", kl.map(short))] : rows;
}

/** The same as a grid for a file. */
export function nextGrid(found, names) {
  const rows = found.tokens.map(({ text, mark, own }) => `${own ? text : visible(text)}${mark ? ` (${mark})` : ""}`);
  const numbers = found.tokens.flatMap(({ p }) => p), scale = { kind: "sequential", lo: 0, hi: 1 };
  return {
    rows, cols: names, shape: [rows.length, names.length], numbers, scale, colours: numbers.map((p) => colourOf(p, scale)),
    texts: (r, c) => numbers[r * names.length + c].toFixed(3), rowName: "next token", colName: "run", unit: "probability", cellWidth: 132, cellHeight: 20,
  };
}
