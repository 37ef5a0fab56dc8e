"""Fitting, judging and storing probes: splits, measures, controls, places, files, rewards."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.calibration import calibration_curve
from sklearn.metrics import r2_score, roc_auc_score

import workbench as wb
from tests import tiny
from workbench import interventions, probes
from workbench.comparison.stats import Interval
from workbench.errors import FileRefused, WorkbenchError
from workbench.probes.mass_mean import MassMean
from workbench.probes.quantile import Quantile
from workbench.probes.ridge import Ridge
from workbench.probing import baselines, measures, store
from workbench.probing.folds import groups_of, split, warn_of_leaks
from workbench.probing.measures import Bootstrap, Held
from workbench.probing.reward import scorer
from workbench.probing.table import ProbeTable, _reliability
from workbench.prompts.duplicates import normalised, repeated
from workbench.records import Prompt
from workbench.tensors import Activations, Fingerprint

MODEL = Fingerprint("planted", "llama", 6, 4, "abc")


def acts_of(
    labels: Sequence[Any],
    signal: Sequence[float] = (0.0, 3.0),
    d: int = 6,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    pairs: Sequence[int] | None = None,
) -> Activations:
    """A site per signal: so many standard deviations between the classes along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    n = len(labels)
    values = {}
    for layer, size in enumerate(signal):
        rows = torch.randn(n, d, generator=generator)
        rows[:, 0] += size * torch.tensor([float(y) for y in labels])
        values[f"L{layer}.resid_post"] = rows
    prompts = tuple(
        Prompt(
            text=texts[i] if texts else f"text number {i}",
            label=label,
            pair=pairs[i] if pairs else None,
        )
        for i, label in enumerate(labels)
    )
    return Activations(values, prompts, (3,) * n, "last", MODEL)


HALVES = [i % 2 == 0 for i in range(100)]


@cache
def judged() -> ProbeTable:
    return probes.evaluate("mass_mean", acts_of(HALVES))


def held(n: int = 300, seed: int = 0) -> Held:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    scores = np.round(rng.normal(size=n) + y, 1)  # rounded, so that there are ties
    return Held(scores, y, np.arange(n) % 3, np.full(n, 0.4))


# ---- splits


def test_what_belongs_together_is_one_group() -> None:
    prompts = [
        Prompt(text="The sky is blue."),
        Prompt(text="the sky  is blue"),  # says the same
        Prompt(text="Grass is green.", pair=1),
        Prompt(text="Grass is red.", pair=1),
        Prompt(text="Grass is red!", pair=2),  # says the same as one of pair 1
        Prompt(text="Snow is white.", meta={"group": "snow"}),
        Prompt(text="Snow is cold.", meta={"group": "snow"}),
        Prompt(text="Ice is cold."),
    ]
    texts = [p.text or "" for p in prompts]
    found = groups_of(prompts, texts, list(range(8)))
    assert [len({*found[a:b]}) for a, b in ((0, 2), (2, 5), (5, 7))] == [1, 1, 1]
    assert len(set(found)) == 4
    asked = groups_of(
        prompts, texts, list(range(8)), ["x", None, None, None, None, None, None, "x"]
    )
    assert asked[0] == asked[1] == asked[7] and len(set(asked)) == 3
    nan = [float("nan") for _ in range(8)]
    assert np.array_equal(groups_of(prompts, texts, list(range(8)), nan), found)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, "series", "rows"])
def test_groups_of_any_kind_are_told_by_what_they_say(kind: Any) -> None:
    """Elements of a tensor hash by identity, and a Series is read by its index."""
    known = [i // 10 for i in range(100)]
    if kind == "series":
        given = pd.Series(known, index=range(5, 105))
    elif kind == "rows":
        given = [[i, "x"] for i in known]
    else:
        given = kind(known)
    table = probes.evaluate("mass_mean", acts_of(HALVES), groups=given, controls=False)
    assert table.provenance["n_groups"] == 10
    with pytest.raises(WorkbenchError, match="groups are not one per example"):
        probes.evaluate("mass_mean", acts_of(HALVES), groups=given[:9])


@pytest.mark.parametrize("classes", [True, False])
def test_a_split_never_parts_a_group_and_tests_every_example_once(classes: bool) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 20, 90)
    targets = rng.integers(0, 2, 90).astype(float)
    found = split(targets, groups, 4, 0, classes)
    assert sorted(np.concatenate([test for _, test in found])) == list(range(90))
    for train, test in found:
        assert not set(groups[train]) & set(groups[test])
        assert not set(train) & set(test)
    other = split(targets, groups, 4, 1, classes)
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(found, other, strict=True))


