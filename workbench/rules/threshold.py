"""Push only where a probe's score is below a threshold.

    h' = h + s v [w . h + b < t]

Shapes: h `[..., d]`; tensors `shift` v `[d]`, `probe` w `[d]`, `probe_bias` b `[]`.
Units: strength as the pushed vector's; `params["threshold"]` t in the probe's own score.
Source: Lee, Padhi, Natesan Ramamurthy, Miehling, Dognin, Nagireddy and Dhurandhar (2024),
    Programming Refusal with Conditional Activation Steering, https://arxiv.org/abs/2409.05907.
Differs from the paper: the paper compares a cosine with a condition vector once, on the prompt, and
    keeps that decision for the whole generation; here a linear probe decides at every position,
    from the activation that is pushed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor


@register(
    "rules",
    Citation(
        "Lee, Padhi, Natesan Ramamurthy, Miehling, Dognin, Nagireddy, Dhurandhar",
        "Programming Refusal with Conditional Activation Steering",
        2024,
        "https://arxiv.org/abs/2409.05907",
    ),
)
class Threshold:
    """Push where a probe's score is below a threshold."""

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"], tensors: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> Float[Tensor, "*batch d"]:
        """`shift` where the score `probe . h + probe_bias` is below `threshold`, else 0."""
        score = h @ tensors["probe"] + tensors["probe_bias"]
        below = (score < params["threshold"]).to(h.dtype)[..., None]
        return below * tensors["shift"]
