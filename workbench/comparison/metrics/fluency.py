"""Whether the continuation reads well: to the base model, and by a grammar where there is one.

    one point where   -mean_t log p_base(y_t | prompt, y_<t) <= good
    one point where   grammar(prompt, text), or without a grammar where that mean is <= fair

Shapes: one number per continuation.
Units: points, 0, 1 or 2.
Source: Wu, Arora, Geiger, Wang, Huang, Jurafsky, Manning and Potts (2025), AxBench: Steering LLMs?
    Even Simple Baselines Outperform Sparse Autoencoders, https://arxiv.org/abs/2501.17148: fluency
    rated 0, 1 or 2.
Differs from the paper: it asks a judge model; here two exact tests give a point each. What is
    fluent but unlike anything that the base model would write loses a point, so a grammar should be
    given where one exists. Perplexity there includes the prompt's tokens, here only those generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.comparison.metrics.base import Evidence, Metric
from workbench.records import Generation, Prompt
from workbench.registry import Citation, register


@register(
    "metrics",
    Citation(
        "Wu, Arora, Geiger, Wang, Huang, Jurafsky, et al.",
        "AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders",
        2025,
        "https://arxiv.org/abs/2501.17148",
    ),
)
@dataclass(frozen=True)
class Fluency(Metric):
    """How well the continuation reads to the base model, and by a grammar: 0, 1 or 2.

    Attributes:
        good, fair: nats per token; `workbench.comparison.evaluate` takes them from the base model's
            own continuations.
        grammar: `(prompt, text) -> whether the text is well formed`.
    """

    good: float = 1.0
    fair: float = 2.0
    grammar: Callable[[Prompt, str], bool] | None = None

    unit = "points of 2"
    better = "higher"
    needs = ("base_logprobs",)

    def measure(self, generation: Generation, evidence: Evidence) -> float:
        """0, 1 or 2; 0 for an empty continuation."""
        if not generation.ids or evidence.base_logprobs is None:
            return 0.0
        ids = torch.tensor(generation.ids)[:, None]
        nats = float(evidence.base_logprobs.gather(1, ids).mean().neg())
        formed = nats <= self.fair
        if self.grammar is not None:
            formed = bool(self.grammar(generation.prompt, generation.text))
        return float(nats <= self.good) + float(formed)
