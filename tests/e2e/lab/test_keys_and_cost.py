"""What a widget must not do to the notebook around it: A9 to A12 and A18."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.e2e.lab.examples import WIDGETS
from tests.e2e.lab.notebook import Notebook, Shown

pytestmark = pytest.mark.browser

FOCUSABLE = "button, input, select, textarea, [tabindex='0']"
# JupyterLab's own: delete, cut, above, below, Markdown, code, restart, interrupt
STRAY = [*"ddxabmy00ii", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "Enter"]


@pytest.mark.parametrize("name", WIDGETS)
def test_a09_no_key_in_a_widget_reaches_the_notebook(clean: Notebook, name: str) -> None:
    shown = clean.show(f"w = {WIDGETS[name]}\nw")
    shown.settled("w")
    controls = shown.root.locator(FOCUSABLE)
    before, visited = clean.cells(), 0
    for i in range(controls.count()):
        control = controls.nth(i)
        if not (control.is_visible() and control.is_enabled()):
            continue
        if (control.get_attribute("title") or "").startswith(("Save", "Remove")):
            continue  # a download, and the row that the others belong to
        control.focus()
        visited += 1
        for key in STRAY:
            clean.page.keyboard.press(key)
            if not control.evaluate("(el) => el === document.activeElement"):
                break
        clean.page.keyboard.press("Escape")
    after = clean.cells()
    assert visited >= 1
    assert after["cells"] == before["cells"]
    assert after["kernel"] == before["kernel"]
    assert after["dialogs"] == 0
    clean.run("worker.settle(30)")


def test_a09_arrows_move_the_slider(clean: Notebook) -> None:
    shown = clean.show(f"w = {WIDGETS['LiveEdit']}\nw")
    shown.settled("w")
    shown.root.locator("input[type=range]").first.focus()
    for key, step in (("ArrowRight", 0.02), ("ArrowLeft", -0.02), ("PageUp", 0.4)):
        before = shown.debug()["sliders"][0]
        shown.page.keyboard.press(key)
        assert shown.debug()["sliders"][0] - before == pytest.approx(step, abs=1e-6)


def test_a10_a_step_costs_few_frames_and_little_more_than_its_numbers(clean: Notebook) -> None:
    """Over the page's own socket; listening copies every frame, so nothing is timed here."""
    page = clean.page
    up: list[bytes] = []
    down: list[bytes] = []

    def listen(socket: Any) -> None:
        if "/channels" not in socket.url:
            return
        socket.on("framesent", lambda data: up.append(raw(data)))
        socket.on("framereceived", lambda data: down.append(raw(data)))

    page.on("websocket", listen)
    try:
        page.reload()  # a socket is listened to from its birth
        page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        clean.open(page.url.split("/doc/tree/")[1].split("?")[0])
        clean.run(STEPPED)
        shown = clean.show("w = Stepped(model, prompts, [push], max_new_tokens=4)\nw")
        shown.settled("w")
        shown.root.locator("input[type=range]").first.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
            clean.until(lambda: shown.debug()["spec"] == shown.debug()["frame"].get("of"))
        page.wait_for_timeout(700)  # what trails behind
        up.clear()
        down.clear()
        steps = 10
        for _ in range(steps):
            seq = shown.seq
            page.keyboard.press("ArrowRight")
            clean.until(lambda seq=seq: shown.seq > seq)
            page.wait_for_timeout(120)
        sent, received = without_heartbeat(up, down)
        payload = clean.value("len(w.data)")
    finally:
        page.remove_listener("websocket", listen)
    assert len(sent) / steps <= 2, [*map(len, sent)]
    assert len(received) / steps <= 5, [*map(len, received)]
    total = sum(map(len, sent + received)) / steps
    assert total <= payload + 4 * 1024, (total, payload)


