"""RunPanel: what the worker does, how far it is, how much memory is left, and where the model runs."""

from __future__ import annotations

import html
import threading
import time
from typing import Any

from workbench import worker
from workbench.lab.devices import as_words, devices
from workbench.model.model import Model
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack

TELL_EVERY_S = 0.1
RESTS_AFTER_S = 15.0
SHOWN = 8


class RunPanel(Widget):
    """The queue of the model's thread, with progress, times and a cancel button.

    Args:
        model: shown and moved by the panel's device menu; leave out to watch the queue alone.

    Example:
        RunPanel(model)
    """

    folder = "run_panel"

    def __init__(self, model: Model | None = None):
        self._model = model
        self._next: threading.Timer | None = None
        self._drawn_s, self._seen_s = 0.0, time.monotonic()
        self._forget = lambda: None
        device = str(model.device) if model is not None else ""
        super().__init__(
            spec={"device": device}, meta={"title": "Runs", "devices": [d.name for d in devices()]}
        )
        self._forget = worker.on_change(self._soon)
        self._draw()

    def refresh(self) -> Any:
        """Move the model where the menu says."""
        device, model = str(self.spec.get("device", "")), self._model
        if model is None or not device or device == str(model.device):
            return None
        return worker.submit(
            lambda _job: model.to(device),
            key=("device", id(model)),
            label=f"move {model.name} to {device}",
            on_result=lambda _: self._say("idle"),
            on_error=self._failed,
        )

    def close(self) -> None:
        """Stop watching the queue."""
        self._forget()
        super().close()

    def _cancel(self) -> None:
        worker.cancel()

    def _heard(self) -> None:
        self._seen_s = time.monotonic()
        self._soon()

    def _soon(self) -> None:
        """Draw a little later, on a thread of its own: a drag changes the queue forty times a second.

        A panel that no browser shows any more, of a cell that ran again, rests.
        """
        if worker.headless():
            self._draw()
        elif self._next is None and time.monotonic() - self._seen_s < RESTS_AFTER_S:
            wait_s = max(0.0, TELL_EVERY_S - (time.monotonic() - self._drawn_s))
            self._next = threading.Timer(wait_s, self._draw)
            self._next.daemon = True
            self._next.start()

    def _draw(self) -> None:
        self._next, self._drawn_s = None, time.monotonic()
        packed = pack(self._now())
        with self._turn, self.hold_sync():
            self.data, self.seq = packed, self.seq + 1
            # a picture of the queue is no answer: an error of the last move stays
            self.status = {**self.status, "requested_seq": self.seq}
            if self._model is not None and self.status["state"] in ("idle", "error"):
                self.spec = {**self.spec, "device": str(self._model.device)}

    def _now(self) -> dict[str, Any]:
        jobs = [_row(job) for job in worker.jobs()]
        ended = [_row(job) for job in list(worker.history)[-SHOWN:]][::-1]
        return {"jobs": jobs, "ended": ended, "memory": _memory()}

    def _words(self) -> str:
        jobs = self.frame.get("jobs", [])
        where = f"{self._model.name} on {self._model.device}, " if self._model is not None else ""
        return f"{where}{len(jobs)} running or waiting"

    def _still(self) -> str:
        rows = self.frame.get("jobs", []) + self.frame.get("ended", [])
        body = "".join(
            f"<tr><td>{html.escape(row['label'])}</td><td>{row['state']}</td>"
            f"<td>{row['took_ms']:.0f} ms</td></tr>"
            for row in rows
        )
        head = "<tr><th>work</th><th>state</th><th>time</th></tr>"
        return f"<table>{head}{body}</table><p>{html.escape(self._words())}</p>"


def _row(job: worker.Job | worker.Ended) -> dict[str, Any]:
    return {
        "label": job.label,
        "state": job.state,
        "i": job.i,
        "n": job.n,
        "note": job.note,
        "took_ms": round(job.took_ms, 1),
        "left_s": None if job.left_s is None else round(job.left_s, 1),
        "error": str(job.error or ""),
    }


def _memory() -> list[dict[str, str]]:
    return [{"device": device.name, "words": as_words(device)} for device in devices()]
