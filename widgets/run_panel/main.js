import { mount } from "../js/base.js";
import { h } from "../js/dom.js";

const panel = {
  name: "run_panel",
  build(view) {
    view.device = h("select", { "aria-label": "device" },
      ...(view.meta.devices ?? []).map((name) => h("option", { value: name }, name)));
    view.all = h("button", { type: "button" }, "Cancel all");
    view.table = h("tbody");
    view.memory = h("span", { class: "wb-quiet" });
    const shown = view.spec.device ? h("label", {}, "device ", view.device) : null;
    view.body.append(h("div", { class: "wb-row" }, shown, view.memory, view.all),
      h("table", {}, h("thead", {}, h("tr", {}, ...["work", "state", "time"].map((t) => h("th", {}, t)))), view.table));
    view.listen(view.device, "change", () => view.ask({ device: view.device.value }));
    view.listen(view.all, "click", () => view.cancel());
  },
  draw(view, frame) {
    view.device.value = view.spec.device;
    view.device.disabled = view.all.disabled = !view.live;
    view.memory.textContent = frame.memory.map((m) => `${m.device}: ${m.words}`).join(", ");
    view.table.replaceChildren(...[...frame.jobs, ...frame.ended].map(row));
    if (!frame.jobs.length && !frame.ended.length) {
      view.table.append(h("tr", {}, h("td", { colspan: 3, class: "wb-quiet" }, "nothing has run yet")));
    }
  },
  debug: (view) => ({ rows: view.table.children.length }),
};

function row(job) {
  const part = job.n ? h("progress", { value: job.i, max: job.n, "aria-label": job.label }) : null;
  const left = job.left_s === null ? "" : `, ${job.left_s} s left`;
  const words = job.state === "running" && job.n ? `${job.i}/${job.n}${left} ` : `${job.state} `;
  const time = job.took_ms ? `${Math.round(job.took_ms)} ms` : "";
  return h("tr", { dataset: { state: job.state }, title: job.error }, h("td", {}, job.label), h("td", {}, words, part), h("td", {}, time));
}

export default { render: (context) => { mount(context, panel); } };
