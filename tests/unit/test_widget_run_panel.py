"""RunPanel shows the queue as it is, and moves and cancels what it says."""

from __future__ import annotations

import threading
import time

import pytest

from tests import tiny
from workbench import worker
from workbench.errors import WorkbenchError
from workbench_widgets import RunPanel


def test_it_lists_what_ended_and_escapes_it() -> None:
    panel = RunPanel(tiny.model())
    worker.submit(lambda _: 7, label="<b>seven</b>")
    worker.submit(lambda _: 1 / 0, label="broken")
    panel._draw()
    ended = {row["label"]: row for row in panel.frame["ended"]}
    assert ended["<b>seven</b>"]["state"] == "done"
    assert ended["broken"]["state"] == "error" and "division" in ended["broken"]["error"]
    assert "&lt;b&gt;seven" in panel._repr_mimebundle_()[0]["text/html"]
    assert repr(panel) == "RunPanel(in-memory on cpu, 0 running or waiting)"
    panel.close()


def test_it_follows_progress_and_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    panel, began = RunPanel(), threading.Event()

    def work(job: worker.Job) -> None:
        for i in range(1000):
            began.set()
            time.sleep(0.005)
            job.progress(i + 1, 1000, "sleeping")

    job = worker.submit(work, label="long")
    began.wait(5)
    _until(lambda: any(row["i"] for row in panel.frame["jobs"]))
    (row,) = panel.frame["jobs"]
    assert row["n"] == 1000 and row["left_s"] > 0
    panel._message(panel, {"type": "cancel"}, [])
    _until(lambda: not panel.frame["jobs"])
    assert job.state == "cancelled"
    panel.close()


@pytest.mark.parametrize("headless", ["0", "1"])
def test_a_device_that_is_absent_is_said_in_the_panel(
    headless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", headless)
    model = tiny.model()
    panel = RunPanel(model)
    panel.ask(device="meta")
    time.sleep(0.3)  # the next picture of the queue must not wipe it away
    assert panel.status["state"] == "error" and "unknown device" in panel.status["msg"]
    assert str(model.device) == panel.spec["device"] == "cpu"
    panel.close()


def test_two_panels_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    panels = [RunPanel(tiny.model()) for _ in range(2)]

    def moves(panel: RunPanel) -> None:
        for i in range(200):
            panel.set_state({"spec": {"v": 1, "device": "cpu" if i % 2 else "meta"}})

    threads = [threading.Thread(target=moves, args=(p,), daemon=True) for p in panels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    worker.settle(20)
    for panel in panels:
        panel.close()


def _until(true: object) -> None:
    deadline = time.monotonic() + 5
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("verb", ["precompute", "to_code", "to_record"])
def test_what_a_panel_has_not_is_said(verb: str) -> None:
    panel = RunPanel()
    with pytest.raises(WorkbenchError, match="has no"):
        getattr(panel, verb)()
    panel.close()