def test_too_few_groups_are_refused() -> None:
    acts = acts_of(HALVES, pairs=[0] * 50 + [1] * 50)
    with pytest.raises(WorkbenchError, match="too few groups"):
        probes.evaluate("mass_mean", acts)
    by_class = acts_of(HALVES, pairs=[int(y) for y in HALVES])
    with pytest.raises(WorkbenchError, match="one class only"):
        probes.evaluate("mass_mean", by_class, folds=2)


def test_repeated_texts_are_counted_said_and_kept_together() -> None:
    texts = [f"Fact {i // 2}" + (". " if i % 4 == 1 else "") for i in range(100)]
    labels = [i // 2 % 2 == 0 for i in range(100)]
    assert repeated(texts) == (25, 25)
    with pytest.warns(
        UserWarning, match=r"25 texts repeat another and 25 do so but for case"
    ) as said:
        table = probes.evaluate("mass_mean", acts_of(labels, texts=texts), controls=False)
    about = table.provenance
    assert about["n_groups"] == 50 and table.frame()["n"].eq(50).all()
    assert about["leaked_texts"] > 50 and f"tested {about['leaked_texts']} of 100" in str(
        said[0].message
    )


def test_a_memory_is_right_about_copies_and_wrong_once_they_are_kept_together() -> None:
    """Random rows, random labels, every row twice: what leaks is all there is to know."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.permutation([True, False] * 40), 2).tolist()
    rows = torch.randn(80, 800, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    copies = acts_of(labels, (0.0,), texts=[f"copy {i // 2}" for i in range(160)])
    copies = replace(copies, values={"L0.resid_post": rows})
    apart = acts_of(labels, (0.0,))
    apart = replace(apart, values=copies.values)
    with pytest.warns(UserWarning, match="repeat"):
        honest = probes.evaluate("mass_mean", copies, controls=False).best()
    leaking = probes.evaluate("mass_mean", apart, controls=False).best()
    assert leaking.low > 0.8
    assert honest.low <= 0.5 <= honest.high


def test_texts_that_differ_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counted = warn_of_leaks(
            np.array([0.0, 1, 0, 1]),
            [Prompt(text=t, pair=i // 2) for i, t in enumerate("abcd")],
            list("abcd"),
            2,
            0,
        )
    assert counted["duplicates"] == counted["leaked_texts"] == 0
    assert normalised("  A  b. ") == normalised("a B!") != normalised("a b c")
    assert normalised("?") != normalised("!"), "all that it says is its punctuation"


def test_rows_of_one_prompt_stay_together() -> None:
    labels = [i // 4 % 2 == 0 for i in range(80)]
    single = [Prompt(text=f"prompt {i}", label=i % 2 == 0) for i in range(20)]
    acts = acts_of(labels)
    acts = replace(
        acts,
        rows=tuple(single[i // 4] for i in range(80)),
        positions=tuple(range(4)) * 20,
        pool="all",
    )
    table = probes.evaluate("mass_mean", acts, controls=False)
    assert table.provenance["n_groups"] == 20 and table.provenance["n_examples"] == 80
    folds = table.held["L1.resid_post"].folds.reshape(20, 4)
    assert (folds == folds[:, :1]).all()


# ---- measures


def test_measures_are_those_of_scikit_learn() -> None:
    one = replace(held(), folds=np.zeros(300, int))
    once = np.ones((1, 300))
    assert measures.auroc(one, once)[0] == pytest.approx(roc_auc_score(one.targets, one.scores))
    right = (one.scores > 0) == (one.targets == 1)
    expected = np.where(one.scores == 0, 0.5, right).mean()
    assert measures.accuracy(one, once)[0] == pytest.approx(expected)
    numeric = replace(one, usual=np.full(300, one.targets.mean()))
    assert measures.r2(numeric, once)[0] == pytest.approx(r2_score(one.targets, one.scores))
    from scipy.stats import spearmanr

    assert measures.spearman(one, once)[0] == pytest.approx(spearmanr(one.scores, one.targets)[0])


@pytest.mark.parametrize("name", list(measures.MEASURES))
def test_weights_are_repeats(name: str) -> None:
    """A draw's weights must give what the drawn examples themselves give."""
    some = held(60)
    some = replace(some, low=some.scores - 0.5, high=some.scores + 0.5, level=0.9)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=3)
    for drawn in weights:
        index = np.repeat(np.arange(60), drawn)
        again = Held(
            some.scores[index],
            some.targets[index],
            some.folds[index],
            some.usual[index],
            (some.scores - 0.5)[index],
            (some.scores + 0.5)[index],
            0.9,
        )
        function = measures.MEASURES[name][0]
        expected = function(again, np.ones((1, 60)))[0]
        # ranks are those of all examples, whichever are drawn
        loose = 0.1 if name == "spearman" else 1e-9
        assert function(some, drawn[None].astype(float))[0] == pytest.approx(expected, abs=loose)


