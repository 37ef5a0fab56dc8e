"""SteeringLab's Python side: nothing runs unasked, its frame holds what the sweep and `compare` say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import worker
from workbench.errors import UnknownName, WorkbenchError
from workbench.steering.base import SteeringMethod
from workbench.sweep.methods import MethodPoint, MethodSweep
from workbench_widgets import LiveEdit, SteeringLab
from workbench_widgets.steering_lab.figures import _differs
from workbench_widgets.steering_lab.settings import Place

HOSTILE = "<img src=x onerror=alert(1)>"
PROMPTS = ["abc", "hello there", "x y z"]


@dataclass(frozen=True)
class Push(SteeringMethod):
    """A fixed direction in every layer; no part of the registry."""

    fails: bool = False
    wait: Callable[[], None] | None = None

    def fit(self, contrast: Any, **_handed: Any) -> wb.Intervention:
        """The same shift wherever rows are."""
        if self.wait is not None:
            self.wait()
        if self.fails:
            raise WorkbenchError("Push.fit", "cannot", expected="<b>rows</b>", got="x", do="y")
        shift = {s: {"shift": torch.ones(p.shape[1])} for s, p in contrast.positive.items()}
        return wb.Intervention("custom", "affine", shift, unit="ones", name="push")


def pairs(n: int = 4) -> list[wb.Prompt]:
    texts = ["abc", "bcd", "cde", "def", "efg", "fgh"]
    return [
        wb.Prompt(text=t, label=y, pair=i) for i, t in enumerate(texts[:n]) for y in (True, False)
    ]


def small(methods: Any = None, model: Any = None, **options: Any) -> SteeringLab:
    options = {
        "layers": (0, 1), "strengths": (-1, 2), "prompts": PROMPTS, "max_new_tokens": 4,
        "metrics": ("length", "kl_nats"),
    } | options  # fmt: skip
    given = methods or {"push": Push(), "other": Push()}
    return SteeringLab(model or tiny.model("llama"), pairs(), given, **options)


@pytest.fixture(scope="module")
def filled() -> SteeringLab:
    model = wb.load("reasoner")
    lab = SteeringLab(
        model, wb.tasks.make("judge", 24, seed=1), ["mean_difference", "ace"], layers=(2, 4),
        strengths=(-4, 4), prompts=wb.tasks.make("add", 10, seed=5), max_new_tokens=16,
        metrics=("accuracy", "kl_nats"), prompting="judge ",
    )  # fmt: skip
    return lab.train()


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    yield
    worker.cancel()
    worker.settle(20)


def place_in(lab: SteeringLab, point: MethodPoint) -> int:
    points = lab.frame["points"]
    want = (point.method, point.layer, point.strength, "control" if point.control else None)
    for i, kind in enumerate(points["kind"]):
        own = points["method"][i], points["layer"][i], points["strength"][i]
        if (*own, kind if kind == "control" else None) == want:
            return i
    raise LookupError(point)


def test_nothing_runs_before_it_is_asked_for() -> None:
    def never() -> None:
        raise AssertionError("it fitted")

    lab = small({"push": Push(wait=never)}, strengths=None)
    assert not lab._sweep.done and not lab.meta["complete"]
    assert lab.frame["points"]["kind"] == [] and lab.frame["done"] == 0
    assert lab.status["state"] == "idle" and lab.status["requested_seq"] == lab.seq
    lab.ask(methods=[], layers=[1])
    lab.ask(methods=["push"], x=0)
    assert lab.refresh() is None
    assert not lab._sweep.done and repr(lab) == "SteeringLab(1 method, 0 of 11 settings)"


def test_the_frame_holds_what_compare_says(filled: SteeringLab) -> None:
    model, prompts = filled._sweep.model, filled._sweep.prompts
    edit = wb.steering.fit("ace", model, wb.tasks.make("judge", 24, seed=1), progress=False)
    arm = wb.Arm("x", [edit.only("L4.resid_post").at(4.0)])
    table = wb.compare(
        [arm], model, prompts, ("accuracy", "kl_nats"), max_new_tokens=16, progress=False
    )
    frame, want = filled.frame, table.summary().set_index(["metric", "arm"])
    names = ("mean", "low", "high", "difference", "difference_low", "difference_high")
    edited = place_in(filled, MethodPoint("ace", 4, 4.0))
    control = place_in(filled, MethodPoint("ace", 4, 4.0, True))
    base = frame["points"]["kind"].index("base")
    for m, metric in enumerate(("accuracy", "kl_nats")):
        for place, said in ((edited, "x"), (control, "x (random control)"), (base, "base")):
            row = want.loc[metric, said]
            for name in names[: 3 if said == "base" else 6]:
                # strengths go as one batch here
                assert frame[name][m, place] == pytest.approx(row[name], abs=2e-5), (said, name)
        assert frame["difference"][m, base] == 0
    kinds = frame["points"]["kind"]
    assert kinds.count("prompting") == kinds.count("base") == 1
    assert kinds.count("method") == kinds.count("control") == 8
    assert filled.meta["complete"] and frame["done"] == frame["total"] == 18


def test_an_edit_differs_where_its_interval_and_its_corrected_p_say_so() -> None:
    # low, high, p of a paired difference
    rows = [(0.1, 0.2, 0.001), (-0.2, -0.1, 0.001), (-0.1, 0.1, 0.001), (0.1, 0.2, 0.02)]
    columns = np.array([(0.0,) * 4 + row for row in rows])
    assert _differs(columns, np.array([True] * 4)).tolist() == [True, True, False, True]
    more = np.concatenate([columns, [(0.0,) * 4 + (0.1, 0.2, 0.9)] * 2])
    edits = np.array([False] + [True] * 5)  # a control is no edit, and counts for no correction
    assert _differs(more, edits).tolist() == [False, True, False, False, False, False]


def test_the_frame_holds_the_continuations(filled: SteeringLab) -> None:
    frame, sweep = filled.frame, filled._sweep
    for point in (MethodPoint("ace", 2, -4.0), MethodPoint("mean_difference", 4, 4.0), sweep.BASE):
        slot = frame["slots"][place_in(filled, point)]
        for i, generation in enumerate(sweep.done[point].generations[: frame["kept"]]):
            start, stop = frame["text_ends"][slot * frame["kept"] + i :][:2]
            assert frame["text_ids"][start:stop].tolist() == list(generation.ids)
    assert frame["kept"] == 8 and filled.meta["but"] == "texts after the first 8 prompts"
    assert frame["slots"][place_in(filled, MethodPoint("ace", 2, 4.0, True))] == -1
    filled.choose("ace", 2, 4.0, control=True)
    both = filled._fetch("texts", {}, worker.Job(None, None, ""))
    own = [i for g in sweep.done[MethodPoint("ace", 2, 4.0, True)].generations for i in g.ids]
    assert both["kept"] == 10 and both["text_ids"][both["text_ends"][10] :].tolist() == own


def test_a_choice_computes_nothing_and_names_the_edit(filled: SteeringLab, monkeypatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(filled._sweep.model, "generate", never)
    seq = filled.seq
    filled.choose("mean_difference", 4, -4.0)
    assert filled.seq == seq and filled.chosen == MethodPoint("mean_difference", 4, -4.0)
    record = filled.to_record()
    assert record.sites == ("L4.resid_post",) and record.strength == -4.0
    assert "mean_difference, layer 4, strength -4: accuracy" in repr(filled)
    filled.choose("ace", 2, 4.0, control=True)
    assert filled.to_record().tensors != record.tensors and "random direction" in repr(filled)
    for chosen in (
        None,
        {},
        {"kind": "method"},
        [1],
        "x",
        {**Place("method", "x", 1, 1)._asdict()},
    ):
        filled.ask(chosen=chosen)
        assert filled.chosen is None
    with pytest.raises(WorkbenchError, match="no such point.*strength -4"):
        filled.choose("ace", 2, 3.0)
    with pytest.raises(WorkbenchError, match="no edit chosen"):
        filled.to_record()
    filled.choose("base", None, 0)
    with pytest.raises(WorkbenchError, match=r"no edit chosen.*\n?.*baseline"):
        filled.to_record()


def test_a_record_is_what_was_measured(filled: SteeringLab) -> None:
    filled.choose("ace", 2, -4.0)
    sweep = filled._sweep
    found = sweep.model.generate(sweep.prompts, edits=[filled.to_record()], max_new_tokens=16)
    done = sweep.done[MethodPoint("ace", 2, -4.0)].generations
    assert [g.ids for g in found] == [g.ids for g in done]


@pytest.mark.parametrize("n", [24, 48])
def test_the_code_gives_the_chosen_point(n: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lab = SteeringLab(
        wb.load("reasoner"), wb.tasks.make("locked", n, seed=1), [wb.steering.Pca()], layers=[3],
        strengths=(3,), prompts=wb.tasks.make("add", 4, seed=5), max_new_tokens=12,
    )  # fmt: skip
    lab.train().choose("pca", 3, 3)
    for control in (False, True):
        lab.choose("pca", 3, 3, control=control)
        names: dict[str, Any] = {}
        exec(lab.to_code(), names)
        point = MethodPoint("pca", 3, 3.0, control)
        assert [t.ids for t in names["texts"]] == [
            g.ids for g in lab._sweep.done[point].generations
        ]
    short = next(code for name, layer, code, unit in lab.frame["recipes"] if name == "pca")
    assert short == "wb.steering.fit('pca', model, data).only('L3.resid_post')"
    names = {"wb": wb, "model": lab._sweep.model, "data": wb.tasks.make("locked", n, seed=1)}
    made = eval(short, names)
    want = lab._sweep.edit_at(MethodPoint("pca", 3, 1.0))
    assert torch.equal(
        made.tensors["L3.resid_post"]["shift"], want.tensors["L3.resid_post"]["shift"]
    )


def test_completions_and_options_stand_in_the_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = [
        wb.Prompt(text="abc", label=y, pair=i, meta={"completion": c, "other": 1})
        for i, (y, c) in enumerate([(True, "a"), (False, "b"), (True, "c"), (False, "d")])
    ]
    options = dict(layers=[1], strengths=(1,), prompts=PROMPTS, max_new_tokens=3, control=False)
    lab = SteeringLab(tiny.model("llama"), data, [wb.steering.Ace()], **options).train()
    code = lab.choose("ace", 1, 1).to_code()
    assert "meta={'completion': 'a'}" in code and "other" not in code
    assert "fit('ace', model, data)" in code


def test_it_opens_the_edit_in_a_live_edit(filled: SteeringLab) -> None:
    filled.choose("ace", 4, 4.0)
    live = filled.live(max_new_tokens=3)
    assert isinstance(live, LiveEdit) and live.spec["max_new_tokens"] == 3
    (edit,) = live.to_record()
    assert edit.strength == 4.0 and edit.sites == ("L4.resid_post",)
    assert live._prompts == filled._sweep.prompts
    filled.choose("base", None, 0)
    assert filled.live().to_record() == ()
    filled.choose("ace", 4, 4.0)
    reference = filled._fetch("open", {}, worker.Job(None, None, ""))["opened"]
    assert reference == f"IPY_MODEL_{filled._shown_live.model_id}" == filled.meta["opened"]
    first = filled._shown_live
    filled._fetch("open", {}, worker.Job(None, None, ""))
    assert first.comm is None and filled.meta["opened"] != reference, "the one before it is closed"


def test_it_trains_what_is_chosen_and_more_later() -> None:
    lab = small()
    lab.train(["push"], [1])
    assert {(p.method, p.layer) for p in lab._sweep.done} == {("base", None), ("push", 1)}
    assert lab.meta["complete"] and lab.meta["but"] == "" and lab.frame["done"] == 5
    lab.ask(methods=["push", "other"])
    assert lab.refresh() is None
    assert len(lab._sweep.done) == 5, "a box computes nothing"
    assert lab.meta["but"] == "4 settings not computed"
    lab.train()
    assert len(lab._sweep.done) == 9 and lab.meta["but"] == ""
    with pytest.raises(UnknownName, match="nothing"):
        lab.train(["nothing"])
    with pytest.raises(WorkbenchError, match="no such layer"):
        lab.train(layers=[7])


def test_strengths_are_calibrated_when_they_are_needed() -> None:
    lab = small({"push": Push(), "other": Push()}, strengths=None, target_kl_nats=0.1)
    assert lab.frame["total"] == 1 + 2 * 2 * 2 * 5
    lab.train(["push"])
    assert lab._sweep.ready("push") and not lab._sweep.ready("other")
    points = lab.frame["points"]
    both = zip(points["strength"], points["method"], strict=True)
    strengths = sorted({strength for strength, method in both if method == "push"})
    assert strengths == lab._sweep.strengths["push"] != [0.25, 0.5, 1, 1.5, 2]
    lab.choose("push", 0, round(strengths[0], 5))
    assert lab.to_record().strength == strengths[0]


def test_a_method_that_fails_says_why_and_the_others_stand() -> None:
    lab = small({"bad": Push(fails=True), "push": Push()}).train()
    frame = lab.frame
    ((words, places),) = frame["errors"]
    assert "cannot" in words and {frame["points"]["method"][i] for i in places} == {"bad"}
    good = place_in(lab, MethodPoint("push", 1, 2.0))
    values = lab._sweep.done[MethodPoint("push", 1, 2.0)].values["kl_nats"]
    assert frame["mean"][1, good] == pytest.approx(sum(values) / len(values))
    assert lab.meta["complete"] and lab.status["state"] == "idle"
    assert [name for name, *_ in frame["recipes"]] == ["push", "push"]


def test_a_lab_of_a_sweep_shows_all_that_it_has() -> None:
    sweep = MethodSweep(
        tiny.model("llama"), pairs(), {"push": Push()}, layers=[0], strengths=(1, 2),
        prompts=PROMPTS, metrics=("length",), max_new_tokens=3,
    )  # fmt: skip
    sweep.run(progress=False)
    lab = SteeringLab.of(sweep)
    assert lab.meta["complete"] and lab.frame["done"] == lab.frame["total"] == 5
    assert lab.table().frame().equals(sweep.table().frame())


def test_next_token_alone_needs_no_texts() -> None:
    lab = small(metrics=None, target="a").train()
    assert [m["name"] for m in lab.meta["metrics"]] == ["target_probability", "next_token_kl_nats"]
    assert lab.spec["x"] == 1 and lab.frame["text_ends"].tolist() == [0]
    assert set(lab.frame["slots"]) == {-1} and lab.meta["but"] == ""


def test_methods_that_need_rows_alone_are_offered_and_one_is_chosen() -> None:
    lab = SteeringLab(
        tiny.model("llama"), pairs(), prompts=PROMPTS, layers=[1], metrics=("length",)
    )
    assert lab.meta["methods"][0] == "mean_difference" and len(lab.meta["methods"]) > 2
    assert lab.spec["methods"] == ["mean_difference"]
    assert all(m.needs == () for m in lab._sweep.methods.values())


def test_what_cannot_be_swept_is_refused_at_once() -> None:
    with pytest.raises(UnknownName, match="nope"):
        small(["nope"])
    with pytest.raises(WorkbenchError, match="layer"):
        small(layers=[9])
    with pytest.raises(WorkbenchError, match="no task"):
        small(metrics=("accuracy",))


def test_a_cancel_keeps_what_is_done_and_continues_later(live: None) -> None:
    began, go = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        go.wait(10)
        for job in worker.jobs():
            job.check()

    lab = small({"push": Push(), "slow": Push(wait=wait)})
    lab.train()
    assert began.wait(10)
    assert "slow" in lab.status["msg"], "what takes long is named"
    lab._cancel()
    go.set()
    worker.settle(10)
    assert lab.status["state"] == "cancelled" and lab.status["requested_seq"] == lab.seq
    done = dict(lab._sweep.done)
    assert {p.method for p in done} == {"base", "push"} and lab.frame["done"] == len(done) == 5
    assert lab.meta["complete"] and lab.meta["but"] == "12 settings not computed"
    lab.choose("push", 1, 2)
    lab.ask(controls=False)
    worker.settle(10)
    assert len(lab._sweep.done) == 5, "after a cancel only Continue goes on"
    lab.go_on()
    worker.settle(20)
    assert lab.frame["done"] == lab.frame["total"] == 17 and lab.meta["but"] == ""
    assert not lab.frame["errors"], "a cancelled fit is no failed fit"
    assert all(lab._sweep.done[p] is cell for p, cell in done.items())


def test_progress_names_the_setting(live: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    lab = small({"push": Push()}, strengths=None, target_kl_nats=0.1)
    real = lab._say
    monkeypatch.setattr(lab, "_say", lambda *a, **k: (said.append(k.get("msg", "")), real(*a, **k)))
    lab.train()
    worker.settle(30)
    notes = " | ".join(said)
    assert "baseline" in notes and "fitting push" in notes and "random direction" in notes
    assert "s left" in notes
    time.sleep(0.01)
    assert lab.status["state"] == "idle"


def test_the_still_is_small_and_escaped() -> None:
    many = {f"{HOSTILE} {i}": Push() for i in range(12)}
    lab = small(many, strengths=tuple(range(1, 8)), layers=(0, 1, 2))
    assert "0 of" in lab._still()
    lab.train()
    lab.choose(f"{HOSTILE} 1", 2, 3)
    still = lab._still()
    assert len(still.encode()) < 20_000 and "<script" not in still and "<img" not in still
    assert "more lines are left out" in still and "&lt;img" in still
    lab.ask(x=0, y=1)
    assert lab._still() != still
    few = small({"push": Push()}).train()
    few.ask(x=0, y=1)
    moved = [place_in(few, MethodPoint("push", 1, s)) for s in (-1.0, 2.0)]
    most = max(few.frame["mean"][1, moved])
    assert f"<td>{most:.3g} [" in few._still() and "baseline" in few._still()
