import { mount } from "../js/base.js";
import { h } from "../js/dom.js";
import { grid } from "../js/grid.js";
import { gridsCsv } from "../js/grid_files.js";
import { stacked } from "../js/intervals.js";
import { drawn, sideOf, sides } from "../js/sides.js";
import { keptPattern, overview, pattern, picked, STATISTICS } from "./shown.js";

const attention = {
  name: "attention_view",
  build(view) {
    view.menu = h("select", { "aria-label": "colour" },
      ...Object.entries(STATISTICS).map(([value, words]) => h("option", { value }, words)));
    view.sides = sides(view);
    view.heads = grid(view, { label: "heads by layers", maxHeight: 420, onSelect: (cell) => choose(view, cell) });
    view.pattern = grid(view, { label: "attention pattern: queries by keys", onSelect: ({ row }) => view.select({ token: row }) });
    view.note = h("div", { class: "wb-quiet", role: "status" });
    view.body.append(h("div", { class: "wb-row" }, h("label", {}, "colour ", view.menu), view.sides.element),
      h("div", { class: "wb-panes" }, h("div", {}, view.heads.element), h("div", {}, view.note, view.pattern.element)));
    view.listen(view.menu, "change", () => { view.look({ statistic: view.menu.value }); view.redraw(); });
  },
  draw(view, frame) {
    const about = now(view);
    view.menu.value = about.statistic;
    view.sides.update();
    view.picture = overview(frame, about);
    view.heads.paint(view.picture);
    showPattern(view, about);
  },
  pick: (sweep, spec, view) => picked(sweep, spec, view.cached("data")),
  pictures: (view) => ({
    svg: () => (view.drawnPattern ? stacked([view.heads.svg(), view.pattern.svg()]) : view.heads.svg()),
    csv: () => (view.drawnPattern ? gridsCsv([view.heads.picture, view.pattern.picture]) : view.heads.csv()),
  }),
  debug: (view) => ({ tab: sideOf(view), heads: numbers(view.picture), head: numbers(view.drawnPattern),
    plan: view.heads.plan, patternPlan: view.drawnPattern ? view.pattern.plan : null, words: view.note.textContent }),
};

const numbers = (picture) => (picture ? { shape: picture.values.shape, values: picture.values.values } : null);

function now(view) {
  const { layers, heads, tokens, statistics } = view.meta;
  const chosen = view.model.get("view")?.statistic;
  return { tab: sideOf(view), statistic: statistics.includes(chosen) ? chosen : "entropy", layers, heads, tokens, selection: view.selection };
}

function choose(view, { row, col }) {
  const { layers } = view.meta, layer = layers[layers.length - 1 - row];
  const same = view.selection.layer === layer && view.selection.head === col;
  view.select(same ? { layer: null, head: null } : { layer, head: col });
}

/** The pattern of the chosen head: what was kept, what was fetched, or a word why there is none. */
function showPattern(view, about) {
  const { layer, head } = about.selection;
  const chosen = about.layers.includes(layer) && Number.isInteger(head) && head >= 0 && head < about.heads;
  if (!chosen) return leave(view, "click a head to see its pattern");
  const place = { layer, head, heads: about.heads, tokens: about.tokens.length, tab: about.tab };
  const kept = view.live ? null : keptPattern(view.sweep, { strengths: drawn(view) }, place, view.cached("data"));
  if (kept) return drawPattern(view, about, kept);
  // the frame's number: a moved slider makes a fetched pattern old
  const key = `${layer} ${head} ${view.model.get("seq")}`;
  if (view.fetched?.key === key) return drawPattern(view, about, view.fetched.sides);
  if (!view.live) return leave(view, `layer ${layer} head ${head}: the pattern needs a running kernel`);
  ask(view, key, { layer, head });
}

function ask(view, key, place) {
  if (view.asking === key) return;
  view.asking = key;
  view.fetch("pattern", place).then((found) => {
    view.fetched = { key, sides: { base: found.base.values, edited: found.edited?.values } };
  }, (error) => {
    if (view.asking === key) leave(view, error.message);
  }).finally(() => {
    if (view.asking === key) view.asking = null;
    if (view.fetched?.key === key) view.redraw();
  });
}

function drawPattern(view, about, found) {
  const { layer, head } = about.selection;
  view.note.textContent = "";
  view.pattern.element.hidden = false;
  view.drawnPattern = pattern(found, { ...about, layer, head });
  view.pattern.paint(view.drawnPattern);
}

function leave(view, words) {
  view.note.textContent = words;
  view.pattern.element.hidden = true;
  view.drawnPattern = null;
}

export default { render: (context) => { mount(context, attention); } };
