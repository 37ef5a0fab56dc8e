// The LiveEdit of a point, shown below the plot where the page can show a widget inside another.

import { h } from "../js/dom.js";

// JupyterLab's anywidget wants its own prefix; a page of `workbench report` keeps models by the other
const PREFIXES = ["anywidget:", "IPY_MODEL_"];
const WORDS = "lab.live() in a cell shows this edit in a LiveEdit.";

/**
 * @param {import("../js/base.js").View} view
 * @param {{getWidget: (reference: string) => Promise<{render: (context: {el: HTMLElement, signal: AbortSignal}) => Promise<void>}>}|undefined} host
 * @param {string} words said where it cannot
 */
export function opened(view, host, words = WORDS) {
  const note = h("div", { class: "wb-quiet wb-small", role: "status" }), place = h("div", { class: "wb-lab-child" });
  let shown = "", stop = null;
  const draw = async (reference) => {
    if (!reference || reference === shown) return;
    shown = reference;
    stop?.abort();
    place.replaceChildren();
    if (!host?.getWidget) return void (note.textContent = words);
    stop = new AbortController();
    const { signal } = stop;
    try {
      const el = h("div");
      await (await widgetOf(host, reference)).render({ el, signal: AbortSignal.any([signal, view.signal]) });
      if (shown !== reference) return;
      place.append(el);
      note.textContent = "";
    } catch {
      note.textContent = words;
    }
  };
  return {
    element: h("div", {}, note, place), draw,
    wait() { note.textContent = "opening…"; },
    failed() { note.textContent = ""; },
  };
}

async function widgetOf(host, reference) {
  const id = PREFIXES.reduce((text, prefix) => text.replace(prefix, ""), reference), [first, second] = PREFIXES;
  return host.getWidget(first + id).catch(() => host.getWidget(second + id));
}
