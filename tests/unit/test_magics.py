"""`%load_ext workbench` and `%wb`, through a shell as a notebook's cell goes through it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import workbench as wb
from workbench import worker
from workbench.errors import DeviceUnavailable, UnknownName
from workbench.lab import devices, magics, status


@pytest.fixture(scope="module")
def shell() -> InteractiveShell:
    made = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    made.run_line_magic("load_ext", "workbench")
    return made


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The worker with nothing in it, and a real thread, as in a notebook."""
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    worker.cancel()
    worker.settle(10.0)
    worker.history.clear()
    yield
    worker.cancel()
    worker.settle(10.0)


@pytest.fixture
def running() -> Iterator[worker.Job]:
    """A job that has done 3 of 10 steps and goes on until it is cancelled."""
    started, over = threading.Event(), threading.Event()

    def work(job: worker.Job) -> None:
        job.progress(3, 10, "prompt 3")
        started.set()
        while not over.wait(0.005):
            job.check()

    job = worker.submit(work, key=("sweep", 7), label="sweep of L3")
    assert started.wait(10)
    yield job
    over.set()


def say(shell: InteractiveShell, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    shell.run_line_magic("wb", line)
    return capsys.readouterr().out


def test_status_while_a_job_runs_shows_it_and_the_one_that_waits(
    shell: InteractiveShell, running: worker.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.submit(lambda _: None, key="lens", label="lens grid")
    heading, first, second, *rest = say(shell, "status", capsys).splitlines()
    assert heading.split() == ["job", "key", "state", "progress", "ms"]
    assert first.split() == ["sweep", "of", "L3", "sweep:7", "running", "3/10", "prompt", "3"]
    assert second.split() == ["lens", "grid", "lens", "queued"]
    assert rest[0].startswith("cpu: ")
    assert "GiB free" in rest[0]


def test_status_of_ended_jobs_has_their_time_and_their_error(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.submit(lambda _: threading.Event().wait(0.05), key="good", label="good").result(10.0)
    bad = worker.submit(lambda _: 1 / 0, key="bad", label="bad")
    with pytest.raises(ZeroDivisionError):
        bad.result(10.0)
    worker.settle(10.0)
    _, good, failed, nothing, *_ = say(shell, "", capsys).splitlines()
    assert good.split()[:3] == ["good", "good", "done"]
    assert 50 <= float(good.split()[-1]) < 5000
    assert "error: ZeroDivisionError: division by zero" in failed
    assert nothing == "nothing runs or waits"


def test_cancel_of_a_key_leaves_the_others(
    shell: InteractiveShell, running: worker.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = worker.submit(lambda _: "done", key="lens", label="lens grid")
    assert say(shell, "cancel sweep:7", capsys) == "cancelled: sweep of L3\n"
    assert waiting.result(10.0) == "done"
    assert running.state == "cancelled"


def test_cancel_without_a_key_cancels_everything(
    shell: InteractiveShell, running: worker.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = worker.submit(lambda _: None, key="lens", label="lens grid")
    assert say(shell, "cancel", capsys) == "cancelled: sweep of L3, lens grid\n"
    worker.settle(10.0)
    assert {running.state, waiting.state} == {"cancelled"}
    assert say(shell, "cancel", capsys) == "nothing runs or waits\n"


def test_cancel_of_an_unknown_key_names_those_there_are(running: worker.Job) -> None:
    with pytest.raises(UnknownName, match="nearest: sweep:7; got 'sweep:8'"):
        status.cancel("sweep:8")
    assert running.state == "running"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sttus", "unknown subcommand; expected one of 3 names, nearest: status, "),
        ("status now", "has too many words; expected at most 0 after status; got now; "),
        ("device cpu cuda", "expected at most 1 after device"),
        ("device warp", "unknown device"),
        (
            "device meta",
            "unknown device",
        ),  # torch's device without memory: the weights would be gone
    ],
)
def test_a_mistake_is_one_line(shell: InteractiveShell, line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("wb", line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_subcommand_lists_every_right_one() -> None:
    with pytest.raises(UnknownName) as caught:
        magics.answer("stop", {})
    assert all(name in str(caught.value) for name in ("status", "cancel", "device"))


def test_the_devices_are_this_machines() -> None:
    found = devices.devices()
    assert found[0].name == "cpu"
    assert 0 < found[0].free_gib <= found[0].total_gib
    assert sum(d.name.startswith("cuda:") for d in found) == torch.cuda.device_count()


def test_device_without_a_name_shows_where_the_models_are(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wb.load(wb.shipped()[0], device="cpu")
    for name, value in {"mine": model, "_": model, "n": 3}.items():
        monkeypatch.setitem(shell.user_ns, name, value)
    lines = say(shell, "device", capsys).splitlines()
    assert lines[0].startswith("cpu: ")
    assert lines[-1] == f"mine ({model.name}) is on cpu"
    assert [line for line in lines if line.startswith("_ ")] == []


def test_device_with_a_name_moves_each_model_once_on_the_workers_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = wb.load(wb.shipped()[0], device="cpu")
    calls: list[tuple[Any, ...]] = []
    to = type(model).to

    def noted(self: wb.Model, device: str) -> wb.Model:
        calls.append((self, device, threading.current_thread().name))
        return to(self, device)

    monkeypatch.setattr(type(model), "to", noted)
    namespace = {"mine": model, "same": model, "_3": model, "text": "x"}
    said = devices.move(namespace, "cpu")
    assert calls == [(model, "cpu", worker.THREAD)]
    assert said.splitlines() == [
        f"mine ({model.name}) is now on cpu",
        f"same ({model.name}) is now on cpu",
    ]


def test_moving_where_nothing_is_says_so() -> None:
    assert devices.move({"n": 3}, "cpu").startswith("no variable of this notebook holds a model")


def test_a_device_that_is_not_there_moves_nothing() -> None:
    model = wb.load(wb.shipped()[0], device="cpu")
    with pytest.raises(DeviceUnavailable, match="no such device"):
        devices.move({"mine": model}, "cuda:99")
    assert model.device.type == "cpu"
