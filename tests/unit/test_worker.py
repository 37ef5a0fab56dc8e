"""The one model thread: latest wins, cancel between blocks, errors stay inside, headless is synchronous."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from tests import tiny
from workbench.model.stopping import stoppable
from workbench.worker import THREAD, Cancelled, Job, Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    return Worker()


class Gate:
    """Work that waits until it is let go, and says when it began."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> str:
        self.began.set()
        while not self.go.wait(0.005):
            job.check()
        return threading.current_thread().name


def test_the_latest_request_of_a_key_wins(worker: Worker) -> None:
    gate, ran = Gate(), []
    first = worker.submit(gate, key="other")
    gate.began.wait(5)
    jobs = [worker.submit(lambda _, i=i: ran.append(i), key="slider") for i in range(40)]
    assert len(worker.jobs()) == 2
    gate.go.set()
    worker.settle(5)
    assert ran == [39]
    assert [job.state for job in jobs] == ["cancelled"] * 39 + ["done"]
    assert first.result(1) == THREAD


def test_a_running_job_knows_that_it_will_be_replaced(worker: Worker) -> None:
    gate = Gate()
    job = worker.submit(gate, key="a")
    gate.began.wait(5)
    assert not job.superseded()
    worker.submit(lambda _: None, key="a")
    assert job.superseded()
    gate.go.set()
    worker.settle(5)


def test_cancel_stops_a_running_job_and_the_next_one_succeeds(worker: Worker) -> None:
    gate, told = Gate(), []
    job = worker.submit(gate, key="a", on_cancel=lambda: told.append("cancelled"))
    gate.began.wait(5)
    assert worker.cancel("a") == 1
    with pytest.raises(Cancelled):
        job.result(5)
    assert told == ["cancelled"]
    assert worker.submit(lambda _: 7).result(5) == 7


def test_an_error_even_of_a_callback_leaves_the_thread_alive(worker: Worker) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("callback")

    failing = worker.submit(lambda _: 1 / 0, on_error=broken)
    with pytest.raises(RuntimeError, match="callback"):
        failing.result(5)
    assert worker.submit(lambda _: 7, on_result=broken).done() in (True, False)
    worker.settle(5)
    assert worker.submit(lambda _: 8).result(5) == 8


def test_headless_work_is_done_before_submit_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    got: list[int] = []
    job = Worker().submit(lambda _: 7, on_result=got.append)
    assert (job.state, got) == ("done", [7])


def test_progress_says_how_long_is_left(worker: Worker) -> None:
    left = []

    def work(job: Job) -> None:
        for i in range(4):
            time.sleep(0.01)
            job.progress(i + 1, 4)
            left.append(job.left_s)

    worker.submit(work).result(5)
    assert left[0] > left[1] > left[2] > left[3] == 0


def test_an_awaited_job_is_cancelled_with_its_cell(worker: Worker) -> None:
    gate = Gate()
    job = worker.submit(gate)

    async def cell() -> None:
        task = asyncio.ensure_future(job._waited())
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cell())
    with pytest.raises(Cancelled):
        job.result(5)


def test_waiting_on_the_workers_own_thread_is_refused(worker: Worker) -> None:
    def work(_: Job) -> Any:
        return worker.submit(lambda _: 1, key="inner").result(1)

    with pytest.raises(ValueError, match="waits for the thread that it runs on"):
        worker.submit(work).result(5)


@pytest.mark.parametrize("verb", ["run", "generate"])
def test_a_model_call_stops_before_the_next_block_and_leaves_no_hook(verb: str) -> None:
    model = tiny.model("llama")
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:  # once at the start, then before block 0 and block 1
            raise Cancelled

    with stoppable(check), pytest.raises(Cancelled):
        getattr(model, verb)(["abc"])
    assert len(calls) == 3
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.hf.modules())
    assert model.run(["abc"]).logits.isfinite().all()
