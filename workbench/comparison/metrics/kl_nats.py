"""How far the arm's distribution is from the base model's, along the arm's own continuation.

    mean over generated positions t of KL(p_arm(. | prompt, y_<t) || p_base(. | prompt, y_<t))

Shapes: log-probabilities `[generated, vocab]` of both.
Units: nats per generated position.
Source: Kullback and Leibler (1951), On Information and Sufficiency,
    https://doi.org/10.1214/aoms/1177729694.
Differs from the paper: averaged over the positions of one continuation, so it is no divergence
    between distributions over whole texts (which would be the sum). Decoding options do not enter.
    The base reads the prompt without the arm's prefix, so a prompting arm has a divergence too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workbench.comparison.metrics.base import Evidence, Metric
from workbench.linalg import kl_divergence
from workbench.records import Generation
from workbench.registry import Citation, register


@register(
    "metrics",
    Citation(
        "Kullback, Leibler",
        "On Information and Sufficiency",
        1951,
        "https://doi.org/10.1214/aoms/1177729694",
    ),
)
@dataclass(frozen=True)
class KlNats(Metric):
    """KL(arm || base) in nats per generated position."""

    unit = "nats/token"
    needs = ("arm_logprobs", "base_logprobs")

    def measure(self, generation: Generation, evidence: Evidence) -> float:
        """The mean divergence; NaN for an empty continuation."""
        if not generation.ids or evidence.arm_logprobs is None or evidence.base_logprobs is None:
            return math.nan
        return float(kl_divergence(evidence.arm_logprobs, evidence.base_logprobs).mean())
