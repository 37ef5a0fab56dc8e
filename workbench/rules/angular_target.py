"""Set the angle of the activation in a plane, its length there kept.

    h' = h + s (-P h + |P h| (cos t b1 + sin t b2)),   P the projection on span(b1, b2)

Shapes: h `[..., d]`; tensors b1, b2 `[d]`, orthonormal.
Units: strength s is the fraction of the way, along the chord; at s = 1 the norm is kept.
    `params["degrees"]` t from b1 towards b2; `params["adaptive"]` edits only where h . b1 > 0.
Source: Vu and Nguyen (2025), Angular Steering, https://arxiv.org/abs/2510.26243.
Differs from the paper: strengths other than 1 do not exist there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor


@register(
    "rules",
    Citation(
        "Vu, Nguyen",
        "Angular Steering: Behavior Control via Rotation in Activation Space",
        2025,
        "https://arxiv.org/abs/2510.26243",
    ),
)
class AngularTarget:
    """Set the angle in the plane of b1 and b2."""

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"], tensors: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> Float[Tensor, "*batch d"]:
        """From where `h` stands in the plane to the target angle at the same length."""
        x, y = (h @ tensors["b1"])[..., None], (h @ tensors["b2"])[..., None]
        length, angle = torch.hypot(x, y), math.radians(params["degrees"])
        along = length * math.cos(angle) - x
        across = length * math.sin(angle) - y
        change = along * tensors["b1"] + across * tensors["b2"]
        return change * (x > 0).to(h.dtype) if params.get("adaptive") else change
