"""Activation difference: features that one class of prompts activates more than the other.

    score_j = mean over positive cases of f_j - mean over negative cases of f_j
    with pairs: mean over pairs of f_j(positive) - f_j(negative)

f_j is the mean (or largest) activation over the chosen positions of a case. Without pairs the values per
case are influences, score + (n / n_c) (+-f_j - mean_c): their mean is the score, their spread its error.

Shapes: `values` `[case, feature]`, or `[pair, feature]`.
Units: activations.
Source: O'Brien et al. (2024), Steering Language Model Refusal with Sparse Autoencoders,
    https://arxiv.org/abs/2411.11296, for features by a contrast of prompts; Wu et al. (2025), AxBench,
    https://arxiv.org/abs/2501.17148. Influences: Hampel (1974), The Influence Curve and its Role in
    Robust Estimation, https://doi.org/10.1080/01621459.1974.10482962.
Differs from the paper: the papers rank by hand or by one number; intervals, shuffled labels and the
    correction for the choice among all features are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from workbench.registry import Citation, register
from workbench.sae.scorers.base import Block, FeatureScores, Labels, LabelScorer
from workbench.sae.scorers.cases import compared, flipped, known, pooled, shuffled
from workbench.shapes import Float, Tensor


@register(
    "scorers",
    Citation(
        "O'Brien, Majercak, Fernandes, Edgar, Chen, et al.",
        "Steering Language Model Refusal with Sparse Autoencoders",
        2024,
        "https://arxiv.org/abs/2411.11296",
    ),
)
@dataclass(frozen=True)
class ActivationDifference(LabelScorer):
    """Features that positive prompts activate more, or less, than negative ones.

    Attributes:
        pool: how the positions of a prompt become one number: "mean" or "max".
    """

    def score(
        self, *, n_cases: int, codes: Callable[[], Iterable[Block]], labels: Labels
    ) -> FeatureScores:
        """Differences of means, signed: above 0 where positive cases activate a feature more."""
        values, labels = known(pooled(codes(), n_cases, self.pool), labels, "ActivationDifference")
        if labels.pairs is not None:
            differences = values[labels.pairs[0]] - values[labels.pairs[1]]
            control, largest, scale = flipped(differences, self.draws, self.seed)
            said = "the mean with the two of each pair exchanged at random"
        else:
            differences = _influences(values, labels.classes)
            weights = _weights(shuffled(labels.classes, self.draws, self.seed))
            control, largest, scale = compared(values, weights)
            said = "the difference with labels shuffled"
        n, what = len(differences), "cases" if labels.pairs is None else "pairs"
        return FeatureScores(
            differences,
            control,
            largest,
            "difference of activations",
            "activation",
            said,
            scale=scale,
            caption=f"Mean activation of positive less negative prompts, over {n} {what}.",
        )


def _weights(classes: Float[Tensor, "*draw case"]) -> Float[Tensor, "*draw case"]:
    """What each case counts in the difference of means."""
    positive = classes.double()
    n = positive.sum(-1, keepdim=True)
    return positive / n - (1 - positive) / (positive.shape[-1] - n)


def _influences(
    values: Float[Tensor, "case feature"], classes: Float[Tensor, " case"]
) -> Float[Tensor, "case feature"]:
    """Per case, numbers whose mean is the difference and whose spread is its sampling error."""
    up = classes == 1
    means = torch.where(up[:, None], values[up].mean(0), values[~up].mean(0))
    share = torch.where(up, len(up) / up.sum(), -(len(up) / (~up).sum()))
    difference = values[up].mean(0) - values[~up].mean(0)
    return difference + share[:, None] * (values - means)
