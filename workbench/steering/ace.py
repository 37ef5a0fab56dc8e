"""Affine concept editing: set the component along the class difference to a chosen point.

    r = mu+ - mu-      r^ = r / |r|
    h' = h + s (-r^ (r^ . h) + r^ (r^ . mu-) + alpha r)

At s = 1 the projection of *every* h on r^ is that of mu- for alpha = 0, that of mu+ for alpha = 1;
directional ablation sets it to 0, which is no class's value unless activations are centred.

Shapes: rows `[row, d]` per class and site; `down` = r^, `up` = -r^ `[1, d]`; `shift` `[d]`.
Units: strength s is the fraction of the way to the target, so that 0 is no edit; alpha, an option,
    says where the target lies: 0 the negative mean, 1 the positive mean, beyond to overshoot.
Source: Marshall, Scherlis and Belrose (2024), Refusal in LLMs is an Affine Function,
    https://arxiv.org/abs/2411.09003.
Differs from the paper: the paper has no s; its dose is alpha, and alpha = 0 is an edit, not the
    absence of one. Here alpha is fixed at fit time and s blends, so that strength 0 is no edit.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.linalg import mean_difference, unit
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, finite


@register(
    "steering",
    Citation(
        "Marshall, Scherlis, Belrose",
        "Refusal in LLMs is an Affine Function",
        2024,
        "https://arxiv.org/abs/2411.09003",
    ),
)
@dataclass(frozen=True)
class Ace(SteeringMethod):
    """Set the component along the class difference to a chosen class's value.

    Attributes:
        alpha: target on the line through the class means; 0 is the negative mean, 1 the positive.
    """

    alpha: float = 1.0

    def fit(self, contrast: Contrast) -> Intervention:
        """The affine edit at every recorded site; EditError where alpha is not finite."""
        finite("Ace(alpha)", self.alpha)
        return Intervention(
            "ace",
            "affine",
            {s: self._tensors(p, n) for s, p, n in sites_of(contrast, "Ace")},
            unit="fraction of the way to the target",
            params={"alpha": float(self.alpha), "max_strength": 1.0},
            model=contrast.model,
        )

    def _tensors(
        self, positive: Rows, negative: Float[Tensor, "other d"]
    ) -> dict[str, Float[Tensor, ...]]:
        difference = mean_difference(positive, negative)
        direction = unit(difference)
        target = direction @ negative.double().mean(0) + self.alpha * difference.norm()
        return {
            "down": direction.float()[None],
            "up": -direction.float()[None],
            "shift": (target * direction).float(),
        }
