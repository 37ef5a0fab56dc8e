"""The weight of a logistic probe, added to the activation, or the shortest way to its boundary.

    w, b = logistic regression of h+ against h-        w^ = w / |w|
    add        h' = h + s sigma w^                     sigma = std of w^ . h over all rows
    boundary   h' = h - s (w . h + b) w / |w|^2        at s = 1 the probe is undecided

Shapes: rows `[row, d]` per class and site; `shift` `[d]`; `down` = w^, `up` = -w^ `[1, d]`.
Units: `add`: strength s counts standard deviations of the rows' projections on w^. `boundary`: the
    fraction of the way to the boundary; s = 2 reflects across it.
Source: Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes,
    https://arxiv.org/abs/1610.01644; used for steering, and found better at detecting than at
    steering, by Wu et al. (2025), AxBench, https://arxiv.org/abs/2501.17148.
Differs from the paper: coordinates are standardised before the regression, so that its penalty does
    not depend on their units; the weight is that of the unstandardised rows. sigma is the population
    standard deviation over both classes together, as in ITI. Our reading: `boundary` is the minimal
    move in the Euclidean norm of the activation.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import unknown
from workbench.linalg import logistic, projection_spread, unit
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, above_zero

MODES = {"add": "standard deviations of the projections", "boundary": "fraction of the way"}


@register(
    "steering",
    Citation(
        "Alain, Bengio",
        "Understanding intermediate layers using linear classifier probes",
        2016,
        "https://arxiv.org/abs/1610.01644",
    ),
)
@dataclass(frozen=True)
class LinearProbe(SteeringMethod):
    """Add a logistic probe's direction, or move to its boundary.

    Attributes:
        mode: "add" pushes along the probe's weight; "boundary" takes away what the probe sees.
        inverse_penalty: scikit-learn's C; smaller is closer to the (standardised) mean difference.
        standardised: divide coordinates by their spread before the regression. False on rows less
            the mean of their pair is what the library steering-vectors does.
    """

    mode: str = "add"
    inverse_penalty: float | int = 1.0
    standardised: bool = True

    def fit(self, contrast: Contrast) -> Intervention:
        """The probe's edit at every recorded site.

        Raises:
            UnknownName: no such mode.
            EditError: `inverse_penalty` is not a positive number.
        """
        if self.mode not in MODES:
            raise unknown("LinearProbe(mode)", "mode", self.mode, MODES)
        above_zero("LinearProbe(inverse_penalty)", self.inverse_penalty)
        rows = {s: self._tensors(p, n) for s, p, n in sites_of(contrast, "LinearProbe")}
        whole = {"max_strength": 1.0} if self.mode == "boundary" else {}
        return Intervention(
            "linear_probe",
            "affine",
            rows,
            unit=MODES[self.mode],
            params={
                "mode": self.mode,
                "inverse_penalty": float(self.inverse_penalty),
                "standardised": self.standardised,
                **whole,
            },
            model=contrast.model,
        )

    def _tensors(
        self, positive: Rows, negative: Float[Tensor, "other d"]
    ) -> dict[str, Float[Tensor, ...]]:
        weight, bias = logistic(positive, negative, self.inverse_penalty, self.standardised)
        direction = unit(weight)
        if self.mode == "add":
            return {"shift": (projection_spread(positive, negative, direction) * direction).float()}
        return {
            "down": direction.float()[None],
            "up": -direction.float()[None],
            "shift": (-bias / weight.norm() * direction).float(),
        }
