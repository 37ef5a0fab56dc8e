"""How good out-of-fold scores are, with bootstrap intervals over groups.

The fits are taken as given: an interval says how far the score would move with other examples to judge,
not with others to fit on. Test examples of one fold are training examples of the others, so 95 % is a
little less: over 300 simulated data sets of 40 to 120 rows, intervals of accuracy and AUROC held the truth in
88 to 100 % where there was a signal and in 88 to 90 % where there was none.

Every measure takes weights `[draw, example]`, how often each example was drawn, so that all draws of a
bootstrap are one matrix product, and sites, controls and differences share their draws.

AUROC and rank correlation are taken within a fold and averaged, by pairs or examples: scores of two folds
come from two fits and are not on one scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from workbench.comparison.stats import Interval, tail_share, wilson

DRAWS = 1000
BLOCK = 2_000_000  # numbers of one block of weights
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

    def at(self, index: np.ndarray) -> Held:
        """Some of the examples."""
        names = ("scores", "targets", "folds", "usual", "low", "high")
        many = {name: getattr(self, name) for name in names}
        return replace(self, **{k: v[index] for k, v in many.items() if v is not None})

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
    inside = bin_of(p)[:, None] == np.arange(BINS)
    gap = weights @ (inside * (p - held.targets)[:, None])
    return _ratio(np.abs(gap).sum(1), weights.sum(1))


def bin_of(p: np.ndarray) -> np.ndarray:
    """The number of the bin of each probability; all are equally wide."""
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

    @cached_property
    def counts(self) -> np.ndarray:
        """`[draw, group]`, how often each group was drawn; drawn once, as drawing takes long."""
        rng = np.random.default_rng(self.seed)
        found = np.empty((self.draws, self.n), np.int32)
        size = max(1, BLOCK // self.n)
        for block in np.split(found, range(size, self.draws, size)):
            block[:] = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=len(block))
        return found

    def weights(self) -> Iterator[Weights]:
        """Blocks `[draw, example]` of how often each example was drawn."""
        size = max(1, BLOCK // len(self.groups))
        for start in range(0, self.draws, size):
            yield self.counts[start : start + size, self.groups].astype(float)

    def drawn(self, measured: Callable[[Weights], np.ndarray]) -> np.ndarray:
        """The value of every draw, `[draw]`."""
        return np.concatenate([measured(block) for block in self.weights()])

    def ends(self, drawn: np.ndarray) -> tuple[float, float]:
        """Both ends of the 95 % percentile interval, widened for few groups; NaN for one group."""
        if self.n < 2 or not np.isfinite(drawn).any():
            return np.nan, np.nan
        tail = tail_share(self.n)
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
        mean = float(measured(np.ones((1, len(self.groups))))[0])
        drawn = self.drawn(measured)
        ends = self.ends(np.maximum(drawn - drawn.mean() + mean, 0.0))
        return Interval(mean, *ends, self.n)

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


def judged(name: str, held: Held, bootstrap: Bootstrap) -> Interval:
    """A measure by its name, with the interval that suits it."""
    measured = partial(MEASURES[name][0], held)
    if name == "auroc":
        return bootstrap.share(measured, disjoint_pairs(held, bootstrap.groups))
    if name in ("accuracy", "coverage"):
        return bootstrap.share(measured)
    return bootstrap.centred(measured) if name == "ece" else bootstrap.interval(measured)


def disjoint_pairs(held: Held, groups: np.ndarray) -> int:
    """How many pairs of a row of each class, of one fold, share no group with another pair of them: what
    a perfect AUROC rests on at least.
    """
    found = 0
    for at in _folds(held):
        of_class = (groups[at][held.targets[at] == c] for c in (0, 1))
        found += min(len(np.unique(of)) for of in of_class)
    return max(1, found)


def over_fits(name: str, controls: Sequence[Held], seed: int = 0) -> Interval:
    """A measure of shuffled controls, with its interval over their fits, one per fold.

    One fit says little: on rows of few kinds it is right about nearly all of them or wrong about nearly
    all. A fit counts by its examples, pairs or squares, as a fold does in the measure itself: a mean of
    quotients would be led by folds of few examples.
    """
    fits = [held.at(index) for held in controls for index in _folds(held)]
    once = [np.ones((1, len(fit.targets))) for fit in fits]
    values = [MEASURES[name][0](fit, one)[0] for fit, one in zip(fits, once, strict=True)]
    sizes = np.array([float(SIZES.get(name, _examples)(fit)) for fit in fits])
    total = sizes * np.nan_to_num(values)
    drawn = Bootstrap(np.arange(len(fits)), seed)
    return drawn.interval(lambda weights: _ratio(weights @ total, weights @ sizes))


def over_tasks(name: str, tasks: Sequence[Held], bootstrap: Bootstrap) -> Interval:
    """The mean of a measure over control tasks, with its interval over groups, the tasks as drawn."""
    measure = MEASURES[name][0]
    judge = bootstrap.share if name in OF_CLASSES else bootstrap.interval
    return judge(lambda weights: np.mean([measure(held, weights) for held in tasks], axis=0))


def _examples(held: Held) -> int:
    return len(held.targets)


def _pairs(held: Held) -> int:
    return int((held.targets == 1).sum() * (held.targets != 1).sum())


def _squares(held: Held) -> float:
    return float(((held.usual - held.targets) ** 2).sum())


SIZES: dict[str, Callable[[Held], float]] = {"auroc": _pairs, "r2": _squares}
"""What the denominator of a measure adds up, where it is not examples."""


def difference(a: Interval, b: Interval) -> Interval:
    """`a - b` of independent estimates, each with an interval of its own kind.

    Source: Zou and Donner (2008), Construction of Confidence Limits about Effect Measures: A General
        Approach, https://doi.org/10.1002/sim.3095.
    """
    mean = a.mean - b.mean
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    return Interval(mean, low, mean + math.hypot(a.high - a.mean, b.mean - b.low), a.n)


def _folds(held: Held) -> Iterator[np.ndarray]:
    for fold in np.unique(held.folds):
        yield np.flatnonzero(held.folds == fold)


def _mean(values: np.ndarray, weights: Weights) -> np.ndarray:
    return _ratio(weights @ np.asarray(values, float), weights.sum(1))


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(under != 0, over / under, np.nan)
