// An opened feature: what is known of it, its strongest examples, its tokens, its relatives.

import { h, short } from "../js/dom.js";
import { bars, histogram } from "./charts.js";
import { lines } from "./lines.js";
import { factsOf, keptOf } from "./shown.js";

/** @param {import("../js/base.js").View} view @param {(feature: number) => void} open */
export function featurePanel(view, open) {
  const title = h("div", { class: "wb-place", role: "status" }), label = h("div", { class: "wb-feature-label" });
  const facts = h("dl", { class: "wb-facts" }), picture = h("div", { class: "wb-picture" });
  const promoted = h("div", { class: "wb-effects" }), relatives = h("div", { class: "wb-relatives" });
  const examples = lines(view, { label: "strongest examples" });
  const none = h("div", { class: "wb-quiet" });
  view.listen(relatives, "click", (event) => {
    const hit = event.target.closest?.("button[data-feature]");
    if (hit) open(Number(hit.dataset.feature));
  });
  const heading = h("h4", {}, "strongest examples");
  const body = h("div", {}, h("div", { class: "wb-pair" }, facts, picture), promoted, relatives, heading, examples.element);
  return {
    element: h("div", {}, title, label, none, body), examples,
    draw: (one) => {
      title.textContent = one ? `feature ${one.feature}` : `feature ${view.spec.feature}`;
      none.textContent = one ? "" : "this feature was not kept with the page: a running kernel is needed";
      body.hidden = !one;
      label.textContent = one?.label ?? "";
      label.title = one?.control === null || one?.control === undefined ? "" : `the best label of shuffled tokens has F1 ${short(one.control)}`;
      if (one) draw(view, one, { facts, picture, promoted, relatives, examples, heading });
    },
  };
}

function draw(view, one, parts) {
  const known = factsOf(one, view.meta.n_tokens);
  if (one.control !== null && one.label !== "unlabelled") known.push(["label's control", `F1 ${short(one.control)} on shuffled tokens`]);
  parts.facts.replaceChildren(...known.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
  const alive = one.histogram.some((n) => n > 0);
  parts.picture.replaceChildren(...(alive ? [histogram(one.histogram, one.largest)] : []));
  const most = Math.max(...[...one.promoted, ...one.suppressed].map(({ value }) => Math.abs(value)), 0);
  parts.promoted.hidden = !most;
  parts.promoted.replaceChildren(
    effects("promotes", bars(one.promoted, most, "up")), effects("suppresses", bars(one.suppressed, most, "down")));
  parts.relatives.replaceChildren(...related(view, "correlated activations", one.correlated, "Pearson r over tokens"),
    ...related(view, "decoder neighbours", one.neighbours, "cosine of decoder rows"));
  parts.heading.hidden = !one.examples.length;
  parts.examples.show(one.examples.map(lineOf), one.largest);
}

const effects = (name, rows) => h("div", { role: "group", "aria-label": name }, h("h4", { title: "logits per unit of activation, by the direct path" }, `${name}, logits per unit`), ...rows);

function lineOf({ pieces, values, peak, prompt, position }) {
  const value = short(values[peak]);
  return { head: value, say: `prompt ${prompt}, position ${position}: ${value}`, pieces, values, peak };
}

function related(view, name, found, unit) {
  if (!found.length) return [];
  const buttons = found.map(({ feature, value, label }) => {
    const there = label !== null && (view.live || !view.sweep || Boolean(keptOf(view.sweep, feature)));
    const why = label === null ? "not described in this dashboard" : there ? label : "not kept with this page";
    return h("button", { type: "button", disabled: !there || !view.usable, title: why, dataset: { feature } },
      h("b", {}, String(feature)), ` ${short(value)}`);
  });
  return [h("div", { class: "wb-row" }, h("span", { class: "wb-quiet", title: unit }, name), ...buttons)];
}
