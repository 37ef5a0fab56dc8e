"""Set, floor or amplify one feature of a sparse autoencoder, all else in the activation kept.

    f = relu(w . h + b) where w . h + b > threshold, else 0
    clamp       h' = h + s (c - f) d
    min_clamp   h' = h + s max(c - f, 0) d
    scale       h' = h + s f d

Only the feature's own decoder row d is written, so that what the autoencoder fails to reconstruct
stays as it is.

Shapes: h `[..., d]`; tensors `probe` w and `shift` d `[d]`, `probe_bias` b and `threshold` `[]`.
Units: `params["level"]` c in the feature's own activation. `clamp`, `min_clamp`: strength is the
    fraction of the way. `scale`: strength counts the feature's own activation, -1 switches it off.
Source: Templeton et al. (2024), Scaling Monosemanticity,
    https://transformer-circuits.pub/2024/scaling-monosemanticity/.
Differs from the paper: strengths other than 1 do not exist there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor


@register(
    "rules",
    Citation(
        "Templeton, Conerly, Marcus, Lindsey, Bricken, et al.",
        "Scaling Monosemanticity",
        2024,
        "https://transformer-circuits.pub/2024/scaling-monosemanticity/",
    ),
)
class SaeClamp:
    """Set, floor or amplify one feature of a sparse autoencoder."""

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"], tensors: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> Float[Tensor, "*batch d"]:
        """What the feature's activation is to change by, times its decoder row."""
        score = h @ tensors["probe"] + tensors["probe_bias"]
        active = torch.where(score > tensors["threshold"].clamp_min(0), score, 0.0)
        by = active if params["mode"] == "scale" else params["level"] - active
        if params["mode"] == "min_clamp":
            by = by.relu()
        return by[..., None] * tensors["shift"]
