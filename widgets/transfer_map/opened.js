// The opened pair: its numbers, the shifted features that carry the score, and what each of them reads.

import { h, short, visible } from "../js/dom.js";
import { cells } from "../js/cells.js";
import { putAt, strengthOf, walk } from "../js/nearest.js";
import { legend, strip } from "../js/strip.js";
import { featureOf, openedOf, pairWords } from "./shown.js";

const EXAMPLES = 4, WIDE = 110;

/** @param {import("../js/base.js").View} view @param {{onFeature: (feature: number) => void}} options */
export function openedPanel(view, { onFeature }) {
  const name = h("b"), title = h("ul", { class: "wb-pair-numbers" }), said = h("div", { role: "status" }, name, title);
  const note = h("div", { class: "wb-quiet" });
  const table = cells(view, { label: "shifted features of the pair", onSelect: (row) => onFeature(table.features[row]) });
  const rest = h("div", { class: "wb-quiet wb-small" });
  const feature = featurePanel(view);
  const both = h("div", { class: "wb-pair-both" }, h("div", { class: "wb-carried" }, table.element, rest), feature.element);
  const element = h("div", { class: "wb-opened" }, said, note, both);
  const draw = (frame) => {
    const { spec, meta } = view, found = openedOf(frame, spec);
    both.hidden = !found;
    if (spec.target === null) {
      name.textContent = "";
      title.replaceChildren();
      note.textContent = "click a cell or a point to see which features carry its score";
      return;
    }
    const [pair, ...numbers] = pairWords(frame, meta, spec.source, spec.target);
    name.textContent = pair;
    title.replaceChildren(...numbers.map((text) => h("li", {}, text)));
    note.textContent = found ? found.why : view.live ? "running…" : "the features of this pair were not computed ahead: they need a running kernel";
    if (!found) return;
    const id = featureOf(found, spec);
    carried(table, found, id);
    rest.textContent = found.rest;
    feature.draw(found, id);
  };
  return { element, draw, get strips() { return feature.shown(); } };
}

/** A row per feature: what it adds to the score, its own shift, what it seems to read. */
function carried(table, found, id) {
  const most = Math.max(...found.contributions.map(({ value }) => Math.abs(value ?? 0)), 1e-12);
  table.features = found.contributions.map(({ feature }) => feature);
  const row = ({ feature, value, share, shift }) => {
    const label = found.features[feature]?.label ?? "", amount = value === null ? "–" : `${short(value)}${share === null ? "" : ` (${percent(share)})`}`;
    return {
      title: [String(feature)],
      cells: [
        { parts: [bar((value ?? 0) / most), ` ${amount}`], say: `feature ${feature} adds ${amount} to the score` },
        { parts: [short(shift)], say: `feature ${feature}: shift ${short(shift)}` },
        { parts: [label], say: `feature ${feature}: ${label || "no label"}`, kind: "wb-label" },
      ],
    };
  };
  table.show(["feature", "adds to the score", "shift", "seems to read"], found.contributions.map(row), { row: table.features.indexOf(id) });
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`.replace("-", "−");

function bar(share) {
  const px = Math.max(1, Math.round(WIDE * Math.abs(share)));
  return h("span", { class: "wb-carried-bar", style: { width: `${WIDE}px` }, "aria-hidden": "true" }, h("i", { style: { width: `${px}px` } }));
}

/** One feature: its numbers, tokens that it reads, its edit. */
function featurePanel(view) {
  const title = h("div", { class: "wb-feature-title" }), numbers = h("div", { class: "wb-quiet wb-small" });
  const promoted = h("div", { class: "wb-small" }), scale = h("div", {}), note = h("div", { class: "wb-quiet wb-small" });
  const strips = Array.from({ length: EXAMPLES }, (_, k) => strip(view, { label: `example ${k + 1}` }));
  const edit = slider(view);
  const element = h("div", { class: "wb-feature" }, title, numbers, promoted, scale, ...strips.map((one) => one.element), note, edit.element);
  let drawn = [];
  return {
    element,
    shown: () => drawn,
    draw(found, id) {
      const about = found.features[id];
      title.textContent = id === null ? "" : `feature ${id}${about?.label ? `: ${about.label}` : ""}`;
      numbers.textContent = about?.numbers ?? "";
      promoted.replaceChildren(...(about?.promoted?.length ? ["promotes ", ...about.promoted.map((text) => h("span", { class: "wb-token wb-promoted" }, visible(text)))] : []));
      drawn = about?.examples ?? [];
      const colours = { kind: "sequential", lo: 0, hi: about?.largest || 1, unit: "activation" };
      scale.replaceChildren(...(drawn.length ? [legend(colours)] : []));
      strips.forEach((one, k) => {
        const example = drawn[k];
        one.element.hidden = !example;
        if (!example) return;
        one.show(example.pieces.map((text, i) => ({ text, value: example.values[i], index: example.position - example.peak + i, ...(i === example.peak ? { kind: 1, title: "the peak" } : {}) })),
          colours);
      });
      note.textContent = id === null ? "" : about?.why ?? "no examples were kept of this feature";
      edit.update(id);
    },
  };
}

/** "Make it an edit": times the feature's own activation, added; −1 switches it off. Or its largest activation, added. */
function slider(view) {
  const input = h("input", { type: "range", "aria-label": "strength of the edit" });
  const said = h("output", {}), note = h("span", { class: "wb-quiet wb-small" });
  const element = h("div", { class: "wb-row wb-edit" }, h("label", {}, "make it an edit: ", input, " ", said), note);
  const say = (strength) => {
    said.textContent = view.meta.edit === "add" ? `${short(strength)} × its largest activation added`
      : strength === -1 ? "switched off" : `${short(1 + strength)} × its activation`;
    input.setAttribute("aria-valuetext", said.textContent);
  };
  walk(input, view.meta.strength, null);
  view.listen(input, "input", () => {
    const strength = Number(strengthOf(input).toFixed(6));
    say(strength);
    view.ask({ strength });
  });
  return {
    element,
    update(id) {
      element.hidden = id === null || !view.meta.edit;
      if (document.activeElement !== input) putAt(input, view.spec.strength);
      say(view.spec.strength);
      note.textContent = "to_record().edit has it";
    },
  };
}
