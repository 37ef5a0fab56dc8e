"""A hand on a slider: one second of dragging, and what the screen showed meanwhile."""

from __future__ import annotations

from typing import Any

WATCH = """(el) => {
  el.__draws = [];
  el.__watch?.disconnect();
  el.__watch = new MutationObserver(() => {
    const strength = el.__debug().frame?.of?.rows?.[0]?.strength;
    el.__draws.push({ at: performance.now(), seq: Number(el.dataset.seq), strength });
  });
  el.__watch.observe(el, { attributes: true, attributeFilter: ['data-seq'] });
}"""
DRAG = """async (slider, { from, to, events, over_ms }) => {
  const began = performance.now(), every = over_ms / events;
  for (let i = 1; i <= events; i++) {
    const wait = began + i * every - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    slider.value = String(from + (to - from) * i / events);
    slider.dispatchEvent(new Event('input', { bubbles: true }));
  }
  return { began, ended: performance.now(), value: Number(slider.value) };
}"""


def watch(root: Any) -> None:
    """Begin to note every redraw of a widget: when, which frame, which strength it is of."""
    root.evaluate(WATCH)


def draws(root: Any) -> list[dict[str, float]]:
    """The redraws since `watch`: `at` in ms of the page's clock, `seq`, `strength`."""
    return root.evaluate("(el) => el.__draws")


def drag(slider: Any, to: float, *, events: int = 40, over_ms: float = 1000) -> dict[str, float]:
    """Move a slider in equal steps; returns `began`, `ended` in ms of the page's clock, and `value`."""
    start = float(slider.input_value())
    how = {"from": start, "to": to, "events": events, "over_ms": over_ms}
    return slider.evaluate(DRAG, how)


# Resolves when the frame of the present spec is painted: two animation frames after its draw.
_PAINTED = """
  const root = slider.closest('.wb');
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const painted = (from) => new Promise((resolve) => {
    const look = () => {
      const { frame, spec } = root.__debug();
      if (!frame?.of || !same(frame.of, spec)) return;
      observer.disconnect();
      const seq = Number(root.dataset.seq);
      const told = () => resolve({ ms: performance.now() - from, seq });
      requestAnimationFrame(() => requestAnimationFrame(told));
    };
    const observer = new MutationObserver(look);
    observer.observe(root, { attributes: true, attributeFilter: ['data-seq'] });
  });
  const move = (value) => {
    slider.value = String(value);
    slider.dispatchEvent(new Event('input', { bubbles: true }));
  };
"""
STEP = f"""async (slider) => {{ {_PAINTED}
  const size = Number(slider.step) || 0.02, now = Number(slider.value);
  const next = now + size <= Number(slider.max) ? now + size : Number(slider.min);
  const began = performance.now(), done = painted(began);
  move(next);
  return done;
}}"""
DRAG_AND_WAIT = f"""async (slider, {{ to, events, over_ms }}) => {{ {_PAINTED}
  const from = Number(slider.value), began = performance.now();
  for (let i = 1; i < events; i++) {{
    const wait = began + i * over_ms / events - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    move(from + (to - from) * i / events);
  }}
  await new Promise((resolve) => setTimeout(resolve, over_ms / events));
  const done = painted(performance.now());
  move(to);
  return done;
}}"""
CANCEL = """async (root) => {
  const began = performance.now();
  root.querySelector('.wb-cancel').click();
  while (root.dataset.state !== 'cancelled') await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def step(slider: Any) -> dict[str, float]:
    """One step of a slider; returns `ms` to the painted frame and its `seq`."""
    return slider.evaluate(STEP)


def drag_and_wait(
    slider: Any, to: float, events: int = 40, over_ms: float = 1000
) -> dict[str, float]:
    """A drag; `ms` from its last event to the painted frame of it, and its `seq`."""
    return slider.evaluate(DRAG_AND_WAIT, {"to": to, "events": events, "over_ms": over_ms})