def test_auroc_compares_within_a_fold_alone() -> None:
    """Two folds whose scores lie far apart, each in perfect order."""
    scores = np.array([0.0, 1, 2, 3, 100, 101, 102, 103])
    targets = np.array([0.0, 0, 0, 1, 0, 1, 1, 1])
    folds = np.repeat([0, 1], 4)
    found = Held(scores, targets, folds, np.full(8, 0.5))
    assert measures.auroc(found, np.ones((1, 8)))[0] == 1.0
    pooled = replace(found, folds=np.zeros(8, int))
    assert measures.auroc(pooled, np.ones((1, 8)))[0] < 1.0


def test_calibration_error_is_0_for_true_odds_and_large_for_exaggerated_ones() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(float)
    true = Held(logits, y, np.zeros(20_000, int), np.full(20_000, 0.5))
    once = np.ones((1, 20_000))
    assert measures.ece(true, once)[0] < 0.015
    assert measures.ece(replace(true, scores=5 * logits), once)[0] > 0.15


def test_intervals_are_over_groups_and_cover() -> None:
    """Ten copies of every example are no ten examples."""
    some = held(100)
    alone = Bootstrap(np.arange(100)).interval(lambda w: measures.accuracy(some, w))
    index = np.repeat(np.arange(100), 10)
    many = Held(*(getattr(some, k)[index] for k in ("scores", "targets", "folds", "usual")))
    grouped = Bootstrap(index).interval(lambda w: measures.accuracy(many, w))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert grouped.n == 100 and alone.low < alone.mean < alone.high
    inside = 0
    for seed in range(100):
        right = (np.random.default_rng(seed).random(80) < 0.7).astype(float)
        drawn = Held(right - 0.5, np.ones(80), np.zeros(80, int), right)
        found = Bootstrap(np.arange(80), draws=400).interval(
            lambda w, d=drawn: measures.accuracy(d, w)
        )
        inside += found.low <= 0.7 <= found.high
    assert inside >= 88


def test_a_perfect_share_has_an_interval_below_it() -> None:
    table = probes.evaluate("mass_mean", acts_of(HALVES, (40.0,)), controls=False)
    for measure in ("accuracy", "auroc"):
        row = table.at("L0.resid_post").loc[measure]
        assert row["mean"] == row["high"] == 1.0 and 0.9 < row["low"] < 1.0
    best = table.best(nested=True)
    assert best.mean == 1.0 and best.low < 1.0


# ---- evaluate


def test_rows_of_the_table() -> None:
    table = judged()
    frame = table.frame()
    assert table.sites == ["L0.resid_post", "L1.resid_post"] and table.main == "accuracy"
    assert set(frame["by"]) == {"probe", "shuffled labels", "bag of tokens", "majority class"}
    assert (frame["low"] <= frame["mean"]).all() and (frame["mean"] <= frame["high"]).all()
    found = table.at("L1.resid_post")
    assert found.loc["accuracy", "low"] > 0.8 > table.at("L0.resid_post").loc["accuracy", "high"]
    assert table.at("", "majority class").loc["accuracy", "mean"] == pytest.approx(0.5, abs=0.1)
    assert table.at("", "majority class").loc["auroc", "mean"] == 0.5
    control = table.at("L1.resid_post", "shuffled labels").loc["accuracy"]
    assert control["n"] == 15 and control["low"] < 0.5 < control["high"]
    difference = found.loc["accuracy", "mean"] - control["mean"]
    assert found.loc["selectivity", "mean"] == pytest.approx(difference)
    with pytest.raises(WorkbenchError, match="unknown site"):
        table.at("L7.resid_post")


def test_scores_are_those_of_a_probe_that_did_not_see_the_example() -> None:
    acts, table = acts_of(HALVES), judged()
    for fold in range(5):
        test = table.held["L1.resid_post"].folds == fold
        rest = acts.where((~test).tolist())
        fitted = probes.fit("mass_mean", rest, "L1.resid_post")["L1.resid_post"]
        expected = fitted.score(acts.where(test.tolist()))
        np.testing.assert_allclose(
            table.scores["L1.resid_post"][test], expected, rtol=1e-5, atol=1e-5
        )


