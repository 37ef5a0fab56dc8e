"""Router logits of chosen experts set above all others, of others below.

    activated: s_e -> max(s) + m        deactivated: s_e -> min(s) - m        m = 0.01

Shapes: h `[..., expert]`; `bias` `[expert]`: +1 activated, -1 deactivated, 0 untouched.
Units: strength s is the fraction of the way.
Source: Fayyaz et al. (2025), Steering MoE LLMs via Expert (De)Activation,
    https://arxiv.org/abs/2509.09660.
Differs from the paper: the paper works on log_softmax(s), a shift that softmax and top-k do not see;
    m is at least four steps of the dtype at the size of s, so that it is not rounded away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor

MARGIN = 0.01


@register(
    "rules",
    Citation(
        "Fayyaz et al.",
        "Steering MoE LLMs via Expert (De)Activation",
        2025,
        "https://arxiv.org/abs/2509.09660",
    ),
)
class SteerMoe:
    """Set the router logits of some experts above, of others below all."""

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"], tensors: Mapping[str, Tensor], _: Mapping[str, Any]
    ) -> Float[Tensor, "*batch d"]:
        """What moves the logits of marked experts onto their new values; 0 for the others."""
        sign = tensors["bias"]
        size = h.abs().amax(-1, keepdim=True)
        margin = (4 * torch.finfo(h.dtype).eps * size).clamp(min=MARGIN)
        above, below = h.amax(-1, keepdim=True) + margin, h.amin(-1, keepdim=True) - margin
        target = torch.where(sign > 0, above, below)
        return torch.where(sign != 0, target - h, torch.zeros_like(h))
