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


def test_draws_are_correlated_one_by_one() -> None:
    draws = RNG.normal(size=(4, 3, 6))
    y = RNG.normal(size=(3, 6))
    y[0, 0] = np.nan
    expected = [correlate_within(one, y).r for one in draws]
    np.testing.assert_allclose(r_of_draws(draws, y), expected)
