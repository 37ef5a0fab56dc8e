// The rows of interventions. Elements are made anew only when rows come or go, so that a slider under
// the finger is never replaced.

import { h, short } from "../js/dom.js";
import { nearest, putAt, strengthOf, walk } from "../js/nearest.js";

export function syncRows(view, change) {
  const rows = view.spec.rows, shape = JSON.stringify(rows.map((r) => [r.id, r.label, r.site]));
  if (view.rows.dataset.shape !== shape) {
    view.rows.dataset.shape = shape;
    view.rows.replaceChildren(...rows.map((row, i) => makeRow(view, change, row, i)));
    if (!rows.length) view.rows.append(h("p", { class: "wb-quiet" }, "No edits yet: add one below."));
  }
  rows.forEach((row, i) => sync(view, view.rows.children[i], row, i));
}

function makeRow(view, change, row, i) {
  const set = (changes, of = "") => change(view, view.spec.rows.map((r, k) => (k === i ? { ...r, ...changes } : r)), of);
  const on = h("input", { type: "checkbox", "aria-label": `${row.label} on` });
  const [low, high] = row.range;
  const slider = h("input", { type: "range", "aria-label": `strength of ${row.label}` });
  walk(slider, rangeOf(low, high), null);
  const number = h("input", { type: "number", step: "any", "aria-label": `strength of ${row.label} as a number` });
  const scope = h("input", { type: "text", class: "scope", size: 12, "aria-label": `scope of ${row.label}`, list: "wb-scopes", title: "all, prompt, last_prompt, generated, span(a, b), tokens({…}), after(token)" });
  const drop = h("button", { type: "button", title: "Remove this row", "aria-label": `remove ${row.label}` }, "✕");
  const snapped = (value) => {
    const sweep = view.sweep;
    return view.live || !sweep ? value : sweep.grid[nearest(sweep.grid, value)];
  };
  view.listen(on, "change", () => set({ on: on.checked }));
  view.listen(slider, "input", () => set({ strength: snapped(strengthOf(slider)) }, `slider ${row.id}`));
  view.listen(number, "change", () => { if (number.value !== "") set({ strength: snapped(Number(number.value)) }); });
  view.listen(scope, "change", () => set({ scope: scope.value.trim() || "all" }));
  view.listen(drop, "click", () => change(view, view.spec.rows.filter((_, k) => k !== i)));
  return h("div", { class: "row", dataset: { row: row.id } }, on, h("span", { class: "name", title: row.site }, row.label),
    h("code", { class: "site" }, row.site), slider, number, h("span", { class: "wb-quiet unit" }, row.unit), scope, drop);
}

function sync(view, element, row, i) {
  const [on, slider, number, scope, drop] = element.querySelectorAll("input, button");
  const swept = view.mode === "sweep" && view.sweep?.row === i;
  on.checked = row.on;
  const [low, high] = row.range;
  // settings beyond the slider's ends are for the field beside it
  const kept = swept ? view.sweep.grid.filter((one) => one >= low && one <= high) : [];
  const other = walk(slider, rangeOf(low, high), kept.length ? kept : null);
  if (other || slider !== document.activeElement || !view.live) putAt(slider, row.strength);
  if (number !== document.activeElement) number.value = Number(row.strength.toPrecision(4));
  if (scope !== document.activeElement) scope.value = row.scope;
  slider.setAttribute("aria-valuetext", `${short(row.strength)} ${row.unit}`);
  on.disabled = scope.disabled = drop.disabled = !view.live;
  slider.disabled = number.disabled = !(view.live || swept);
}

const rangeOf = (min, max) => ({ min, max, step: (max - min) / 200 });

/** The line that makes a new row: what, where, at which tokens. */
export function addRow(view, change) {
  const { operations, parts, outside, n_layers } = view.meta;
  const options = (pairs) => pairs.map(([value, text]) => h("option", { value }, text ?? value));
  const operation = h("select", { "aria-label": "operation" }, ...options(Object.entries(operations).map(([k, o]) => [k, o.words])));
  const layer = h("select", { "aria-label": "layer" }, ...options([...Array(n_layers).keys()].map((l) => [l, `layer ${l}`])));
  const part = h("select", { "aria-label": "part" }, ...options([...parts.map((p) => [p]), ...outside.map((p) => [p])]));
  const pick = h("input", { type: "text", size: 10, placeholder: "[head=3]", "aria-label": "selector, such as [head=3] or [pos=-1]" });
  const token = h("input", { type: "text", size: 6, placeholder: "token", "aria-label": "token to push toward", hidden: true });
  const add = h("button", { type: "button" }, "Add row");
  part.value = parts.includes("resid_post") ? "resid_post" : parts[0];
  view.listen(operation, "change", () => { token.hidden = operation.value !== "toward"; });
  view.listen(add, "click", () => {
    const place = outside.includes(part.value) ? part.value : `L${layer.value}.${part.value}`;
    const site = place + pick.value.trim(), about = operations[operation.value];
    const number = 1 + Math.max(0, ...view.spec.rows.map((r) => Number(r.id.slice(1)) + 1 || 0));
    const row = {
      id: `m${number}`, make: { operation: operation.value, site, token: token.value }, label: `${operation.value}${token.value && !token.hidden ? ` ${JSON.stringify(token.value)}` : ""}`,
      site, unit: about.unit, scope: "all", strength: about.range[1] >= 1 ? 1 : about.range[1], range: about.range, on: true,
    };
    change(view, [...view.spec.rows, row]);
  });
  const line = h("div", { class: "wb-row add" }, operation, token, layer, part, pick, add,
    h("datalist", { id: "wb-scopes" }, ...options(["all", "prompt", "last_prompt", "generated", "all-bos"].map((s) => [s]))));
  view.addLine = line;
  return line;
}
