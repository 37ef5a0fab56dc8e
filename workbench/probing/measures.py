"""How good out-of-fold scores are, with bootstrap intervals over groups.

Every measure takes weights `[draw, example]`, how often each example was drawn, so that all draws of a
bootstrap are one matrix product, and sites, controls and differences share their draws.

AUROC and rank correlation are taken within a fold and averaged, by pairs or examples: scores of two folds
come from two fits and are not on one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from workbench.comparison.stats import Interval, _tail, wilson

DRAWS = 1000
BINS = 10
Weights = np.ndarray
Measure = Callable[["Held", Weights], np.ndarray]


@dataclass(frozen=True)
class Held:
    """What a probe said of examples it was not fitted on; arrays are `[example]`.

    Attributes:
        scores: logits of class 1, or numbers.
        targets: what was right.
        folds: in which fold the example was held out.
        usual: the mean target of the examples it was then fitted on.
        low, high: ends of the predicted central interval, where the probe gives one.
        level: the probability that they promise.
    """

    scores: np.ndarray
    targets: np.ndarray
    folds: np.ndarray
    usual: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    level: float = 0.0

    @property
    def probability(self) -> np.ndarray:
        """Of class 1."""
        return 0.5 * (1 + np.tanh(self.scores / 2))


def accuracy(held: Held, weights: Weights) -> np.ndarray:
    """Share on the right side of a score of 0; on the line is half right."""
    right = np.where(held.scores == 0, 0.5, (held.scores > 0) == (held.targets == 1))
    return _mean(right, weights)


def auroc(held: Held, weights: Weights) -> np.ndarray:
    """Share of pairs of one fold, a row of each class, that the score orders rightly; ties are half."""
    found = [
        _ordered(held.scores[at], held.targets[at] == 1, weights[:, at]) for at in _folds(held)
    ]
    right, pairs = np.sum(found, axis=0)
    return _ratio(right, pairs)


def _ordered(scores: np.ndarray, positive: np.ndarray, weights: Weights) -> np.ndarray:
    """Weight of the rightly ordered pairs, and of all pairs, `[2, draw]`."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    weights, positive = weights[:, order], positive[order]
    ones = np.add.reduceat(weights * positive, starts, axis=1)
    zeros = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(zeros, axis=1) - zeros
    return np.stack([(ones * (below + zeros / 2)).sum(1), ones.sum(1) * zeros.sum(1)])


def ece(held: Held, weights: Weights) -> np.ndarray:
    """Expected calibration error: mean |predicted - observed share| over 10 bins of probability.

    Source: Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks,
        https://arxiv.org/abs/1706.04599; here of class 1 in place of the predicted class. It cannot
        be below 0, so few examples make it too large.
    """
    p = held.probability
    inside = _bin(p)[:, None] == np.arange(BINS)
    gap = weights @ (inside * (p - held.targets)[:, None])
    return _ratio(np.abs(gap).sum(1), weights.sum(1))


def _bin(p: np.ndarray) -> np.ndarray:
    return np.clip((p * BINS).astype(int), 0, BINS - 1)


def r2(held: Held, weights: Weights) -> np.ndarray:
    """1 - squared error / that of predicting the training mean; below 0 is worse than that mean."""
    error = (held.scores - held.targets) ** 2
    return 1 - _ratio(weights @ error, weights @ (held.usual - held.targets) ** 2)


def mae(held: Held, weights: Weights) -> np.ndarray:
    """Mean absolute error, in the units of the targets."""
    return _mean(np.abs(held.scores - held.targets), weights)


def spearman(held: Held, weights: Weights) -> np.ndarray:
    """Rank correlation within folds, averaged by examples; a constant prediction counts as 0."""
    from scipy.stats import rankdata

    total = np.zeros(len(weights))
    for at in _folds(held):
        w = weights[:, at]
        x, y = rankdata(held.scores[at]), rankdata(held.targets[at])
        x, y = x - _mean(x, w)[:, None], y - _mean(y, w)[:, None]
        spread = np.sqrt((w * x**2).sum(1) * (w * y**2).sum(1))
        total += np.nan_to_num(_ratio((w * x * y).sum(1), spread)) * w.sum(1)
    return _ratio(total, weights.sum(1))


