// What every widget shares in the browser: the handshake with the kernel, the three modes in words,
// keys kept inside, one redraw per frame, progress and cancel, linked selection, export.

import { unpack } from "./frames.js";
import { h } from "./dom.js";
import { download, toPng } from "./export.js";

const BEAT_EVERY_MS = 5000;
const REPLY_WITHIN_MS = 2000;
const LINK = "workbench-selection";

/**
 * @param {{model: any, el: HTMLElement, signal?: AbortSignal}} context what anywidget hands to render
 * @param {{
 *   name: string,
 *   build: (view: View) => void,                          make the elements, once
 *   draw: (view: View, frame: any) => void,               show a frame; called on every new one
 *   empty?: (view: View) => void,                         show the controls where the first frame failed
 *   pick?: (sweep: any, spec: any, view: View) => any,    the frame of a spec among precomputed ones
 *   pictures?: (view: View) => {svg?: () => string, csv?: () => string},
 *   debug?: (view: View) => any,
 * }} widget
 */
export function mount(context, widget) {
  const view = new View(context, widget);
  widget.build(view);
  view.start();
  return view;
}

export class View {
  constructor({ model, el, signal }, widget) {
    this.model = model;
    this.widget = widget;
    this.signal = signal ?? new AbortController().signal;
    this.mode = "kernel";
    this.body = h("div", { class: "wb-body" });
    this.words = h("span", { class: "wb-mode", role: "status" }, "connecting…");
    this.state = h("span", { class: "wb-state", "aria-live": "polite" });
    this.stop = h("button", { class: "wb-cancel", type: "button", hidden: true }, "Cancel");
    this.tools = h("span", { class: "wb-tools" });
    this.problem = h("div", { class: "wb-problem", role: "alert", hidden: true });
    this.root = h("div", { class: `wb wb-${widget.name}`, tabindex: -1 }, this.problem, this.body,
      h("div", { class: "wb-foot" }, this.words, this.state, this.stop, this.tools));
    el.replaceChildren(this.root);
    this.root.__debug = () => ({
      mode: this.mode, spec: this.spec, seq: model.get("seq"), frame: this.frame,
      ...(widget.debug ? widget.debug(this) : {}),
    });
    this.local = null; // the spec of a page without a kernel
    this.drawn = 0;
    this.waiting = new Map();
    this.answered = 0;
  }

  // --- what a widget reads ------------------------------------------------------------------

  get spec() { return this.local ?? this.model.get("spec"); }
  get meta() { return this.model.get("meta"); }
  get selection() { return this.model.get("selection") ?? {}; }
  get live() { return this.mode === "live"; }
  /** Whether the user can change anything: live, among precomputed settings, or where all is here. */
  get usable() { return this.mode !== "kernel"; }
  get sweep() { return this.cached("sweep"); }
  get frame() {
    // until something is moved, the frame that was saved is the truth
    if (!this.live && this.local && this.sweep && this.widget.pick) {
      const picked = this.widget.pick(this.sweep, this.spec, this);
      if (picked) return picked;
    }
    return this.cached("data");
  }

  cached(name) {
    const raw = this.model.get(name);
    this.unpacked ??= {};
    if (this.unpacked[name]?.raw !== raw) this.unpacked[name] = { raw, value: unpack(raw) };
    return this.unpacked[name].value;
  }

  // --- what a widget asks for ---------------------------------------------------------------

  /** Change the spec. Live: the kernel computes; else the precomputed frame of it is shown. */
  ask(changes) {
    const next = { ...this.spec, ...changes };
    if (this.live) {
      // a model does not send what has not changed: nothing would answer
      if (JSON.stringify(next) === JSON.stringify(this.spec)) return;
      this.local = null;
      this.model.set("spec", next);
      this.model.save_changes();
      this.expectReply();
    } else {
      this.local = next;
      this.redraw();
    }
  }

  /** Remember hover, zoom or a tab; the kernel computes nothing. */
  look(changes) {
    this.model.set("view", { ...(this.model.get("view") ?? {}), ...changes });
    if (this.live) this.model.save_changes();
  }

  /** Choose a token, layer or head here and in every linked widget. */
  select(changes) {
    const next = { ...this.selection, ...changes };
    this.model.set("selection", next);
    if (this.live) this.model.save_changes();
    const group = this.model.get("link");
    if (group) document.dispatchEvent(new CustomEvent(LINK, { detail: { group, next, from: this } }));
  }

