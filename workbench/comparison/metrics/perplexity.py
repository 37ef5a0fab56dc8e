"""How surprising the continuation is to the base model.

    exp( - mean over generated positions t of log p_base(y_t | prompt, y_<t) )

Shapes: log-probabilities `[generated, vocab]` of the base model.
Units: tokens: the base model is as surprised as by a fair choice among that many.
Source: Jelinek, Mercer, Bahl and Baker (1977), Perplexity: a measure of the difficulty of speech
    recognition tasks, https://doi.org/10.1121/1.2016299.
Differs from the paper: of one continuation given its prompt, not of a corpus. A table's mean is the
    arithmetic mean of perplexities, which one bad continuation can lead; look at the generations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from workbench.comparison.metrics.base import Evidence, Metric
from workbench.records import Generation
from workbench.registry import Citation, register


@register(
    "metrics",
    Citation(
        "Jelinek, Mercer, Bahl, Baker",
        "Perplexity: a measure of the difficulty of speech recognition tasks",
        1977,
        "https://doi.org/10.1121/1.2016299",
    ),
)
@dataclass(frozen=True)
class Perplexity(Metric):
    """Perplexity of the continuation under the base model."""

    unit = "tokens"
    better = "lower"
    needs = ("base_logprobs",)

    def measure(self, generation: Generation, evidence: Evidence) -> float:
        """At least 1; NaN for an empty continuation."""
        if not generation.ids or evidence.base_logprobs is None:
            return math.nan
        ids = torch.tensor(generation.ids)[:, None]
        return float(evidence.base_logprobs.gather(1, ids).mean().neg().exp())
