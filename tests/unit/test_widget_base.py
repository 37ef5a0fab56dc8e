"""The contract every widget inherits: no word lost between threads, no status that never ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from workbench import worker
from workbench_widgets.base import Widget
from workbench_widgets.frames import unpack


class Probe(Widget):
    """A widget whose frame is what the test says."""

    folder = "run_panel"

    def __init__(self, frame: Callable[[dict[str, Any], worker.Job], Mapping[str, Any]]):
        self._made_by = frame
        super().__init__(spec={"x": 0}, meta={})
        self.sent: list[tuple[str, Any]] = []
        self.comm.publish_msg = self._note  # type: ignore[union-attr, method-assign]

    def _note(self, _kind: str, data: Any = None, buffers: Any = None, **_more: Any) -> None:
        if not data:  # closed
            return
        if data["method"] == "custom":
            self.sent.append((data["content"]["type"], (data["content"], buffers)))
        else:
            binary = [path[0] for path in data.get("buffer_paths", [])]
            self.sent.append(("update", sorted([*data["state"], *binary])))

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        return self._made_by(spec, job)

    def _fetch(
        self, what: str, arguments: Mapping[str, Any], _job: worker.Job
    ) -> Mapping[str, Any]:
        return {"what": what, **arguments}

    def _still(self) -> str:
        return ""


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Probe]]:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    made: list[Probe] = []
    yield lambda frame: made.append(Probe(frame)) or made[-1]
    for one in made:
        one.close()
    worker.settle(20)


def wait(true: Callable[[], Any], within_s: float = 5.0) -> None:
    end_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_a_frame_that_cannot_be_sent_is_said(probe: Callable[..., Probe]) -> None:
    widget = probe(lambda _spec, _job: {"texts": np.array(["a"])})
    widget.refresh()
    wait(lambda: widget.status["state"] == "error")
    assert "no dtype" in widget.status["msg"]


def test_a_closed_widget_computes_no_more(probe: Callable[..., Probe]) -> None:
    steps = []

    def long(_spec: dict[str, Any], job: worker.Job) -> dict[str, Any]:
        for i in range(1000):
            time.sleep(0.002)
            steps.append(i)
            job.progress(i + 1, 1000)
        return {}

    widget = probe(long)
    job = widget.refresh()
    wait(lambda: steps)
    widget.close()
    wait(job.done)
    assert job.state == "cancelled" and len(steps) < 1000


def test_a_cancel_while_another_request_waits_leaves_no_one_running(
    probe: Callable[..., Probe],
) -> None:
    go = threading.Event()
    widget = probe(lambda spec, _job: go.wait(5) and {"x": spec["x"]})
    widget.refresh()
    wait(lambda: worker.jobs() and worker.jobs()[0].state == "running")
    widget.ask(x=1)
    worker.cancel(("widget", id(widget)))
    go.set()
    worker.settle(5)
    assert widget.status["state"] == "cancelled"


def test_what_one_thread_sets_is_sent_though_another_publishes(probe: Callable[..., Probe]) -> None:
    widget = probe(lambda _spec, _job: {})
    holding = threading.Event()

    def publish() -> None:
        with widget._turn, widget.hold_sync():
            holding.set()
            time.sleep(0.05)
            widget.seq += 1

    thread = threading.Thread(target=publish)
    thread.start()
    holding.wait(5)
    widget.sweep = b"kept"
    thread.join(5)
    sent = [name for kind, names in widget.sent if kind == "update" for name in names]
    assert {"seq", "sweep"} <= set(sent)


def test_every_fetch_is_answered_each_by_its_own(probe: Callable[..., Probe]) -> None:
    widget = probe(lambda _spec, _job: {})
    for i in range(5):
        message = {"type": "fetch", "id": i, "what": "head", "arguments": {"head": i}}
        widget._message(widget, message, [])
    worker.settle(5)
    answers = {c["id"]: unpack(bytes(b[0])) for kind, (c, b) in _said(widget) if kind == "fetched"}
    assert answers == {i: {"what": "head", "head": i} for i in range(5)}


def test_hello_sends_all_but_the_users_own_spec(probe: Callable[..., Probe]) -> None:
    widget = probe(lambda _spec, _job: {})
    widget._message(widget, {"type": "hello"}, [])
    assert widget.sent[0][0] == "ack"
    assert widget.sent[1] == ("update", ["data", "meta", "seq", "status", "sweep"])


def test_the_browser_hears_of_every_request(probe: Callable[..., Probe]) -> None:
    go = threading.Event()
    widget = probe(lambda _spec, _job: go.wait(5) and {})
    for x in range(1, 5):
        widget.sent.clear()
        widget.set_state({"spec": {"v": 1, "x": x}})
        assert any("status" in names for kind, names in widget.sent if kind == "update")
    go.set()


def test_the_browser_hears_of_a_spec_that_asks_for_no_frame(
    probe: Callable[..., Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = probe(lambda _spec, _job: {})
    monkeypatch.setattr(widget, "_needs_frame", lambda old, new: old["x"] != new["x"])
    for spec in ({"x": 0, "strength": 2}, {"x": 0, "strength": 2}):  # changed, and the same again
        widget.sent.clear()
        widget.set_state({"spec": spec})
        assert [kind for kind, _ in widget.sent] == ["beat"]
    widget.sent.clear()
    widget.set_state({"spec": {"x": 1}})
    widget.set_state({"view": {"tab": 1}})
    widget.ask(strength=3)  # from Python: nobody waits
    assert _said(widget) == []


def _said(widget: Probe) -> list[tuple[str, Any]]:
    return [one for one in widget.sent if one[0] != "update"]
