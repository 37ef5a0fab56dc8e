"""One thread for all model work that widgets and waiting cells ask for.

A callback of a widget may run on any thread and cannot be interrupted, so it only submits. Jobs of
one key are requests for one picture: the latest one waiting replaces the one before it. A job is
cancelled between two blocks of the model. Headless, in reports and tests, work is done at once, so
that nothing is left unfinished when a cell ends.

The functions of this module (`submit`, `jobs`, `cancel`, `settle`) are those of the process' worker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from workbench.errors import WorkbenchError

POLL_S = 0.05


class Cancelled(Exception):
    """The job was cancelled, or replaced by a later one of its key."""


@dataclass(eq=False)
class Job:
    """One piece of work. `await job` or `job.result()` waits for it; interrupting them cancels it.

    Attributes:
        key: a later job of this key replaces it while it waits.
        label: what a panel calls it.
        state: "queued", "running", "done", "error" or "cancelled".
        i, n, note: how far it is: step i of n, and on what. n is 0 where it never said.
        error: what it raised.
        took_ms: wall clock of the work alone, in milliseconds.
    """

    work: Callable[[Job], Any] = field(repr=False)
    key: Hashable
    label: str
    state: str = "queued"
    i: int = 0
    n: int = 0
    note: str = ""
    error: BaseException | None = None
    took_ms: float = 0.0
    on_result: Callable[[Any], None] | None = field(default=None, repr=False)
    on_error: Callable[[BaseException], None] | None = field(default=None, repr=False)
    on_cancel: Callable[[], None] | None = field(default=None, repr=False)
    on_progress: Callable[[], None] | None = field(default=None, repr=False)
    tell: Callable[[], None] = field(default=lambda: None, repr=False)
    later: Callable[[], bool] = field(default=lambda: False, repr=False)
    _value: Any = field(default=None, repr=False)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _stop: bool = field(default=False, repr=False)
    _began_s: float = field(default=0.0, repr=False)

    def check(self) -> None:
        """Raise Cancelled where somebody cancelled the job. Every block of a model checks as well."""
        if self._stop:
            raise Cancelled(self.label)

    def progress(self, i: int, n: int, note: str = "") -> None:
        """Step `i` of `n` is done."""
        self.check()
        self.i, self.n, self.note = i, n, note
        if self.on_progress is not None:
            self.on_progress()
        self.tell()

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace so far, where it says how far it is."""
        if self.state != "running" or not 0 < self.i <= self.n:
            return None
        return (time.monotonic() - self._began_s) * (self.n - self.i) / self.i

    def superseded(self) -> bool:
        """Whether a later job of its key waits: what it still does will be replaced at once."""
        return self.later()

    def cancel(self) -> None:
        """Ask it to stop; it does so before the next block."""
        self._stop = True

    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self._ended.is_set()

    def result(self, timeout_s: float | int | None = None, *, bar: bool = False) -> Any:
        """Wait for it and return what the work returned.

        Args:
            bar: show a progress bar meanwhile, in the cell that waits.

        Raises:
            Cancelled: it was cancelled or replaced.
            TimeoutError: it takes longer than `timeout_s` seconds.
            Exception: whatever the work raised.
        """
        if not self.done():
            _refuse_own_thread("job.result")
        try:
            if bar:
                self._draw_bar(timeout_s)
            if not self._ended.wait(0 if bar else timeout_s):
                raise TimeoutError(f"{self.label} takes longer than {timeout_s} s")
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self._outcome()

    def _draw_bar(self, timeout_s: float | int | None) -> None:
        """From the waiting thread: a bar drawn by another one lands in whichever cell ran last."""
        end_s = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        with tqdm(desc=self.label, total=self.n or None, disable=headless()) as shown:
            while not self._ended.wait(POLL_S) and time.monotonic() < end_s:
                shown.total, shown.n = self.n or None, self.i
                shown.set_postfix_str(self.note)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._waited().__await__()

    async def _waited(self) -> Any:
        # a plain await would hold the interrupt button back until the job ends
        try:
            while not self.done():
                await asyncio.sleep(POLL_S)
        except BaseException:
            self.cancel()
            raise
        return self._outcome()

    def _outcome(self) -> Any:
        if self.state == "cancelled":
            raise Cancelled(self.label)
        if self.error is not None:
            raise self.error
        return self._value

    def run(self) -> None:
        """Do the work and tell whoever asked. Never raises."""
        self.state, self._began_s = "running", time.monotonic()
        began = time.perf_counter()
        try:
            self.check()
            self._value = _stoppably(self)
            self.took_ms = 1000 * (time.perf_counter() - began)
            self.check()
            self.state = "done"
        except Cancelled:
            self.state = "cancelled"
        except BaseException as error:
            self.state, self.error = "error", error
            if threading.current_thread().name != THREAD and not isinstance(error, Exception):
                self._ended.set()  # headless, an interrupt is the cell's
                raise
        self.end()

    def end(self) -> None:
        """Tell whoever asked; an error of theirs becomes the job's."""
        try:
            if self.state == "done" and self.on_result is not None:
                self.on_result(self._value)
            elif self.state == "error" and self.on_error is not None:
                assert self.error is not None
                self.on_error(self.error)
            elif self.state == "cancelled" and self.on_cancel is not None:
                self.on_cancel()
        except Exception as error:
            told = self.state == "error"
            self.state, self.error = "error", error
            if self.on_error is not None and not told:
                with suppress(Exception):
                    self.on_error(error)
        finally:
            self._ended.set()


