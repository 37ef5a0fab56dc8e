// Base, edited, difference: the tabs, and a slider per edit that moves the edited side.

import { h, short } from "./dom.js";
import { nearest, putAt, strengthOf, walk } from "./nearest.js";

const SIDES = ["base", "edited", "difference"];
const STEPS = 80;

const same = (a, b) => a?.length === b?.length && a?.every((one, i) => one === b[i]);

/** Whether the frame that came with the page is the one of this spec. */
export const isOwn = (base, spec) => Boolean(base?.of && same(base.of.strengths, spec.strengths));

/** Which precomputed setting a spec snaps to; -1 where none was made with these later edits. */
export function placeIn(sweep, spec) {
  const fits = sweep?.grid?.length && same(sweep.others ?? [], spec.strengths.slice(1));
  return fits ? nearest(sweep.grid, spec.strengths[0]) : -1;
}

/** A frame's spec with the first strength of a setting. */
export const settingOf = (sweep, place, spec) => ({ ...spec, strengths: [sweep.grid[place], ...spec.strengths.slice(1)] });

/** The strengths of what is drawn; those asked for where a kernel is about to draw them. */
export const drawn = (view) => (view.live ? null : view.frame?.of?.strengths) ?? view.spec.strengths;

/** Strengths of the first edit that a page without a kernel can show, or null. */
export function settings(sweep, base, strengths) {
  if (placeIn(sweep, { strengths }) < 0) return null;
  const own = base?.of?.strengths ?? [];
  const also = same(own.slice(1), strengths.slice(1)) ? own.slice(0, 1) : [];
  return [...new Set([...sweep.grid, ...also])].sort((a, b) => a - b);
}

/** Which side is shown: what the user chose last, else the edited one where there is one. */
export function sideOf(view) {
  if (!(view.meta.edits ?? []).length) return "base";
  const chosen = view.model.get("view")?.tab;
  return SIDES.includes(chosen) ? chosen : "edited";
}

/** Elements in `element`; `update()` after every frame. Empty without edits. */
export function sides(view) {
  const edits = view.meta.edits ?? [];
  const element = h("div", { class: "wb-row wb-sides", hidden: !edits.length });
  const tabs = SIDES.map((name) => tab(view, name));
  const sliders = edits.map((edit, i) => slider(view, edit, i));
  element.append(h("span", { role: "tablist", "aria-label": "side", class: "wb-tabs" }, ...tabs), ...sliders.map((one) => one.element));
  return {
    element,
    update() {
      for (const one of tabs) one.setAttribute("aria-selected", String(one.dataset.side === sideOf(view)));
      for (const one of sliders) one.update();
    },
  };
}

function tab(view, name) {
  const button = h("button", { type: "button", role: "tab", dataset: { side: name } }, name);
  view.listen(button, "click", () => { view.look({ tab: name }); view.redraw(); });
  return button;
}

function slider(view, edit, i) {
  const range = { min: edit.min, max: edit.max, step: (edit.max - edit.min) / STEPS };
  const input = h("input", { type: "range", "aria-label": `strength of ${edit.name}` });
  const said = h("output", {});
  const say = (strength) => {
    said.textContent = short(strength);
    input.setAttribute("aria-valuetext", `${short(strength)} ${edit.unit}`);
  };
  walk(input, range, null);
  view.listen(input, "input", () => {
    const strengths = [...drawn(view)];
    strengths[i] = Number(strengthOf(input).toFixed(6));
    say(strengths[i]);
    view.ask({ strengths });
  });
  return {
    element: h("label", { title: edit.unit }, `${edit.name} `, input, " ", said),
    update() {
      const now = drawn(view);
      // in a precomputed page only the first edit has settings
      const kept = view.live || i ? null : settings(view.sweep, view.cached("data"), now);
      const other = walk(input, range, kept);
      input.disabled = !view.live && !kept;
      if (other || !view.live || document.activeElement !== input) putAt(input, now[i]);
      say(now[i]);
    },
  };
}
