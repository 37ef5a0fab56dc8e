"""Correlations of few pairs: against scipy and against plain enumeration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from workbench.comparison.correlation import (
    correlate,
    correlate_within,
    fisher,
    r_of_draws,
    relabelled_p,
    specific,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=7)
Y = X + RNG.normal(size=7)


def test_r_interval_and_ranks_are_scipys() -> None:
    found, theirs = correlate(X, Y), stats.pearsonr(X, Y)
    assert found.r == pytest.approx(theirs.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.spearman == pytest.approx(stats.spearmanr(X, Y).statistic)
    assert (found.n, found.exact) == (7, True)


def test_eight_pairs_of_r_07_may_be_of_no_correlation_at_all() -> None:
    assert fisher(0.7, 8) == pytest.approx((-0.0092, 0.9407), abs=1e-4)


def test_small_samples_try_every_pairing() -> None:
    found = correlate(X, Y)
    every = [abs(np.corrcoef(X, Y[list(order)])[0, 1]) for order in permutations(range(7))]
    assert found.p == pytest.approx(np.mean(np.array(every) >= abs(found.r) - 1e-12))


def test_larger_samples_draw_pairings_and_never_say_zero() -> None:
    x = np.arange(30.0)
    found = correlate(x, x + 0.01 * RNG.normal(size=30))
    assert not found.exact and found.p == pytest.approx(1e-4)
    shuffled = [correlate(RNG.normal(size=12), RNG.normal(size=12), seed=i).p for i in range(60)]
    assert 0.3 < np.mean(shuffled) < 0.7 and np.mean(np.array(shuffled) < 0.05) < 0.2


def test_unknown_pairs_are_left_out() -> None:
    x, y = [*X, np.nan, 3.0], [*Y, 1.0, np.nan]
    assert correlate(x, y) == correlate(X, Y)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]), ([0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 4.0])],
)
def test_what_does_not_vary_correlates_with_nothing(x: list[float], y: list[float]) -> None:
    found = correlate(x, y)
    assert np.isnan([found.r, found.low, found.high, found.p, found.spearman]).all()


def test_too_few_pairs_have_no_correlation_and_three_no_interval() -> None:
    assert np.isnan(correlate([1.0, 2.0], [1.0, 2.0]).r)
    three = correlate([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    assert three.r > 0.9 and np.isnan(three.low)


def test_pooled_is_the_mean_of_the_groups_whatever_their_levels() -> None:
    x, noise = RNG.normal(size=(5, 9)), RNG.normal(size=(5, 9))
    y = x + noise
    each = [stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    far = np.array([[1.0], [10.0], [-100.0], [3.0], [0.1]])
    found = correlate_within(x * abs(far) + far, y / abs(far) - far)
    assert found.r == pytest.approx(np.mean(each)) and found.n == 45
    assert (found.low, found.high) == pytest.approx(fisher(found.r, 45 - 4))
    assert found.p == pytest.approx(1e-4)


def test_pooled_of_unrelated_groups_is_not_significant_though_their_levels_agree() -> None:
    level = np.array([[0.0], [100.0], [200.0]])
    found = correlate_within(RNG.normal(size=(3, 10)) + level, RNG.normal(size=(3, 10)) + level)
    assert abs(found.r) < 0.5 and found.p > 0.05


def test_items_shared_by_all_groups_count_once() -> None:
    # the same four items respond to anything: forty pairs, four observations
    items = np.array([1.0, 2.0, 3.0, 4.0])
    x, y = (items + 0.01 * RNG.normal(size=(10, 4)) for _ in range(2))
    assert correlate_within(x, y).p == pytest.approx(1e-4)
    assert relabelled_p(x, y) == pytest.approx(1 / 24)


def test_relabelling_never_meets_pairs_that_are_unknown_on_one_side_only() -> None:
    # what only one side leaves out would come back in its null: mask both
    x, y = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 6))
    x[np.arange(5), np.arange(5)] = y[np.arange(5), np.arange(5)] = np.nan
    every = [
        abs(correlate_within(x[:, list(order)], y).r) for order in list(permutations(range(6)))[::7]
    ]
    observed = abs(correlate_within(x, y).r)
    assert relabelled_p(x, y) == pytest.approx(np.mean(np.array(every) >= observed), abs=0.12)


def planted(strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and changes with large effects of sources and targets on both sides, own pairs unknown."""
    rng = np.random.default_rng(3)
    pair = rng.normal(size=(9, 9))
    sides = []
    for _ in range(2):
        group, item, noise = (
            rng.normal(size=(9, 1)),
            rng.normal(size=(1, 9)),
            rng.normal(size=(9, 9)),
        )
        side = 5 * group + 5 * item + strength * pair + noise
        np.fill_diagonal(side, np.nan)
        sides.append(side)
    return sides[0], sides[1]


def test_specific_r_is_that_of_residuals_of_a_two_way_fit() -> None:
    x, y = planted(2.0)
    rest = []
    for side in (x, y):
        left = side.copy()
        for _ in range(200):  # backfitting, in place of least squares
            left = left - np.nanmean(left, 1, keepdims=True)
            left = left - np.nanmean(left, 0, keepdims=True)
        rest.append(left)
    r, p = specific(x, y)
    assert r == pytest.approx(correlate_within(*rest).r) and r > 0.5 and p < 0.01


def test_specific_r_does_not_see_what_sources_and_targets_have_in_common() -> None:
    x, y = planted(2.0)
    shift = 100 * RNG.normal(size=(9, 1)) + 100 * RNG.normal(size=(1, 9))
    np.testing.assert_allclose(specific(x + shift, y), specific(x, y), atol=1e-6)
    items = np.broadcast_to(RNG.normal(size=(1, 9)), (9, 9))  # the same of every source
    assert np.isnan(specific(np.where(np.isnan(x), np.nan, items), y)).all()


def test_sources_that_resemble_each_other_are_no_evidence_of_their_own() -> None:
    # two kinds of sources, unrelated on both sides: eight rows, two observations
    rng, found = np.random.default_rng(0), []
    kinds = np.arange(8) % 2
    for _ in range(40):
        x, y = (rng.normal(size=(2, 6))[kinds] + 0.1 * rng.normal(size=(8, 6)) for _ in range(2))
        found.append(specific(x, y)[1])
    assert np.mean(np.array(found) < 0.05) < 0.2


def test_draws_are_correlated_one_by_one() -> None:
    draws = RNG.normal(size=(4, 3, 6))
    y = RNG.normal(size=(3, 6))
    y[0, 0] = np.nan
    expected = [correlate_within(one, y).r for one in draws]
    np.testing.assert_allclose(r_of_draws(draws, y), expected)
