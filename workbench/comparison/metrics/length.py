"""How many tokens the continuation has, the stop token included.

Shapes: one number per continuation.
Units: tokens of the model's own tokenizer.
Source: Muennighoff et al. (2025), s1: Simple test-time scaling, https://arxiv.org/abs/2501.19393,
    which counts thinking tokens to say what an answer costs.
Differs from the paper: every generated token is counted, the answer's and the stop token's too. A
    continuation cut off by `max_new_tokens` counts as that many, so its true length is a lower
    bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.comparison.metrics.base import Evidence, Metric
from workbench.records import Generation
from workbench.registry import Citation, register


@register(
    "metrics",
    Citation(
        "Muennighoff, Yang, Shi, Li, Fei-Fei, Hajishirzi, et al.",
        "s1: Simple test-time scaling",
        2025,
        "https://arxiv.org/abs/2501.19393",
    ),
)
@dataclass(frozen=True)
class Length(Metric):
    """Tokens generated, the stop token included."""

    unit = "tokens"

    def measure(self, generation: Generation, evidence: Evidence) -> float:  # noqa: ARG002
        """The number of ids."""
        return float(len(generation.ids))
