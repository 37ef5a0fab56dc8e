"""RolloutBoard's Python side: the table of wb.compare, pass@k, training, what is kept and refused."""

from __future__ import annotations

import math
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import worker
from workbench.decoding import Greedy, Sample
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.rl import Reinforce, TrainArm
from workbench_widgets import RolloutBoard
from workbench_widgets.rollout_board.figures import Figures
from workbench_widgets.rollout_board.still import still

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
HOSTILE = "<img src=x onerror=alert(1)>"
PROMPTS = ["abc", "hello there", "900+7=", "x y z"]
SMALL = {"metrics": ("length", "kl_nats"), "max_new_tokens": 6, "seeds": (0, 1)}


def edit(d: int = 32, site: str = "L1.resid_post", strength: float = 2.0) -> wb.Intervention:
    shift = torch.randn(d, generator=torch.Generator().manual_seed(3))
    return wb.Intervention("custom", "affine", {site: {"shift": shift}}, strength, name="shift")


def board(arms=None, model=None, prompts=None, **options) -> RolloutBoard:
    arms = [wb.Arm("steered", [edit()])] if arms is None else arms
    return RolloutBoard(model or tiny.model("gpt2"), prompts or PROMPTS, arms, **SMALL | options)


@pytest.fixture(scope="module")
def reasoner() -> tuple:
    return wb.load("reasoner"), wb.tasks.make("add", 8, seed=5)


@pytest.fixture(scope="module")
def judged(reasoner) -> RolloutBoard:
    model, prompts = reasoner
    arms = [wb.Arm("steered", [edit(model.d_model, "L3.resid_post", 1.0)])]
    return RolloutBoard(model, prompts, arms, max_new_tokens=24)


def same(one: wb.Table, other: wb.Table) -> bool:
    made = [{k: v for k, v in t.provenance.items() if k != "date"} for t in (one, other)]
    return (
        one.frame().equals(other.frame())
        and one.generations == other.generations
        and made[0] == made[1]
    )


def lines(found: RolloutBoard) -> dict:
    return {(x["arm"], x["metric"]): x for x in found.frame["lines"]}


def test_the_table_is_that_of_compare(reasoner, judged: RolloutBoard) -> None:
    model, prompts = reasoner
    table = wb.compare(
        judged._board.plain, model, prompts, seeds=(0, 1, 2, 3), decoder=Sample(temperature=1.0),
        max_new_tokens=24, progress=False,
    )  # fmt: skip
    assert same(judged.table(), table)
    got = lines(judged)
    for row in table.summary().to_dict("records"):
        line = got[row["arm"], row["metric"]]
        for name in ("mean", "low", "high", "difference", "difference_low", "difference_high"):
            want = None if np.isnan(row[name]) else pytest.approx(row[name])
            assert line[name] == want
        assert line["differs"] == row["differs"]
        assert line["p_holm"] == (None if np.isnan(row["p_holm"]) else pytest.approx(row["p_holm"]))


def test_pass_at_k_counts_choices_of_seeds(judged: RolloutBoard) -> None:
    frame = judged.table().frame()
    got = lines(judged)
    for arm in judged.table().arms:
        rows = frame[(frame.arm == arm) & (frame.metric == "accuracy")]
        right = rows.pivot(index="prompt", columns="seed", values="value").to_numpy()
        for k in (2, 4):
            hits = [[row[list(c)].any() for c in combinations(range(4), k)] for row in right]
            assert got[arm, f"pass@{k}"]["mean"] == pytest.approx(np.mean(hits))
    assert {m["name"] for m in judged.meta["metrics"]} >= {"pass@2", "pass@4"}


def test_every_transcript_is_behind_its_number(judged: RolloutBoard) -> None:
    frame, table = judged.frame, judged.table()
    rounds = [tuple(r) for r in frame["rounds"]]
    assert frame["kept"] == 8 and judged.meta["complete"]
    accuracy = table.frame().query("metric == 'accuracy'")
    for arm, seed in rounds:
        r = rounds.index((arm, seed))
        own = accuracy[(accuracy.arm == arm) & (accuracy.seed == seed)].value.tolist()
        assert frame["right"][r].tolist() == own
        for i, text in enumerate(g for g in table.read(arm) if g.seed == seed):
            start, stop = frame["text_ends"][r * 8 + i : r * 8 + i + 2]
            assert tuple(frame["text_ids"][start:stop].tolist()) == text.ids
            assert frame["text_logprobs"][start:stop].tolist() == pytest.approx(
                text.logprobs, abs=1e-6
            )
            assert frame["text_right"][r * 8 + i] == own[i]