def test_the_bag_of_tokens_finds_what_the_words_say_and_nothing_else() -> None:
    texts = [f"{'yes' if y else 'no'} {i}" for i, y in enumerate(HALVES)]
    told = probes.evaluate("mass_mean", acts_of(HALVES, (0.0,), texts=texts))
    assert told.at("", "bag of tokens").loc["accuracy", "low"] > 0.9
    silent = probes.evaluate("mass_mean", acts_of(HALVES, (0.0,)), texts=["same words"] * 100)
    assert silent.at("", "bag of tokens").loc["auroc", "mean"] == 0.5
    with pytest.raises(WorkbenchError, match="texts are not one per example"):
        probes.evaluate("mass_mean", acts_of(HALVES), texts=["a"])


def test_a_text_without_tokens_has_the_usual_answer() -> None:
    y = np.array([0.0, 1, 1, 1, 0, 1])
    found = baselines.bag_of_tokens([" "] * 6, y, [(np.arange(4), np.arange(4, 6))], True)
    np.testing.assert_allclose(found[4:], np.log(3))


@pytest.mark.parametrize(("ones", "zeros"), [(30, 30), (31, 20), (7, 50), (1, 3)])
def test_shuffled_classes_lean_to_neither(ones: int, zeros: int) -> None:
    y = np.random.default_rng(0).permutation([1.0] * ones + [0.0] * zeros)
    train = np.arange(len(y) - 1)
    many = [baselines.shuffled(y, train, 0, i) for i in range(5)]
    for found in many:
        assert set(found) <= {0.0, 1.0} and found[-1] == y[-1]
        assert abs(found[train].sum() - y[train].sum()) <= 1
        for c in (0, 1):
            of_class = train[y[train] == c]
            assert abs(found[of_class].sum() - y[train].mean() * len(of_class)) < 1 + 1e-9
    assert any(not np.array_equal(many[0], found) for found in many[1:]) or ones == 1
    numbers = baselines.shuffled(np.arange(9.0), np.arange(8), 0, classes=False)
    assert sorted(numbers[:8]) == list(range(8)) and list(numbers[:8]) != list(range(8))


def test_a_control_task_is_learnt_by_a_probe_that_can_tell_types_apart() -> None:
    """Hewitt and Liang's control: five types, well apart, each with a random label."""
    types = [i % 5 for i in range(200)]
    rows = torch.nn.functional.one_hot(torch.tensor(types), 6).float()
    rows += 0.1 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    acts = replace(
        acts_of([i % 2 == 0 for i in range(200)], (0.0,)), values={"L0.resid_post": rows}
    )
    found = probes.evaluate("logistic", acts, types=types, seed=3)
    assert found.at("L0.resid_post", "control task").loc["accuracy", "mean"] > 0.95
    assert found.at("L0.resid_post").loc["selectivity", "high"] < -0.2
    shuffled = probes.evaluate("logistic", acts, seed=3)
    assert shuffled.at("L0.resid_post", "shuffled labels").loc["accuracy", "mean"] < 0.7
    with pytest.raises(WorkbenchError, match="types are not one per example"):
        probes.evaluate("logistic", acts, types=[1])


def test_numbers_have_their_own_measures_and_baselines() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=120).tolist()
    texts = [f"about {v:.2f} and {i}" for i, v in enumerate(y)]
    table = probes.evaluate(Ridge(), acts_of(y, texts=texts))
    found = table.at("L1.resid_post")
    assert found.loc["r2", "low"] > 0.8 and found.loc["spearman", "low"] > 0.85
    assert found.loc["mae", "mean"] < 0.4 and "coverage" not in found.index
    assert table.at("", "training mean").loc["r2", "mean"] == 0.0
    assert {"last number of the text", "mean number of the text"} < set(table.frame()["by"])
    assert table.best("mae").site == "L1.resid_post"
    assert table.at("L1.resid_post", "shuffled labels").loc["r2", "low"] < 0.05


def test_the_coverage_of_a_probe_that_gives_an_interval_is_judged() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=200).tolist()
    table = probes.evaluate(
        Quantile(hidden=0, epochs=30), acts_of(y, (2.0,)), folds=3, controls=False
    )
    row = table.at("L0.resid_post").loc["coverage"]
    assert "nominal 0.95" in row["unit"] and row["low"] <= 0.95 and row["mean"] > 0.7


def test_choosing_the_best_of_many_useless_sites_is_optimistic_and_nested_is_not() -> None:
    table = probes.evaluate("mass_mean", acts_of(HALVES, (0.0,) * 12), controls=False)
    plain, nested = table.best(), table.best(nested=True)
    assert plain.mean > 0.54 and "optimistic" in plain.note and not plain.nested
    assert nested.mean < plain.mean - 0.02 and nested.low < 0.5 < nested.high
    with pytest.raises(WorkbenchError, match="unknown measure"):
        table.best("beauty")
    with pytest.raises(WorkbenchError, match="no out-of-fold scores"):
        replace(table, held={}, bootstrap=None).best(nested=True)


