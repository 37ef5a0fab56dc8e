// What is trained and seen: a box for each method and layer. The methods' boxes are the legend.

import { h } from "../js/dom.js";
import { swatch } from "./marks.js";

/** @param {import("../js/base.js").View} view @returns {{element: HTMLElement, draw: (frame: any) => void}} */
export function choices(view) {
  const { methods, layers } = view.meta;
  const ofMethods = boxes(view, "methods", methods, (name, i) => [swatch(i), name]);
  const ofLayers = boxes(view, "layers", layers, (layer) => [layer === null ? "whole edit" : `L${layer}`]);
  const controls = h("input", { type: "checkbox" });
  view.listen(controls, "change", () => view.ask({ controls: controls.checked }));
  const also = h("label", { class: "wb-lab-chip" }, controls, swatch(0, true), "controls: a random direction of the same norm");
  return {
    element: h("div", { class: "wb-lab-choices" }, ofMethods.element, ofLayers.element, h("div", { class: "wb-row" }, also)),
    draw(frame) {
      controls.checked = view.spec.controls;
      also.hidden = !frame.lines.some((line) => line.of.kind === "control");
      const has = (name, value) => frame.lines.some((line) => line.of[name] === value && line.done);
      ofMethods.draw((name) => view.live || has("method", name));
      ofLayers.draw((layer) => view.live || has("layer", layer));
    },
  };
}

/** A row of boxes of one name in the spec, with a button that takes all or none of them. */
function boxes(view, name, values, shown) {
  const made = values.map((value, i) => {
    const box = h("input", { type: "checkbox" });
    view.listen(box, "change", () => choose(values.filter((one, k) => (k === i ? box.checked : view.spec[name].includes(one)))));
    return { value, box, chip: h("label", { class: "wb-lab-chip" }, box, ...shown(value, i)) };
  });
  const choose = (some) => view.ask({ [name]: some });
  const all = h("button", { type: "button", class: "wb-lab-all" });
  view.listen(all, "click", () => choose(view.spec[name].length ? [] : [...values]));
  return {
    element: h("div", { class: "wb-row", role: "group", "aria-label": name, hidden: !values.length }, h("span", { class: "wb-quiet" }, name), ...made.map(({ chip }) => chip), values.length > 1 ? all : null),
    draw(enabled) {
      for (const { value, box } of made) {
        box.checked = view.spec[name].includes(value);
        box.disabled = !enabled(value);
      }
      all.textContent = view.spec[name].length ? "none" : "all";
      all.setAttribute("aria-label", `${all.textContent} of the ${name}`);
    },
  };
}
