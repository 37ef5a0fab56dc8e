// The panel of an opened place: where it is, its numbers, what each run says next, and its edit.

import { h, short } from "../js/dom.js";
import { putAt, strengthOf, walk } from "../js/nearest.js";
import { nextTokens } from "../js/next_tokens.js";
import { besideWords, keptAt, openedOf, patchWords, placeWords, runNames } from "./shown.js";

/** @param {import("../js/base.js").View} view @returns {{element: HTMLElement, draw: (frame: any) => void}} */
export function openedPanel(view) {
  const title = h("div", { class: "wb-place", role: "status" });
  const numbers = h("ul", { class: "wb-numbers" });
  const about = h("div", { class: "wb-quiet wb-small" });
  const note = h("div", { class: "wb-quiet" });
  const table = nextTokens("next token's probabilities of every run");
  const edit = slider(view);
  const element = h("div", { class: "wb-opened" }, title, numbers, about, note, table.element, edit.element);
  const draw = (frame) => {
    const { spec, meta } = view, place = spec.place;
    const found = place ? openedOf(frame, spec) : null;
    numbers.hidden = about.hidden = !place;
    table.element.hidden = !found;
    edit.update(found, frame);
    if (!place) {
      title.textContent = "";
      note.textContent = view.usable ? "click a cell to see what a patch there does" : "cells open with a running kernel";
      return;
    }
    const words = placeWords(frame, meta, spec);
    title.textContent = words.title;
    numbers.replaceChildren(...[...words.numbers, ...(found ? besideWords(found) : [])].map((text) => h("li", {}, text)));
    about.textContent = found ? patchWords(found) : "";
    note.textContent = found ? "" : view.live ? "running…" : "this place was not computed ahead: it needs a running kernel";
    if (found) table.show(found, runNames(found, frame.of.strength));
  };
  return { element, draw };
}

/** "Make it an edit": the strength of the map's own edit of this place. */
function slider(view) {
  const { strength: range } = view.meta;
  const input = h("input", { type: "range", "aria-label": "strength of the edit" });
  const said = h("output", {}), unit = h("span", { class: "wb-quiet" });
  const element = h("div", { class: "wb-row wb-edit", hidden: true }, h("label", {}, "make it an edit: strength ", input, " ", said), unit);
  const say = (strength) => {
    said.textContent = short(strength);
    input.setAttribute("aria-valuetext", short(strength));
  };
  walk(input, range, null);
  view.listen(input, "input", () => {
    const strength = Number(strengthOf(input).toFixed(6));
    say(strength);
    view.ask({ strength });
  });
  return {
    element,
    update(found, frame) {
      element.hidden = !found || !found.runs.includes("edited");
      if (element.hidden) return;
      const kept = !view.live && keptAt(view.sweep, view.spec) ? view.sweep.grid : null;
      const now = view.live ? view.spec.strength : frame.of.strength;
      const other = walk(input, range, kept);
      input.disabled = !view.live && !kept;
      if (other || !view.live || document.activeElement !== input) putAt(input, now);
      say(now);
      unit.textContent = found.unit;
    },
  };
}
