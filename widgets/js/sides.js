// Base, edited, difference: the tabs, and a slider per edit that moves the edited side.

import { h, short } from "./dom.js";

const SIDES = ["base", "edited", "difference"];
const STEPS = 80;

/** The place of the value nearest to `wanted`. */
export function nearest(values, wanted) {
  return values.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best), 0);
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
  const input = h("input", { type: "range", min: edit.min, max: edit.max, step: (edit.max - edit.min) / STEPS, "aria-label": `strength of ${edit.name}` });
  const said = h("output", {});
  view.listen(input, "input", () => {
    const strengths = [...view.spec.strengths];
    strengths[i] = snapped(view, Number(input.value));
    said.textContent = short(strengths[i]);
    view.ask({ strengths });
  });
  return {
    element: h("label", { title: edit.unit }, `${edit.name} `, input, " ", said),
    update() {
      const now = view.spec.strengths[i];
      // in a precomputed page only the first edit has settings
      input.disabled = !view.live && !(i === 0 && view.sweep);
      if (!view.live || document.activeElement !== input) input.value = String(now);
      said.textContent = short(now);
    },
  };
}

function snapped(view, value) {
  if (view.live || !view.sweep) return Number(value.toFixed(6));
  return view.sweep.grid[nearest(view.sweep.grid, value)];
}
