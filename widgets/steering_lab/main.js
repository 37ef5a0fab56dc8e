import { mount } from "../js/base.js";
import { h, short } from "../js/dom.js";
import { csv } from "../js/export.js";
import { stacked, words } from "../js/intervals.js";
import { cells } from "../js/cells.js";
import { KIND, MARK, textAt, transcript } from "../js/transcripts.js";
import { busy, redrawWhenItEnds } from "../js/work.js";
import { choices } from "./choices.js";
import { opened } from "./opened.js";
import { plot } from "./plot.js";
import { countOf, drawnOf, failuresOf, figureOf, isEdit, named, pointsOf, recipeOf, rows, same, textsOf } from "./reading.js";

const labOf = (host) => ({
  name: "steering_lab",
  build(view) {
    const { meta } = view;
    view.choices = choices(view);
    view.train = button(view, "Train", () => view.ask({ go: view.spec.go + 1 }), "Fit and measure what is missing of the chosen methods and layers");
    view.counted = h("span", { class: "wb-quiet", role: "status" });
    view.axes = ["y", "x"].map((axis) => select(view, axis, meta.metrics));
    view.root_ = h("input", { type: "checkbox" });
    view.listen(view.root_, "change", () => { view.look({ root: view.root_.checked }); view.redraw(); });
    view.plot = plot(view, { onSelect: (point) => choose(view, point) });
    view.failures = h("div", { class: "wb-small wb-wrong" });
    view.notes = h("div", { class: "wb-small wb-quiet" });
    view.about = h("div", { class: "wb-lab-about", role: "status" });
    view.figures = h("table", { class: "wb-lab-figures" });
    view.code = h("code", { class: "wb-lab-code" });
    view.copy = button(view, "Copy as Python", () => copyCode(view), "The fit, its strength and the continuations");
    view.open = button(view, "Open LiveEdit", () => openLive(view), "This edit with sliders, below");
    view.said = h("textarea", { class: "wb-lab-said", readonly: true, hidden: true, rows: 8, "aria-label": "this point as Python" });
    view.prompts = cells(view, { label: "prompts of the chosen point", onSelect: (row) => { view.look({ prompt: row }); view.redraw(); } });
    view.capped = h("div", { class: "wb-quiet wb-small" });
    view.all = button(view, "", () => fetchTexts(view));
    view.transcript = transcript(view);
    view.child = opened(view, host);
    const tools = h("div", { class: "wb-row" }, view.copy, view.open);
    view.detail = h("div", { class: "wb-lab-detail", hidden: true }, view.about,
      h("div", { class: "wb-lab-pair" }, h("div", { class: "wb-lab-left" }, view.figures, view.code, tools, view.said, view.prompts.element, view.capped, view.all), view.transcript.element));
    view.body.append(view.choices.element,
      h("div", { class: "wb-row" }, view.train, view.counted),
      h("div", { class: "wb-row" }, ...view.axes.flatMap((one, i) => [h("label", {}, i ? " against " : "show ", one)]), h("label", { title: "Spread small amounts of the lower metric" }, view.root_, " root scale")),
      view.plot.element, view.failures, view.notes, view.detail, view.child.element);
    view.fetched = new Map();
    redrawWhenItEnds(view);
  },
  draw(view, frame) {
    const { spec, meta } = view, count = countOf(frame, spec, meta);
    view.choices.draw(frame);
    view.train.textContent = count.done ? "Continue" : "Train";
    hide(view, view.train, !view.live || busy(view) || count.done >= count.total);
    view.counted.textContent = count.total ? `${count.done} of ${count.total} settings computed` : "choose a method and a layer";
    view.axes.forEach((one, i) => { one.value = String(spec[i ? "x" : "y"]); });
    view.root_.checked = isRooted(view);
    view.failures.replaceChildren(...failuresOf(frame, spec, meta).map((text) => h("div", {}, text)));
    view.notes.replaceChildren(...frame.notes.map((text) => h("div", {}, text)));
    drawPlot(view, frame);
    drawDetail(view, frame);
    view.child.draw(meta.opened);
  },
  pictures: (view) => ({
    svg: () => stacked([view.plot.svg(), view.transcript.svg()].filter(Boolean)),
    csv: () => csv(rows(view.frame, view.meta)),
  }),
  debug: (view) => ({
    places: view.plot.places, chosen: chosenOf(view), about: view.about.textContent, code: view.code.textContent,
    transcript: view.transcript.state, counted: view.counted.textContent, said: view.said.value, tip: view.plot.tip.textContent,
  }),
});

function button(view, text, act, title = "") {
  const made = h("button", { type: "button", title }, text);
  view.listen(made, "click", act);
  return made;
}

function select(view, axis, metrics) {
  const made = h("select", { "aria-label": axis === "y" ? "upright axis" : "level axis" }, ...metrics.map((about, i) => h("option", { value: i }, `${about.name} (${about.unit})`)));
  view.listen(made, "change", () => view.ask({ [axis]: Number(made.value) }));
  return made;
}

/** A hidden or disabled button gives the focus to the page, where JupyterLab would take the next "dd". */
function hide(view, element, hidden) {
  if (hidden && document.activeElement === element) view.root.focus();
  element.hidden = hidden;
}

const isRooted = (view) => Boolean(view.model.get("view")?.root);

