"""Correlation of few pairs: Pearson's r with its interval, permutation p-value and rank correlation.

Eight pairs with r = 0.7 have an interval of (-0.01, 0.94): r is never reported alone.

Pooled over groups, both sides are standardised within each group first, so that r says how well the
order within groups is known and not how groups differ; it is the mean of the groups' r, weighted by
their numbers of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

EXACT = 8
"""Pairs up to which every permutation is tried: 8! = 40,320."""
N_PERMUTATIONS = 9_999
CLOSE = 1e-12
LEAST = 3
"""Pairs below which there is no correlation: two are always on a line."""


@dataclass(frozen=True)
class Correlation:
    """How well one number goes with another.

    Attributes:
        r: Pearson's; NaN below three pairs, or where one side does not vary.
        low, high: 95 % interval by Fisher's z; NaN below four pairs.
        p: two-sided, that a random pairing correlates as strongly.
        exact: whether every pairing was tried.
        spearman: the same of ranks.
        n: pairs with both numbers.
    """

    r: float
    low: float
    high: float
    p: float
    exact: bool
    spearman: float
    n: int


Numbers = Sequence[float] | np.ndarray


def correlate(x: Numbers, y: Numbers, seed: int = 0) -> Correlation:
    """Pearson's r of pairs, with exact permutation p-value up to eight; pairs with NaN are left out."""
    return correlate_within(np.asarray(x, float)[None], np.asarray(y, float)[None], seed)


