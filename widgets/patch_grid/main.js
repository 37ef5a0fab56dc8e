import { mount } from "../js/base.js";
import { h, visible } from "../js/dom.js";
import { grid } from "../js/grid.js";
import { gridsCsv, gridSvg } from "../js/grid_files.js";
import { stacked } from "../js/intervals.js";
import { nextGrid } from "../js/next_tokens.js";
import { busy, redrawWhenItEnds, redrawWhenResized } from "../js/work.js";
import { openedPanel } from "./opened.js";
import { chosen, fitted, openedOf, panelOf, picked, picture, placeAt, runNames } from "./shown.js";

const patches = {
  name: "patch_grid",
  build(view) {
    view.about = h("div", { class: "wb-quiet wb-small" });
    view.menus = h("div", { class: "wb-row" });
    view.grid = grid(view, { label: "places of the model", maxHeight: 460, onSelect: (cell) => open(view, cell) });
    view.opened = openedPanel(view);
    view.again = h("button", { type: "button", hidden: true }, "Run the method again");
    view.listen(view.again, "click", () => view.ask({ go: (view.spec.go ?? 0) + 1 }));
    redrawWhenItEnds(view);
    redrawWhenResized(view);
    view.body.append(view.again, view.menus, view.about, h("div", { class: "wb-pair" }, h("div", { class: "wb-map" }, view.grid.element), view.opened.element));
  },
  draw(view, frame) {
    const { meta, spec } = view, about = chosen(meta, view.model.get("view"));
    view.again.hidden = true;
    menus(view, about);
    view.about.textContent = meta.caption;
    view.picture = picture(frame, meta, about, spec);
    view.grid.paint(fitted(view.picture, view.room));
    view.opened.draw(frame);
  },
  // its first run failed or was cancelled
  empty(view) { view.again.hidden = !view.live || busy(view); },
  pick: (sweep, spec, view) => picked(sweep, spec, view.cached("data")),
  pictures: (view) => ({
    svg: () => stacked([gridSvg(whole(view), "places of the model"), ...nexts(view).map((one) => gridSvg(one, "next token"))]),
    csv: () => gridsCsv([whole(view), ...nexts(view)]),
  }),
  debug: (view) => (view.picture ? {
    drawn: view.picture.values, unit: view.picture.unit, plan: view.grid.plan, opened: openedOf(view.frame, view.spec), chosen: chosen(view.meta, view.model.get("view")),
  } : {}),
};

/** The map for a file, which has its numbers whatever fits on the page. */
function whole(view) {
  const { texts, cellWidth } = fitted(view.picture, 0);
  return { ...view.grid.picture, texts, cellWidth };
}

/** What the runs of the opened place say, for a file. */
function nexts(view) {
  const found = openedOf(view.frame, view.spec);
  return found ? [nextGrid(found, runNames(found, view.frame.of.strength))] : [];
}

/** Open a place, or close it where it is open; linked widgets go to its layer and head. */
function open(view, cell) {
  const { meta, spec } = view, about = chosen(meta, view.model.get("view"));
  const place = placeAt(meta, about, panelOf(meta, about).rows, cell);
  const closes = JSON.stringify(place) === JSON.stringify(spec.place);
  view.ask({ place: closes ? null : place });
  const at = {};
  meta.axes.forEach(({ name, labels }, i) => { if (name === "layer" || name === "head") at[name] = closes ? null : labels[place[i]]; });
  if (Object.keys(at).length) view.select(at);
}

/** A menu each for the measure, every axis before the last two, and the cases; made anew when the map comes. */
function menus(view, about) {
  const { meta, spec } = view, key = JSON.stringify([meta.measures, meta.axes, meta.n_cases]);
  if (view.menusOf !== key) {
    view.menusOf = key;
    view.measure = menu(view, "measure", meta.measures.map(({ name, unit }) => `${name} (${unit})`), (i) => look(view, { measure: i }));
    view.panels = meta.axes.slice(0, -2).map((axis, k) => menu(view, axis.name, axis.shown.map(visible), (i) => {
      const panel = [...chosen(meta, view.model.get("view")).panels];
      panel[k] = i;
      look(view, { panel });
    }));
    view.cases = menu(view, "cases", [`mean over ${meta.n_cases}`, ...meta.prompts.map((text, i) => `${i}: ${visible(text)}`)], (i) => view.ask({ case: i ? i - 1 : null }));
    view.menus.replaceChildren(...[view.measure, ...view.panels, ...(meta.cases_apart ? [view.cases] : [])].map((one) => one.element));
  }
  view.measure.select.value = String(about.measure);
  view.panels.forEach((one, k) => { one.select.value = String(about.panels[k]); });
  view.cases.select.value = String(spec.case === null ? 0 : spec.case + 1);
  // single cases come from the kernel, or with the page
  view.cases.select.disabled = !view.live && !view.sweep?.cases;
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

export default { render: (context) => { mount(context, patches); } };