def test_the_code_gives_the_table(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arms = [
        wb.Arm("steered", [edit()]),
        wb.Arm("greedy", decoder=Greedy()),
        wb.Arm("said", prefix="so "),
    ]
    found = board(arms, stop=("z",))
    names = {"model": tiny.model("gpt2")}
    exec(found.to_code(), names)
    assert same(found.table(), names["table"])


def test_training_adds_the_arm_its_twin_and_its_control(reasoner, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, prompts = reasoner
    before = model.fingerprint
    trainer = Reinforce(prompts_per_step=2, samples=3, max_new_tokens=16, learning_rate=1e-3)
    arm = TrainArm("rl", 2, [edit(model.d_model, "L3.resid_post", 0.5)], trainer=trainer)
    found = RolloutBoard(model, prompts, [arm], seeds=(0,), max_new_tokens=16)
    assert found.table().arms == ["base"] and found.meta["complete"]
    assert "Reinforce" not in found.to_code()
    assert found.meta["but"] == "the training of rl"

    found.train("rl")
    names = ["rl", "rl (seed twin)", "rl (shuffled rewards)"]
    assert found.table().arms == ["base", *names] and found.status["state"] == "idle"
    assert found.meta["complete"] and found.meta["but"] == ""
    assert [a["kind"] for a in found.frame["arms"]] == ["baseline"] + ["trained"] * 3
    runs = found.frame["trainings"][0]["runs"]
    assert [len(r["mean"]) for r in runs] == [2, 2, 2] and all(r["made"] for r in runs)
    trained = trainer.train(model, prompts, 2, arm.edits, 0)
    assert runs[0]["mean"] == pytest.approx([np.mean(s.rewards) for s in trained.curve])
    want = trained.model.generate(prompts, decoder=Sample(), max_new_tokens=16, seed=0)
    assert [g.ids for g in found.table().read("rl")] == [g.ids for g in want]
    assert model.fingerprint == before

    scope: dict = {}
    exec(found.to_code(), scope)
    assert found.table().frame().equals(scope["table"].frame())
    with pytest.raises(UnknownName, match="rl"):
        found.train("lr")


def test_an_untrainable_arm_says_so_in_words() -> None:
    found = board([TrainArm("rl", 2)])
    found.train("rl")
    assert "no reward" in found.frame["trainings"][0]["runs"][0]["error"]
    assert found.meta["complete"] and found.meta["but"] == "", "a failed training is no lack"
    assert found.status["state"] == "idle" and found.table().arms == ["base"]


def test_an_arm_that_overflows_says_so_and_the_others_stand() -> None:
    found = board([wb.Arm("wild", [edit(strength=1e38)]), wb.Arm("tame", [edit()])])
    wild = next(a for a in found.frame["arms"] if a["name"] == "wild")
    assert "infinite or NaN" in wild["error"] and wild["done"] == 0
    assert {"base", "tame"} <= set(found.table().arms) and "wild" not in found.table().arms
    assert any("infinite or NaN" in note for note in found.table().provenance["notes"])
    assert found.status["state"] == "idle"


def test_a_difference_is_marked_after_the_correction_only(monkeypatch) -> None:
    figures = Figures(board(seeds=(0,))._board, [])
    apart = {"difference": 1.0, "difference_low": 0.5, "difference_high": 1.5}

    def given(*found: tuple[float, float]) -> list[bool]:
        some = [{"arm": "a", "metric": "m", "p": p, "seed_sd": sd, **apart} for p, sd in found]
        monkeypatch.setattr(figures, "_of", lambda name: some if name == "base" else [])
        return [line["differs"] for line in figures.lines()]

    nan = math.nan
    assert given((0.03, nan)) == [True]
    assert given((0.03, nan), (0.04, nan)) == [False, False]
    assert given((0.001, nan), (0.04, nan)) == [True, True]
    assert given((0.001, 1.2), (0.001, 0.9)) == [False, True]


def test_without_tasks_there_is_no_accuracy() -> None:
    found = board()
    assert {x["metric"] for x in found.frame["lines"]} == {"length", "kl_nats"}
    assert set(found.frame["right"].ravel().tolist()) == {2}
    with pytest.raises(WorkbenchError, match="no task"):
        board(metrics=("accuracy",))


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in ../shared/data")
def test_stories() -> None:
    model = wb.load(str(STORIES))
    given = edit(model.d_model, "L2.resid_post", 1.0)
    found = board([wb.Arm("steered", [given])], model, ["Once upon a time", "Lily saw a"])
    assert found.meta["complete"] and len(found.table().arms) == 3


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"arms": [wb.Arm(f"a{i}", [edit()]) for i in range(200)]},
            WorkbenchError,
            "too many arms",
        ),
        ({"arms": [wb.Arm("a", [edit()]), TrainArm("a", 1)]}, WorkbenchError, "one name"),
        ({"k": (1, 3)}, WorkbenchError, "more samples than there are seeds"),
        ({"seeds": ()}, WorkbenchError, "no seeds"),
        ({"prompts": ["a" * 4000]}, PromptError, "longer than the context"),
    ],
)
def test_what_cannot_be_shown_is_refused_at_once(options, error, said: str) -> None:
    with pytest.raises(error, match=said):
        board(**options)
    with pytest.raises(PromptError, match="there are none"):
        RolloutBoard(tiny.model("gpt2"), [], [])


