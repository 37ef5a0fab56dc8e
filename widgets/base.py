"""What every widget is: a contract of a few synced values, one worker, and a static picture.

`spec` holds what the user wants, `data` the frame that shows it, `seq` says that a frame is there.
Python owns every number; the browser owns pixels. A widget says in words which of three modes it is
in: live, precomputed, or in need of a running kernel.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets as t

from workbench import worker
from workbench.errors import WorkbenchError
from workbench_widgets.frames import pack, unpack

HERE = Path(__file__).parent
STATUS_EVERY_S = 0.1
IDLE = {
    "state": "idle",
    "request": 0,
    "i": 0,
    "n": 0,
    "requested_seq": 0,
    "t_model_ms": 0.0,
    "msg": "",
}


class Widget(anywidget.AnyWidget):
    """Base of all widgets. A subclass names its folder and says how a frame comes from a spec.

    Attributes:
        spec: what the user asked for, JSON; the browser and Python both write it.
        view: hover, zoom, tab; never a reason to compute.
        selection: token, layer and head chosen, shared among widgets of one `link`.
        link: widgets with the same non-empty text share their selection.
        meta: what rarely changes: title, tokens, options.
        data, seq: the frame (see `frames`), and its number.
        status: state of the work, its progress, the model's time in ms, or an error in words.
        sweep: frames made ahead for a page without a kernel.
    """

    spec = t.Dict().tag(sync=True, echo_update=False)
    view = t.Dict().tag(sync=True, echo_update=False)
    selection = t.Dict().tag(sync=True, echo_update=False)
    link = t.Unicode("").tag(sync=True)
    meta = t.Dict().tag(sync=True)
    data = t.Bytes(b"").tag(sync=True)
    status = t.Dict(IDLE).tag(sync=True)
    sweep = t.Bytes(b"").tag(sync=True)
    seq = t.Int(0).tag(sync=True)

    folder = ""
    """Where the widget's built module lies, below this package."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # ipywidgets makes a subclass per instance, which has the texts as traits by then
        if "folder" in vars(cls):
            cls._esm = (HERE / cls.folder / "widget.js").read_text("utf-8")
            cls._css = _style(cls.folder)

    def __init__(self, *, spec: Mapping[str, Any], meta: Mapping[str, Any], link: str = ""):
        self._turn = threading.RLock()
        self._told_s = 0.0
        self._pending = 0
        super().__init__(spec={"v": 1, **spec}, meta=dict(meta), link=link)
        self.on_msg(self._message)
        self.observe(self._asked, "spec")

    # --- what a subclass says ------------------------------------------------------------------

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        """The frame of a spec; runs on the worker. May call `self._show(part)` on the way."""
        raise NotImplementedError

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        """Whether a change of the spec asks for another frame."""
        return True

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        """A part that is too large for every frame; runs on the worker."""
        raise self._has_no(f"such part: {what!r}")

    def _still(self) -> str:
        """The static picture: HTML below 20 kB, no script, every text escaped."""
        raise NotImplementedError

    def _words(self) -> str:
        """What `repr` says between the brackets: the main number, the same on every machine."""
        return ""

    def to_record(self) -> Any:
        """What the sliders say, as the record that the rest of the workbench takes."""
        raise self._has_no("record")

    def to_code(self) -> str:
        """A cell that makes the same thing without the widget."""
        raise self._has_no("code")

    def precompute(self, grid: Any = None) -> Widget:
        """Compute frames for a page without a kernel, and keep them in `sweep`. Returns the widget."""
        raise self._has_no("settings to compute ahead")

    def _has_no(self, what: str) -> WorkbenchError:
        return WorkbenchError(
            type(self).__name__,
            f"has no {what}",
            expected="another widget",
            got=repr(self),
            do="see its docstring for what it has",
        )

    # --- the frame's way -----------------------------------------------------------------------

    @property
    def frame(self) -> dict[str, Any]:
        """The frame that is shown, its arrays as numpy."""
        return unpack(self.data)

    def ask(self, **changes: Any) -> None:
        """Change the spec from Python, as the browser does."""
        self.spec = {**self.spec, **changes}

    def _asked(self, change: Mapping[str, Any]) -> None:
        if self._needs_frame(change["old"], change["new"]):
            self.refresh()

    def refresh(self) -> worker.Job:
        """Ask for the frame of the present spec; the latest request wins."""
        spec = dict(self.spec)
        with self._turn:
            self._pending += 1
            number = self._pending
            free = not worker.jobs()
            # numbered: an equal status would not be sent, and the browser waits for a sign
            said = {"requested_seq": self.seq + 1, "request": number}
            self._say("running" if free else "queued", **said)
        return worker.submit(
            lambda job: self._computed(spec, job),
            key=("widget", id(self)),
            label=type(self).__name__,
            on_result=lambda frame: self._publish(frame, number, last=True),
            on_error=self._failed,
            on_cancel=lambda: self._say("cancelled", msg="cancelled"),
            on_progress=self._tell_progress,
        )

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait until the shown frame is that of the spec."""
        worker.settle(timeout_s)

    def _cancel(self) -> None:
        worker.cancel(("widget", id(self)))

    def _computed(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        self._job, self._began = job, time.perf_counter()
        if self.status["state"] != "running":
            self._say("running")
        frame = self._frame(spec, job)
        self._took_ms = 1000 * (time.perf_counter() - self._began)
        return {"of": spec, **frame}

    def _show(self, part: Mapping[str, Any]) -> None:
        """A frame on the way to the last one: what is known so far."""
        self._job.check()
        self._took_ms = 1000 * (time.perf_counter() - self._began)
        self._publish(part, self._pending, last=False)

    def _publish(self, frame: Mapping[str, Any], number: int, last: bool) -> None:
        packed = pack(frame)
        with self._turn, self.hold_sync():
            settled = last and number == self._pending
            self.data, self.seq = packed, self.seq + 1
            self.status = {
                **(IDLE | {"request": number} if settled else self.status),
                # an outdated frame knows nothing of the request that waits, or was cancelled
                "state": "idle" if settled else self.status["state"] if last else "running",
                "requested_seq": self.seq if settled else self.seq + 1,
                "t_model_ms": round(self._took_ms, 3),
            }

    def _failed(self, error: BaseException) -> None:
        words = str(error) if isinstance(error, WorkbenchError) else _in_words(error)
        self._say("error", requested_seq=self.seq, msg=words)

    def _say(self, state: str, force: bool = True, **also: Any) -> None:
        now = time.monotonic()
        if not force and now - self._told_s < STATUS_EVERY_S:
            return
        with self._turn:
            self._told_s = now
            self.status = {**self.status, "msg": "", **also, "state": state}

    def _tell_progress(self) -> None:
        job = self._job
        done = job.i == job.n
        self._say("running", force=done, i=job.i, n=job.n, msg=job.note)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """As in ipywidgets, one thread at a time, for the worker publishes meanwhile; a spec is answered.

        The browser takes two seconds of silence for a kernel that is gone: where a spec asks for no
        frame, and no status says that it was heard, a beat does.
        """
        with self._turn:
            before = self._pending
            super().set_state(sync_data)
            if "spec" in sync_data and self._pending == before:
                self.send({"type": "beat"})

    def notify_change(self, change: Any) -> None:
        """As in ipywidgets, one thread at a time: `hold_sync` is no lock."""
        with self._turn:
            super().notify_change(change)

    def close(self) -> None:
        """Stop its work and go."""
        if self.comm is not None:
            worker.cancel(("widget", id(self)))
        super().close()

    # --- messages ------------------------------------------------------------------------------

    def _message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "hello":
            # a module that came late has missed what was sent meanwhile; the spec is the user's own
            with self._turn:
                self.send({"type": "ack"})
                self.send_state(["meta", "sweep", "data", "status", "seq"])
            self._heard()
        elif kind == "beat":
            self.send({"type": "beat"})
            self._heard()
        elif kind == "cancel":
            self._cancel()
        elif kind == "fetch":
            self._answer(content)

    def _heard(self) -> None:
        """A browser shows this widget."""

    def _answer(self, content: dict[str, Any]) -> None:
        what, wanted = str(content.get("what")), content.get("id")

        def reply(**found: Any) -> None:
            buffer = found.pop("buffer", None)
            message = {"type": "fetched", "id": wanted, **found}
            self.send(message, [buffer] if buffer is not None else None)

        worker.submit(
            lambda job: pack(self._fetch(what, content.get("arguments") or {}, job)),
            key=("widget", id(self), what, str(wanted)),
            label=f"{type(self).__name__}.{what}",
            on_result=lambda packed: reply(buffer=packed),
            on_error=lambda error: reply(error=str(error)),
            on_cancel=lambda: reply(error="cancelled"),
        )

    # --- how it shows without a browser's widget -----------------------------------------------

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._words()})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, about = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/plain": repr(self), "text/html": self._still()}, about


@cache
def _style(folder: str) -> str:
    files = (HERE / "js" / "base.css", HERE / folder / "style.css")
    return "\n".join(file.read_text("utf-8") for file in files if file.is_file())


def _in_words(error: BaseException) -> str:
    name = type(error).__name__
    if "out of memory" in str(error).lower():
        return f"{name}: the device ran out of memory; use fewer or shorter prompts"
    return f"{name}: {error}"


def as_json(value: Any) -> str:
    """Compact JSON, as it goes into a cell."""
    return json.dumps(value, ensure_ascii=False)
