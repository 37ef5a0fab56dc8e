// An opened head: its scores, its pattern, and the next token with and without it.

import { h, short } from "../js/dom.js";
import { grid } from "../js/grid.js";
import { putAt, strengthOf, walk } from "../js/nearest.js";
import { nextTokens } from "../js/next_tokens.js";
import { isOpen, keptAt, numbersOf, patternOf, runNames } from "./shown.js";

const RANGE = { min: 0, max: 1, step: 0.05 };

/** @param {import("../js/base.js").View} view */
export function openedPanel(view) {
  const title = h("div", { class: "wb-place", role: "status" });
  const numbers = h("tbody", {});
  const table = h("table", { class: "wb-scores", "aria-label": "scores of the head" },
    h("thead", {}, h("tr", {}, ...["score", "mean, 95 % interval", "unit", "rank of |mean|"].map((text) => h("th", { scope: "col" }, text)))), numbers);
  const note = h("div", { class: "wb-quiet" });
  const shown = grid(view, { label: "attention pattern: queries by keys", maxHeight: 380 });
  const next = nextTokens("next token's probabilities with and without the head");
  const edit = slider(view);
  const effect = h("div", {}, next.element, edit.element);
  const element = h("div", { class: "wb-opened" }, title, h("div", { class: "wb-scroll", tabindex: 0, role: "group", "aria-label": "scores" }, table), note,
    h("div", { class: "wb-pair" }, shown.element, effect));
  return { element, pattern: shown, draw: (frame) => draw(view, frame, { title, table, numbers, note, shown, next, edit, effect }) };
}

function draw(view, frame, parts) {
  const { spec, meta } = view, { head } = spec;
  const found = head && isOpen(frame, spec) ? frame.opened : null, picture = head ? patternOf(frame, spec) : null;
  parts.table.hidden = !head;
  parts.title.textContent = head ? `layer ${head[0]} head ${head[1]}` : "";
  parts.note.textContent = noteOf(view, head, found, picture);
  parts.shown.element.hidden = !picture;
  parts.effect.hidden = !found;
  view.drawnPattern = picture;
  if (picture) parts.shown.paint(picture);
  if (head) {
    parts.numbers.replaceChildren(...numbersOf(frame, meta, head).map(({ name, unit, rank, value }) =>
      h("tr", {}, h("th", { scope: "row" }, name), ...[value, unit, rank ? `${rank} of ${meta.layers.length * meta.heads}` : "–"].map((text) => h("td", {}, text)))));
  }
  if (!found) return;
  parts.next.show(found, runNames(frame.of.strength));
  parts.edit.update(frame);
}

function noteOf(view, head, found, picture) {
  if (!head) return view.usable ? "click a head to open it" : "heads open with a running kernel";
  if (found && picture) return "";
  if (view.live) return found ? "the prompt is too long to draw its pattern" : "running…";
  return `${picture ? "its ablation" : found ? "its pattern" : "its pattern and ablation"} on this prompt ${picture || found ? "was" : "were"} not computed ahead: a running kernel is needed`;
}

/** "Make it an edit": how much of the head is taken away. */
function slider(view) {
  const input = h("input", { type: "range", "aria-label": "strength of the ablation" });
  const said = h("output", {});
  const say = (strength) => {
    said.textContent = short(strength);
    input.setAttribute("aria-valuetext", `${short(strength)} of the head taken away`);
  };
  walk(input, RANGE, null);
  view.listen(input, "input", () => {
    const strength = Number(strengthOf(input).toFixed(6));
    say(strength);
    view.ask({ strength });
  });
  return {
    element: h("div", { class: "wb-row wb-edit" }, h("label", {}, "make it an edit: take away ", input, " ", said)),
    update(frame) {
      const kept = !view.live && keptAt(view.sweep, view.spec) ? view.sweep.grid : null;
      const now = view.live ? view.spec.strength : frame.of.strength;
      const other = walk(input, RANGE, kept);
      input.disabled = !view.live && !kept;
      if (other || !view.live || document.activeElement !== input) putAt(input, now);
      say(now);
    },
  };
}
