// The list of features: words to look for, an order, a filter, a row each.

import { cells } from "../js/cells.js";
import { h } from "../js/dom.js";
import { cellsOf, listed } from "./shown.js";

const WAIT_MS = 200;

/** @param {import("../js/base.js").View} view @param {(feature: number) => void} open */
export function featureList(view, open) {
  const { sorts, shows } = view.meta;
  const query = h("input", { type: "text", "aria-label": "search features", placeholder: "words in label, tokens, examples; #12", spellcheck: "false" });
  const sort = menu("sort by", sorts.map(({ name, words }) => [name, words]));
  const show = menu("show", shows.map(({ name, words }) => [name, words]));
  const reverse = h("button", { type: "button", class: "wb-turn", title: "turn the order round", "aria-label": "turn the order round" });
  const counted = h("div", { class: "wb-quiet wb-small", role: "status" });
  const more = h("button", { type: "button", hidden: true });
  const parts = { query, sort, show, reverse, counted, more, rows: [] };
  parts.table = cells(view, { label: "features", onSelect: (row) => open(parts.rows[row].feature) });
  let waits = null;
  const ask = (changes) => view.ask({ ...changes, limit: 100 });
  view.listen(query, "input", () => { clearTimeout(waits); waits = setTimeout(() => ask({ query: query.value }), WAIT_MS); });
  view.listen(query, "keydown", (event) => { if (event.key === "Enter") { clearTimeout(waits); ask({ query: query.value }); } });
  view.listen(sort.select, "change", () => ask({ sort: sort.select.value, reverse: false }));
  view.listen(show.select, "change", () => ask({ show: show.select.value }));
  view.listen(reverse, "click", () => ask({ reverse: !view.spec.reverse }));
  view.listen(more, "click", () => view.ask({ limit: view.spec.limit + 100 }));
  view.atEnd(() => clearTimeout(waits));
  return {
    parts, draw: (frame) => draw(view, frame, parts),
    element: h("div", { class: "wb-features" }, query, h("div", { class: "wb-row" }, sort.element, reverse, show.element), counted, parts.table.element, more),
  };
}

function menu(name, options) {
  const select = h("select", { "aria-label": name }, ...options.map(([value, text]) => h("option", { value }, text)));
  return { select, element: h("label", {}, `${name} `, select) };
}

function draw(view, frame, parts) {
  const { spec, meta } = view, { rows, matched } = listed(view, frame), ranked = !["label", "largest", "density", "number"].includes(spec.sort);
  for (const control of [parts.query, parts.sort.select, parts.show.select, parts.reverse]) control.disabled = !view.usable;
  if (document.activeElement !== parts.query) parts.query.value = spec.query;
  parts.sort.select.value = spec.sort;
  parts.show.select.value = spec.show;
  parts.reverse.textContent = spec.reverse ? "↑" : "↓";
  parts.reverse.setAttribute("aria-pressed", String(spec.reverse));
  parts.counted.textContent = countedIn(view, matched);
  parts.rows = rows;
  const at = rows.findIndex(({ feature }) => feature === spec.feature);
  const head = ["feature", "density", "largest", ...(ranked ? [meta.sorts.find(({ name }) => name === spec.sort)?.words ?? spec.sort] : [])];
  parts.table.show(head, rows.map((row) => ({ title: [h("b", {}, String(row.feature)), ` ${row.label}`], cells: cellsOf(row, ranked) })), at < 0 ? {} : { row: at });
  const left = matched - rows.length;
  if ((left <= 0 || !view.live) && document.activeElement === parts.more) view.root.focus();
  parts.more.hidden = left <= 0 || !view.live;
  parts.more.textContent = `${Math.min(100, left)} more of ${left.toLocaleString("en")}`;
}

function countedIn(view, matched) {
  const all = view.meta.features.toLocaleString("en");
  if (!view.live && view.sweep) return `${matched} of the ${view.sweep.features.length} features kept with this page, of ${all}`;
  return `${matched.toLocaleString("en")} of ${all} features`;
}
