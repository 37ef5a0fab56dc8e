"""What a probe has to beat: the usual answer, and a bag of the prompt's tokens, on the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench import seeds
from workbench.errors import WorkbenchError
from workbench.probing.folds import Split

TOKENS = r"[^\W\d_]+|\d|[^\w\s]"
"""Words, single digits, punctuation: their counts say nothing of order or meaning."""


TRIES = 1000


def usual(targets: np.ndarray, split: Split) -> np.ndarray:
    """`[example]`, the mean target of the examples that a held-out one's probe was fitted on."""
    found = np.empty(len(targets))
    for train, test in split:
        found[test] = targets[train].mean()
    return found


def logit(share: np.ndarray) -> np.ndarray:
    """Log odds of a share."""
    with np.errstate(divide="ignore"):
        return np.log(share) - np.log1p(-share)


def bag_of_tokens(
    texts: Sequence[str], targets: np.ndarray, split: Split, classes: bool
) -> np.ndarray:
    """Out-of-fold scores of logistic regression (C = 1), or ridge (alpha = 1), on counts of tokens.

    Words, digits and punctuation of each text are counted; the vocabulary is that of the training part.
    """
    found = np.empty(len(targets))
    for train, test in split:
        found[test] = _bag(
            [texts[i] for i in train], targets[train], [texts[i] for i in test], classes
        )
    return found


def _bag(known: list[str], targets: np.ndarray, asked: list[str], classes: bool) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    counts = CountVectorizer(token_pattern=TOKENS)
    try:
        rows = counts.fit_transform(known)
    except ValueError:  # no token at all
        mean = targets.mean(keepdims=True)
        return np.repeat(logit(mean) if classes else mean, len(asked))
    if classes:
        return (
            LogisticRegression(max_iter=5000)
            .fit(rows, targets)
            .decision_function(counts.transform(asked))
        )
    return Ridge().fit(rows, targets).predict(counts.transform(asked))


def from_number(
    values: Sequence[float | None], targets: np.ndarray, split: Split
) -> np.ndarray | None:
    """Out-of-fold predictions of a number that stands in the text, taken as it is; the training mean
    where there is none. None where no text has one."""
    found = np.array([np.nan if v is None else float(v) for v in values])
    known = np.isfinite(found)
    return np.where(known, found, usual(targets, split)) if known.any() else None


def shuffled(
    targets: np.ndarray, train: np.ndarray, seed: int, *parts: object, classes: bool = True
) -> np.ndarray:
    """All targets, those of the training part in a random order that knows nothing of the true one.

    Two classes are shuffled so that each has its share of either label, as near as whole examples allow:
    where classes are two clumps, labels that lean to the truth by chance are learnt as if they were it,
    and single fits would be right about nearly all examples or about none.
    """
    found, known = targets.copy(), targets[train]
    rng = np.random.default_rng(seeds.derive(seed, "shuffled targets", *parts))
    if not classes:
        found[train] = rng.permutation(known)
        return found
    ones = known == 1
    even = ones.sum() * ones.mean()
    # up or down equally often, not by what is nearer: the side that labels lean to decides a whole fit
    kept = int(np.floor(even)) + (int(rng.integers(2)) if even % 1 else 0)
    for of_class, k in ((train[ones], kept), (train[~ones], int(ones.sum()) - kept)):
        found[of_class] = rng.permutation(np.arange(len(of_class)) < k)
    return found


def random_by_type(
    types: Sequence[Any], targets: np.ndarray, split: Split, seed: int, *parts: object
) -> np.ndarray:
    """A control task: every type draws one of the targets at random, and all its examples get that.

    It is drawn again while a training part would have one target only, which cannot be fitted.

    Source: Hewitt and Liang (2019), Designing and Interpreting Probes with Control Tasks,
        https://arxiv.org/abs/1909.03368, section 2.
    """
    rng = np.random.default_rng(seeds.derive(seed, "control task", *parts))
    kinds = list(dict.fromkeys(types))
    for _ in range(TRIES):
        drawn = dict(zip(kinds, rng.choice(targets, len(kinds)), strict=True))
        found = np.array([drawn[kind] for kind in types])
        if all(np.ptp(found[train]) > 0 for train, _ in split):
            return found
    raise WorkbenchError(
        "probes.evaluate",
        "types are too few for a control task",
        expected="types of which every training part has two or more",
        got=kinds[:6],
        do="pass what differs between examples, such as tokens, or leave types out",
    )
