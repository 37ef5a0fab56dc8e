import { mount } from "../js/base.js";
import { h, short } from "../js/dom.js";
import { strip } from "../js/strip.js";
import { History } from "./history.js";
import { addRow, syncRows } from "./rows.js";
import { drawNext } from "./next.js";
import { toCsv, toSvg } from "./pictures.js";
import { stripsOf } from "./strips.js";
import { marked } from "./texts.js";
import { nearest, strengthOf } from "../js/nearest.js";

const COLOURS = {
  none: { words: "no colour" },
  logprobs: { words: "log-probability, nats", scale: { kind: "sequential", lo: -6, hi: 0 } },
  kl_nats: { words: "KL(edited ‖ base), nats", scale: { kind: "sequential", lo: 0, hi: 2 } },
};

const liveEdit = {
  name: "live_edit",
  build(view) {
    view.history = new History();
    view.rows = h("div", { class: "rows" });
    // absolute positions, as everywhere: a linked grid shows the same token
    const onSelect = (i) => view.select({ token: view.frame.prompt.tokens.length + i });
    view.base = strip(view, { label: "base continuation", onSelect });
    view.edited = strip(view, { label: "edited continuation", onSelect });
    view.next = h("div", { class: "next", role: "img" });
    view.verdict = h("p", { class: "verdict", "aria-live": "polite" });
    view.pins = h("span", { class: "pins" });
    view.colour = select("colour of tokens", Object.entries(COLOURS).map(([k, c]) => [k, c.words]));
    view.strips = [h("div"), h("div")];
    view.said = h("textarea", { class: "code", readonly: true, hidden: true, rows: 8, "aria-label": "this setting as Python" });
    view.body.append(
      settings(view), view.rows, addRow(view, change), tools(view), view.said,
      h("div", { class: "shown" },
        h("section", {}, h("h4", {}, "next token"), view.next),
        h("section", { class: "text" }, view.baseHead = h("h4", {}, "base"), view.base.element, view.strips[0]),
        h("section", { class: "text" }, view.editedHead = h("h4", {}, "edited"), view.edited.element, view.strips[1])),
      view.verdict);
    view.listen(view.colour, "change", () => view.redraw());
  },
  draw(view, frame) {
    syncRows(view, change);
    syncSettings(view);
    drawNext(view.next, frame.next);
    const { base, edited } = marked(frame), colour = COLOURS[view.colour.value];
    const tokens = (side, marks) => (side?.tokens ?? []).map((text, i) => ({
      text, changed: marks[i],
      value: colour.scale ? side[view.colour.value]?.[i] ?? null : null,
      title: side.logprobs ? titleOf(side, i) : "",
    }));
    view.base.show(tokens(frame.base, base), colour.scale);
    view.edited.show(tokens(frame.edited, edited), colour.scale);
    view.baseHead.textContent = `base${right(frame.base)}`;
    view.editedHead.textContent = `edited${right(frame.edited)}`;
    view.strips[0].replaceChildren(...stripsOf(frame.base, false));
    view.strips[1].replaceChildren(...stripsOf(frame.edited, true));
    view.addLine.hidden = !view.live;
    view.verdict.textContent = words(frame);
    view.title.textContent = frame.device ? `${view.meta.title} on ${frame.device}` : view.meta.title;
    if (view.said.dataset.of !== JSON.stringify(view.spec)) view.said.hidden = true;
    view.root.dataset.done = String(Boolean(frame.done));
    view.pins.replaceChildren(...view.spec.pins.map((pin) => pinned(view, pin)));
  },
  empty(view) {
    syncRows(view, change);
    syncSettings(view);
  },
  pick(sweep, spec) {
    const row = spec.rows[sweep.row];
    if (!row || !row.on || rest(spec, sweep.row) !== rest(sweep.of, sweep.row)) return null;
    const i = nearest(sweep.grid, row.strength), at = { ...row, strength: sweep.grid[i] };
    const of = { ...spec, rows: spec.rows.map((one, k) => (k === sweep.row ? at : one)) };
    return { of, ...sweep.shared, ...sweep.frames[i] };
  },
  pictures: (view) => ({ svg: () => toSvg(view.frame, view.theme), csv: () => toCsv(view.frame) }),
  debug: (view) => ({
    next: view.frame?.next, edited: view.frame?.edited?.tokens?.join(""), base: view.frame?.base?.tokens?.join(""),
    sliders: [...view.rows.querySelectorAll("input[type=range]")].map(strengthOf),
  }),
};

/** What the sweep takes as given: all but the strength that it moves, and the pins. */
function rest(spec, index) {
  const rows = spec.rows.map((row, k) => (k === index ? { ...row, strength: 0, on: true } : row));
  return inOrder([spec.prompt, spec.seed, spec.max_new_tokens, spec.temperature, rows]);
}

/** JSON with sorted names: a saved notebook sorts them, a kernel does not. */
function inOrder(value) {
  return JSON.stringify(value, (_, one) => (one && typeof one === "object" && !Array.isArray(one)
    ? Object.fromEntries(Object.entries(one).sort(([a], [b]) => (a < b ? -1 : 1))) : one));
}