def raw(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode()


def without_heartbeat(up: list[bytes], down: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The frames of the steps alone: every five seconds the widget also asks whether the kernel lives,
    and the kernel's answers name the message that asked."""
    beats = [frame for frame in up if b'"type":"beat"' in frame]
    asked = [re.search(rb'"msg_id": ?"([^"]+)"', frame) for frame in beats]
    names = [found.group(1) for found in asked if found]
    assert len(names) == len(beats)
    steps = [frame for frame in up if frame not in beats]
    return steps, [frame for frame in down if not any(name in frame for name in names)]


STEPPED = """
class Stepped(LiveEdit):
    "One frame a step, as a widget without a stream, nor progress: a slow machine tells more of it."
    def _tell_progress(self):
        pass
    def _show(self, part):
        pass
"""


def test_a11_eight_widgets_open_on_a_slow_machine(clean: Notebook) -> None:
    protocol = clean.page.context.new_cdp_session(clean.page)
    protocol.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    try:
        cell = clean.cell(
            "from IPython.display import display\n"
            "many = [RunPanel(model) if i % 2 else LiveEdit(model, prompts, [push], max_new_tokens=4) "
            "for i in range(8)]\nfor one in many: display(one)"
        )
        live = cell.locator(".wb[data-mode='live'][data-seq]")
        clean.until(lambda: live.count() == 8)
    finally:
        protocol.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        protocol.detach()
    clean.run("worker.settle(60)")
    roots = cell.locator(".wb")
    for i in range(8):
        shown = Shown(clean, roots.nth(i))
        shown.settled(f"many[{i}]")


LATE = """
class Late(LiveEdit):
    pass
Late._esm = "await new Promise((go) => setTimeout(go, 3500));\\n" + LiveEdit._esm
"""


def test_a12_a_module_that_comes_late_does_not_pretend(clean: Notebook) -> None:
    clean.run(LATE)
    cell = clean.cell("w = Late(model, prompts, [push], max_new_tokens=4)\nw")
    clean.page.wait_for_timeout(800)
    clean.run("w.ask(rows=[{**w.spec['rows'][0], 'strength': -1.5}])")
    assert cell.locator(".wb[data-mode=live]").count() == 0
    root = cell.locator(".wb").first
    root.wait_for(timeout=20_000)
    shown = Shown(clean, root)
    # live only with what the kernel has now; a widget that missed an update must not call itself live
    clean.page.wait_for_timeout(1500)
    if shown.attribute("data-mode") == "live":
        drawn = shown.settled("w", within_s=20)
        assert drawn["frame"]["of"]["rows"][0]["strength"] == -1.5
        clean.run("w.ask(rows=[{**w.spec['rows'][0], 'strength': 0.5}])")
        drawn = shown.settled("w", within_s=20)
        assert drawn["sliders"] == [0.5]
    else:
        assert "needs a running kernel" in shown.text()


def test_a18_nothing_is_left_of_two_hundred_redraws_and_twenty_displays(clean: Notebook) -> None:
    """Displays go through an Output: JupyterLab keeps the listeners of removed cells for its undo."""
    protocol = clean.page.context.new_cdp_session(clean.page)
    protocol.send("Performance.enable")

    def measured() -> tuple[float, float]:
        clean.page.wait_for_timeout(300)
        for _ in range(3):
            protocol.send("HeapProfiler.collectGarbage")
        found = {m["name"]: m["value"] for m in protocol.send("Performance.getMetrics")["metrics"]}
        return found["JSHeapUsedSize"] / 1e6, found["JSEventListeners"]

    def display(times: int) -> None:
        for _ in range(times):
            clean.run("with place:\n    clear_output(); display(w)")
            clean.until(lambda: shown.count() == 1 and shown.get_attribute("data-mode") == "live")
        clean.run("worker.settle(20)")

    def redraw(times: int) -> None:
        clean.run(f"for _ in range({times}): w._publish(w.frame, w._pending, last=True)")
        Shown(clean, shown).settled("w")

    clean.run(
        "import ipywidgets\nfrom IPython.display import clear_output, display\n"
        f"place = ipywidgets.Output(); w = {WIDGETS['LiveEdit']}"
    )
    shown = clean.cell("place").locator(".wb")
    display(2)
    _, with_one = measured()
    clean.run("with place:\n    clear_output()")
    _, with_none = measured()
    display(1)
    redraw(20)
    heap, listeners = measured()
    redraw(200)
    display(20)
    heap_after, listeners_after = measured()
    protocol.detach()
    assert heap_after - heap <= 10
    one = with_one - with_none
    assert one >= 20, "a LiveEdit listens to every control"
    assert listeners_after - listeners <= 20 * one / 2, (listeners, listeners_after, one)
