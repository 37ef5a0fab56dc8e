import { mount } from "../js/base.js";
import { h, short, visible } from "../js/dom.js";
import { csv } from "../js/export.js";
import { stacked } from "../js/intervals.js";
import { nearest, putAt, strengthOf, walk } from "../js/nearest.js";
import { legend, strip } from "../js/strip.js";
import { redrawWhenResized } from "../js/work.js";
import { curve, curveText, keys, PAGE, planOf } from "./curve.js";
import { differing, drawnOf, LINES, nameOf, probeOf, reach, scaleOf, settingsOf, tableOf, tokensOf, verdict, wordsOf, written } from "./shown.js";

const SIDES = ["base", "edited"];
const STEPS = 80;

const probeStrip = {
  name: "probe_strip",
  build(view) {
    view.sides = SIDES.map((name) => sideOf(view, name));
    view.keys = h("div", { class: "wb-row keys wb-quiet" });
    view.readout = h("p", { class: "readout wb-quiet" });
    view.said = h("textarea", { class: "code", readonly: true, hidden: true, rows: 9, "aria-label": "this setting as Python" });
    view.body.append(settings(view), writing(view), view.said, h("div", { class: "sides" }, ...view.sides.map((one) => one.element)), view.keys, view.readout);
    redrawWhenResized(view);
  },
  draw(view, frame) {
    sync(view);
    if (!frame.base) return;
    view.title.textContent = frame.device ? `${view.meta.title} on ${frame.device}` : view.meta.title;
    if (view.said.dataset.of !== JSON.stringify(view.spec)) view.said.hidden = true;
    const shown = what(view, frame);
    SIDES.forEach((name, i) => view.sides[i].draw(frame, shown, name));
    view.keys.replaceChildren(...keys(drawnOf(shown.lines, shown.about, view.spec.window), shown.about, view.spec.window, shown.threshold).map(([sample, words]) => h("span", {}, sample, " ", words)),
      legend(shown.scale), ...(shown.about.classes.length ? [h("span", {}, `higher speaks for ${visible(shown.about.classes[1])}`)] : []));
    tell(view, view.selection.token ?? null);
    view.root.dataset.done = String(Boolean(frame.base.stop && (!view.spec.strength || frame.edited?.stop)));
  },
  empty(view) { sync(view); },
  pick(sweep, spec) {
    const grid = settingsOf(sweep, spec);
    if (!grid) return null;
    const i = nearest(grid, spec.strength);
    return { of: { ...spec, strength: grid[i] }, ...sweep.shared, edited: sweep.edited[i] };
  },
  pictures: (view) => ({ svg: () => picture(view), csv: () => csv(tableOf(view.frame, view.meta)) }),
  debug: (view) => (view.frame?.base ? { shown: plainly(what(view, view.frame)), texts: SIDES.map((name) => view.frame[name]?.tokens.join("") ?? null), slider: strengthOf(view.slider) } : {}),
};

const plainly = ({ about, k, scale, threshold, line }) => ({ probe: about.name, k, scale, threshold, line });

/** What is drawn of a frame: which probe, which line colours the tokens, and the scales of both sides. */
function what(view, frame) {
  const { meta, spec } = view, { k, about } = probeOf(meta, spec), wanted = view.model.get("view")?.colour;
  const lines = frame.base.scores[k], line = lines[wanted] ? wanted : "score", threshold = about.number ? null : spec.threshold;
  const names = ["score", "smooth", "running", "low", "high"].filter((name) => lines[name]);
  const [lo, hi] = reach([frame.base, frame.edited], k, names);
  const n = Math.max(...SIDES.map((side) => frame[side]?.tokens.length ?? 0));
  return { k, about, line, lines, threshold, n, window: spec.window, range: [Math.min(lo, threshold ?? lo), Math.max(hi, threshold ?? hi)], scale: scaleOf(frame, k, about, line, spec.threshold) };
}

