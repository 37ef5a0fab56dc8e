import { mount } from "../js/base.js";
import { h, short } from "../js/dom.js";
import { csv } from "../js/export.js";
import { legend, strip } from "../js/strip.js";
import { placeOf, rowsOf, tableOf } from "./tokens.js";

const widget = {
  name: "token_strip",
  build(view) {
    const names = view.meta.rows ?? [];
    view.row = h("select", { "aria-label": "values" }, ...names.map((name) => h("option", { value: name }, name)));
    view.scale = h("span");
    view.table = h("table");
    view.strip = strip(view, {
      label: view.meta.title || "tokens",
      onSelect: (i, row) => {
        const token = view.rows[row][i];
        if (token && row === 0) view.select({ token: token.index });
      },
    });
    view.body.append(
      h("div", { class: "wb-row wb-ts-head" }, h("span", { class: "wb-ts-title" }, view.meta.title ?? ""),
        h("span", { class: "wb-row" }, names.length > 1 ? h("label", {}, "values ", view.row) : null, view.scale)),
      view.strip.element, view.table);
    view.listen(view.row, "change", () => view.ask({ row: view.row.value }));
  },
  draw(view, frame) {
    const place = placeOf(frame, view.spec), scale = place < 0 ? null : frame.scales[place];
    view.rows = rowsOf(frame, place);
    if (place >= 0) view.row.value = frame.names[place];
    view.scale.replaceChildren(...(scale ? [legend(scale)] : []));
    view.strip.show(view.rows[0], scale, view.rows[1] ?? null);
    const chosen = view.rows[0].findIndex((token) => token && token.index === view.selection.token);
    view.strip.select(chosen < 0 ? null : chosen);
    view.table.hidden = place < 0;
    if (place >= 0) view.table.replaceChildren(...numbers(frame, place));
  },
  pictures: (view) => ({
    svg: () => view.strip.svg([view.meta.title, view.spec.row].filter(Boolean).join(": ")),
    csv: () => csv(tableOf(view.frame)),
  }),
  debug: (view) => ({
    row: view.row.value,
    summary: view.table.innerText,
    cells: [...view.root.querySelectorAll(".wb-tok")].map((cell) => ({
      text: cell.textContent, title: cell.title, background: getComputedStyle(cell).backgroundColor, row: Number(cell.dataset.row) })),
  }),
};

function numbers(frame, place) {
  const sides = frame.summaries[place], two = sides.length > 1;
  const head = h("tr", {}, two ? h("th", {}, "text") : h("td"), ...["tokens", "mean", "min", "max"].map((name) => h("th", {}, name)));
  return [head, ...sides.map((one, k) => h("tr", {}, h("th", {}, two ? ["upper", "lower"][k] : frame.names[place]),
    h("td", {}, String(one.n)), ...["mean", "min", "max"].map((key) => h("td", {}, short(one[key])))))];
}

export default { render: (context) => { mount(context, widget); } };
