import { mount } from "../js/base.js";
import { h } from "../js/dom.js";
import { csv } from "../js/export.js";
import { kindsLegend, strip } from "../js/strip.js";
import { columnsOf, kindsOf, rowsOf, spansOf, tableOf, wordsOf } from "./chips.js";
import { fields } from "./fields.js";

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

const widget = {
  name: "prompt_bar",
  build(view) {
    const two = Boolean(view.spec.other);
    view.fields = [fields(view, "prompt", two ? "prompt A" : "prompt"), fields(view, "other", "prompt B")];
    view.choice = h("select", { "aria-label": "prompt" });
    view.chooser = h("label", { class: "wb-row", hidden: true }, "prompt ", view.choice);
    view.ids = h("input", { type: "checkbox", checked: true });
    view.count = h("div", { class: "wb-quiet wb-pb-count", "aria-live": "polite" });
    view.kinds = h("span");
    view.clear = h("button", { type: "button", hidden: true }, "Clear span");
    view.strip = strip(view, {
      label: two ? "tokens of prompts A and B" : "tokens of the prompt",
      onSelect: (k, row) => {
        const token = view.rows[row][k];
        if (token && row === 0) view.select({ token: token.index });
      },
      onSpan: (span) => choose(view, span),
    });
    view.body.append(view.chooser, ...view.fields.map((field) => field.element), view.strip.element,
      h("div", { class: "wb-row" }, view.count, view.kinds, h("label", {}, view.ids, " position and #id below"), view.clear));
    view.listen(view.clear, "click", () => choose(view, null));
    view.listen(view.ids, "change", () => { view.look({ ids: view.ids.checked }); view.redraw(); });
    view.listen(view.choice, "change", () => view.ask({ prompt: view.sweep.grid[view.choice.value], span: null, other_span: null }));
  },
  pick(sweep, spec) {
    const place = sweep.grid.findIndex((one) => same(one, spec.prompt));
    return place < 0 ? null : sweep.frames[place];
  },
  draw(view, frame) {
    view.fields.forEach((field) => field.show());
    showChoice(view);
    view.rows = rowsOf(frame, view.ids.checked);
    view.strip.show(view.rows[0], null, view.rows[1] ?? null);
    const span = columnsOf(view.rows[0], view.spec.span) ?? (view.rows[1] ? columnsOf(view.rows[1], view.spec.other_span) : null);
    view.strip.choose(span);
    const chosen = view.rows[0].findIndex((token) => token && token.index === view.selection.token);
    view.strip.select(chosen < 0 ? null : chosen);
    view.kinds.replaceChildren(kindsLegend(kindsOf(frame)));
    view.clear.hidden = !view.spec.span && !view.spec.other_span;
    view.count.textContent = wordsOf(frame, view.rows, [view.spec.span, view.spec.other_span]);
  },
  pictures: (view) => ({
    svg: () => view.strip.svg(view.count.textContent),
    csv: () => csv(tableOf(view.frame)),
  }),
  debug: (view) => ({
    words: view.count.textContent,
    chips: [...view.root.querySelectorAll(".wb-tok")].map((cell) => ({
      text: cell.textContent, title: cell.title, row: Number(cell.dataset.row), chosen: cell.getAttribute("aria-selected") === "true" })),
  }),
};

function choose(view, columns) {
  const [span, other_span] = spansOf(view.rows, columns);
  view.ask({ span, other_span });
}

function showChoice(view) {
  const grid = view.live ? null : view.sweep?.grid;
  view.chooser.hidden = !grid || grid.length < 2;
  if (view.chooser.hidden) return;
  if (view.choice.options.length !== grid.length) {
    view.choice.replaceChildren(...grid.map((one, k) => h("option", { value: k }, (one.text ?? one.messages.at(-1).content).slice(0, 60))));
  }
  view.choice.value = String(Math.max(0, grid.findIndex((one) => same(one, view.spec.prompt))));
}

export default { render: (context) => { mount(context, widget); } };
