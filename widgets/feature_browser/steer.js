// "Steer with it": a mode and a strength, the edit as Python, and a LiveEdit of it below.

import { h, short } from "../js/dom.js";
import { opened } from "../steering_lab/opened.js";
import { settingOf } from "./shown.js";

/** @param {import("../js/base.js").View} view */
export function steering(view, host) {
  const { modes, step } = view.meta;
  const mode = h("select", { "aria-label": "mode of the edit" }, ...modes.map(({ name, words }) => h("option", { value: name }, words)));
  const input = h("input", { type: "range", "aria-label": "strength of the edit", step });
  const said = h("output", {}), unit = h("span", { class: "wb-quiet" }), note = h("div", { class: "wb-quiet wb-small" });
  const copy = h("button", { type: "button", title: "the edit, and what the model says with it" }, "Copy as Python");
  const live = h("button", { type: "button", title: "this edit with sliders, below" }, "Steer with it");
  const code = h("textarea", { class: "wb-code", readonly: true, hidden: true, rows: 6, "aria-label": "the edit as Python" });
  const child = opened(view, host, "browser.steer() in a cell shows this edit in a LiveEdit.");
  const parts = { mode, input, said, unit, note, copy, live, code, child, tools: h("div", { class: "wb-row wb-edit-tools" }, live, copy), row: h("div", { class: "wb-row wb-edit" }, mode, input, said, unit) };
  view.listen(mode, "change", () => view.ask({ mode: mode.value, strength: modes.find(({ name }) => name === mode.value).start }));
  view.listen(input, "input", () => view.ask({ strength: Number(Number(input.value).toFixed(6)) }));
  view.listen(input, "input", () => say(view, parts));
  view.listen(copy, "click", () => copyCode(view, parts));
  view.listen(live, "click", () => {
    child.wait();
    view.fetch("open").then(({ opened: reference }) => child.draw(reference), (error) => { child.failed(); view.complain(error); });
  });
  return { element: h("section", {}, h("h4", {}, "steer with it"), parts.row, parts.tools, note, code), child: child.element, parts, draw: (frame) => draw(view, frame, parts) };
}

function draw(view, frame, parts) {
  const { meta } = view, dead = !(frame.one?.largest > 0), can = meta.modes.length > 0 && !dead;
  parts.row.hidden = parts.tools.hidden = !meta.modes.length;
  parts.note.textContent = !meta.modes.length ? "steering needs dictionary=" : !frame.one ? "" : dead ? "a feature that is never active has no size to steer by"
    : !view.live ? "steering needs a running kernel" : "";
  for (const control of [parts.mode, parts.input, parts.copy]) control.disabled = !can || !view.live;
  parts.live.disabled = !can || !view.live || !(meta.live || (meta.own && frame.own?.pieces));
  parts.live.title = parts.live.disabled && can && view.live ? "needs model=, and prompts= or an own text" : "this edit with sliders, below";
  if (parts.code.dataset.of !== keyOf(view)) parts.code.hidden = true;
  say(view, parts);
  parts.child.draw(meta.opened);
}

/** The slider where the spec is, with its range in words. */
function say(view, { mode, input, said, unit }) {
  const { spec, meta } = view, about = meta.modes.find(({ name }) => name === spec.mode);
  if (!about) return;
  mode.value = spec.mode;
  const [min, max] = about.range;
  Object.assign(input, { min: Math.min(min, spec.strength), max: Math.max(max, spec.strength) });
  if (document.activeElement !== input) input.value = String(spec.strength);
  said.textContent = short(spec.strength);
  unit.textContent = about.unit;
  input.setAttribute("aria-valuetext", settingOf(spec, meta.modes));
}

const keyOf = ({ spec }) => JSON.stringify([spec.feature, spec.mode, spec.strength]);

async function copyCode(view, { code }) {
  try {
    code.value = (await view.fetch("code")).code;
    code.dataset.of = keyOf(view);
    code.hidden = false;
    code.select();
    // a page that is not local may not write the clipboard: the text stands there, selected
    await navigator.clipboard?.writeText(code.value).catch(() => {});
  } catch (error) {
    view.complain(error);
  }
}