def test_a_control_task_is_drawn_so_that_it_can_be_fitted() -> None:
    """Two types draw equal labels half of the time."""
    acts = acts_of(HALVES, (0.0,))
    for seed in range(4):
        table = probes.evaluate("mass_mean", acts, types=np.arange(100) % 2, seed=seed, shuffles=2)
        row = table.at("L0.resid_post", "control task").loc["accuracy"]
        assert row["low"] < row["mean"] < row["high"] and row["n"] == 100
    with pytest.raises(WorkbenchError, match="types are too few"):
        probes.evaluate("mass_mean", acts, types=["same"] * 100)


def test_types_of_a_tensor_are_told_by_what_they_say() -> None:
    acts = acts_of(HALVES, (0.0,))
    types = [i % 7 for i in range(100)]
    given, same = (
        probes.evaluate("mass_mean", acts, types=t, shuffles=1)
        for t in (torch.tensor(types), types)
    )
    assert given.frame().equals(same.frame())


@pytest.mark.parametrize("name", ["accuracy", "auroc", "r2", "mae"])
def test_controls_of_several_fits_are_measured_as_one_table(name: str) -> None:
    """A fold of few examples must not lead: a mean of quotients would be off by any amount."""
    some = held(60)
    some = replace(some, folds=np.repeat([0, 1, 2], [3, 17, 40]))
    found = measures.over_fits(name, [some])
    assert found.mean == pytest.approx(measures.MEASURES[name][0](some, np.ones((1, 60)))[0])
    assert found.n == 3 and found.low <= found.mean <= found.high


def test_a_difference_is_as_wide_as_both_intervals_together() -> None:
    """Of two normal means it is the textbook's, and a perfect share keeps Wilson's end."""
    found = measures.difference(Interval(3.0, 2.7, 3.3, 50), Interval(1.0, 0.6, 1.4, 9))
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((2.0, 1.5, 2.5, 50))
    skewed = measures.difference(Interval(3.0, 2.7, 4.2, 50), Interval(1.0, 0.5, 1.4, 9))
    assert (skewed.low, skewed.high) == pytest.approx((1.5, 3.3))
    perfect = measures.difference(Interval(1.0, 0.9, 1.0, 30), Interval(1.0, 1.0, 1.0, 9))
    assert (perfect.low, perfect.mean, perfect.high) == pytest.approx((-0.1, 0.0, 0.0))


def test_a_perfect_auroc_rests_on_pairs_of_one_fold() -> None:
    scores = np.array([0.0, 0, 0, 1, 0, 1, 1, 1])
    found = Held(scores, scores, np.repeat([0, 1], 4), np.full(8, 0.5))
    assert measures.disjoint_pairs(found, np.arange(8)) == 2
    assert measures.disjoint_pairs(replace(found, folds=np.zeros(8, int)), np.arange(8)) == 4
    row = measures.judged("auroc", found, Bootstrap(np.arange(8)))
    assert row.mean == 1.0 and row.low == pytest.approx(measures.wilson(2, 2).low)


def test_reliability_counts_each_group_once() -> None:
    """Ten copies of every example are no ten examples."""
    some, index = held(100), np.repeat(np.arange(100), 10)
    alone, copied = _reliability(some, np.arange(100)), _reliability(some.at(index), index)
    for name in ("predicted", "observed", "low", "high"):
        np.testing.assert_allclose(copied[name], alone[name])
    assert copied["n"] == [10 * n for n in alone["n"]] and sum(alone["n"]) == 100
    assert all(np.array(alone["low"]) <= alone["observed"])
    assert all(np.array(alone["high"]) >= alone["observed"])


def test_what_has_no_best_end_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="other than ece"):
        judged().best("ece", nested=True)
    assert judged().best("ece").mean == judged().frame().query("measure == 'ece'")["mean"].min()
    numeric = probes.evaluate(
        Quantile(hidden=0, epochs=2), acts_of(np.arange(30.0).tolist()), folds=2, controls=False
    )
    with pytest.raises(WorkbenchError, match="coverage has no best end"):
        numeric.best("coverage")


def test_one_seed_one_table() -> None:
    a, b = (probes.evaluate("mass_mean", acts_of(HALVES), seed=4).frame() for _ in range(2))
    assert a.equals(b)
    assert not a.equals(judged().frame())


# ---- figures and words


