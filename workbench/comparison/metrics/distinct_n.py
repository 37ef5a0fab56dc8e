"""How little the continuation repeats itself: distinct n-grams over all its n-grams.

Shapes: one number per continuation.
Units: fraction, 1 where no n-gram of tokens comes twice.
Source: Li, Galley, Brockett, Gao and Dolan (2016), A Diversity-Promoting Objective Function for
    Neural Conversation Models, https://arxiv.org/abs/1510.03055.
Differs from the paper: n-grams of tokens within one continuation, divided by the number of
    n-grams; the paper pools all responses and divides by words. Longer texts repeat more, so
    compare equal lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workbench.comparison.metrics.base import Evidence, Metric
from workbench.records import Generation
from workbench.registry import Citation, register


@register(
    "metrics",
    Citation(
        "Li, Galley, Brockett, Gao, Dolan",
        "A Diversity-Promoting Objective Function for Neural Conversation Models",
        2016,
        "https://arxiv.org/abs/1510.03055",
    ),
)
@dataclass(frozen=True)
class DistinctN(Metric):
    """Distinct n-grams over all n-grams of the continuation.

    Attributes:
        n: tokens per n-gram.
    """

    n: int = 2

    unit = "fraction"
    better = "higher"

    def measure(self, generation: Generation, evidence: Evidence) -> float:  # noqa: ARG002
        """Between 0 and 1; NaN for a continuation shorter than one n-gram."""
        ids = generation.ids
        grams = [ids[i : i + self.n] for i in range(len(ids) - self.n + 1)]
        return len(set(grams)) / len(grams) if grams else math.nan