/** One side: its head, its tokens, its curve. */
function sideOf(view, name) {
  const head = h("h4"), ends = h("p", { class: "ends", "aria-live": "polite" }), chart = h("div", { class: "chart", dataset: { side: name } });
  const tokens = strip(view, { label: `${name} text with the probe's score`, onSelect: (i) => choose(view, i) });
  const element = h("section", { class: name }, head, tokens.element, chart, ends);
  let plan = null;
  const at = (event) => plan.at(event.clientX - chart.firstChild.getBoundingClientRect().left);
  view.listen(chart, "pointermove", (event) => { if (plan) tell(view, at(event), name); });
  view.listen(chart, "pointerleave", () => tell(view, view.selection.token ?? null));
  view.listen(chart, "click", (event) => { if (plan) choose(view, at(event)); });
  return {
    element, tokens,
    draw(frame, shown, side) {
      const found = frame[side], { k, about } = shown, token = view.selection.token ?? null;
      element.hidden = !found;
      if (!found) return;
      const edit = written(frame.of ?? view.spec, view.meta);
      head.textContent = side === "base" ? (frame.edited ? "base" : "base, no edit") : `edited: ${edit}`;
      tokens.show(tokensOf(found, k, about, shown.line, shown.threshold ?? 0, differing(frame, side)), shown.scale);
      tokens.select(token !== null && token < found.tokens.length ? token : null);
      ends.textContent = found.stop ? verdict(found, k, about, shown.threshold) : "generating…";
      plan = planOf(shown.n, shown.range, (chart.clientWidth || 520) - 2);
      chart.replaceChildren(curve({ ...whatOf(found, shown, token), label: `${side}: ${about.name} over ${found.tokens.length} tokens, ${verdict(found, k, about, shown.threshold)}` }, plan, PAGE));
    },
  };
}

const whatOf = (side, shown, chosen) => ({ lines: drawnOf(side.scores[shown.k], shown.about, shown.window), n_prompt: side.n_prompt, threshold: shown.threshold, chosen });

/** Choose a token here and in linked widgets; the same again lets it go. */
function choose(view, i) {
  view.select({ token: view.selection.token === i ? null : i });
  view.redraw();
}

/** Everything about one token, on both sides. */
function tell(view, i, first = "base") {
  const frame = view.frame;
  if (!frame?.base || i === null) { view.readout.textContent = "Point at a token or at a curve for its numbers; click to keep it."; return; }
  const { k, about } = probeOf(view.meta, view.spec);
  view.readout.textContent = [first, ...SIDES.filter((name) => name !== first)].filter((name) => frame[name] && i < frame[name].tokens.length)
    .map((name) => `${name}, token ${i} “${visible(frame[name].tokens[i])}”: ${wordsOf(frame[name], k, about, i)}`).join(" · ");
}

// --- controls ----------------------------------------------------------------------------------

function settings(view) {
  const { meta } = view;
  const field = (label, name, attributes) => {
    const input = h("input", { type: "number", "aria-label": label, dataset: { name }, ...attributes });
    view.listen(input, "change", () => { if (input.value !== "") view.ask({ [name]: Number(input.value) }); });
    return h("label", {}, `${label} `, input);
  };
  view.prompt = menu("prompt", meta.prompts.map((text, i) => [i, `${i}: ${text}`]));
  view.probe = menu("probe", meta.probes.map((one) => [one.name, one.name]));
  view.colour = menu("colour", Object.entries(LINES));
  view.listen(view.prompt, "change", () => view.ask({ prompt: Number(view.prompt.value) }));
  view.listen(view.probe, "change", () => view.ask({ probe: view.probe.value, ...editFor(view, view.probe.value) }));
  view.listen(view.colour, "change", () => { view.look({ colour: view.colour.value }); view.redraw(); });
  return h("div", { class: "wb-row settings" }, view.title = h("b", {}, meta.title), view.prompt, h("label", {}, "read ", view.probe),
    field("threshold", "threshold", { step: "any" }), field("window", "window", { min: 1, max: 10000, step: 1 }),
    field("new tokens", "max_new_tokens", { min: 1, max: 2048, step: 1 }), h("label", {}, "colour ", view.colour));
}

/** A strength is in the probe's own units, so another probe's direction starts at none. */
function editFor(view, name) {
  if (!view.live || view.spec.edit !== "probe") return {};
  const linear = view.meta.probes.find((one) => one.name === name)?.linear;
  return { strength: 0, ...(linear ? {} : { edit: "none" }) };
}

