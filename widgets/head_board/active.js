// Where a neuron or a direction is most active: a line per prompt, every token in the warmth of its value.

import { h, short, visible } from "../js/dom.js";
import { warmth } from "./shown.js";

/** @param {import("../js/base.js").View} view */
export function activePanel(view) {
  const input = h("input", { type: "text", "aria-label": "neuron", placeholder: "L3.mlp_post[neuron=12]", size: 28, spellcheck: "false" });
  const go = h("button", { type: "button" }, "Show");
  const ask = () => view.ask({ neuron: input.value.trim() });
  view.listen(go, "click", ask);
  view.listen(input, "keydown", (event) => { if (event.key === "Enter") ask(); });
  const form = h("div", { class: "wb-row" }, h("label", {}, "neuron ", input), go);
  const title = h("div", { class: "wb-place", role: "status" });
  const about = h("div", { class: "wb-quiet wb-small" });
  const list = h("ol", { class: "wb-active" });
  const draw = (frame) => {
    const found = frame.examples;
    form.hidden = Boolean(view.meta.feature);
    input.disabled = go.disabled = !view.live;
    if (document.activeElement !== input) input.value = view.spec.neuron;
    title.textContent = found ? `${found.name}: most active tokens` : "";
    about.textContent = found ? aboutOf(found) : view.live ? "type a neuron, such as L0.mlp_post[neuron=3]" : "a neuron needs a running kernel";
    list.replaceChildren(...(found ? found.rows.map((row) => line(row, found.rows)) : []));
  };
  return { element: h("div", { hidden: true }, form, title, about, list), draw };
}

function aboutOf({ rows, of, unit }) {
  const all = rows.flatMap((row) => row.values), least = Math.min(0, ...all), most = Math.max(0, ...all);
  return `One line for each of the ${rows.length} most active of ${of} prompts, its strongest token outlined. `
    + `Orange: above 0, up to ${short(most)}; blue: below 0, down to ${short(least)} (${unit}).`;
}

function line(row, rows) {
  const tokens = row.pieces.map((text, i) => {
    const { side, share } = warmth(row.values[i], rows);
    return h("span", { class: `wb-token wb-${side}${i === row.at ? " wb-peak" : ""}`, title: `${visible(text)}: ${short(row.values[i])}`, style: { "--wb-share": `${(100 * share).toFixed(0)}%` } }, visible(text));
  });
  const cut = (n) => (n ? [h("span", { class: "wb-quiet" }, ` …${n} more… `)] : []);
  return h("li", {}, h("span", { class: "wb-value" }, short(row.value)), " ", h("span", { class: "wb-quiet" }, `prompt ${row.prompt} `), ...cut(row.before), ...tokens, ...cut(row.after));
}
