// A model as anywidget hands it to a widget, with a kernel that answers only when a test says so.

/** Bytes of a frame as `widgets/frames.py` packs them, `before` bytes into a larger buffer. */
export function packed(plain, arrays = {}, before = 0) {
  const about = {}, blocks = [];
  let offset = 0;
  for (const [name, { dtype, shape, values }] of Object.entries(arrays)) {
    about[name] = { dtype, shape, offset };
    blocks.push([offset, new Uint8Array(values.buffer, values.byteOffset, values.byteLength)]);
    offset = Math.ceil((offset + values.byteLength) / 8) * 8;
  }
  const header = new TextEncoder().encode(JSON.stringify({ json: plain, arrays: about }));
  const start = Math.ceil((4 + header.length) / 8) * 8;
  const held = new Uint8Array(before + start + offset);
  new DataView(held.buffer).setUint32(before, header.length, true);
  held.set(header, before + 4);
  for (const [at, block] of blocks) held.set(block, before + start + at);
  return new DataView(held.buffer, before);
}

/** @param {Object} state */
export function fakeModel(state = {}) {
  const values = {
    spec: { v: 1 }, view: {}, selection: {}, link: "", meta: {}, data: new DataView(new ArrayBuffer(0)),
    status: { state: "idle" }, sweep: new DataView(new ArrayBuffer(0)), seq: 0, ...state,
  };
  const listeners = {};
  return {
    sent: [], saved: 0, changed: [],
    get: (name) => values[name],
    set(name, value) { values[name] = value; this.changed.push(name); },
    save_changes() { this.saved++; },
    send(message) { this.sent.push(message); },
    on: (name, handler) => (listeners[name] ??= new Set()).add(handler),
    off: (name, handler) => listeners[name]?.delete(handler),
    /** The kernel changes these, all at once. */
    update(changes) {
      Object.assign(values, changes);
      for (const name of Object.keys(changes)) this.fire(`change:${name}`);
    },
    /** The kernel sends a message. */
    say(content, buffers = []) { this.fire("msg:custom", content, buffers); },
    fire(name, ...args) { [...(listeners[name] ?? [])].forEach((handler) => handler(...args)); },
    listening: () => Object.values(listeners).reduce((n, all) => n + all.size, 0),
  };
}