def test_figures_of_layers_heads_joined_sites_and_reliability() -> None:
    table = judged()
    plot = table.figure().plot()
    probe = next(trace for trace in plot.data if trace.name == "resid_post")
    assert list(probe.x) == [0, 1]
    np.testing.assert_allclose(
        probe.y, table.frame().query("by == 'probe' and measure == 'accuracy'")["mean"]
    )
    assert {"shuffled labels, resid_post"} < {trace.name for trace in plot.data}
    assert any("bag of tokens" in (trace.name or "") for trace in plot.data)
    assert "95 % interval over 100 groups" in table.figure().caption
    assert table.figure("auroc").plot().layout.yaxis.title.text == "auroc (fraction)"
    bins = table.reliability("L1.resid_post")
    held = table.held["L1.resid_post"]
    np.testing.assert_allclose(
        bins.frame()["observed"], calibration_curve(held.targets, held.probability, n_bins=10)[0]
    )
    assert bins.frame()["n"].sum() == 100 and len(bins.plot().data) == 2
    heads = Activations(
        {f"L{i}.z": acts_of(HALVES, seed=i)["L1.resid_post"] for i in range(2)},
        acts_of(HALVES).rows,
        (3,) * 100,
        "last",
        MODEL,
    )
    of_heads = probes.evaluate("mass_mean", heads, heads=3)
    grid = of_heads.figure().plot().data[0].z
    assert np.shape(grid) == (2, 3) and grid[0][0] > 0.8 > grid[0][1]
    joined = probes.evaluate("mass_mean", acts_of(HALVES), join=True, controls=False)
    assert list(joined.figure().plot().data[1].x) == ["L0.resid_post+L1.resid_post"]


def test_it_says_what_it_is() -> None:
    table = judged()
    said, page = repr(table), table._repr_html_()
    assert "mass_mean of planted: 2 sites, 100 examples in 100 groups, 5 folds" in said
    assert "shuffled labels" in said and "bag of tokens" in said and "<table" in page
    assert json.loads(json.dumps(dict(table.provenance)))["pool"] == "last"


def test_a_saved_table_keeps_its_rows(tmp_path: Path) -> None:
    path = judged().save(tmp_path / "probe.json")
    assert wb.Table.load(path).frame()["mean"].tolist() == judged().frame()["mean"].tolist()
    with pytest.raises(WorkbenchError, match="no probabilities"):
        probes.evaluate(Ridge(), acts_of(list(range(50))), controls=False).reliability()
    with pytest.raises(WorkbenchError, match="unknown site"):
        judged().reliability("L9.resid_post")


# ---- fit: targets and places


def test_classes_are_remembered_in_their_order() -> None:
    acts = acts_of(HALVES)
    by_word = ["wet" if y else "dry" for y in HALVES]
    fitted = probes.fit("mass_mean", acts, "L1.resid_post", by_word)["L1.resid_post"]
    assert fitted.classes == ("dry", "wet") and fitted.method == "mass_mean"
    plain = probes.fit(MassMean(), acts, "L1.resid_post")["L1.resid_post"]
    assert plain.classes == (False, True)
    assert torch.equal(plain.score(acts), fitted.score(acts))
    same = probes.fit("mass_mean", acts, "L1.resid_post", torch.tensor(HALVES))
    assert torch.equal(same["L1.resid_post"].score(acts), plain.score(acts))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([True] * 100, "needs two classes"),
        ([i % 3 for i in range(100)], "needs two classes"),
        ([float("nan"), 1.0] * 50, "needs two classes"),
        ([[1], [2]] * 50, "needs two classes"),
        ([True, None] * 50, "no label"),
        ([True, False], "not one per example"),
    ],
)
def test_bad_targets_are_refused(targets: Any, said: str) -> None:
    for verb in (probes.fit, probes.evaluate):
        with pytest.raises(WorkbenchError, match=said):
            verb("mass_mean", acts_of(HALVES), targets=targets)


def test_words_are_no_numbers() -> None:
    with pytest.raises(WorkbenchError, match="no finite numbers"):
        probes.fit(Ridge(), acts_of(HALVES), targets=["a", "b"] * 50)


