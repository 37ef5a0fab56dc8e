import { mount } from "../js/base.js";
import { cells } from "../js/cells.js";
import { h, visible } from "../js/dom.js";
import { csv } from "../js/export.js";
import { grid } from "../js/grid.js";
import { gridsCsv, gridSvg } from "../js/grid_files.js";
import { bar, span, stacked, words } from "../js/intervals.js";
import { nextGrid } from "../js/next_tokens.js";
import { redrawWhenResized } from "../js/work.js";
import { fitted } from "../patch_grid/shown.js";
import { activePanel } from "./active.js";
import { openedPanel } from "./opened.js";
import { activeTable, board, isOpen, listed, picked, ranked, runNames, scoreOf } from "./shown.js";

const TABS = { heads: "heads", active: "most active tokens" };

const heads = {
  name: "head_board",
  build(view) {
    const { scores, prompts } = view.meta;
    view.tabs = Object.entries(TABS).map(([name, text]) => tab(view, name, text));
    view.score = menu(view, "score", scores.map(({ name, unit }) => `${name} (${unit})`), (score) => look(view, { score }));
    view.prompt = menu(view, "prompt", prompts.map((text, i) => `${i}: ${visible(text)}`), (prompt) => view.ask({ prompt }));
    view.grid = grid(view, { label: "heads by layers", maxHeight: 420, onSelect: ({ row, col }) => choose(view, [view.meta.layers.length - 1 - row, col]) });
    view.list = cells(view, { label: "heads sorted by the score", onSelect: (row) => choose(view, [view.order[row].layer, view.order[row].head]) });
    view.opened = openedPanel(view);
    view.active = activePanel(view);
    view.first = h("div", {}, h("div", { class: "wb-row" }, view.score.element, view.prompt.element),
      h("div", { class: "wb-pair" }, view.grid.element, view.list.element), view.opened.element);
    view.body.append(h("div", { class: "wb-tabs", role: "tablist", "aria-label": "shown" }, ...view.tabs), view.first, view.active.element);
    redrawWhenResized(view);
    view.on("change:selection", () => follow(view));
  },
  draw(view, frame) {
    const { meta, spec } = view, score = scoreOf(meta, view.model.get("view")), tabNow = tabOf(view);
    for (const one of view.tabs) one.setAttribute("aria-selected", String(one.dataset.tab === tabNow));
    view.first.hidden = tabNow !== "heads";
    view.active.element.hidden = tabNow === "heads";
    view.score.select.value = String(score);
    view.prompt.select.value = String(spec.prompt);
    view.prompt.select.disabled = !view.live;
    view.picture = board(frame, meta, score, spec.head);
    view.grid.paint(fitted(view.picture, view.room));
    sorted(view, frame, score);
    view.opened.draw(frame);
    view.active.draw(frame);
  },
  pick: (sweep, spec, view) => picked(sweep, spec, view.cached("data")),
  pictures: (view) => ({
    svg: () => stacked([gridSvg(whole(view), "heads by layers"), ...(view.drawnPattern ? [view.opened.pattern.svg()] : []), ...nexts(view).map((one) => gridSvg(one, "next token"))]),
    csv: () => (tabOf(view) === "active" ? csv(activeTable(view.frame.examples)) : gridsCsv([whole(view), ...(view.drawnPattern ? [view.opened.pattern.picture] : []), ...nexts(view)])),
  }),
  debug: (view) => (view.picture ? {
    drawn: view.picture.values, unit: view.picture.unit, plan: view.grid.plan, order: view.order.map(({ layer, head }) => [layer, head]),
    pattern: view.drawnPattern?.values ?? null, opened: isOpen(view.frame, view.spec) ? view.frame.opened ?? null : null, tab: tabOf(view),
  } : {}),
};

/** The board for a file, which has its numbers whatever fits on the page. */
function whole(view) {
  const { texts, cellWidth } = fitted(view.picture, 0);
  return { ...view.grid.picture, texts, cellWidth };
}

const tabOf = (view) => (view.model.get("view")?.tab === "active" ? "active" : "heads");

function tab(view, name, text) {
  const button = h("button", { type: "button", role: "tab", dataset: { tab: name } }, text);
  view.listen(button, "click", () => look(view, { tab: name }));
  return button;
}

function menu(view, name, texts, onPick) {
  const select = h("select", { "aria-label": name }, ...texts.map((text, i) => h("option", { value: i }, text)));
  view.listen(select, "change", () => onPick(Number(select.value)));
  return { select, element: h("label", {}, `${name} `, select) };
}

function look(view, changes) {
  view.look(changes);
  view.redraw();
}

/** Open a head, or close it where it is open; linked widgets go there too. */
function choose(view, head) {
  const closes = JSON.stringify(head) === JSON.stringify(view.spec.head);
  view.ask({ head: closes ? null : head });
  view.select(closes ? { layer: null, head: null } : { layer: head[0], head: head[1] });
}

/** Open the head that was chosen in a linked widget. */
function follow(view) {
  const { layer, head } = view.selection, { meta, spec } = view;
  const known = meta.layers.includes(layer) && Number.isInteger(head) && head >= 0 && head < meta.heads;
  if (known && JSON.stringify([layer, head]) !== JSON.stringify(spec.head)) view.ask({ head: [layer, head] });
}

function sorted(view, frame, score) {
  const all = ranked(frame, view.meta, score);
  view.order = listed(all);
  const [lo, hi] = span([0, ...view.order.flatMap(({ mean, low, high }) => [mean, low, high])]);
  const rows = view.order.map((one) => {
    const text = words(one.mean, one.low, one.high);
    return { title: [`L${one.layer} head ${one.head}`], cells: [{ parts: [text], say: `layer ${one.layer} head ${one.head}: ${text}` }, { parts: [bar(one, { lo, hi, base: 0 })], say: text }] };
  });
  const at = view.order.findIndex(({ layer, head }) => layer === view.spec.head?.[0] && head === view.spec.head?.[1]);
  view.list.show(["head", all.length > rows.length ? `the first ${rows.length} of ${all.length}` : "mean, 95 % interval", "drawn"], rows, at < 0 ? {} : { row: at });
}

function nexts(view) {
  const { frame, spec } = view;
  return isOpen(frame, spec) && frame.opened ? [nextGrid(frame.opened, runNames(frame.of.strength))] : [];
}

export default { render: (context) => { mount(context, heads); } };
