"""The evaluation's numbers on planted outcomes, and that the reported half never chooses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import steering, tasks
from workbench.comparison import evaluate as module
from workbench.comparison.doses import Cell, doses, undosed
from workbench.comparison.evaluate import evaluate, harmonic
from workbench.comparison.grammar import of_the_world
from workbench.comparison.metrics.base import Evidence
from workbench.comparison.metrics.fluency import Fluency
from workbench.comparison.run import Comparison, checked_metrics
from workbench.comparison.stats import paired_difference, wilson
from workbench.errors import EditError, PromptError, WorkbenchError
from workbench.records import Generation, Prompt

Parts = tuple[float, float, float]
Plan = Callable[[str, float, int], Parts]
"""Concept, instruction and fluency of an arm at a strength on a prompt."""

N = 8
PROMPTS = [Prompt(text=f"p{i}", answer=str(i), task="add") for i in range(N)]


def edit(name: str = "e", strength: float = 1.0, **params) -> wb.Intervention:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))
    return wb.Intervention(
        "custom", "affine", {"L1.resid_post": {"shift": shift}}, strength, name=name, params=params
    )


def planted(monkeypatch, plan: Plan) -> list[tuple[str, float, list[int]]]:
    """Outcomes by hand in the place of generation; returns what was asked, arm by arm."""
    asked: list[tuple[str, float, list[int]]] = []

    def one(job: Comparison, name: str, strength: float) -> Cell:
        numbers = [int((p.text or "")[1:]) for p in job.prompts]
        asked.append((name, strength, numbers))
        rows = [plan(name, strength, i) for i in numbers]
        values = {p: [float(r[k]) for r in rows] for k, p in enumerate(module.PARTS)}
        extra = {m: [1.0] * len(rows) for m in job.metrics if m not in values}
        texts = (Generation(p, name, 0, (1,), "x", (0.0,), "eos") for p in job.prompts)
        return Cell({**{m: values[m] for m in values if m in job.metrics}, **extra}, tuple(texts))

    def many(job, edit, strengths, seed, names):
        return [one(job, edit.label, s) for s in strengths]

    def alone(job, arm, seed):
        strength = arm.edits[0].strength if arm.edits else 0.0
        return one(job, arm.name, strength)

    monkeypatch.setattr(module, "doses", many)
    monkeypatch.setattr(module, "undosed", alone)
    return asked


def run(monkeypatch, plan: Plan, edits=None, **options):
    asked = planted(monkeypatch, plan)
    options = {"concept": lambda p, t: True, "progress": False, "factors": (1, 2, 3)} | options
    return evaluate(edits or edit(), tiny.model(), PROMPTS, **options), asked


def mean(found, arm: str, metric: str = "score") -> float:
    frame = found.frame()
    return float(frame[(frame.arm == arm) & (frame.metric == metric)].value.mean())


@pytest.mark.parametrize(
    ("parts", "score"),
    [((2, 2, 2), 2.0), ((1, 1, 1), 1.0), ((2, 2, 1), 1.5), ((2, 1, 1), 1.2), ((2, 2, 0), 0.0)],
)
def test_the_score_is_the_harmonic_mean(monkeypatch, parts, score) -> None:
    assert harmonic(*parts) == pytest.approx(score)
    found, _ = run(monkeypatch, lambda *_: parts)
    assert mean(found, "e") == pytest.approx(score)


def test_the_strength_of_the_best_mean_score_is_chosen(monkeypatch) -> None:
    found, asked = run(monkeypatch, lambda arm, s, i: (2, 2, 2) if s == 2 else (2, 1, 2))
    assert found.chosen == {"e": 2.0, "e (random control)": 2.0}
    assert mean(found, "e") == 2.0
    assert mean(found, "base") == pytest.approx(1.5)
    rows = found.choice.frame()
    assert dict(zip(rows[rows.arm == "e"].strength, rows[rows.arm == "e"].score, strict=True)) == {
        1.0: pytest.approx(1.5), 2.0: 2.0, 3.0: pytest.approx(1.5)
    }  # fmt: skip


def test_it_is_the_mean_of_scores_that_chooses_not_the_score_of_means(monkeypatch) -> None:
    """At 1 every prompt scores 1.2; at 2 half of them score 2 and half 0, a mean of 1."""

    def plan(arm: str, s: float, i: int) -> Parts:
        return (2, 1, 1) if s == 1 else ((2, 2, 2) if i % 2 else (2, 2, 0))

    asked = planted(monkeypatch, plan)
    balanced = [Prompt(text=f"p{i}", task="add", answer="1", pair=i // 2) for i in range(N)]
    found = evaluate(
        edit(), tiny.model(), balanced, concept=lambda p, t: True, factors=(1, 2), progress=False
    )
    assert found.chosen["e"] == 1.0
    assert {len(numbers) for _, _, numbers in asked} == {4}


def test_a_control_chooses_a_strength_of_its_own(monkeypatch) -> None:
    def plan(arm: str, s: float, i: int) -> Parts:
        return (2, 2, 2) if s == (3 if "random" in arm else 1) else (1, 1, 1)

    found, _ = run(monkeypatch, plan)
    assert found.chosen == {"e": 1.0, "e (random control)": 3.0}
    assert mean(found, "e (random control)") == 2.0


def test_the_weakest_of_equals_is_chosen(monkeypatch) -> None:
    found, _ = run(monkeypatch, lambda *_: (1, 1, 1), edit(strength=-0.5), factors=(2, 1, 3))
    assert found.chosen["e"] == -0.5


def test_a_control_that_does_nothing_is_reported_at_the_edits_norm(monkeypatch) -> None:
    """Reported at the weakest it would look harmless for its dose, not for its direction."""
    found, _ = run(monkeypatch, lambda a, s, i: (1, 1, 2 if s == 2 and "random" not in a else 1))
    assert found.chosen == {"e": 2.0, "e (random control)": 2.0}


def test_several_control_seeds_give_several_controls(monkeypatch) -> None:
    found, _ = run(monkeypatch, lambda *_: (1, 1, 1), control_seed=(0, 7))
    names = [f"e (random control, seed {seed})" for seed in (0, 7)]
    assert found.table.arms == ["base", "e", *names]
    arms, _ = module._arms(edit(), (0, 7))
    first, second = (arms[name].tensors["L1.resid_post"]["shift"] for name in names)  # type: ignore
    assert first.norm() == pytest.approx(float(second.norm())) and not torch.equal(first, second)
    assert [arms[name].params["control_seed"] for name in names] == [0, 7]  # type: ignore


@pytest.mark.parametrize(
    ("plan", "options", "note"),
    [
        (lambda a, s, i: (2, s / 2, 2), {"factors": (1, 2)}, "e is best at the largest strength"),
        (lambda a, s, i: (2, 2 - s / 2, 2), {"factors": (1, 2)}, ""),
        (lambda a, s, i: (2, s / 2, 2), {"factors": (1,)}, ""),
        (lambda a, s, i: (2, s / 2, 2), {"edits": edit(max_strength=2.0)}, ""),
        (lambda a, s, i: (0, 2, 2), {"factors": (1, 2)}, "e scored 0 at every strength"),
    ],
)
def test_notes_say_what_the_choice_leaves_open(monkeypatch, plan, options, note) -> None:
    found, _ = run(monkeypatch, plan, prompting="do it. ", **options)
    assert len(found.notes) == bool(note)
    assert not note or found.notes[0].startswith(note)


def test_no_strength_goes_past_what_a_method_allows(monkeypatch) -> None:
    found, asked = run(monkeypatch, lambda *_: (1, 1, 1), edit(max_strength=1.5))
    assert sorted(s for name, s, _ in asked[:4] if name == "e") == [1.0, 1.5]


def test_the_reported_half_never_chooses(monkeypatch) -> None:
    """Turned upside down, its outcomes change what is reported and nothing that is chosen."""

    def honest(arm: str, s: float, i: int) -> Parts:
        return (2, 2, 2) if s == 2 else (1, 1, 1)

    first, asked = run(monkeypatch, honest)
    reported = {i for name, s, numbers in asked if name == "base" for i in numbers}
    reported = set(asked[-1][2]) & reported
    assert len(reported) == N // 2

    def upside_down(arm: str, s: float, i: int) -> Parts:
        return honest(arm, s, i) if i not in reported else ((0, 0, 0) if s == 2 else (2, 2, 2))

    second, again = run(monkeypatch, upside_down)
    assert first.chosen == second.chosen == {"e": 2.0, "e (random control)": 2.0}
    assert first.choice.frame().equals(second.choice.frame())
    assert (mean(first, "e"), mean(second, "e")) == (2.0, 0.0)
    tried = {i for name, s, numbers in again if s not in (0.0, 2.0) for i in numbers}
    assert not tried & reported


def test_the_choosing_half_does_choose(monkeypatch) -> None:
    found, asked = run(monkeypatch, lambda arm, s, i: (2, 2, 2) if s == 2 else (1, 1, 1))
    choosing = set(range(N)) - set(asked[-1][2])
    turned, _ = run(
        monkeypatch, lambda arm, s, i: (2, 2, 2) if s == (3 if i in choosing else 2) else (1, 1, 1)
    )
    assert found.chosen["e"] == 2.0
    assert turned.chosen["e"] == 3.0


def test_pairs_stay_on_one_side_of_the_split() -> None:
    pairs = [Prompt(text=f"p{i}", pair=i // 2) for i in range(20)]
    first, second = module._halves(pairs, 0)
    assert {p.pair for p in first}.isdisjoint({p.pair for p in second})
    assert len(first) == len(second) == 10
    assert module._halves(pairs, 1)[0] != first


def test_prompts_that_say_the_same_stay_on_one_side() -> None:
    first, second = module._halves([Prompt(text=f"p{i % 5}") for i in range(20)], 0)
    assert {p.text for p in first}.isdisjoint({p.text for p in second})
    with pytest.raises(WorkbenchError, match="that differ"):
        module._halves([Prompt(text="p")] * 4, 0)


def test_winning_always_is_not_certain(monkeypatch) -> None:
    found, _ = run(
        monkeypatch, lambda a, s, i: (2, 2, 2) if a == "e" else (1, 1, 1), prompting="do it. "
    )
    row = found.wins().set_index("arm").loc["e"]
    assert row.rate == 1.0 and 0.4 < row.low < 0.6  # Wilson, 4 of 4


def test_full_points_on_a_few_prompts_are_not_certain(monkeypatch) -> None:
    """Points of all or nothing are a proportion: 4 of 4 leave room, as Wilson's interval says."""
    found, _ = run(monkeypatch, lambda a, s, i: (2, 2, 2) if a == "e" else (0, 2, 2))
    rows = found.summary().set_index(["metric", "arm"])
    e, base = rows.loc[("concept", "e")], rows.loc[("concept", "base")]
    assert (e["mean"], e.high, base["mean"], base.low) == (2, 2, 0, 0)
    assert e.low == pytest.approx(2 * wilson(4, 4).low) and base.high == pytest.approx(2 - e.low)
    share = paired_difference([1.0] * 4, [0.0] * 4, proportion=True)
    assert (e.difference, e.difference_low) == (2, pytest.approx(2 * share.low))
    assert e.difference_low < 2
    point = found.tradeoff().set_index("arm").loc["e"]
    assert point.good_low == pytest.approx(e.low)


