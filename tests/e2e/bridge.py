"""A Python widget in a real browser without a Jupyter server: the same two ends, a queue in between.

Seconds faster than JupyterLab, so most tests of what a user sees run here. JupyterLab itself, its
threads and its keys are in tests/e2e/lab.
"""

from __future__ import annotations

import base64
import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARTEFACTS = Path(__file__).parents[1] / "artefacts"

PAGE = """<!doctype html><meta charset="utf-8"><title>bridge</title>
<style>
:root { color-scheme: light dark }
body { margin: 12px; background: light-dark(#fff, #1e1e1e); color: light-dark(#111, #ddd) }
</style><body data-jp-theme-light="LIGHT"><div id="root"></div></body>"""

HOST = """
async ({ esm, css, state, connected }) => {
  const style = document.createElement('style'); style.textContent = css; document.head.append(style);
  const bytes = (text) => { const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i); return new DataView(out.buffer); };
  const values = {}, listeners = {}, dirty = new Set();
  const take = (state) => Object.fromEntries(Object.entries(state).map(
    ([k, v]) => [k, v && v.__bytes !== undefined ? bytes(v.__bytes) : v]));
  Object.assign(values, take(state));
  const fire = (name, ...args) => (listeners[name] ?? []).slice().forEach((f) => f(...args));
  const tell = (message) => connected && window.__toKernel(JSON.stringify(message));
  const set = (k, v) => { if (values[k] === v) return; values[k] = v; dirty.add(k); fire('change:' + k); };
  const model = {
    get: (k) => values[k], set,
    save_changes: () => { const out = Object.fromEntries([...dirty].map((k) => [k, values[k]]));
      dirty.clear(); if (Object.keys(out).length) tell({ method: 'update', state: out }); },
    send: (content) => tell({ method: 'custom', content }),
    on: (n, f) => (listeners[n] ??= []).push(f),
    off: (n, f) => { listeners[n] = (listeners[n] ?? []).filter((g) => g !== f); },
  };
  window.__fromKernel = (messages) => { for (const m of messages) {
    if (m.method === 'update') {
      const state = take(m.state), changed = Object.keys(state).filter((k) => values[k] !== state[k]);
      Object.assign(values, state);
      for (const k of changed) fire('change:' + k);
    } else fire('msg:custom', m.content, m.buffers.map(bytes));
  } };
  window.__listeners = () => Object.values(listeners).reduce((n, l) => n + l.length, 0);
  const module = await import(URL.createObjectURL(new Blob([esm], { type: 'text/javascript' })));
  const stop = new AbortController(), el = document.createElement('div');
  document.getElementById('root').append(el);
  window.__unmount = () => { stop.abort(); el.remove(); };
  await module.default.render({ model, el, signal: stop.signal });
}
"""


class Mounted:
    """A widget shown in `page`. Everything goes through `pump`: playwright knows one thread only.

    Args:
        connected: False shows what a page without a kernel shows.
    """

    def __init__(self, page: Any, widget: Any, *, connected: bool = True, dark: bool = False):
        self.page, self.widget = page, widget
        self._out: queue.Queue[dict[str, Any]] = queue.Queue()
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.set_content(PAGE.replace("LIGHT", "false" if dark else "true"))
        if not getattr(page, "_bridge", None):
            page.expose_binding("__toKernel", lambda _source, text: page._bridge(json.loads(text)))
        page._bridge = self._from_browser
        widget.comm.publish_msg = self._to_browser
        state = widget.get_state()
        page.evaluate(HOST, {
            "esm": state.pop("_esm"), "css": state.pop("_css", ""), "connected": connected,
            "state": {k: _coded(v) for k, v in state.items() if k not in ("layout", "tooltip")},
        })  # fmt: skip
        self.root = page.locator(".wb").first
        if connected:
            self.until(lambda: self.root.get_attribute("data-mode") == "live")

    def _from_browser(self, message: dict[str, Any]) -> None:
        data = {"method": message["method"], "buffer_paths": []}
        data |= {k: message[k] for k in ("state", "content") if k in message}
        self.widget._handle_msg({"content": {"data": data}, "buffers": []})

    def _to_browser(self, _kind: str, data: Any = None, buffers: Any = None, **_more: Any) -> None:
        data, buffers = dict(data or {}), list(buffers or [])
        if data.get("method") == "update":
            state = dict(data["state"])
            for path, buffer in zip(data.get("buffer_paths", []), buffers, strict=True):
                state[path[0]] = buffer
            self._out.put({"method": "update", "state": {k: _coded(v) for k, v in state.items()}})
        elif data.get("method") == "custom":
            coded = [_coded(bytes(b))["__bytes"] for b in buffers]
            self._out.put({"method": "custom", "content": data["content"], "buffers": coded})

    def pump(self) -> None:
        """Hand over what waits, and let the browser answer."""
        waiting = []
        while not self._out.empty():
            waiting.append(self._out.get())
        if waiting:
            self.page.evaluate("messages => window.__fromKernel(messages)", waiting)
        self.page.wait_for_timeout(5)

    def until(self, true: Callable[[], Any], within_s: float = 20.0) -> Any:
        """Pump until `true()`; returns its value.

        Raises:
            TimeoutError: it stays false; the message shows the widget's text.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.pump()
            if value := true():
                return value
        raise TimeoutError(f"not within {within_s} s; the widget says: {self.root.inner_text()}")

    def settled(self) -> None:
        """Pump until the browser shows the widget's last frame."""
        self.until(
            lambda: (
                self.widget.status["state"] not in ("queued", "running")
                and self.root.get_attribute("data-seq") == str(self.widget.seq)
            )
        )

    def debug(self) -> dict[str, Any]:
        """What the widget says of itself: mode, spec, seq, and its own figures."""
        return self.page.evaluate("""() => JSON.parse(JSON.stringify(
            document.querySelector('.wb').__debug(), (k, v) => ArrayBuffer.isView(v) ? [...v] : v))""")

    def shot(self, name: str) -> Path:
        """A screenshot of the widget among the test artefacts."""
        ARTEFACTS.mkdir(exist_ok=True)
        self.root.screenshot(path=ARTEFACTS / f"{name}.png")
        return ARTEFACTS / f"{name}.png"


def _coded(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return {"__bytes": base64.b64encode(bytes(value)).decode()}
    return value
