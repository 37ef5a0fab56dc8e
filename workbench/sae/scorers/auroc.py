"""AUROC: how well a feature alone ranks positive prompts above negative ones.

    score_j = P(f_j(positive) > f_j(negative)) + P(equal) / 2

0.5 is chance; below it the feature marks the negative class. Values per case are DeLong's placements:
for a positive case the share of negative ones below it, for a negative one the share of positive ones
above it, set around the score so that their mean is the score and their spread its sampling error.

Shapes: `values` `[case, feature]`.
Units: fraction.
Source: Kantamneni et al. (2025), Are Sparse Autoencoders Useful? A Case Study in Sparse Probing,
    https://arxiv.org/abs/2502.16681, for single features as probes judged by AUROC; DeLong, DeLong and
    Clarke-Pearson (1988), https://doi.org/10.2307/2531595, for the placements.
Differs from the paper: no probe is fitted on several features; `workbench.probes` does that. Pairs are
    not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from workbench.registry import Citation, register
from workbench.sae.scorers.base import Block, FeatureScores, Labels, LabelScorer
from workbench.sae.scorers.cases import columns, known, over, pooled, shuffled
from workbench.shapes import Float, Tensor


@register(
    "scorers",
    Citation(
        "Kantamneni, Engels, Rajamanoharan, Tegmark, Nanda",
        "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing",
        2025,
        "https://arxiv.org/abs/2502.16681",
    ),
)
@dataclass(frozen=True)
class Auroc(LabelScorer):
    """Features that rank positive prompts above negative ones, or below them.

    Attributes:
        pool: how the positions of a prompt become one number: "mean" or "max".
    """

    def score(
        self, *, n_cases: int, codes: Callable[[], Iterable[Block]], labels: Labels
    ) -> FeatureScores:
        """The area under the curve of every feature."""
        values, labels = known(pooled(codes(), n_cases, self.pool), labels, "Auroc")
        up = labels.classes == 1
        placed, ranks = torch.empty_like(values), torch.empty_like(values)
        for some in columns(len(values), values.shape[1]):
            ranks[:, some] = _ranks(values[:, some])
            placed[:, some] = _influences(values[:, some], ranks[:, some], up)
        classes = shuffled(labels.classes, self.draws, self.seed)
        n, m = int(up.sum()), int((~up).sum())
        control, largest = over(
            ranks, lambda part: (classes @ part - n * (n + 1) / 2) / (n * m), neutral=0.5
        )
        return FeatureScores(
            placed,
            control,
            largest,
            "AUROC",
            "fraction",
            "AUROC with labels shuffled",
            neutral=0.5,
            caption=f"How often a positive prompt ranks above a negative one, {n} and {m} prompts.",
        )


def _ranks(values: Float[Tensor, "case f"]) -> Float[Tensor, "case f"]:
    """Ranks from 1 among all cases, ties at their mean rank."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.double().numpy(), axis=0)).float()


def _influences(
    values: Float[Tensor, "case f"], ranks: Float[Tensor, "case f"], up: Tensor
) -> Float[Tensor, "case f"]:
    n, m = int(up.sum()), int((~up).sum())
    placed = torch.empty_like(values, dtype=torch.float64)
    placed[up] = (ranks[up] - _ranks(values[up])).double() / m
    placed[~up] = 1 - (ranks[~up] - _ranks(values[~up])).double() / n
    area = placed[up].mean(0)
    share = torch.where(up, len(up) / n, len(up) / m).double()
    return (area + share[:, None] * (placed - area)).float()