  /** A part too large for every frame. Rejects where no kernel answers. */
  fetch(what, args = {}) {
    if (!this.live) return Promise.reject(new Error("needs a running kernel"));
    const id = Math.random().toString(36).slice(2);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.model.send({ type: "fetch", id, what, arguments: args });
      this.expectReply();
    });
  }

  cancel() { this.model.send({ type: "cancel" }); }

  listen(target, type, handler, options = {}) {
    target.addEventListener(type, handler, { signal: this.signal, ...options });
  }

  /** Do this when the view goes away. */
  atEnd(act) { this.signal.addEventListener("abort", act, { once: true }); }

  // --- life ---------------------------------------------------------------------------------

  start() {
    const { model } = this;
    for (const type of ["keydown", "keyup", "keypress"]) {
      // JupyterLab would take "dd" for delete this cell
      this.listen(this.root, type, (event) => {
        if (!(event.ctrlKey || event.metaKey) && event.key !== "Escape") event.stopPropagation();
      });
    }
    this.listen(this.stop, "click", () => this.cancel());
    this.on("change:seq", () => {
      if (model.get("seq") < this.drawn) return;
      this.drawn = model.get("seq");
      this.redraw();
    });
    this.on("change:status", () => { this.heard(); this.showStatus(); });
    this.on("change:selection", () => this.redraw());
    this.on("change:meta", () => this.setMode(this.live));
    this.on("change:sweep", () => this.setMode(this.live));
    this.on("change:spec", () => { this.local = null; this.redraw(); });
    this.on("msg:custom", (message, buffers) => this.hear(message, buffers));
    this.listen(document, LINK, (event) => this.follow(event.detail));
    this.watchTheme();
    this.makeTools();
    this.setMode(false);
    this.hello();
    const beat = setInterval(() => this.beat(), BEAT_EVERY_MS);
    this.atEnd(() => clearInterval(beat));
  }

  on(name, handler) {
    this.model.on(name, handler);
    this.atEnd(() => this.model.off(name, handler));
  }

  hello() {
    try { this.model.send({ type: "hello" }); } catch { /* no kernel: the mode says so */ }
  }

  beat() {
    if (document.hidden || !this.root.isConnected) return;
    if (!this.live) return this.hello();
    try { this.model.send({ type: "beat" }); } catch { return this.setMode(false); }
    this.expectReply();
  }

  expectReply() {
    const asked = performance.now();
    setTimeout(() => {
      if (!this.signal.aborted && this.live && this.answered < asked) this.lost();
    }, REPLY_WITHIN_MS);
  }

  lost() {
    this.root.dataset.kernel = "silent";
    this.words.textContent = "live, but the kernel is busy or gone";
    for (const { reject } of this.waiting.values()) reject(new Error("the kernel does not answer"));
    this.waiting.clear();
  }

  heard() {
    this.answered = performance.now();
    if (this.root.dataset.kernel === "silent") {
      delete this.root.dataset.kernel;
      this.setMode(true);
    }
  }

  hear(message, buffers) {
    this.heard();
    if (message?.type === "ack") this.setMode(true);
    if (message?.type !== "fetched") return;
    const asked = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (!asked) return;
    if (message.error) asked.reject(new Error(message.error));
    else asked.resolve(unpack(buffers[0]));
  }

  follow({ group, next, from }) {
    if (from === this || !this.model.get("link") || group !== this.model.get("link")) return;
    this.model.set("selection", next);
    if (this.live) this.model.save_changes();
  }

  setMode(live) {
    const complete = Boolean(this.meta?.complete);
    const has = Boolean(this.sweep) || complete;
    this.mode = live ? "live" : has ? "sweep" : "kernel";
    if (live) this.local = null;
    const settings = this.sweep?.grid?.length;
    this.words.textContent = live ? "live"
      : this.sweep && settings ? `precomputed: ${settings} settings, no kernel`
      : complete ? this.meta.but ? `complete, but for ${this.meta.but}` : "complete: no kernel needed"
      : "needs a running kernel";
    this.root.dataset.mode = this.mode;
    this.showStatus();
    this.redraw();
  }

  /** Say what went wrong here in the browser. */
  complain(error) {
    this.problem.textContent = error.message;
    this.problem.hidden = false;
  }

  showStatus() {
    const status = this.model.get("status") ?? {};
    const busy = this.live && (status.state === "running" || status.state === "queued");
    const part = busy && status.n ? ` ${status.i}/${status.n}` : "";
    const ended = status.state === "cancelled" ? "cancelled"
      : status.t_model_ms ? `model ${Math.round(status.t_model_ms)} ms` : "";
    this.state.textContent = busy ? `${status.state}${part} ${status.msg || ""}` : ended;
    // a hidden button gives the focus to the page, where JupyterLab would take the next "dd"
    if (!busy && document.activeElement === this.stop) this.root.focus();
    this.stop.hidden = !busy;
    this.problem.hidden = status.state !== "error";
    this.problem.textContent = status.state === "error" ? status.msg : "";
    this.root.dataset.state = status.state ?? "idle";
    if (status.state === "error" && !this.frame) this.redraw();
  }

  redraw() {
    const frame = this.frame;
    if (!frame) return void this.widget.empty?.(this);
    this.widget.draw(this, frame);
    this.root.dataset.seq = String(this.model.get("seq"));
  }

  watchTheme() {
    const again = () => this.redraw();
    const observer = new MutationObserver(again);
    observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
    this.atEnd(() => observer.disconnect());
    const dark = globalThis.matchMedia?.("(prefers-color-scheme: dark)");
    if (dark) this.listen(dark, "change", again);
  }

  makeTools() {
    if (!this.widget.pictures) return;
    const made = { PNG: "svg", SVG: "svg", CSV: "csv" };
    for (const [label, kind] of Object.entries(made)) {
      if (!this.widget.pictures(this)[kind]) continue;
      const button = h("button", { type: "button", title: `Save as ${label}` }, label);
      this.listen(button, "click", () => this.save(label).catch((error) => this.complain(error)));
      this.tools.append(button);
    }
  }

  /** Write the picture or its numbers to a file of the user's. */
  async save(label) {
    const pictures = this.widget.pictures(this), name = `${this.widget.name}.${label.toLowerCase()}`;
    if (label === "CSV") return download(name, pictures.csv(), "text/csv");
    if (label === "SVG") return download(name, pictures.svg(), "image/svg+xml");
    return download(name, await toPng(pictures.svg()), "image/png");
  }

  /** Colours of the theme around the widget, for canvases: computed, which a canvas understands. */
  get theme() {
    const style = getComputedStyle(this.root);
    return {
      ink: style.color || "#222",
      paper: backdrop(this.root),
      line: style.borderTopColor || "#8884",
      accent: style.outlineColor || "#0072b2",
    };
  }
}

function backdrop(element) {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (colour && colour !== "transparent" && !/, 0\)$/.test(colour)) return colour;
  }
  return "#fff";
}