def test_the_still_is_small_and_escaped() -> None:
    found = board([wb.Arm(f"{HOSTILE}{i}", [edit()]) for i in range(30)], seeds=(0,))
    still = found._still()
    assert len(still) < 20_000 and "<img" not in still and "<script" not in still
    assert "&lt;img" in still and "more arms" in still
    mean = found.frame["lines"][0]["mean"]
    assert f"{mean:.3g}" in still


@pytest.mark.parametrize("name", ["a" * 400, '"' * 400, "\U0001f600" * 400])
def test_the_still_of_many_long_names_is_small(name: str) -> None:
    arms = [wb.Arm(f"{i}{name}") for i in range(63)]
    found = board(arms, metrics=("length",), prompts=["abc", "x"], max_new_tokens=2)
    assert len(found._still().encode()) < 20_000 and len(repr(found)) < 400
    about = found.meta["metrics"][0]
    frame, many = found.frame, [about | {"name": f"m{i}{name}"} for i in range(64)]
    frame["lines"] = [x | {"metric": m["name"]} for m in many for x in frame["lines"]]
    frame["measures"] = [m["name"] for m in many]
    large = still(frame, found.meta | {"metrics": many}, found._words())
    assert len(large.encode()) < 20_000 and "more measures" in large


def test_long_boards_keep_fewer_transcripts(monkeypatch) -> None:
    import workbench_widgets.rollout_board.widget as module

    monkeypatch.setattr(module, "TOKENS_KEPT", 80)
    found = board()
    kept = found.frame["kept"]
    assert 0 < kept < 4 and found.frame["right"].shape == (6, 4)
    assert found.meta["complete"] and found.meta["but"] == f"texts after the first {kept} prompts"
    whole = found._fetch("texts", {"arm": "steered", "seed": 1}, worker.Job(None, None, ""))
    n = whole["text_ends"][4]
    want = [i for g in found.table().read("steered") if g.seed == 1 for i in g.ids]
    assert whole["text_ids"][n:].tolist() == want