def test_wins_count_ties_as_half(monkeypatch) -> None:
    def plan(arm: str, s: float, i: int) -> Parts:
        if arm == "prompting" or i % 4 == 0:
            return (1, 1, 1)
        if arm == "e":
            return (1 + 1e-8, 1, 1) if i % 4 == 1 else ((2, 2, 2) if i % 4 == 2 else (0, 1, 1))
        return (1, 1, 1)

    found, asked = run(monkeypatch, plan, prompting="do it. ")
    numbers = asked[-1][2]
    wins, losses = (sum(i % 4 == k for i in numbers) for k in (2, 3))
    row = found.wins().set_index("arm").loc["e"]
    assert (row.wins, row.losses, row.ties) == (wins, losses, 4 - wins - losses)
    assert row.rate == pytest.approx((wins + row.ties / 2) / 4)
    assert row.low <= row.rate <= row.high


def test_without_prompting_the_table_says_that_it_is_missing(monkeypatch) -> None:
    found, _ = run(monkeypatch, lambda *_: (1, 1, 1))
    assert any("prompting" in note for note in found.notes)
    assert "no prompting arm" in repr(found)
    with pytest.raises(WorkbenchError, match="prompting="):
        found.wins()
    told, _ = run(monkeypatch, lambda *_: (1, 1, 1), prompting="do it. ")
    assert told.table.arms == ["base", "prompting", "e", "e (random control)"]
    assert not told.notes