/** The rows become `rows`, and the old ones can be had back. `of` names a drag: it is one step. */
function change(view, rows, of = "") {
  view.history.push(view.spec.rows, of);
  view.ask({ rows });
}

function tools(view) {
  const button = (words, act, title = "") => {
    const made = h("button", { type: "button", title }, words);
    view.listen(made, "click", act);
    return made;
  };
  view.undo = button("Undo", () => back(view, "undo"));
  view.redo = button("Redo", () => back(view, "redo"));
  view.pin = button("Pin", () => view.ask({
    pins: [...view.spec.pins, { name: freeName(view.spec.pins), rows: view.spec.rows }],
  }), "Keep this setting as an arm: live.arms()");
  view.copy = button("Copy as Python", () => copyCode(view), "The cell that gives this continuation again");
  return h("div", { class: "wb-row" }, view.undo, view.redo, view.pin, view.copy, h("label", {}, "colour ", view.colour), view.pins);
}

function freeName(pins) {
  let number = 1;
  while (pins.some((pin) => pin.name === `pin ${number}`)) number += 1;
  return `pin ${number}`;
}

/** A pinned setting: go back to it, or let it go. */
function pinned(view, pin) {
  const go = h("button", { type: "button", title: "Set the rows as they were pinned" }, pin.name);
  const drop = h("button", { type: "button", "aria-label": `unpin ${pin.name}`, title: "Unpin" }, "✕");
  go.disabled = drop.disabled = !view.live;
  go.addEventListener("click", () => change(view, pin.rows));
  drop.addEventListener("click", () => view.ask({ pins: view.spec.pins.filter((one) => one !== pin && one.name !== pin.name) }));
  return h("span", { class: "pin" }, go, drop);
}

function back(view, way) {
  const rows = view.history[way](view.spec.rows);
  if (rows) view.ask({ rows });
}

async function copyCode(view) {
  try {
    const { code } = await view.fetch("code");
    view.said.value = code;
    view.said.dataset.of = JSON.stringify(view.spec);
    view.said.hidden = false;
    view.said.select();
    // a page that is not local may not write the clipboard: the text stands there, selected
    await navigator.clipboard?.writeText(code).catch(() => {});
  } catch (error) {
    view.complain(error);
  }
}

function settings(view) {
  const number = (label, name, attributes) => {
    const input = h("input", { type: "number", "aria-label": label, dataset: { name }, ...attributes });
    view.listen(input, "change", () => { if (input.value !== "") view.ask({ [name]: Number(input.value) }); });
    return h("label", {}, `${label} `, input);
  };
  view.prompt = select("prompt", view.meta.prompts.map((text, i) => [i, `${i}: ${text}`]));
  view.listen(view.prompt, "change", () => view.ask({ prompt: Number(view.prompt.value) }));
  return h("div", { class: "wb-row settings" }, view.title = h("b", {}, view.meta.title), view.prompt,
    number("new tokens", "max_new_tokens", { min: 1, max: 2048, step: 1 }),
    number("temperature", "temperature", { min: 0, max: 5, step: 0.1 }), number("seed", "seed", { min: 0, step: 1 }));
}

function syncSettings(view) {
  view.prompt.value = String(view.spec.prompt);
  for (const input of view.body.querySelectorAll(".settings input")) {
    if (input !== document.activeElement) input.value = view.spec[input.dataset.name];
    input.disabled = !view.live;
  }
  view.prompt.disabled = view.pin.disabled = view.copy.disabled = !view.live;
  view.undo.disabled = !(view.live && view.history.past.length);
  view.redo.disabled = !(view.live && view.history.future.length);
}

function titleOf(side, i) {
  const kl = side.kl_nats?.[i];
  return `${i}: ${JSON.stringify(side.tokens[i])}  log p ${short(side.logprobs[i])}` +
    (side.base_logprobs ? `, base ${short(side.base_logprobs[i])}` : "") + (kl !== undefined ? `, KL ${short(kl)} nats` : "");
}

const right = (side) => side?.right === true ? " ✓ right" : side?.right === false ? " ✗ wrong" : "";

function words(frame) {
  const kl = frame.edited?.kl_nats, mean = kl?.length ? kl.reduce((a, b) => a + b, 0) / kl.length : null;
  const parts = [`KL(edited ‖ base): ${short(frame.next.kl_nats)} nats at the next token`];
  if (mean !== null) parts.push(`${short(mean)} nats per generated token`);
  if (!frame.done) parts.push("generating…");
  for (const r of frame.receipts ?? []) parts.push(`${r.edit} changed ${r.positions} positions by ${short(r.change)}`);
  return parts.join(" · ");
}

function select(label, options) {
  return h("select", { "aria-label": label }, ...options.map(([value, text]) => h("option", { value }, text)));
}

export default { render: (context) => { mount(context, liveEdit); } };