THREAD = "model-worker"


@dataclass(frozen=True)
class Ended:
    """What is remembered of an ended job; not its result, which may be gigabytes."""

    key: Hashable
    label: str
    state: str
    i: int
    n: int
    note: str
    took_ms: float
    error: str
    left_s: float | None = None

    @classmethod
    def of(cls, job: Job) -> Ended:
        """The record of a job that has ended."""
        error = "" if job.error is None else f"{type(job.error).__name__}: {job.error}"
        return cls(job.key, job.label, job.state, job.i, job.n, job.note, job.took_ms, error)


class Worker:
    """A queue, its thread, and what became of the last jobs.

    Attributes:
        history: what became of the last 50 jobs.
    """

    def __init__(self) -> None:
        self.history: deque[Ended] = deque(maxlen=50)
        self._waiting: OrderedDict[Hashable, Job] = OrderedDict()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._listeners: list[Callable[[], None]] = []
        self._numbers = itertools.count()

    def submit(
        self,
        work: Callable[[Job], Any],
        *,
        key: Hashable | None = None,
        label: str = "",
        on_result: Callable[[Any], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
        on_cancel: Callable[[], None] | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Job:
        """Put `work(job)` into the queue; headless, do it at once.

        Args:
            key: replaces a waiting job of this key, which ends as cancelled. None: its own.
            on_result, on_error, on_cancel: called on the worker's thread when it has ended.
            on_progress: called there after every `job.progress`.
        """
        key = ("job", next(self._numbers)) if key is None else key
        job = Job(work, key, label or getattr(work, "__name__", "job"))
        job.on_result, job.on_error = on_result, on_error
        job.on_cancel, job.on_progress, job.tell = on_cancel, on_progress, self._tell
        job.later = lambda: key in self._waiting
        if headless():
            job.run()
            self.history.append(Ended.of(job))
            self._tell()
            return job
        with self._changed:
            replaced = self._waiting.get(key)
            self._waiting[key] = job
            self._ensure_thread()
            self._changed.notify_all()
        if replaced is not None:
            replaced.state, replaced.on_cancel = "cancelled", None
            replaced.end()
        self._tell()
        return job

    def jobs(self) -> list[Job]:
        """The running job, if any, then those that wait."""
        with self._changed:
            return [*([self._running] if self._running else []), *self._waiting.values()]

    def cancel(self, key: Hashable | None = None) -> int:
        """Cancel the jobs of a key, or all; returns how many."""
        with self._changed:
            hit = [job for job in self._waiting.values() if key in (None, job.key)]
            for job in hit:
                del self._waiting[job.key]
            running = self._running
            if running is not None and key in (None, running.key):
                running.cancel()
                count = len(hit) + 1
            else:
                count = len(hit)
        for job in hit:
            job.state = "cancelled"
            job.end()
            self.history.append(Ended.of(job))
        self._tell()
        return count

    def settle(self, timeout_s: float | int | None = None) -> None:
        """Wait until nothing runs or waits.

        Raises:
            TimeoutError: it takes longer than `timeout_s` seconds.
        """
        _refuse_own_thread("worker.settle")
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._running or self._waiting), timeout_s):
                raise TimeoutError(f"the worker is not done after {timeout_s} s")

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when a job comes, starts or ends; returns what stops it."""
        self._listeners.append(callback)
        return lambda: self._forget(callback)

    def _forget(self, callback: Callable[[], None]) -> None:
        with suppress(ValueError):
            self._listeners.remove(callback)

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name=THREAD, daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                _, job = self._waiting.popitem(last=False)
                self._running = job
            self._tell()
            job.run()
            with self._changed:
                self._running = None
                self.history.append(Ended.of(job))
                self._changed.notify_all()
            del job
            self._tell()

    def _tell(self) -> None:
        for callback in list(self._listeners):
            try:
                callback()
            except Exception:  # a panel that cannot draw must not stop the model
                self._forget(callback)


def _refuse_own_thread(where: str) -> None:
    if threading.current_thread().name == THREAD:
        raise WorkbenchError(
            where,
            "waits for the thread that it runs on",
            expected="a call from a cell",
            got=f"a call from {THREAD}",
            do="submit the work that needs it as on_result",
        )


def headless() -> bool:
    """Whether no browser is there: a report, a test, a script that said so."""
    return os.environ.get("WORKBENCH_HEADLESS") == "1"


def _stoppably(job: Job) -> Any:
    """The work, with every model call in it checking for a cancel."""
    from workbench.model.stopping import stoppable

    with stoppable(job.check):
        return job.work(job)


_the_one = Worker()
submit, jobs, cancel, settle = _the_one.submit, _the_one.jobs, _the_one.cancel, _the_one.settle
on_change, history = _the_one.on_change, _the_one.history


def in_background(function: Callable[..., Any], *args: Any, **options: Any) -> Job:
    """Run `function(*args, **options)` on the worker: `await wb.in_background(model.generate, prompts)`.

    The kernel stays free meanwhile; the interrupt button, `job.cancel()` and `%wb cancel` stop it
    before the model's next block. Several may wait at once, they run one after the other.

    Returns:
        A Job: await it, or ask for its `result()`.
    """
    name = getattr(function, "__qualname__", repr(function))
    return submit(lambda _job: function(*args, **options), label=name)
