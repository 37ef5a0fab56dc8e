"""Widgets that fill piece by piece: each piece computed once, a cancel keeps what is there."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import Any

from workbench import worker
from workbench_widgets.base import IDLE, Widget

SHOW_EVERY_S = 0.4
SHARE = 0.2
"""At most this part of the time goes into showing what is there so far."""


class Filling(Widget):
    """A widget whose spec holds `go`, a number: raising it fills what is missing.

    After a cancel, whoever asked for it, only that goes on; a piece that the user points at is
    computed alone.
    """

    points_at: tuple[str, ...] = ()
    """Names in the spec that point at a piece."""

    def __init__(self, *, spec: Mapping[str, Any], meta: Mapping[str, Any], link: str = ""):
        self._went, self._held = -1, False  # the last `go` that was answered; after a cancel
        self._shown_s = self._show_took_s = 0.0
        super().__init__(spec={"go": 0, **spec}, meta={"complete": False, **meta}, link=link)

    # --- what a subclass says ------------------------------------------------------------------

    def _next(self, spec: Mapping[str, Any], held: bool) -> Hashable | None:
        """The next piece, most wanted first; None where all are there. `held`: after a cancel, only
        what the user points at."""
        raise NotImplementedError

    def _piece(self, piece: Any, job: worker.Job) -> None:
        """Compute a piece and keep it."""
        raise NotImplementedError

    def _counted(self) -> tuple[int, int]:
        """How many pieces are there, and of how many."""
        raise NotImplementedError

    def _named(self, piece: Any) -> str:
        """The piece in words."""
        raise NotImplementedError

    def _picture(self) -> Mapping[str, Any]:
        """The frame of what is there."""
        raise NotImplementedError

    def _but(self) -> str:
        """What a page without a kernel lacks though every piece is there, in a few words; "" for none."""
        return ""

    # --- filling -------------------------------------------------------------------------------

    def refresh(self) -> Any:
        """Go on, unless all that the spec asks for is there or under way."""
        spec = self.spec
        again = spec["go"] != self._went
        under_way = any(not _stopping(job) for job in self._jobs())
        if not again and (self._next(spec, self._held) is None or under_way and not self._held):
            return None
        return super().refresh()

    def go_on(self) -> Any:
        """Fill what is missing, after a cancel too. Returns the widget."""
        self.ask(go=int(self.spec["go"]) + 1)
        return self

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        # how it is shown asks for no piece
        return any(old.get(name) != new.get(name) for name in ("go", *self.points_at))

    def _jobs(self) -> list[worker.Job]:
        return [job for job in worker.jobs() if job.key == ("widget", id(self))]

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if spec["go"] != self._went:
            self._went, self._held = spec["go"], False
        self._tell_complete()
        began, first = time.monotonic(), self._counted()[0]
        try:
            while (piece := self._next(self.spec, self._held)) is not None:
                self._tell_left(job, piece, began, first)
                self._piece(piece, job)
                self._show_at_times()
        except worker.Cancelled:
            self._held = True
            self._tell_complete()
            self._publish(self._picture(), self._pending, last=False)
            raise
        self._tell_complete()
        return self._picture()

    def _tell_complete(self) -> None:
        done, total = self._counted()
        self.meta = {**self.meta, "complete": done == total, "but": self._but()}

    def _tell_left(self, job: worker.Job, piece: Any, began: float, first: int) -> None:
        done, total = self._counted()
        note, since = self._named(piece), done - first
        if since:
            left = (time.monotonic() - began) * (total - done) / since
            note += f", {left:.0f} s left"
        job.progress(done, total, note)

    def _show_at_times(self) -> None:
        wait = max(SHOW_EVERY_S, self._show_took_s / SHARE)
        if worker.headless() or time.monotonic() - self._shown_s < wait:
            return
        began = time.monotonic()
        self._show(self._picture())
        self._shown_s = time.monotonic()
        self._show_took_s = self._shown_s - began

    def _publish(self, frame: Mapping[str, Any], number: int, last: bool) -> None:
        status = self.status
        super()._publish(frame, number, last)
        if not last:
            # a frame on the way is no end of the progress
            self.status = {**self.status, **{k: status.get(k, IDLE[k]) for k in ("i", "n", "msg")}}

    def _say(self, state: str, force: bool = True, **also: Any) -> None:
        if state == "cancelled":
            self._held = True
            if not any(job.state == "queued" for job in self._jobs()):
                self._went = self.spec["go"]  # no later request waits: this one is not made up for
            # what is there after a cancel is whole in itself: nothing is awaited
            also = {**also, "requested_seq": self.seq}
        super()._say(state, force, **also)


def _stopping(job: worker.Job) -> bool:
    """Whether the job was cancelled and has not ended yet."""
    try:
        job.check()
    except worker.Cancelled:
        return True
    return False
