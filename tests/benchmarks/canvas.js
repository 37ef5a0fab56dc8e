// A canvas of 12 x 12 cells and one slider: the least that a live view is.
import { mount } from "../../widgets/js/base.js";
import { h } from "../../widgets/js/dom.js";
import { grid } from "../../widgets/js/grid.js";

const canvas = {
  name: "canvas",
  build(view) {
    view.slider = h("input", { type: "range", min: -2, max: 2, step: 0.01, "aria-label": "strength" });
    view.grid = grid(view, { label: "probabilities" });
    view.body.append(view.slider, view.grid.element);
    view.listen(view.slider, "input", () => view.ask({ strength: Number(view.slider.value) }));
  },
  draw(view, frame) {
    const labels = Array.from({ length: 12 }, (_, i) => String(i));
    view.grid.paint({ rows: labels, cols: labels, values: frame.p, scale: { kind: "sequential", lo: 0, hi: 1 } });
  },
};

export default { render: (context) => { mount(context, canvas); } };
