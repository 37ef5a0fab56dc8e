import { mount } from "../js/base.js";
import { h } from "../js/dom.js";
import { csv } from "../js/export.js";
import { grid } from "../js/grid.js";
import { gridSvg } from "../js/grid_files.js";
import { stacked } from "../js/intervals.js";
import { busy, redrawWhenItEnds, redrawWhenResized } from "../js/work.js";
import { openedPanel } from "./opened.js";
import { scatter } from "./scatter.js";
import { chosen, COLOURS, featureOf, openedOf, picked, picture, pointsOf, rows } from "./shown.js";

const SIDE_BY_SIDE = 860; // px

const map = {
  name: "transfer_map",
  build(view) {
    const { meta } = view;
    view.colour = h("select", { "aria-label": "coloured by" }, ...COLOURS.map((name, i) => h("option", { value: i, disabled: i > 0 && !meta.measured }, name)));
    view.source = h("select", { "aria-label": "source" }, ...meta.sources.map((name, i) => h("option", { value: i }, name)));
    view.pooled = h("input", { type: "checkbox" });
    view.again = h("button", { type: "button", hidden: true }, "Compute again");
    view.caption = h("div", { class: "wb-quiet wb-small" });
    view.grid = grid(view, { label: "targets by source", maxHeight: 460, onSelect: ({ row, col }) => open(view, row, col) });
    view.scatter = scatter(view, { onSelect: ({ source, target }) => open(view, source, target, false) });
    view.unmeasured = h("p", { class: "wb-quiet" });
    view.said = h("ul", { class: "wb-statistics" });
    view.mix = h("div", { class: "wb-mix" });
    view.opened = openedPanel(view, { onFeature: (feature) => { view.ask({ feature }); view.select({ feature }); } });
    view.on("change:selection", () => follow(view));
    view.body.append(
      h("div", { class: "wb-row" }, h("label", {}, "coloured by ", view.colour), h("label", {}, "source ", view.source), h("label", {}, view.pooled, " all sources pooled"), view.again),
      view.caption,
      h("div", { class: "wb-both" }, h("div", { class: "wb-map" }, view.grid.element), h("div", { class: "wb-plot" }, view.scatter.element, view.unmeasured, view.said), view.mix),
      view.opened.element);
    view.listen(view.colour, "change", () => look(view, { colour: Number(view.colour.value) }));
    view.listen(view.pooled, "change", () => look(view, { pooled: view.pooled.checked }));
    view.listen(view.source, "change", () => view.ask({ source: Number(view.source.value), feature: null }));
    view.listen(view.again, "click", () => view.ask({ go: (view.spec.go ?? 0) + 1 }));
    redrawWhenItEnds(view);
    redrawWhenResized(view);
  },
  draw(view, frame) {
    const { meta, spec } = view, about = chosen(meta, view.model.get("view"));
    view.again.hidden = true;
    view.colour.value = String(about.colour);
    view.source.value = String(spec.source);
    view.pooled.checked = about.pooled;
    view.caption.textContent = meta.caption;
    const room = view.room >= SIDE_BY_SIDE ? Math.floor(view.room * 0.56) : view.room;
    view.grid.paint(picture(frame, meta, about, spec, room));
    drawScatter(view, frame, about);
    drawMix(view, frame, about);
    view.opened.draw(frame);
  },
  empty(view) { view.again.hidden = !view.live || busy(view); },
  pick: (sweep, spec, view) => picked(sweep, spec, view.cached("data")),
  pictures: (view) => ({
    svg: () => stacked([gridSvg({ ...view.grid.picture }, "targets by source"), view.scatter.svg()].filter(Boolean)),
    csv: () => csv(rows(view.frame, view.meta)),
  }),
  debug: (view) => {
    const { frame, meta, spec } = view, about = chosen(meta, view.model.get("view"));
    if (!frame) return {};
    const found = openedOf(frame, spec);
    return {
      drawn: meta.sources.map((_, r) => meta.targets.map((_t, c) => view.grid.cell(r, c).text)), about,
      points: pointsOf(frame, meta, spec, about.pooled), opened: found, feature: found && featureOf(found, spec),
      said: [...view.said.children].map((one) => one.textContent), named: view.scatter.named?.names.map(({ point }) => point.name),
    };
  },
};

/** Open a pair; in the grid a second click closes it. */
function open(view, source, target, closes = true) {
  const { spec } = view, same = spec.source === source && spec.target === target;
  view.ask({ source, target: same && closes ? null : target, feature: null });
}

/** Look at the feature that was chosen in a linked widget, where the opened pair lists it. */
function follow(view) {
  const { feature } = view.selection, found = view.frame && openedOf(view.frame, view.spec);
  if (found && feature !== view.spec.feature && found.contributions.some((row) => row.feature === feature)) view.ask({ feature });
}

function drawScatter(view, frame, about) {
  const { meta, spec } = view, points = meta.measured ? pointsOf(frame, meta, spec, about.pooled) : [];
  const source = meta.sources[spec.source];
  view.scatter.element.hidden = !points.length;
  view.unmeasured.hidden = points.length > 0;
  view.unmeasured.textContent = !meta.measured ? "No measured changes yet: forecast.against(measured) adds them."
    : `No change was measured after fine-tuning on ${source}.`;
  if (points.length) {
    view.scatter.paint({
      points, unit: meta.unit, pooled: about.pooled, chosen: { source: spec.source, target: spec.target },
      title: about.pooled ? "forecast against measured change, all sources" : `forecast against measured change, fine-tuned on ${source}`,
    });
  }
  const found = frame.stats[about.pooled ? meta.sources.length : spec.source];
  view.said.replaceChildren(...(found?.words ?? []).map((text) => h("li", {}, text)));
}

/** The data mix that the forecast proposes, largest share first. */
function drawMix(view, frame, about) {
  const { meta, spec } = view, n = meta.targets.length, row = about.pooled ? meta.sources.length : spec.source;
  const shares = meta.targets.map((name, t) => ({ name, share: frame.mix.values[row * n + t] })).filter(({ share }) => Number.isFinite(share));
  view.mix.hidden = !shares.length;
  if (!shares.length) return;
  const most = Math.max(...shares.map(({ share }) => share), 1e-9);
  const line = ({ name, share }) => h("li", {}, h("span", { class: "wb-mix-name" }, name),
    h("span", { class: "wb-mix-bar", "aria-hidden": "true" }, h("i", { style: { width: `${Math.max(0.5, (100 * share) / most)}%` } })), h("span", { class: "wb-mix-share" }, `${(100 * share).toFixed(1)} %`));
  view.mix.replaceChildren(h("div", { class: "wb-mix-title" }, meta.mix_words[about.pooled ? 1 : 0].replace("{source}", meta.sources[spec.source])),
    h("ul", {}, ...shares.sort((a, b) => b.share - a.share).map(line)));
}

function look(view, changes) {
  view.look(changes);
  view.redraw();
}

export default { render: (context) => { mount(context, map); } };