# -- on models ---------------------------------------------------------------------------------


def quick(**options):
    options = {
        "concept": lambda p, t: len(t) % 2 == 0,
        "instruction": "distinct_n",
        "max_new_tokens": 5,
        "progress": False,
    } | options
    return evaluate(edit(), tiny.model(), ["abc", "900+7=", "hello there", "z"], **options)


def test_what_is_reported_is_what_the_model_writes_at_the_chosen_strength() -> None:
    found = quick(prompting="say ", seeds=(0, 1))
    prompts = [g.prompt for g in found.table.read("base")][:2]
    strength = found.chosen["e"]
    texts = tiny.model().generate(prompts, edit().at(strength), max_new_tokens=5)
    assert [g.text for g in found.table.read("e")] == [t.text for t in texts] * 2
    frame = found.frame()
    of_e = frame[(frame.arm == "e") & (frame.seed == 0)]
    concept = of_e[of_e.metric == "concept"].value.tolist()
    assert concept == [2.0 * (len(t.text) % 2 == 0) for t in texts]
    table = wb.compare(
        [wb.Arm("e", [edit().at(strength)])], tiny.model(), prompts,
        ["perplexity", "length", "kl_nats"], max_new_tokens=5, progress=False,
    ).frame()  # fmt: skip
    for metric in ("perplexity", "length", "kl_nats"):
        want = table[(table.arm == "e") & (table.metric == metric)].value.tolist()
        assert of_e[of_e.metric == metric].value.tolist() == pytest.approx(want)


