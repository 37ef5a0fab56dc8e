"""A random direction as long as the class difference: the control of every steering claim.

    v = |mean(h+) - mean(h-)| u,   u uniform on the sphere, drawn from (seed, site)
    h' = h + s v

Shapes: rows `[row, d]` per class and site; v `[d]`.
Units: strength s counts lengths of the class difference.
Source: Turner, Thiergart, Leech, Udell, Vazquez, Mini and MacDiarmid (2023), Steering Language
    Models With Activation Engineering, https://arxiv.org/abs/2308.10248, which compares with random
    vectors.
Differs from the paper: the length is matched site by site, and the seed is part of the record.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.linalg import mean_difference, random_unit
from workbench.registry import Citation, register
from workbench.seeds import derive
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Turner, Thiergart, Leech, Udell, Vazquez, Mini, MacDiarmid",
        "Steering Language Models With Activation Engineering",
        2023,
        "https://arxiv.org/abs/2308.10248",
    ),
)
@dataclass(frozen=True)
class RandomDirection(SteeringMethod):
    """Add a random direction of the class difference's length: a control.

    Attributes:
        seed: another seed is another direction; each site draws its own.
    """

    seed: int = 0

    def fit(self, contrast: Contrast) -> Intervention:
        """The addition of a seeded random vector at every recorded site."""
        tensors = {
            site: {"shift": self._direction(site, positive, negative)}
            for site, positive, negative in sites_of(contrast, "RandomDirection")
        }
        return Intervention(
            "random_direction",
            "affine",
            tensors,
            unit="lengths of the class difference",
            params={"seed": self.seed},
            model=contrast.model,
        )

    def _direction(self, site: str, positive: Rows, negative: Float[Tensor, "other d"]) -> Vector:
        norm = mean_difference(positive, negative).norm()
        return (norm * random_unit(positive.shape[1], derive(self.seed, site))).float()
