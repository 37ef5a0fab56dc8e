"""SweepExplorer's Python side: its frame holds what wb.compare says, filled once, kept after a cancel."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import worker
from workbench.errors import PromptError, WorkbenchError
from workbench.sweep import BASE, Point
from workbench_widgets import SweepExplorer

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
HOSTILE = "<img src=x onerror=alert(1)>"
PROMPTS = ["abc", "hello there", "900+7=", "x y z"]


def edit(d: int = 32, layers=(0, 1, 2), name: str = "shift") -> wb.Intervention:
    tensors = {
        f"L{y}.resid_post": {"shift": torch.randn(d, generator=torch.Generator().manual_seed(y))}
        for y in layers
    }
    return wb.Intervention("custom", "affine", tensors, 1.0, name=name)


def explorer(model=None, given=None, prompts=None, **options) -> SweepExplorer:
    options = {
        "metrics": ("length", "kl_nats"),
        "max_new_tokens": 6,
        "strengths": (-2, 0, 2),
    } | options
    return SweepExplorer(
        model or tiny.model("gpt2"), prompts or PROMPTS, given or edit(), **options
    )


@pytest.fixture(scope="module")
def reasoner() -> tuple:
    model = wb.load("reasoner")
    found = model.record(wb.tasks.make("judge", 24, seed=1), "L*.resid_post", progress=False)
    fitted = wb.steering.MeanDifference().fit(found.contrast())
    return model, wb.tasks.make("add", 8, seed=5), fitted


@pytest.fixture(scope="module")
def filled(reasoner) -> SweepExplorer:
    model, prompts, fitted = reasoner
    options = dict(layers=(2, 4), strengths=(-15, 0, 15), metrics=("accuracy", "kl_nats"))
    return SweepExplorer(model, prompts, fitted, max_new_tokens=24, **options)


def test_the_frame_holds_what_compare_says(reasoner, filled: SweepExplorer) -> None:
    model, prompts, fitted = reasoner
    arm = wb.Arm("x", [fitted.only("L4.resid_post").at(15.0)])
    table = wb.compare(
        [arm], model, prompts, ("accuracy", "kl_nats"), max_new_tokens=24, progress=False
    )
    frame = filled.frame
    for m, metric in enumerate(("accuracy", "kl_nats")):
        want = table.summary().set_index(["metric", "arm"])
        for kind, arm_name in (("", "x"), ("control_", "x (random control)")):
            row = want.loc[metric, arm_name]
            for name in ("mean", "low", "high", "difference", "difference_low", "difference_high"):
                assert frame[kind + name][m, 1, 2] == pytest.approx(row[name], abs=1e-6)
        base = want.loc[metric, "base"]
        assert frame["base"][m].tolist() == pytest.approx([base["mean"], base["low"], base["high"]])
        assert frame["mean"][m, :, 1].tolist() == pytest.approx([base["mean"]] * 2)
    assert not frame["differs"][:, :, 1].any()
    assert filled.meta["complete"] and frame["done"] == frame["total"] == 9
    assert filled.status["state"] == "idle" and filled.status["requested_seq"] == filled.seq


def test_the_frame_holds_the_continuations(reasoner, filled: SweepExplorer) -> None:
    model, prompts, fitted = reasoner
    frame = filled.frame
    wanted = model.generate(
        prompts, edits=[fitted.only("L2.resid_post").at(-15.0)], max_new_tokens=24
    )
    slot = frame["slots"]["0,0"]
    for i, generation in enumerate(wanted):
        n = slot * frame["kept"] + i
        start, stop = frame["text_ends"][n : n + 2]
        ids = frame["text_ids"][start:stop].tolist()
        assert ids == list(generation.ids)
        assert "".join(frame["pieces"][str(i)] for i in ids).startswith(generation.text)
        assert frame["text_logprobs"][start:stop].tolist() == pytest.approx(
            generation.logprobs, abs=1e-6
        )
        assert frame["text_right"][n] == wb.tasks.check(generation.prompt, generation.text)


def test_a_choice_computes_nothing_and_names_the_edit(filled: SweepExplorer, monkeypatch) -> None:
    def never(*_, **__):
        raise AssertionError("it ran")

    monkeypatch.setattr(filled._sweep.model, "generate", never)
    seq = filled.seq
    filled.choose(2, -15.0)
    assert filled.seq == seq
    record = filled.to_record()
    assert record.sites == ("L2.resid_post",) and record.strength == -15.0
    assert "layer 2, strength -15" in repr(filled)
    with pytest.raises(WorkbenchError, match="no such layer"):
        filled.choose(3, 15.0)


def test_the_code_gives_the_chosen_cell(filled: SweepExplorer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    filled.choose(4, 15.0)
    names: dict = {}
    exec(filled.to_code(), names)
    frame = names["table"].frame()
    mine = frame[(frame.arm == "mean_difference") & (frame.metric == "kl_nats")].value.tolist()
    assert mine == filled._sweep.done[Point(4, 15.0)].values["kl_nats"]


def test_the_table_is_the_sweeps(filled: SweepExplorer) -> None:
    frame = filled.table().frame()
    row = frame[(frame.kind == "edit") & (frame.layer == 4) & (frame.strength == -15)]
    mean = row[row.metric == "accuracy"].value.mean()
    assert filled.frame["mean"][0, 1, 0] == pytest.approx(mean)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "mixtral"])
def test_other_architectures(family: str) -> None:
    found = explorer(tiny.model(family))
    assert found.meta["complete"]
    assert np.isfinite(found.frame["mean"]).all()


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in ../shared/data")
def test_stories() -> None:
    model = wb.load(str(STORIES))
    given = edit(model.d_model, layers=(1, 3))
    found = explorer(model, given, ["Once upon a time", "Lily saw a"], strengths=(0, 4))
    assert np.isfinite(found.frame["mean"]).all()
    assert found.frame["text_right"].tolist() == [2] * len(found.frame["text_right"])


def test_a_failed_cell_says_why_and_the_rest_stands() -> None:
    found = explorer(strengths=(1, 1e38))
    frame = found.frame
    assert frame["state"].tolist() == [[1, 2]] * 3
    assert "infinite or NaN" in frame["errors"]["0,1"]
    assert np.isnan(frame["mean"][:, :, 1]).all() and np.isfinite(frame["mean"][:, :, 0]).all()
    assert found.status["state"] == "idle"


def test_what_cannot_be_swept_is_refused_at_once() -> None:
    with pytest.raises(PromptError, match="there are none"):
        SweepExplorer(tiny.model("gpt2"), [], edit())
    with pytest.raises(PromptError, match="longer than the context"):
        explorer(prompts=["a" * 4000])
    with pytest.raises(WorkbenchError, match="no task"):
        explorer(metrics=("accuracy",))
    with pytest.raises(WorkbenchError, match="no such layers"):
        explorer(layers=[9])


def test_the_still_is_small_and_escaped() -> None:
    wide = explorer(given=edit(name=HOSTILE), strengths=np.linspace(-3, 3, 40), control=False)
    still = wide._still()
    assert len(still) < 20_000 and "<script" not in still and "<img src=x" not in still
    value = f"{wide.frame['mean'][1, 2, 39]:.3g}"
    assert value not in still, "another metric is shown"
    wide.ask(metric=1)
    assert value in wide._still()


def test_long_sweeps_keep_fewer_texts(monkeypatch) -> None:
    import workbench_widgets.sweep_explorer.widget as module

    monkeypatch.setattr(module, "TOKENS_KEPT", 100)
    found = explorer()
    assert found.frame["kept"] < 4
    assert len(found.frame["text_ids"]) <= 100
    whole = found._fetch("texts", {"layer": 1, "strength": 2}, worker.Job(None, None, ""))
    assert whole["kept"] == 4
    n = whole["text_ends"][4]
    want = [i for g in found._sweep.done[Point(1, 2.0)].generations for i in g.ids]
    assert whole["text_ids"][n:].tolist() == want


def test_a_cancel_keeps_what_is_done_and_continues_later(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, calls, real = tiny.model("gpt2"), [], tiny.model("gpt2").generate

    def slow(*args, **options):
        calls.append(options["arm"])
        time.sleep(0.1)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    found = explorer(model)
    deadline = time.monotonic() + 10
    while len(found._sweep.done) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    found._cancel()
    worker.settle(10)
    done = len(found._sweep.done)
    assert 4 <= done < 13
    assert found.status["state"] == "cancelled" and found.status["requested_seq"] == found.seq
    assert found.frame["done"] == done and not found.meta["complete"]

    found.choose(0, -2.0)  # a cell that is pointed at is computed, the others wait
    worker.settle(10)
    assert Point(0, -2.0) in found._sweep.done and len(found._sweep.done) <= done + 1

    found.go_on()
    worker.settle(20)
    assert found.meta["complete"] and found.frame["done"] == 13 and BASE in found._sweep.done
    assert len(calls) <= 13 + 1, "only the cell that was cancelled is computed twice"


def test_how_it_is_cancelled_makes_no_difference(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, real = tiny.model("gpt2"), tiny.model("gpt2").generate

    def slow(*args, **options):
        time.sleep(0.1)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    found = explorer(model)
    deadline = time.monotonic() + 10
    while len(found._sweep.done) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.cancel(("widget", id(found)))
    found.choose(1, -2.0)  # before the running cell has ended
    worker.settle(10)
    assert Point(1, -2.0) in found._sweep.done and len(found._sweep.done) <= 5
    done = len(found._sweep.done)
    found.ask(metric=1)
    found.choose(1, -2.0)
    worker.settle(10)
    assert len(found._sweep.done) == done
    found.choose(2, 2.0)
    worker.settle(10)
    assert Point(2, 2.0) in found._sweep.done and len(found._sweep.done) == done + 1
    found.go_on()
    worker.settle(20)
    assert found.meta["complete"] and found.meta["but"] == ""


def test_a_cancel_while_it_waits_holds_it(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    first = worker.submit(lambda job: [(time.sleep(0.01), job.check()) for _ in range(1000)])
    found = explorer()
    worker.cancel(("widget", id(found)))
    first.cancel()
    worker.settle(10)
    assert found.status["state"] == "cancelled" and not found._sweep.done
    found.ask(show="difference")
    worker.settle(10)
    assert not found._sweep.done, "how it is shown is no click on a cell"
    found.choose(1, 2.0)
    worker.settle(10)
    assert set(found._sweep.done) == {BASE, Point(1, 2.0)}
    found.go_on()
    worker.settle(20)
    assert found.meta["complete"]


def test_a_continue_during_a_cancel_counts(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, real = tiny.model("gpt2"), tiny.model("gpt2").generate

    def slow(*args, **options):
        time.sleep(0.05)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    found = explorer(model)
    deadline = time.monotonic() + 10
    while len(found._sweep.done) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.cancel(("widget", id(found)))
    found.go_on()
    worker.settle(20)
    assert found.meta["complete"] and found.status["state"] == "idle"


def test_it_says_which_texts_it_keeps() -> None:
    found = explorer(prompts=[f"p{i}" for i in range(10)], control=False, layers=[1])
    assert found.frame["kept"] == 8
    assert found.meta["complete"] and found.meta["but"] == "texts after the first 8 prompts"
    assert explorer(control=False, layers=[1]).meta["but"] == ""
