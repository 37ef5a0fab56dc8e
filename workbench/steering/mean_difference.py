"""Difference of class means, added to the activation (CAA).

    v = mean(h+) - mean(h-)          h' = h + s v

Shapes: rows `[row, d]` per class and site; v `[d]`.
Units: strength s counts class differences: s = 1 moves the negative mean onto the positive mean.
Source: Rimsky, Gabrieli, Schulz, Tong, Hubinger and Turner (2024), Steering Llama 2 via Contrastive
    Activation Addition, https://arxiv.org/abs/2312.06681.
Differs from the paper: the paper adds at one layer and only after the instruction, and reads at the
    answer letter of A/B pairs; here sites, scope and reading position are the caller's, and the
    classes need not be paired (the mean of pair differences is the difference of means).
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.linalg import mean_difference
from workbench.registry import Citation, register
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Rimsky, Gabrieli, Schulz, Tong, Hubinger, Turner",
        "Steering Llama 2 via Contrastive Activation Addition",
        2024,
        "https://arxiv.org/abs/2312.06681",
    ),
)
@dataclass(frozen=True)
class MeanDifference(SteeringMethod):
    """Add the difference of the class means."""

    def fit(self, contrast: Contrast) -> Intervention:
        """The addition of `mean(positive) - mean(negative)` at every recorded site."""
        tensors = {
            site: {"shift": mean_difference(positive, negative).float()}
            for site, positive, negative in sites_of(contrast, "MeanDifference")
        }
        return Intervention(
            "mean_difference",
            "affine",
            tensors,
            unit="multiples of the class difference",
            model=contrast.model,
        )