def test_it_shows_itself_and_gives_the_trade_off() -> None:
    found = quick()
    assert "score (points of 2)" in repr(found) and "<table" in found._repr_html_()
    assert found.figure().plot().data
    points = found.tradeoff("concept", "kl_nats").set_index("arm")
    assert list(points.index) == ["base", "e", "e (random control)"]
    assert points.loc["base", "side"] == 0 and math.isnan(points.loc["base", "strength"])
    assert points.loc["e", "side"] > 0 and points.loc["e", "strength"] == found.chosen["e"]
    assert (points.side_low <= points.side).all() and (points.side <= points.side_high).all()
    with pytest.raises(WorkbenchError, match="one of"):
        found.tradeoff("conceptt")


def test_an_arm_that_cannot_be_applied_is_left_out_and_named(monkeypatch) -> None:
    huge = evaluate(
        {"big": edit().at(1e38), "e": edit()}, tiny.model(), ["abc", "9", "a", "b"],
        concept=lambda p, t: True, instruction="distinct_n", factors=(1.0,), control=False,
        max_new_tokens=3, progress=False,
    )  # fmt: skip
    assert huge.table.arms == ["base", "e"]
    assert any("big is left out" in note for note in huge.notes)


def test_other_prompts_have_their_accuracy_and_their_texts() -> None:
    other = tasks.make("add", 3, 0)
    found = quick(other={"sums": other}, factors=(1,))
    frame = found.frame()
    of_other = frame[frame.metric == "accuracy on sums"]
    assert of_other.groupby("arm").size().to_dict() == {a: 3 for a in found.table.arms}
    texts = tiny.model().generate(other, edit(), max_new_tokens=5)
    kept = [g for g in found.others["sums"] if g.arm == "e"]
    assert [g.text for g in kept] == [t.text for t in texts]
    right = [float(tasks.check(p, t.text)) for p, t in zip(other, texts, strict=True)]
    assert of_other[of_other.arm == "e"].value.tolist() == right


def test_strengths_in_one_batch_equal_strengths_alone() -> None:
    model, metrics = tiny.model(), checked_metrics(["kl_nats", "perplexity"])
    options = {"max_new_tokens": 6, "stop": (), "batch_size": None}
    job = Comparison(model, [Prompt(text=t) for t in ("abc", "900+7=")], metrics, None, options)
    strengths = [-2.0, 0.3, 1.7]
    together = doses(job, edit(), strengths, 0, list("abc"))
    for strength, dose, name in zip(strengths, together, "abc", strict=True):
        alone = undosed(job, wb.Arm(name, [edit().at(strength)]), 0)
        assert [g.ids for g in dose.generations] == [g.ids for g in alone.generations]
        assert {g.arm for g in dose.generations} == {name}
        for metric, values in alone.values.items():
            assert dose.values[metric] == pytest.approx(values, abs=1e-4)


def test_a_drawing_decoder_has_the_same_draws_under_every_strength() -> None:
    model, metrics = tiny.model(), checked_metrics("length")
    options = {"max_new_tokens": 6, "stop": (), "batch_size": None}
    job = Comparison(
        model, [Prompt(text="abc"), Prompt(text="de")], metrics, wb.decoding.Sample(), options
    )
    small = doses(job, edit(), [1e-6, 2e-6], 0, ["a", "b"])
    assert [g.ids for g in small[0].generations] == [g.ids for g in small[1].generations]


def test_a_strength_that_fails_costs_the_others_nothing() -> None:
    job = Comparison(
        tiny.model(), [Prompt(text="abc")], checked_metrics("length"), None,
        {"max_new_tokens": 3, "stop": (), "batch_size": None},
    )  # fmt: skip
    found = doses(job, edit(), [1.0, 1e38, 2.0], 0, ["a", "b", "c"])
    assert [bool(dose.error) for dose in found] == [False, True, False]
    assert [len(dose.generations) for dose in found] == [1, 0, 1]


