import { mount } from "../js/base.js";
import { h, s, short, visible } from "../js/dom.js";
import { svgText } from "../js/export.js";
import { grid } from "../js/grid.js";
import { gridsCsv } from "../js/grid_files.js";
import { fileOf, stacked } from "../js/intervals.js";
import { sideOf, sides } from "../js/sides.js";
import { drawChart } from "./chart.js";
import { picked, shown, STATISTICS, trajectory, trajectoryGrid } from "./shown.js";

const lens = {
  name: "lens_grid",
  build(view) {
    view.menu = h("select", { "aria-label": "colour" },
      ...Object.entries(STATISTICS).map(([value, words]) => h("option", { value }, words)));
    view.sides = sides(view);
    view.grid = grid(view, { label: "logit lens: layers by tokens", onSelect: (cell) => pin(view, cell) });
    view.chart = s("svg", { role: "img", class: "wb-chart" });
    view.about = h("div", { class: "wb-quiet" });
    view.body.append(h("div", { class: "wb-row" }, h("label", {}, "colour ", view.menu), view.sides.element),
      view.grid.element, view.about, view.chart);
    view.listen(view.menu, "change", () => { view.look({ statistic: view.menu.value }); view.redraw(); });
  },
  draw(view, frame) {
    const about = now(view);
    view.menu.value = about.statistic;
    view.sides.update();
    view.picture = shown(frame, about);
    view.grid.paint(view.picture);
    follow(view, frame, about);
  },
  pick: (sweep, spec, view) => {
    const base = view.cached("data");
    const key = spec.strengths.join();
    if (view.kept?.key !== key || view.kept.base !== base || view.kept.sweep !== sweep) view.kept = { key, base, sweep, frame: picked(sweep, spec, base) };
    return view.kept.frame;
  },
  pictures: (view) => ({
    svg: () => (view.followed ? stacked([view.grid.svg(), caption(view.about.textContent), fileOf(view.chart)]) : view.grid.svg()),
    csv: () => (view.followed ? gridsCsv([view.grid.picture, trajectoryGrid(view.followed, { ...now(view), token: view.selection.token })]) : view.grid.csv()),
  }),
  debug: (view) => {
    if (!view.picture) return {};
    const { shape: [rows, cols], values } = view.picture.values;
    const texts = Array.from({ length: rows }, (_, r) => Array.from({ length: cols }, (_, c) => view.picture.texts(r, c)));
    return { tab: sideOf(view), shape: [rows, cols], values, texts, scale: view.picture.scale, cursor: view.grid.cursor,
      plan: view.grid.plan, paintMs: view.grid.lastPaintMs, followed: view.followed ?? null };
  },
};

function now(view) {
  const { layers, tokens, statistics } = view.meta;
  const chosen = view.model.get("view")?.statistic;
  return { tab: sideOf(view), statistic: statistics.includes(chosen) ? chosen : "p", layers, tokens, selection: view.selection };
}

/** A line of text as a picture of its own. */
function caption(text) {
  const words = s("text", { x: 4, y: 13, "font-family": "system-ui, sans-serif", "font-size": 12 });
  words.textContent = text;
  return svgText(s("svg", { xmlns: "http://www.w3.org/2000/svg", width: 8 + 7 * text.length, height: 16 }, words));
}

/** Follow a position, or let it go where it is followed already. */
function pin(view, { row, col }) {
  const { layers } = view.meta, layer = layers[layers.length - 1 - row];
  const same = view.selection.token === col && view.selection.layer === layer;
  view.select(same ? { token: null, layer: null } : { token: col, layer });
}

function follow(view, frame, { statistic, layers, tokens, selection: { token, layer } }) {
  const followed = Number.isInteger(token) && token >= 0 && token < tokens.length;
  view.chart.toggleAttribute("hidden", !followed);
  view.about.textContent = followed ? `token ${token} “${visible(tokens[token])}”, layer by layer: ${STATISTICS[statistic]}`
    : "click a cell to follow its position through the layers";
  view.followed = followed ? trajectory(frame, statistic, token) : null;
  if (!followed) return;
  const base = shown(frame, { tab: "base", statistic, layers, tokens, selection: {} }).scale;
  const label = view.followed.map((line) => `${line.name}: ${line.values.map(short).join(", ")}`).join("; ");
  drawChart(view.chart, view.followed, { layers, label, scale: base, layer, width: Math.min(760, view.root.clientWidth || 640) });
}

export default { render: (context) => { mount(context, lens); } };