def correlate_within(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation:
    """Pooled r of `[group, item]`, each group standardised; pairings are drawn within groups.

    The interval and p-value take pairs as independent. Where groups share their items they are less so:
    `relabelled_p` then tests items.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    zx, zy = _standard(x, y)
    rows = np.isfinite(zx).any(1)
    zx, zy = zx[rows], zy[rows]
    n = int(np.isfinite(zx).sum())
    if not n:
        nan = float("nan")
        known = int((np.isfinite(x) & np.isfinite(y)).sum())
        return Correlation(nan, nan, nan, nan, False, nan, known)
    r = float(pooled_r(zx, zy))
    low, high = fisher(r, n - len(zx) + 1)
    p, exact = _permuted(zx, zy, r, seed)
    ranks = _ranks(x, y)
    return Correlation(r, low, high, p, exact, float(pooled_r(*_standard(*ranks))), n)


def pooled_r(zx: np.ndarray, zy: np.ndarray) -> np.ndarray:
    """r of standardised `[..., group, item]`; NaN where no group varies."""
    product = zx * zy
    n = np.isfinite(product).sum((-2, -1))
    total = np.nansum(product, axis=(-2, -1))
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def r_of_draws(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pooled r of each draw of `[draw, group, item]` with `y` `[group, item]`."""
    return pooled_r(*_standard(x, np.broadcast_to(y, x.shape)))


def relabelled_p(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the pooled r of `[group, item]` where items, shared by all groups, change names.

    Every group gets the same permutation: the test of whether it is known *which item* responds when items
    differ in how much they respond to anything. Pairs that meet a NaN are left out of that relabelling, so
    what is not to count must be NaN on both sides.
    """
    n = x.shape[1]
    observed = float(pooled_r(*_standard(x, y)))
    if not np.isfinite(observed):
        return float("nan")
    orders = _orders(n) if n <= EXACT else _drawn(n, seed)
    found = np.concatenate(
        [r_of_draws(np.moveaxis(x[:, part], 0, 1), y) for part in np.array_split(orders, 20)]
    )
    hits = int((np.abs(found) >= abs(observed) - CLOSE).sum())
    return hits / len(orders) if n <= EXACT else (hits + 1) / (len(orders) + 1)


def specific(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """r and two-sided p-value of `[group, item]` beyond what groups and items have in common.

    Each item's and each group's mean is taken out of both sides, so that r says whether it is known *which
    group* moves *which item*. Pooled as in `correlate_within`; tested as in `relabelled_p`, since groups that
    resemble each other are no independent evidence.
    """
    known = np.isfinite(x) & np.isfinite(y)
    rest = [_without_means(np.where(known, side, np.nan)) for side in (x, y)]
    return float(pooled_r(*_standard(*rest))), relabelled_p(*rest, seed)


def fisher(r: float, n: int) -> tuple[float, float]:
    """95 % interval of r over `n` pairs, by Fisher's z; NaN below four."""
    if n < 4 or not np.isfinite(r):
        return float("nan"), float("nan")
    if abs(r) >= 1 - CLOSE:
        return r, r
    reach = 1.959963984540054 / np.sqrt(n - 3)
    return float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def _standard(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with mean 0 and variance 1 over the items of a group that both know; NaN elsewhere.

    A group with fewer than three such items, or where one side does not vary, is NaN throughout.
    """
    known = np.isfinite(x) & np.isfinite(y)
    n = known.sum(-1, keepdims=True)
    sides = [_scaled(side, known, n) for side in (x, y)]
    good = (n >= LEAST) & (sides[0][1] > 0) & (sides[1][1] > 0) & known
    first, second = (np.where(good, z, np.nan) for z, _ in sides)
    return first, second


def _scaled(side: np.ndarray, known: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised values and their spread; a spread of rounding alone counts as none."""
    filled = np.where(known, side, 0.0)
    mean = filled.sum(-1, keepdims=True) / np.maximum(n, 1)
    away = np.where(known, filled - mean, 0.0)
    spread = np.sqrt((away**2).sum(-1, keepdims=True) / np.maximum(n, 1))
    spread = np.where(spread > CLOSE * np.abs(filled).max(-1, keepdims=True), spread, 0.0)
    return away / np.where(spread > 0, spread, 1.0), spread


def _without_means(side: np.ndarray) -> np.ndarray:
    """Residuals of a least-squares fit of a number per group and one per item."""
    known = np.isfinite(side)
    groups, items = np.nonzero(known)
    effects = np.zeros((len(groups), sum(side.shape)))
    effects[range(len(groups)), groups] = effects[range(len(groups)), side.shape[0] + items] = 1
    values = side[known]
    rest = values - effects @ np.linalg.lstsq(effects, values, rcond=None)[0]
    # what rounding alone leaves is nothing
    small = np.abs(rest) <= 1e-9 * np.abs(values).max(initial=0.0)
    found = np.full(side.shape, np.nan)
    found[known] = np.where(small, 0.0, rest)
    return found


def _ranks(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import rankdata

    known = np.isfinite(x) & np.isfinite(y)
    sides = (np.where(known, side, np.nan) for side in (x, y))
    first, second = (rankdata(side, axis=-1, nan_policy="omit") for side in sides)
    return np.where(known, first, np.nan), np.where(known, second, np.nan)


def _permuted(zx: np.ndarray, zy: np.ndarray, r: float, seed: int) -> tuple[float, bool]:
    """Two-sided p-value over pairings within groups, and whether all were tried."""
    exact = len(zx) == 1 and int(np.isfinite(zx).sum()) <= EXACT
    n = 0
    total: np.ndarray = np.zeros(1)
    for i, (a, b) in enumerate(zip(zx, zy, strict=True)):
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        orders = _orders(len(b)) if exact else _drawn(len(b), seed + i)
        total = total + b[orders] @ a
        n += len(a)
    hits = int((np.abs(total / n) >= abs(r) - CLOSE).sum())
    return (hits / len(total) if exact else (hits + 1) / (len(total) + 1)), exact


@cache
def _orders(n: int) -> np.ndarray:
    """All permutations of n."""
    return np.array(list(permutations(range(n))))


def _drawn(n: int, seed: int) -> np.ndarray:
    """Random permutations of n."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(n), (N_PERMUTATIONS, 1)), axis=1)
