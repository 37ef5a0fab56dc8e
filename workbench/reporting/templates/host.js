// Starts the page's saved widgets: as much of the anywidget contract as there is without a kernel.
(() => {
  const saved = JSON.parse(document.querySelector("script.widget-state").textContent);
  const REFERENCE = "IPY_MODEL_";
  const signal = new AbortController().signal; // the page is never unmounted
  const experimental = { invoke: () => Promise.reject(new Error("needs a running kernel")) };

  function bytes(base64) {
    const text = atob(base64);
    return new DataView(Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer);
  }

  class Model {
    #values;
    #listeners = new Map();
    constructor({ state, buffers }) {
      this.#values = state;
      for (const { path, data } of buffers) {
        const at = path.slice(0, -1).reduce((value, key) => value?.[key], state);
        if (at) at[path.at(-1)] = bytes(data);
      }
      this.widget_manager = { get_model: model };
    }
    get(name) { return this.#values[name]; }
    set(name, value) {
      const given = Object.entries(typeof name === "object" ? name : { [name]: value });
      const changed = given.filter(([key, next]) => this.#values[key] !== next);
      for (const [key, next] of changed) this.#values[key] = next;
      for (const [key, next] of changed) this.#fire(`change:${key}`, this, next, {});
      if (changed.length) this.#fire("change", this, {});
    }
    save_changes() {}
    send() {}
    on(names, listener) {
      for (const name of names.split(/\s+/)) this.#listeners.set(name, [...this.#of(name), listener]);
    }
    off(names, listener) {
      for (const name of names ? names.split(/\s+/) : [...this.#listeners.keys()]) {
        this.#listeners.set(name, listener ? this.#of(name).filter((other) => other !== listener) : []);
      }
    }
    #of(name) { return this.#listeners.get(name) ?? []; }
    #fire(name, ...told) { for (const listener of this.#of(name)) listener(...told); }
  }

  const models = new Map(), widgets = new Map();
  async function model(reference) {
    const id = reference.replace(REFERENCE, "");
    if (!saved.models[id]) throw new Error(`the page holds no model ${id}`);
    if (!models.has(id)) models.set(id, new Model(saved.models[id]));
    return models.get(id);
  }

  // A copy of the module for each model, as in JupyterLab, and one initialize.
  function widget(id) {
    if (!widgets.has(id)) widgets.set(id, start(id));
    return widgets.get(id);
  }
  async function start(id) {
    const source = new Blob([saved.modules[saved.models[id].module]], { type: "text/javascript" });
    const address = URL.createObjectURL(source);
    const module = await import(address).finally(() => URL.revokeObjectURL(address));
    const made = module.default ?? module;
    const started = typeof made === "function" ? await made() : made;
    const exports = await started.initialize?.({ model: await model(id), signal, experimental });
    return { exports, render: async ({ el }) =>
      started.render?.({ model: await model(id), el, signal, host, experimental }) };
  }
  const host = { getModel: model, getWidget: (reference) => widget(reference.replace(REFERENCE, "")) };

  async function mount(place) {
    const el = document.createElement("div");
    el.className = "afm-live";
    place.prepend(el);
    try {
      await (await widget(place.dataset.afm)).render({ el });
      place.querySelector(":scope > .afm-still").remove();
    } catch (error) {
      const note = document.createElement("p");
      note.className = "afm-note";
      note.textContent = `This is a still picture: the widget did not start (${error}).`;
      el.replaceWith(note);
      console.error(error);
    }
  }

  for (const css of Object.values(saved.styles)) {
    const style = document.createElement("style");
    style.textContent = css;
    document.head.append(style);
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tellTheme = () => { document.body.dataset.jpThemeLight = String(!dark.matches); };
  tellTheme();
  dark.addEventListener("change", tellTheme);
  document.querySelectorAll("[data-afm]").forEach(mount);
})();
