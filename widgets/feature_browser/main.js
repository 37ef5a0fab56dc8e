import { mount } from "../js/base.js";
import { h, visible } from "../js/dom.js";
import { csv, svgText } from "../js/export.js";
import { stacked } from "../js/intervals.js";
import { picture } from "../js/strip_picture.js";
import { histogram } from "./charts.js";
import { featureList } from "./list.js";
import { featurePanel } from "./one.js";
import { ownText } from "./own.js";
import { listed, picked, tableOf } from "./shown.js";
import { steering } from "./steer.js";

const browserOf = (host) => ({
  name: "feature_browser",
  build(view) {
    const open = (feature) => choose(view, feature);
    view.list = featureList(view, open);
    view.one = featurePanel(view, open);
    view.own = ownText(view, open);
    view.steer = steering(view, host);
    const title = h("div", { class: "wb-row" }, h("b", {}, view.meta.title), h("span", { class: "wb-quiet" }, `${view.meta.n_tokens.toLocaleString("en")} tokens read`));
    view.body.append(title, h("div", { class: "wb-sides" }, view.list.element,
      h("div", { class: "wb-one" }, view.one.element, view.own.element, view.steer.element)), view.steer.child);
    view.on("change:selection", () => follow(view));
  },
  draw(view, frame) {
    const one = frame.one?.feature === view.spec.feature ? frame.one : view.live ? frame.one : null;
    view.list.draw(frame);
    view.one.draw(one);
    view.own.draw({ ...frame, one });
    view.steer.draw({ ...frame, one });
  },
  pick: (sweep, spec, view) => picked(sweep, spec, view.cached("data")),
  pictures: (view) => ({ svg: () => files(view.frame), csv: () => csv(tableOf(view.frame.one, view.frame.own)) }),
  debug: (view) => ({
    one: view.frame?.one ?? null, own: view.frame?.own ?? null, rows: view.frame ? listed(view, view.frame).rows.map(({ feature }) => feature) : [], said: view.steer.parts.code.value,
  }),
});

/** Open a feature here and in linked widgets. */
function choose(view, feature) {
  if (feature !== view.spec.feature) view.ask({ feature });
  view.select({ feature });
}

/** Open the feature that was chosen in a linked widget. */
function follow(view) {
  const { feature } = view.selection;
  if (Number.isInteger(feature) && feature !== view.spec.feature && view.usable) view.ask({ feature });
}

/** Histogram and examples, dark on white. */
function files({ one, own }) {
  const scale = { kind: "sequential", lo: 0, hi: one.largest, unit: "activation" };
  const strips = [...one.examples.map((example) => ({ title: `prompt ${example.prompt}, position ${example.position}`, ...example })),
    ...(own?.pieces ? [{ title: "own text", ...own }] : [])];
  const texts = strips.map(({ title, pieces, values }, i) => svgText(picture(
    [pieces.map((text, k) => ({ text, value: values[k] || null }))], i ? null : scale, `feature ${one.feature}, ${visible(title)}`, 100)));
  const bins = histogram(one.histogram, one.largest);
  bins.setAttribute("style", "color:#222;background:#fff");
  return stacked([svgText(bins), ...texts]);
}

export default { render: (context) => { mount(context, browserOf(context.host)); } };
