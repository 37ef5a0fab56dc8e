"""Intervals and tests for paired comparisons, where prompts are the sample.

A prompt answered under several seeds is one observation, not several: values are averaged per
prompt first, and the bootstrap draws prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; `p` is the two-sided p-value where one was asked for."""

    mean: float
    low: float
    high: float
    n: int
    p: float | None = None


def full_marks(unit: str) -> float | None:
    """The largest value of a unit that has one: 1 of a fraction, 2 of "points of 2"."""
    if unit.startswith("points of "):
        return float(unit.removeprefix("points of "))
    return 1.0 if unit.startswith("fraction") else None


def mean_interval(
    values: Sequence[float] | np.ndarray, proportion: bool = False, seed: int = 0, top: float = 1.0
) -> Interval:
    """Mean of per-prompt values, bootstrap interval; Wilson's for a `proportion` of 0s and `top`s.

    Fewer than two values have no interval: it is NaN.
    """
    values = _finite(values)
    if proportion and len(values) > 1 and bool(np.isin(values, (0.0, top)).all()):
        found = wilson(int((values == top).sum()), len(values))
        return Interval(top * found.mean, top * found.low, top * found.high, found.n)
    low, high = _bootstrap(values, seed)
    return Interval(_mean(values), low, high, len(values))


def mean_intervals(
    values: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, both ends of the 95 % interval, and n, of many places at once: `values` is `[case, place]`.

    The same bootstrap as `mean_interval`, every place with the same drawn cases. NaN is left out; fewer
    than two values have no interval.
    """
    known = np.isfinite(values)
    n = known.sum(0)
    with np.errstate(invalid="ignore"):
        mean = np.where(n > 0, np.where(known, values, 0).sum(0) / n, np.nan)
    low, high = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    # places known in the same cases share their draws
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for i, pattern in enumerate(patterns.T):
        places = which.reshape(-1) == i
        if pattern.sum() > 1:
            low[places], high[places] = _bootstraps(values[pattern][:, places], seed)
    return mean, low, high, n


def _bootstraps(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`_bootstrap` of every column; counts of drawn rows make a resample a matrix product."""
    n = len(values)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) / n
    level = tail_share(n)
    ends = [
        np.quantile(drawn @ block, [level, 1 - level], axis=0)
        for block in np.array_split(values, max(1, values.shape[1] // 1000), axis=1)
    ]
    low, high = np.concatenate(ends, axis=1)
    same = np.ptp(values, axis=0) == 0  # no rounding where nothing varies
    return np.where(same, values[0], low), np.where(same, values[0], high)


def paired_difference(
    arm: Sequence[float] | np.ndarray,
    base: Sequence[float] | np.ndarray,
    proportion: bool = False,
    seed: int = 0,
    top: float = 1.0,
) -> Interval:
    """Mean of `arm - base` over prompts that both have, with bootstrap interval and sign-flip
    p-value.

    `arm[i]` and `base[i]` are the values of prompt i; a pair with a NaN is left out. Where every
    difference of a `proportion` (of `top`) is the same, a bootstrap knows no spread: the interval then allows
    for as many other prompts as an exact binomial bound does.
    """
    differences = _finite(np.asarray(arm, float) - np.asarray(base, float))
    low, high = _bootstrap(differences, seed)
    if proportion and len(differences) > 1 and np.ptp(differences) == 0:
        low, high = _unanimous(float(differences[0]) / top, len(differences))
        low, high = top * low, top * high
    return Interval(_mean(differences), low, high, len(differences), _sign_flip(differences, seed))


def wilson(successes: int, n: int) -> Interval:
    """A proportion with Wilson's score interval, which stays inside 0 to 1 and is never empty."""
    from scipy.stats import binomtest

    ci = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, float(ci.low), float(ci.high), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values; NaN stays NaN and counts for nothing."""
    p = np.asarray(p_values, float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    p = p.copy()
    p[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return p.tolist()


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    return values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean, widened for small samples as a t interval is.

    Source: Hesterberg (2015), What Teachers Should Know About the Bootstrap,
        https://arxiv.org/abs/1411.5279, sections 3 and 4.1: percentile intervals are too narrow by
        sqrt((n-1)/n) and by the normal for the t quantile; expanding both tails mends it.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    from scipy import stats

    level = 1 - 2 * tail_share(len(values))
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=N_RESAMPLES,
        batch=256,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def tail_share(n: int) -> float:
    """Share of resamples beyond each end, smaller than 2.5 % for small samples."""
    from scipy import stats

    wide = np.sqrt(n / (n - 1)) * stats.t.ppf((1 - LEVEL) / 2, n - 1)
    return float(stats.norm.cdf(wide))


def _unanimous(value: float, n: int) -> tuple[float, float]:
    """Interval of a mean between -1 and 1 of which n of n observed values are `value`."""
    unseen = 1 - ((1 - LEVEL) / 2) ** (1 / n)
    return value - unseen * (value + 1), value + unseen * (1 - value)


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    """Two-sided p-value of a mean of 0 where every difference might as well have the other sign."""
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 1.0
    from scipy.stats import permutation_test

    found = permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=N_RESAMPLES,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
