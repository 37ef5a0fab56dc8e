import { mount } from "../js/base.js";
import { h, short } from "../js/dom.js";
import { grid } from "../js/grid.js";
import { csv } from "../js/export.js";
import { curve, fileOf, span, stacked, words } from "../js/intervals.js";
import { cells } from "../js/cells.js";
import { KIND, MARK, textAt, transcript } from "../js/transcripts.js";
import { busy, redrawWhenItEnds } from "../js/work.js";
import { choose, follow } from "./linked.js";
import { cellOf, curveOf, rows, textsOf } from "./reading.js";

const explorer = {
  name: "sweep_explorer",
  build(view) {
    view.metric = h("select", { "aria-label": "metric" }, ...view.meta.metrics.map((m, i) => h("option", { value: i }, `${m.name} (${m.unit})`)));
    view.kind = h("select", { "aria-label": "shown" }, h("option", { value: "value" }, "mean"), h("option", { value: "difference" }, "difference to the baseline"));
    view.filled = h("span", { class: "wb-quiet" });
    view.more = h("button", { type: "button" }, "Continue");
    view.grid = grid(view, { label: "metric by layer and strength", onSelect: ({ row, col }) => choose(view, layerAt(view, row), col) });
    view.note = h("div", { class: "wb-quiet wb-small" });
    view.plot = h("div", { class: "wb-plot" });
    view.about = h("div", { class: "wb-chosen-cell", role: "status" });
    view.prompts = cells(view, { label: "prompts of the chosen cell", onSelect: (row) => choosePrompt(view, row) });
    view.capped = h("div", { class: "wb-quiet wb-small" });
    view.all = h("button", { type: "button" });
    view.transcript = transcript(view);
    view.body.append(
      h("div", { class: "wb-row" }, view.metric, view.kind, view.filled, view.more),
      h("div", { class: "wb-pair" }, h("div", { class: "wb-left" }, view.grid.element, view.note), view.plot),
      view.about, h("div", { class: "wb-pair" }, h("div", { class: "wb-left" }, view.prompts.element, view.capped, view.all), view.transcript.element));
    view.listen(view.metric, "change", () => view.ask({ metric: Number(view.metric.value) }));
    view.listen(view.kind, "change", () => view.ask({ show: view.kind.value }));
    view.listen(view.more, "click", () => view.ask({ go: view.spec.go + 1 }));
    view.listen(view.all, "click", () => fetchAll(view));
    view.on("change:selection", () => follow(view));
    view.fetched = {};
    redrawWhenItEnds(view);
  },
  draw(view, frame) {
    const { spec, meta } = view;
    view.metric.value = String(spec.metric);
    view.kind.value = spec.show;
    view.filled.textContent = `${frame.done} of ${frame.total} settings computed`;
    view.more.hidden = !view.live || frame.done === frame.total || busy(view);
    drawGrid(view, frame);
    view.plot.replaceChildren(curve({ ...curveOf(frame, meta, spec), onPick: (i) => view.ask({ strength: i }) }));
    drawCell(view, frame, meta, spec);
  },
  empty(view) { view.more.hidden = !view.live || busy(view); },
  pictures: (view) => ({
    svg: () => stacked([view.grid.svg(), fileOf(view.plot.firstChild), view.transcript.svg()].filter(Boolean)),
    csv: () => csv(rows(view.frame, view.meta)),
  }),
  debug: (view) => ({
    chosen: view.frame && cellOf(view.frame, view.meta, view.spec), about: view.about.textContent,
    drawn: view.frame && view.meta.layers.map((_, i) => view.meta.strengths.map((_s, j) => view.grid.cell(rowOf(view, i), j).text)),
    transcript: view.transcript.state, filled: view.filled.textContent,
  }),
};

/** A strength as it was given. */
const plain = (value) => String(value).replace("-", "−");
// the last layer stands on top, as the model is read
const rowOf = (view, layer) => view.meta.layers.length - 1 - layer;
const layerAt = rowOf;