def test_it_fills_seed_by_seed_and_a_cancel_keeps_what_is_there(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, real = tiny.model("gpt2"), tiny.model("gpt2").generate

    def slow(*args, **options):
        time.sleep(0.15)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    found = board(seeds=(0, 1, 2, 3), metrics=("perplexity",))
    deadline = time.monotonic() + 10
    while len(found._board.rounds) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    found._cancel()
    worker.settle(10)
    assert found.status["state"] == "cancelled" and not found.meta["complete"]
    arms = {a["name"]: a["done"] for a in found.frame["arms"]}
    assert arms["base"] == 4 and 1 < arms["steered"] < 4
    assert found.table().arms == ["base"]
    seeds = range(arms["steered"])
    half = wb.compare(
        [wb.Arm("steered", [edit()])], model, PROMPTS, ["perplexity"], seeds=list(seeds),
        decoder=Sample(), max_new_tokens=6, progress=False,
    )  # fmt: skip
    row = half.summary().set_index(["arm", "metric"]).loc["steered", "perplexity"]
    line = lines(found)["steered", "perplexity"]
    assert line["difference"] == pytest.approx(row["difference"]), "compared on the seeds it has"

    found.go_on()
    worker.settle(20)
    assert found.meta["complete"] and all(a["done"] == 4 for a in found.frame["arms"])


def test_a_cancel_by_key_is_continued_on_request_only(monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, real = tiny.model("gpt2"), tiny.model("gpt2").generate

    def slow(*args, **options):
        time.sleep(0.1)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    found = board(model=model, metrics=("length",))
    deadline = time.monotonic() + 10
    while len(found._board.rounds) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.cancel(("widget", id(found)))
    worker.settle(10)
    done = len(found._board.rounds)
    assert found.status["state"] == "cancelled" and done < 6
    found.ask(anything=1)
    found.refresh()
    worker.settle(10)
    assert len(found._board.rounds) == done
    found.go_on()
    worker.settle(20)
    assert len(found._board.rounds) == 6 and found.status["state"] == "idle"


def test_a_cancelled_training_waits_for_its_continue(reasoner, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    model, prompts = reasoner
    trainer = Reinforce(prompts_per_step=1, samples=2, max_new_tokens=4)
    arm = TrainArm("rl", 3, trainer=trainer)
    options = dict(seeds=(0,), metrics=("length",), max_new_tokens=4)
    found = RolloutBoard(model, prompts[:2], [arm], **options)
    worker.settle(20)
    found.train("rl")
    deadline = time.monotonic() + 20
    while not found._board.trainings["rl"].curve and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.cancel(("widget", id(found)))
    worker.settle(20)
    runs = found.frame["trainings"][0]["runs"]
    assert not all(run["made"] for run in runs) and not any(run["error"] for run in runs)
    assert not found.meta["complete"]
    found.refresh()
    worker.settle(20)
    assert found.status["state"] == "cancelled"
    found.go_on()
    worker.settle(60)
    assert all(run["made"] for run in found.frame["trainings"][0]["runs"])
    assert found.meta["complete"] and len(found.table().arms) == 4


def test_models_of_an_arm_are_named_in_the_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [wb.load(tiny.module("gpt2", seed), tiny.tokenizer()) for seed in range(3)]
    model, other, third = made
    arms = [
        wb.Arm("other", model=other),
        wb.Arm("other!", model=third),
        wb.Arm("9 lives", model=other),
        wb.Arm("same", model=model),
    ]
    found = board(arms, model, control=False)
    code = found.to_code()
    said = "wb.load(module, tokenizer): a module of your own"
    assert f"\n# other_model = {said}\n# other_model_2 = {said}\n# arm_9_lives_model = " in code
    names = {"model": model, "other_model": other, "other_model_2": third}
    assert "model=model)" in code and "wb.load('" not in code
    names = names | {"arm_9_lives_model": other}
    exec(code, names)
    assert same(found.table(), names["table"])


def test_a_trained_copy_is_no_name_to_load(reasoner, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, prompts = reasoner
    trained = Reinforce(prompts_per_step=1, samples=2, max_new_tokens=4).train(model, prompts, 1)
    options = dict(seeds=(0,), metrics=("length",), max_new_tokens=4)
    found = RolloutBoard(model, prompts[:2], [wb.Arm("new", model=trained.model)], **options)
    code = found.to_code()
    assert "(trained)" not in code and "# new_model = wb.load(module" in code
    names = {"new_model": trained.model}
    exec(code, names)
    assert found.table().frame().equals(names["table"].frame())
