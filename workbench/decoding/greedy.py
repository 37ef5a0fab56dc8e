"""Greedy decoding: the most probable token, the lowest id among equals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workbench.registry import Citation, register
from workbench.shapes import Float, Int, Tensor


@register(
    "decoding",
    Citation(
        "Jurafsky and Martin",
        "Speech and Language Processing, 3rd ed. draft, ch. 10",
        2024,
        "https://web.stanford.edu/~jurafsky/slp3/",
    ),
)
@dataclass(frozen=True)
class Greedy:
    """The most probable token at each step."""

    random: ClassVar[bool] = False

    def choose(
        self, logits: Float[Tensor, "batch vocab"], noise: Float[Tensor, "batch vocab"] | None
    ) -> Int[Tensor, " batch"]:
        """`argmax(logits)`."""
        return logits.argmax(-1)