function drawGrid(view, frame) {
  const { meta, spec } = view, n = meta.layers.length, across = meta.strengths.length;
  const about = meta.metrics[spec.metric], difference = spec.show === "difference";
  const at = (r, c) => cellOf(frame, meta, { ...spec, layer: layerAt(view, r), strength: c });
  const drawn = Array.from({ length: n * across }, (_, i) => {
    const cell = at(Math.floor(i / across), i % across);
    return difference ? cell.difference : cell.mean;
  });
  const [lo, hi] = about.unit.startsWith("fraction") ? (difference ? [-1, 1] : [0, 1]) : span(drawn);
  view.grid.paint({
    rows: [...meta.layers].reverse().map((y) => `L${y}`), cols: meta.strengths.map(plain),
    values: { shape: [n, across], values: drawn }, scale: { kind: difference ? "diverging" : "sequential", lo, hi },
    texts: (r, c) => textIn(at(r, c), difference), rowName: "layer", colName: "strength",
    unit: `${about.name}${difference ? " − baseline" : ""} (${about.unit})`,
    marks: (r, c) => at(r, c).differs, chosen: { row: rowOf(view, spec.layer), col: spec.strength },
    say: (r, c) => inWords(at(r, c), about), tip: (r, c) => inWords(at(r, c), about).replaceAll("; ", "\n"), cellWidth: 62, cellHeight: 24,
  });
  view.note.textContent = "Rows: layers, columns: strengths. Outlined: the 95 % interval of the paired difference leaves out 0 and p < 0.05 after Holm's correction over the grid.";
}

function textIn(cell, difference) {
  if (cell.state === 0) return "…";
  if (cell.state === 2) return "failed";
  return short(difference ? cell.difference : cell.mean);
}

function inWords(cell, about) {
  const where = `layer ${cell.layer}, strength ${plain(cell.strength)}`;
  if (cell.state === 0) return `${where}: not computed`;
  if (cell.state === 2) return `${where}: ${cell.error}`;
  const gap = cell.strength === 0 ? "the baseline" : `to the baseline ${words(cell.difference, cell.differenceLow, cell.differenceHigh, true)}`;
  return `${where}: ${about.name} ${words(cell.mean, cell.low, cell.high)}; ${gap}`;
}

function drawCell(view, frame, meta, spec) {
  const cell = cellOf(frame, meta, spec);
  view.about.textContent = inWords(cell, meta.metrics[spec.metric]);
  const fetched = view.fetched[`${spec.layer},${spec.strength}`];
  const texts = fetched ?? textsOf(frame, meta, spec);
  const n = texts ? texts.kept : 0, chosen = Math.min(view.model.get("view")?.prompt ?? 0, Math.max(0, n - 1));
  const [base, other] = texts ? [(i) => textAt(texts.frame, texts.base + i), (i) => textAt(texts.frame, texts.other + i)] : [];
  const mark = (text) => ({ parts: [MARK[text.right]], kind: KIND[text.right], say: `${["wrong", "right", "not judged"][text.right]}` });
  view.prompts.show(["prompt", "baseline", "edited"], Array.from({ length: n }, (_, i) => ({
    title: [view.promptTexts?.[i] ?? meta.prompts[i] ?? `prompt ${i}`], cells: [base(i), other(i)].map(mark),
  })), { row: chosen });
  view.capped.textContent = n && n < meta.n_prompts ? `Continuations of the first ${n} of ${meta.n_prompts} prompts are kept with the page.` : "";
  view.all.hidden = !view.live || !n || n >= meta.n_prompts;
  view.all.textContent = `Read all ${meta.n_prompts}`;
  if (!n) return view.transcript.show(null, null);
  const isBase = meta.strengths[spec.strength] === 0;
  return view.transcript.show({ name: "baseline", text: base(chosen) },
    isBase ? null : { name: `layer ${cell.layer}, strength ${plain(cell.strength)}`, text: other(chosen) });
}

function choosePrompt(view, prompt) {
  view.look({ prompt });
  view.redraw();
}

function fetchAll(view) {
  const { layer, strength } = view.spec;
  view.fetch("texts", { layer, strength }).then((frame) => {
    view.fetched[`${layer},${strength}`] = { frame, kept: frame.kept, base: 0, other: frame.kept };
    view.promptTexts = frame.prompts;
    view.redraw();
  }, (error) => { view.capped.textContent = error.message; });
}

export default { render: (context) => { mount(context, explorer); } };