function chosenOf(view) {
  return view.frame ? pointsOf(view.frame).find((point) => same(point, view.spec.chosen)) ?? null : null;
}

function choose(view, { kind, method, layer, strength }) {
  view.ask({ chosen: { kind, method, layer, strength } });
  if (layer !== null) view.select({ layer });
}

function drawPlot(view, frame) {
  const { spec, meta } = view;
  view.plot.paint({
    points: drawnOf(frame, spec, meta), metrics: { x: meta.metrics[spec.x], y: meta.metrics[spec.y] },
    methods: meta.methods, chosen: spec.chosen, root: isRooted(view),
  });
}

function drawDetail(view, frame) {
  const point = chosenOf(view), recipe = point && recipeOf(frame, point);
  view.detail.hidden = !point;
  if (!point) return view.transcript.show(null, null);
  view.about.textContent = named(point) + (recipe?.unit ? ` (${recipe.unit})` : "");
  view.figures.replaceChildren(...figuresTable(frame, view.meta, point));
  view.code.textContent = recipe?.code ? `edit = ${recipe.code}` : "";
  const failed = frame.errors.some(([, places]) => places.includes(point.i));
  hide(view, view.copy, !isEdit(point) || failed || !(view.live || recipe?.code));
  hide(view, view.open, point.kind === "prompting" || failed || !view.live);
  if (view.said.dataset.of !== JSON.stringify(view.spec.chosen)) view.said.hidden = true;
  return drawTexts(view, frame, point);
}

function figuresTable(frame, meta, point) {
  const head = ["", "mean", "to the baseline", "p"].map((text) => (text ? h("th", { scope: "col" }, text) : h("td")));
  const body = meta.metrics.map((about, m) => {
    const { mean, low, high, difference, differenceLow, differenceHigh, p, differs } = figureOf(frame, m, point.i);
    const gap = point.kind === "base" ? "" : words(difference, differenceLow, differenceHigh, true);
    const numbers = [words(mean, low, high), `${gap}${differs ? " *" : ""}`, point.kind === "base" ? "" : short(p)];
    return h("tr", {}, h("th", { scope: "row", title: about.unit }, about.name), ...numbers.map((text) => h("td", {}, text)));
  });
  const note = "mean and 95 % interval over prompts; * p < 0.05 after Holm's correction over all edits";
  return [h("caption", { class: "wb-quiet" }, note), h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...body)];
}

function drawTexts(view, frame, point) {
  const { meta } = view, key = JSON.stringify(view.spec.chosen), computed = pointsOf(frame).length;
  const texts = view.fetched.get(key) ?? textsOf(frame, point);
  const n = texts ? texts.kept : 0, at = Math.min(view.model.get("view")?.prompt ?? 0, Math.max(0, n - 1));
  const read = (which) => (i) => textAt(texts.frame, texts[which] + i), [base, own] = [read("base"), read("other")];
  const mark = (text) => ({ parts: [MARK[text.right]], kind: KIND[text.right], say: ["wrong", "right", "not judged"][text.right] });
  const heads = point.kind === "base" ? ["prompt", "baseline"] : ["prompt", "baseline", point.kind === "prompting" ? "prompting" : "edited"];
  view.prompts.element.hidden = !n;
  view.prompts.show(heads, Array.from({ length: n }, (_, i) => ({
    title: [view.promptTexts?.[i] ?? meta.prompts[i] ?? `prompt ${i}`], cells: (point.kind === "base" ? [base(i)] : [base(i), own(i)]).map(mark),
  })), { row: at });
  const more = n < meta.n_prompts && computed > 0;
  view.capped.textContent = n && more ? `Continuations of the first ${n} of ${meta.n_prompts} prompts are kept with the page.`
    : !n && !view.live ? "The continuations of this point are not kept with the page." : "";
  hide(view, view.all, !view.live || !more);
  view.all.textContent = n ? `Read all ${meta.n_prompts}` : "Read the continuations";
  if (!n) return view.transcript.show(null, null);
  return view.transcript.show({ name: "baseline", text: base(at) }, point.kind === "base" ? null : { name: named(point), text: own(at) });
}

function fetchTexts(view) {
  const key = JSON.stringify(view.spec.chosen);
  view.fetch("texts", {}).then((frame) => {
    if (frame.text_ends.values.length < 2 * frame.kept) throw new Error("no text was written for this point: only the next token was measured");
    view.fetched.set(key, { frame, kept: frame.kept, base: 0, other: frame.kept });
    view.promptTexts = frame.prompts;
    view.redraw();
  }).catch((error) => { view.capped.textContent = error.message; });
}

async function copyCode(view) {
  try {
    const code = view.live ? (await view.fetch("code")).code : view.code.textContent;
    view.said.value = code;
    view.said.dataset.of = JSON.stringify(view.spec.chosen);
    view.said.hidden = false;
    view.said.select();
    // a page that is not local may not write the clipboard: the text stands there, selected
    await navigator.clipboard?.writeText(code).catch(() => {});
  } catch (error) {
    view.complain(error);
  }
}

function openLive(view) {
  view.child.wait();
  view.fetch("open").then(({ opened: reference }) => view.child.draw(reference), (error) => { view.child.failed(); view.complain(error); });
}

export default { render: (context) => { mount(context, labOf(context.host)); } };
