"""Remove the component of the activation along the class difference.

    r = mean(h+) - mean(h-)      r^ = r / |r|      h' = h - s r^ (r^ . h)

Shapes: rows `[row, d]` per class and site; `down` = r^ and `up` = -r^, both `[1, d]`.
Units: strength s is the fraction of the component removed; s = 1 leaves none, s > 1 reflects.
Source: Arditi, Obeso, Syed, Paleka, Panickssery, Gurnee and Nanda (2024), Refusal in Language
    Models Is Mediated by a Single Direction, https://arxiv.org/abs/2406.11717.
Differs from the paper: the paper takes *one* direction, chosen by validation over layers and
    positions, and projects it out at block input, attention output and MLP output of every layer.
    Here each fitted site loses its own direction; `source` spreads one site's direction to all
    recorded sites, which with sites `["L*.resid_pre", "L*.attn_out", "L*.mlp_out"]` is the paper's
    form; `workbench.interventions.select_direction` makes the paper's choice. The projection is
    quadratic in r, so r and -r are one edit and it has no dose direction.
    `workbench.interventions.weights.orthogonalise` is the same edit written into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import unknown
from workbench.linalg import mean_difference, unit
from workbench.registry import Citation, register
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Arditi, Obeso, Syed, Paleka, Panickssery, Gurnee, Nanda",
        "Refusal in Language Models Is Mediated by a Single Direction",
        2024,
        "https://arxiv.org/abs/2406.11717",
    ),
)
@dataclass(frozen=True)
class DirectionalAblation(SteeringMethod):
    """Project the class difference out of the activation.

    Attributes:
        source: site whose direction is removed at every site; None lets each site lose its own.
    """

    source: str | None = None

    def fit(self, contrast: Contrast) -> Intervention:
        """The projection at every recorded site.

        Raises:
            UnknownName: `source` is not among the recorded sites.
        """
        directions = {
            site: unit(mean_difference(positive, negative)).float()[None]
            for site, positive, negative in sites_of(contrast, "DirectionalAblation")
        }
        if self.source is not None:
            if self.source not in directions:
                raise unknown("DirectionalAblation(source)", "site", self.source, directions)
            directions = dict.fromkeys(directions, directions[self.source])
        return Intervention(
            "directional_ablation",
            "affine",
            {site: {"down": r.clone(), "up": -r} for site, r in directions.items()},
            unit="fraction of the component removed",
            params={"max_strength": 1.0},
            model=contrast.model,
        )