# -- checkers, fluency, grammar ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "points"), [(True, 2), (False, 0), (0, 0), (1, 1), (2, 2), (1.5, 1.5), (math.nan, 0)]
)
def test_a_checkers_value_becomes_points(value, points) -> None:
    text = Generation(Prompt(text="x"), "", 0, (1,), "y", (0.0,), "eos")
    assert module.Points(lambda p, t: value).measure(text, Evidence()) == points


@pytest.mark.parametrize("value", [3, -1, math.inf, None, "yes"])
def test_a_checker_that_judges_otherwise_is_refused(value) -> None:
    with pytest.raises(WorkbenchError, match="0 to 2"):
        quick(concept=lambda p, t: value)


def test_fluency_gives_a_point_for_each_test() -> None:
    logprobs = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    text = Generation(Prompt(text="x"), "", 0, (0, 1), "y", (0.0, 0.0), "eos")
    nats = -(math.log(0.25) + math.log(0.75)) / 2
    evidence = Evidence(base_logprobs=logprobs)

    def points(good, fair, grammar=None) -> float:
        return Fluency(good, fair, grammar).measure(text, evidence)

    above, below = nats + 1e-4, nats - 1e-4
    assert points(above, above) == 2 and points(below, above) == 1 and points(below, below) == 0
    assert points(above, above, lambda p, t: False) == 1
    assert points(below, below, lambda p, t: t == "y") == 1
    empty = Generation(Prompt(text="x"), "", 0, (), "", (), "eos")
    assert Fluency().measure(empty, evidence) == 0


def test_fluencys_bounds_are_those_of_the_base_model_on_the_choosing_half() -> None:
    found = quick(factors=(1,))
    assert "grammar=None" in found.table.provenance["bounds"]
    assert mean(found, "base", "fluency") == 2.0


def test_the_worlds_own_texts_are_of_its_grammar() -> None:
    rng = random.Random(0)
    for name in tasks.names():
        for prompt in tasks.make(name, 20, rng.randrange(100)):
            assert of_the_world(prompt, tasks.gold(prompt).completion), name


@pytest.mark.parametrize(
    "text", ["", "39", "#", "7+2=9", "7+2+=9\n#9", "#39\n", "#39#40", "7+2=9\n\n#9", "zzzz\n#1"]
)
def test_other_texts_are_not(text) -> None:
    assert not of_the_world(Prompt(text="add 7 2?\n"), text)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "options", "match"),
    [
        ([], {}, "no edits"),
        ([edit(), edit()], {}, "different names"),
        ({"base": edit()}, {}, "base"),
        ([edit(strength=0.0)], {}, "strength"),
        ([edit()], {"factors": ()}, "choose from"),
        ([edit()], {"factors": (0, 1)}, "choose from"),
        ([edit()], {"factors": (math.nan,)}, "choose from"),
        ([edit()], {"concept": "truthh"}, "nearest"),
        ([edit()], {"instruction": "accuracy"}, "no task"),
        ([edit()], {"seeds": ()}, "seeds"),
        ([edit()], {"other": {"x": ["abc"]}}, "no task"),
    ],
)
def test_bad_input(edits, options, match) -> None:
    options = {"concept": lambda p, t: True, "instruction": "distinct_n"} | options
    with pytest.raises(WorkbenchError, match=match):
        evaluate(edits, tiny.model(), ["abc", "def"], progress=False, **options)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(WorkbenchError, match="split"):
        evaluate(edit(), tiny.model(), ["abc"], concept=lambda p, t: True, instruction="distinct_n")


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(monkeypatch) -> None:
    monkeypatch.setattr(tiny.model(), "generate", None)
    room = tiny.model().dims.n_context
    for long, options in (("9" * room, {}), ("9", {"prompting": "9" * room})):
        with pytest.raises(PromptError, match="longer than the context"):
            evaluate(
                edit(), tiny.model(), ["abc", long], concept=lambda p, t: True,
                instruction="distinct_n", progress=False, **options,
            )  # fmt: skip


def test_the_worlds_grammar_judges_only_where_all_prompts_are_the_worlds() -> None:
    """Whichever half the other one falls into."""
    mixed = [*tasks.make("add", 1, 0), Prompt(text="hello", task="add", answer="1")]
    for seed in range(4):
        found = evaluate(
            edit(), tiny.model(), mixed, concept=lambda p, t: True, factors=(1,), control=False,
            max_new_tokens=3, split_seed=seed, progress=False,
        )  # fmt: skip
        assert "grammar=None" in found.table.provenance["bounds"]


def test_it_is_a_verb_of_steering() -> None:
    assert steering.evaluate is evaluate
    assert issubclass(EditError, WorkbenchError)
