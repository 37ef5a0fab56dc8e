"""Sampling from the tempered and truncated distribution.

In this order, which is transformers': `logits / temperature`; keep the `top_k` largest; keep the
smallest set whose probability reaches `top_p`; keep tokens of at least `min_p` times the largest
probability. What is left is sampled by the exponential race `argmax p / e`, `e ~ Exp(1)`, which draws
from p exactly and lets two runs with the same noise differ only where their distributions do.

Shapes: logits and noise `[batch, vocab]` -> ids `[batch]`.
Units: temperature is a ratio; `top_p` and `min_p` are probabilities.
Source: Fan et al. (2018), top-k; Holtzman et al. (2020), nucleus, https://arxiv.org/abs/1904.09751;
    Nguyen et al. (2024), min-p, https://arxiv.org/abs/2407.01082.
Differs from the paper: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.shapes import Float, Int, Tensor


@register(
    "decoding",
    Citation(
        "Holtzman, Buys, Du, Forbes, Choi",
        "The Curious Case of Neural Text Degeneration",
        2020,
        "https://arxiv.org/abs/1904.09751",
    ),
)
@dataclass(frozen=True)
class Sample:
    """Temperature, top-k, top-p and min-p sampling."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, self.temperature > 0, "a number above 0")
        _require("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1")
        _require("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]")
        _require("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "in [0, 1]")

    def process(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Tempered logits with every excluded token at minus infinity."""
        logits = logits / self.temperature
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p is not None:
            logits = _nucleus(logits, self.top_p)
        if self.min_p is not None:
            p = logits.softmax(-1)
            logits = logits.masked_fill(p < self.min_p * p.max(-1, keepdim=True).values, -torch.inf)
        return logits

    def choose(
        self, logits: Float[Tensor, "batch vocab"], noise: Float[Tensor, "batch vocab"] | None
    ) -> Int[Tensor, " batch"]:
        """One draw per row from the processed distribution."""
        assert noise is not None
        return (self.process(logits).softmax(-1) / noise).argmax(-1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    ordered, order = logits.sort(descending=False)
    # ascending, so that the tail whose total stays within 1 - top_p is dropped; the best one never
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise WorkbenchError(
            f"Sample({name})", "is out of range", expected=expected, got=value, do="correct it"
        )