function writing(view) {
  const { meta } = view;
  view.edit = menu("write", [["none", "nothing"], ["probe", "the probe's direction"], ...meta.edits.map((one, i) => [i, one.name])]);
  view.scope = menu("scope of the edit", meta.scopes.map((text) => [text, text]));
  view.slider = h("input", { type: "range", "aria-label": "strength of the edit" });
  view.number = h("input", { type: "number", step: "any", "aria-label": "strength of the edit as a number" });
  view.unit = h("span", { class: "wb-quiet unit", title: "Where a probe's direction is written, its score rises by the strength at once: what the text does is the finding" });
  view.copy = h("button", { type: "button", title: "The cell that gives these scores again" }, "Copy as Python");
  const set = (strength) => {
    const grid = view.live ? null : settingsOf(view.sweep, view.spec), near = grid ? grid[nearest(grid, strength)] : strength;
    view.ask({ strength: Number(near.toFixed(6)) });
  };
  walk(view.slider, { min: -1, max: 1, step: 2 / STEPS }, null);
  view.listen(view.edit, "change", () => view.ask({ edit: view.edit.value, strength: startOf(view) }));
  view.listen(view.scope, "change", () => view.ask({ scope: view.scope.value }));
  view.listen(view.slider, "input", () => set(strengthOf(view.slider)));
  view.listen(view.number, "change", () => { if (view.number.value !== "") set(Number(view.number.value)); });
  view.listen(view.copy, "click", () => copyCode(view));
  return h("div", { class: "wb-row writing" }, h("label", {}, "write ", view.edit), view.slider, view.number, view.unit, h("label", {}, "at ", view.scope), view.copy);
}

/** Half of what an edit's slider reaches is the strength it came with. */
const startOf = (view) => (["none", "probe"].includes(view.edit.value) ? 0 : view.meta.edits[Number(view.edit.value)].reach / 2);

function sync(view) {
  const { spec, meta, live } = view, { about } = probeOf(meta, spec), own = spec.edit === "probe", given = meta.edits[Number(spec.edit)];
  Object.assign(view.prompt, { value: String(spec.prompt), disabled: !live });
  view.probe.value = spec.probe;
  view.colour.value = view.model.get("view")?.colour ?? "score";
  for (const option of view.colour.options) option.textContent = option.value === "smooth" ? "smoothed" : nameOf(option.value, about, spec.window);
  for (const input of view.body.querySelectorAll(".settings input")) {
    if (input !== document.activeElement) input.value = spec[input.dataset.name];
    input.disabled = input.dataset.name !== "threshold" && !live;
  }
  const [threshold, window] = ["threshold", "window"].map((name) => view.body.querySelector(`[data-name=${name}]`));
  threshold.parentElement.hidden = about.number;
  window.parentElement.hidden = about.window !== null || about.so_far;
  Object.assign(view.edit, { value: String(spec.edit), disabled: !live });
  view.edit.options[1].disabled = !about.linear;
  Object.assign(view.scope, { value: spec.scope, disabled: !live || !own });
  view.scope.parentElement.hidden = !own;
  view.copy.disabled = !live;
  syncSlider(view, own ? view.frame?.reach ?? 1 : given?.reach ?? 1, own ? "units of the score" : given?.unit ?? "");
}

function syncSlider(view, most, unit) {
  const { spec, live, slider, number } = view, kept = live ? null : settingsOf(view.sweep, spec);
  const far = Math.max(most, Math.abs(spec.strength)), now = live ? spec.strength : view.frame?.of?.strength ?? spec.strength;
  const range = { min: -far, max: far, step: (2 * far) / STEPS };
  if (!kept && Number(slider.max) !== far) delete slider.dataset.settings;
  const other = walk(slider, range, kept);
  if (other || !live || document.activeElement !== slider) putAt(slider, now);
  if (number !== document.activeElement) number.value = Number(now.toPrecision(5));
  slider.disabled = number.disabled = spec.edit === "none" || !(live || kept);
  slider.setAttribute("aria-valuetext", `${short(now)} ${unit}`);
  view.unit.textContent = unit;
}

function menu(label, options) {
  return h("select", { "aria-label": label }, ...options.map(([value, text]) => h("option", { value }, text)));
}

async function copyCode(view) {
  try {
    const { code } = await view.fetch("code");
    view.said.value = code;
    view.said.dataset.of = JSON.stringify(view.spec);
    view.said.hidden = false;
    view.said.select();
    // a page that is not local may not write the clipboard: the text stands there, selected
    await navigator.clipboard?.writeText(code).catch(() => {});
  } catch (error) {
    view.complain(error);
  }
}

/** Both texts and their curves below each other. */
function picture(view) {
  const shown = what(view, view.frame), plan = planOf(shown.n, shown.range, 780), edit = written(view.frame.of ?? view.spec, view.meta);
  return stacked(SIDES.flatMap((name, i) => {
    const side = view.frame[name];
    if (!side) return [];
    const title = `${name === "base" ? "base" : `edited: ${edit}`}: ${shown.about.name}, ${verdict(side, shown.k, shown.about, shown.threshold)}`;
    return [view.sides[i].tokens.svg(title), curveText({ ...whatOf(side, shown, null), label: title }, plan)];
  }));
}

export default { render: (context) => { mount(context, probeStrip); } };