def test_a_probe_of_pairs_takes_few_labels_or_none() -> None:
    labels = [True, False, False, True] * 25
    acts = acts_of(labels, (4.0,), pairs=[i // 2 for i in range(100)])
    few = [label if i < 8 else None for i, label in enumerate(labels)]
    fitted = probes.fit("contrast_consistent", acts, targets=few)["L0.resid_post"]
    right = (fitted.score(acts) > 0) == torch.tensor(labels)
    assert float(right.float().mean()) > 0.9
    blind = probes.fit("contrast_consistent", acts, targets=[None] * 100)["L0.resid_post"]
    assert blind.classes == ("one side", "the other side")
    agree = (blind.score(acts) > 0) == (fitted.score(acts) > 0)
    assert abs(float(agree.float().mean()) - 0.5) > 0.4  # the sign is not known
    with pytest.raises(WorkbenchError, match="no label"):
        probes.fit("logistic", acts, targets=[None] * 100)


def test_sites_are_named_as_everywhere() -> None:
    acts = acts_of(HALVES, (1.0, 1.0, 1.0))
    assert list(probes.fit("mass_mean", acts, "L1-2.resid_post")) == [
        "L1.resid_post",
        "L2.resid_post",
    ]
    assert list(probes.fit("mass_mean", acts, "L*.resid_post")) == list(acts.values)
    with pytest.raises(WorkbenchError, match="was not recorded"):
        probes.fit("mass_mean", acts, "L1.mlp_out")


def test_joined_sites_score_from_the_sites_they_are_joined_from() -> None:
    acts = acts_of(HALVES, (1.0, 1.0))
    ((name, fitted),) = probes.fit("mass_mean", acts, join=True).items()
    assert name == fitted.site == "L0.resid_post+L1.resid_post"
    both = torch.cat(list(acts.values.values()), -1)
    torch.testing.assert_close(fitted.score(acts), fitted.score(both))
    with pytest.raises(WorkbenchError, match="no line at one site"):
        fitted.edit()
    with pytest.raises(WorkbenchError, match="fitted on something else"):
        fitted.score(acts.at("L0.resid_post"))


def test_heads_are_probed_one_by_one() -> None:
    acts = acts_of(HALVES)
    acts = replace(acts, values={"L1.z": acts["L1.resid_post"]})
    found = probes.fit("mass_mean", acts, heads=3)
    assert list(found) == ["L1.z[head=0]", "L1.z[head=1]", "L1.z[head=2]"]
    for head, probe in enumerate(found.values()):
        part = acts["L1.z"][:, 2 * head : 2 * head + 2]
        torch.testing.assert_close(probe.score(acts), probe.score(part))
    for heads, values in ((4, acts.values), (3, {"L1.resid_post": acts["L1.z"]}), (0, acts.values)):
        with pytest.raises(WorkbenchError, match="cannot cut"):
            probes.fit("mass_mean", replace(acts, values=values), heads=heads)
    with pytest.raises(WorkbenchError, match="one of the two"):
        probes.fit("mass_mean", acts, heads=3, join=True)


# ---- files


@cache
def fitted() -> probes.FittedProbe:
    return probes.fit("mass_mean", acts_of(HALVES))["L1.resid_post"]


def test_a_file_gives_the_probe_back(tmp_path: Path) -> None:
    path = store.save(fitted(), tmp_path / "a" / "probe.safetensors")
    back = wb.load_probe(path)
    assert replace(back, tensors={}) == replace(fitted(), tensors={})
    assert all(torch.equal(back.tensors[k], v) for k, v in fitted().tensors.items())


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = wb.save_probe(fitted(), tmp_path / "probe.safetensors")
    whole = path.read_bytes()
    edit = tmp_path / "edit.safetensors"
    wb.save_edit(fitted().edit(), edit)
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.ones(3)}, plain)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-4])
    newer = tmp_path / "newer.safetensors"
    newer.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    alien = tmp_path / "alien.safetensors"
    alien.write_bytes(whole.replace(b"mass_mean", b"mass_mead"))
    for file, said in (
        (tmp_path / "none.safetensors", "cannot be read"),
        (tmp_path / "probe.pkl", "pickle"),
        (edit, "holds no probe"),
        (plain, "holds no probe"),
        (cut, "corrupt"),
        (newer, "another version"),
        (alien, "unknown method"),
    ):
        with pytest.raises(WorkbenchError, match=said):
            store.load(file)
    with pytest.raises(FileRefused, match="pickle"):
        store.save(fitted(), tmp_path / "probe.pt")
    assert store.load(path).site == "L1.resid_post"


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    spoilt = replace(fitted(), tensors={"weight": torch.tensor([float("nan")])})
    with pytest.raises(WorkbenchError, match="holds NaN"):
        store.save(spoilt, tmp_path / "a.safetensors")
    with pytest.raises(WorkbenchError, match="a file cannot hold"):
        store.save(replace(fitted(), params={"x": torch.ones(1)}), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# ---- hand-off to steering, decoding and training


@cache
def on_tiny() -> tuple[Any, Activations, probes.FittedProbe]:
    model = tiny.model()
    prompts = wb.prompts.pairs(
        positive=[f"ab{c}a" for c in "cdefgh"], negative=[f"xy{c}z" for c in "cdefgh"]
    )
    acts = model.record(prompts, "L1.resid_post", progress=False)
    return model, acts, probes.fit("mass_mean", acts)["L1.resid_post"]


def test_a_scorer_reads_the_last_token_of_each_completion() -> None:
    model, _, probe = on_tiny()
    prompts, texts = ["abc", "xy", "abcd"], ["de", "", "x"]
    found = scorer(probe, model)(prompts, texts)
    for prompt, text, score in zip(prompts, texts, found.tolist(), strict=True):
        alone = probe.score(model.record(prompt + text, "L1.resid_post", progress=False))
        assert score == pytest.approx(float(alone), rel=1e-3, abs=1e-4)
    ids = [model.tokenizer(t, add_special_tokens=False)["input_ids"] if t else [] for t in texts]
    torch.testing.assert_close(scorer(probe, model)(prompts, ids), found)
    one = scorer(probe, model, squash=True)(Prompt(text="abc"), "de")
    assert one == pytest.approx(float(found[0].sigmoid()), rel=1e-3)
    with pytest.raises(WorkbenchError, match="not one per prompt"):
        scorer(probe, model)(prompts, texts[:2])


def test_a_scorer_refuses_another_model_and_squashed_numbers() -> None:
    model, acts, probe = on_tiny()
    with pytest.raises(WorkbenchError, match="fitted on something else"):
        scorer(probe, tiny.model("gpt2"))
    numeric = replace(probe, classes=())
    assert numeric.classes == ()
    with pytest.raises(WorkbenchError, match="no probability"):
        scorer(numeric, model, squash=True)


def test_a_scorer_refuses_what_gives_no_one_score_of_a_completion() -> None:
    """It gave the score of the prompt's first token."""
    model, _, probe = on_tiny()
    for pool in ("all", "first"):
        with pytest.raises(WorkbenchError, match="does not read a completion as one"):
            scorer(replace(probe, pool=pool), model)
    acts = model.record(["abc", "xyz", "abd", "xyw"], "L1.resid_post", pool="all", progress=False)
    whole = probes.fit("attention_pooled", acts, targets=[1, 0, 1, 0])["L1.resid_post"]
    found = scorer(whole, model)(["abc", "xy"], ["de", "x"])
    read = model.record(["abcde", "xyx"], "L1.resid_post", pool="all", progress=False)
    torch.testing.assert_close(found, whole.score(read), rtol=1e-3, atol=1e-3)


def test_a_scorer_reads_one_head() -> None:
    model, acts, _ = on_tiny()
    heads = model.record(acts.rows, "L1.z", progress=False)
    probe = probes.fit("mass_mean", heads, heads=model.n_heads)["L1.z[head=1]"]
    found = scorer(probe, model)("abc", "de")
    alone = probe.score(model.record("abcde", "L1.z", progress=False))
    assert found == pytest.approx(float(alone), rel=1e-3, abs=1e-4)


def test_it_rewards_training_and_judges_steering() -> None:
    model, _, probe = on_tiny()
    reward = scorer(probe, model, squash=True)
    assert 0.0 <= reward(Prompt(text="abc"), "d") <= 1.0
    edit = probe.edit()
    steered = wb.steering.evaluate(
        edit,
        model,
        ["abc", "bcd", "cde", "def"],
        concept=reward,
        instruction=lambda prompt, text: 1,
        fluency=lambda prompt, text: 1,
        factors=1.0,
        max_new_tokens=2,
        control=False,
        progress=False,
    )
    assert set(steered.frame()["metric"]) >= {"concept", "score"}


def test_a_probe_moves_the_model_along_its_direction_and_gates_another_edit() -> None:
    model, acts, probe = on_tiny()
    before = probe.score(acts)
    moved = model.record(acts.rows, "L1.resid_post", edits=[probe.edit().at(3.0)], progress=False)
    torch.testing.assert_close(probe.score(moved), before + 3, rtol=1e-3, atol=1e-3)
    gated = interventions.gate(probe.edit().at(5.0), probe.readout, below=0.0)
    after = model.record(acts.rows, "L1.resid_post", edits=[gated], progress=False)
    change = (probe.score(after) - before).abs()
    assert bool((change[before < -1e-3] > 1).all()) and bool((change[before > 1e-3] < 1e-3).all())


def test_the_usual_answer_is_that_of_the_training_part() -> None:
    parts = [(np.array([2, 3]), np.array([0, 1])), (np.array([0, 1]), np.array([2, 3]))]
    np.testing.assert_array_equal(
        baselines.usual(np.array([0.0, 2.0, 5.0, 7.0]), parts), [6.0, 6.0, 1.0, 1.0]
    )