def coverage(held: Held, weights: Weights) -> np.ndarray:
    """Share of targets inside the predicted interval; NaN where the probe gives none."""
    if held.low is None or held.high is None:
        return np.full(len(weights), np.nan)
    return _mean((held.low <= held.targets) & (held.targets <= held.high), weights)


OF_CLASSES: dict[str, tuple[Measure, str]] = {
    "accuracy": (accuracy, "fraction"),
    "auroc": (auroc, "fraction"),
    "ece": (ece, "fraction"),
}
OF_NUMBERS: dict[str, tuple[Measure, str]] = {
    "r2": (r2, "fraction of variance"),
    "mae": (mae, "units of the target"),
    "spearman": (spearman, "correlation"),
    "coverage": (coverage, "fraction"),
}
MEASURES = OF_CLASSES | OF_NUMBERS
SMALLER_IS_BETTER = ("ece", "mae")


@dataclass(frozen=True)
class Bootstrap:
    """Draws of groups with replacement, the same for everything that is measured.

    Attributes:
        groups: `[example]`, numbers from 0.
    """

    groups: np.ndarray
    seed: int = 0
    draws: int = DRAWS

    @property
    def n(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1

    def weights(self) -> Iterator[Weights]:
        """Blocks `[draw, example]` of how often each example was drawn."""
        rng = np.random.default_rng(self.seed)
        counts = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=self.draws)
        size = max(1, 2_000_000 // len(self.groups))
        for start in range(0, self.draws, size):
            yield counts[start : start + size, self.groups].astype(float)

    def drawn(self, measured: Callable[[Weights], np.ndarray]) -> np.ndarray:
        """The value of every draw, `[draw]`."""
        return np.concatenate([measured(block) for block in self.weights()])

    def ends(self, drawn: np.ndarray) -> tuple[float, float]:
        """Both ends of the 95 % percentile interval, widened for few groups; NaN for one group."""
        if self.n < 2 or not np.isfinite(drawn).any():
            return np.nan, np.nan
        tail = _tail(self.n)
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        return float(low), float(high)

    def interval(self, measured: Callable[[Weights], np.ndarray]) -> Interval:
        """The value on all examples with its interval."""
        mean = float(measured(np.ones((1, len(self.groups))))[0])
        if np.isnan(mean):
            return Interval(mean, np.nan, np.nan, self.n)
        return Interval(mean, *self.ends(self.drawn(measured)), self.n)

    def centred(self, measured: Callable[[Weights], np.ndarray]) -> Interval:
        """`interval` of what is never below 0 and grows with noise: draws, which are noisier than the
        examples, are moved back by the mean of what they are too large.
        """
        found = self.interval(measured)
        drawn = self.drawn(measured)
        low, high = self.ends(np.maximum(drawn - drawn.mean() + found.mean, 0.0))
        return Interval(found.mean, low, high, found.n)

    def share(self, measured: Callable[[Weights], np.ndarray], n: int | None = None) -> Interval:
        """`interval` of a share; where all draws agree on 0 or 1, Wilson's, which is never empty.

        Args:
            n: independent comparisons behind the share; the groups by default.
        """
        found = self.interval(measured)
        if found.low != found.high or found.mean not in (0.0, 1.0):
            return found
        n = n or self.n
        known = wilson(round(found.mean * n), n)
        return Interval(found.mean, known.low, known.high, self.n)


def disjoint_pairs(targets: np.ndarray, groups: np.ndarray) -> int:
    """How many pairs of a row of each class share no group: what a perfect AUROC rests on at least."""
    return max(1, min(len(set(groups[targets == c].tolist())) for c in (0, 1)))


def by_fold(held: Held) -> list[Held]:
    """The same scores, fold by fold."""
    cut = lambda x, at: None if x is None else x[at]  # noqa: E731
    return [
        Held(
            held.scores[at],
            held.targets[at],
            held.folds[at],
            held.usual[at],
            cut(held.low, at),
            cut(held.high, at),
            held.level,
        )
        for at in _folds(held)
    ]


def _folds(held: Held) -> Iterator[np.ndarray]:
    for fold in np.unique(held.folds):
        yield np.flatnonzero(held.folds == fold)


def _mean(values: np.ndarray, weights: Weights) -> np.ndarray:
    return _ratio(weights @ np.asarray(values, float), weights.sum(1))


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(under != 0, over / under, np.nan)
