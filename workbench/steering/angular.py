"""Angular steering: turn the activation in the plane of the class difference, its norm kept.

    d_i = unit(mean(h+) - mean(h-)) at site i
    b1 = the d_i most alike to all others (mean cosine)
    b2 = first principal component of the d_i, made orthogonal to b1
    turn by s degrees in span(b1, b2), from b1 towards b2

With `target` = t the angle is absolute, P the projection on the plane:

    h' = h + s (-P h + |P h| (cos t b1 + sin t b2))

Shapes: rows `[row, d]` per class and site; b1, b2 `[d]`, orthonormal, the same at every site.
Units: strength s counts degrees; positive turns from b1 towards b2. With `target`, s is the fraction
    of the way to the target angle: s = 1 keeps the norm and does nothing twice, others do not.
Source: Vu and Nguyen (2025), Angular Steering, https://arxiv.org/abs/2510.26243.
Differs from the paper: the paper's angle is absolute, where 0 degrees is itself an edit; it is the
    option `target`, and the default is relative, so that strength 0 is no edit. The paper acts on
    both norms' outputs of every layer; the default here is the first norm's, and
    `sites=["L*.attn_norm_out", "L*.mlp_norm_out"]` is the paper's. Its adaptive mode edits only where
    h . b1 > 0, a condition on the absolute form alone (`adaptive`, with `target`). Our reading: the
    principal component is that of the centred directions, pointing to the side of the last site that
    has a part beside b1. One site has one direction; b2 is then the first principal component of its
    pair differences, or of the deviations from the class means where rows are not paired.
    `shared=False` makes such a plane at every site. A site whose classes have one mean (the first
    norm's output where both end in the same token) gives no direction; the shared plane acts there
    all the same, as the paper's does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.linalg import first_component, mean_difference, unit
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.sites import depth_of
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, finite

Plane = tuple[Vector, Vector]


@register(
    "steering",
    Citation(
        "Vu, Nguyen",
        "Angular Steering: Behavior Control via Rotation in Activation Space",
        2025,
        "https://arxiv.org/abs/2510.26243",
    ),
)
@dataclass(frozen=True)
class Angular(SteeringMethod):
    """Turn the activation in the plane of the class difference, its norm kept.

    Attributes:
        target: degrees from b1 to set the angle to; None turns by the strength instead.
        adaptive: with `target`, only where the activation points to b1's side.
        shared: one plane at all sites; False gives each site its own.
    """

    sites: ClassVar[str] = "L*.attn_norm_out"

    target: float | int | None = None
    adaptive: bool = False
    shared: bool = True

    def fit(self, contrast: Contrast) -> Intervention:
        """The rotation at every recorded site.

        Raises:
            WorkbenchError: `adaptive` without `target`, sites of several widths that are to share a
                plane, or data with one direction alone.
            EditError: `target` is not finite.
        """
        self._check()
        tensors = {
            site: {"b1": b1.float(), "b2": b2.float()}
            for site, (b1, b2) in self._planes(contrast).items()
        }
        if self.target is None:
            return Intervention("angular", "rotate", tensors, unit="degrees", model=contrast.model)
        return Intervention(
            "angular",
            "adaptive",
            tensors,
            unit="fraction of the way to the target angle",
            params={
                "rule": "angular_target",
                "degrees": float(self.target),
                "adaptive": self.adaptive,
                "max_strength": 1.0,
            },
            model=contrast.model,
            conditional=self.adaptive,
        )

    def _check(self) -> None:
        if self.target is not None:
            finite("Angular(target)", float(self.target))
        elif self.adaptive:
            raise WorkbenchError(
                "Angular(adaptive=True)",
                "is a condition on the absolute form",
                expected="target=..., in degrees",
                got="target=None",
                do="give a target angle, or leave adaptive out",
            )

    def _planes(self, contrast: Contrast) -> dict[str, Plane]:
        telling = _without_silent(contrast)
        rows = {site: (p, n) for site, p, n in sites_of(telling, "Angular")}
        if self.shared and len(rows) > 1:
            _one_width(contrast)
            plane = _shared_plane({s: unit(mean_difference(*both)) for s, both in rows.items()})
            return {site: (plane[0].clone(), plane[1].clone()) for site in contrast.positive}
        return {site: _own_plane(site, p, n, contrast.paired) for site, (p, n) in rows.items()}


def _without_silent(contrast: Contrast) -> Contrast:
    """Only the sites whose classes have two means; all, where none has or something else is wrong."""

    def silent(site: str, rows: Rows) -> bool:
        other = contrast.negative.get(site)
        if other is None:
            return False
        size = float(torch.cat([rows, other]).double().norm(dim=-1).max()) if len(rows) else 0.0
        return isfinite(size) and float(mean_difference(rows, other).norm()) <= 1e-9 * size

    kept = {site: rows for site, rows in contrast.positive.items() if not silent(site, rows)}
    if not kept or set(contrast.positive) != set(contrast.negative):
        return contrast
    return replace(contrast, positive=kept, negative={s: contrast.negative[s] for s in kept})


def _one_width(contrast: Contrast) -> None:
    widths = {site: rows.shape[1] for site, rows in contrast.positive.items()}
    if len(set(widths.values())) > 1:
        raise WorkbenchError(
            "Angular.fit",
            "sites of several widths cannot share a plane",
            expected="sites of one width",
            got=widths,
            do="use shared=False, or fit them apart",
        )


def _shared_plane(directions: dict[str, Vector]) -> Plane:
    order = sorted(directions, key=depth_of)
    stacked = torch.stack([directions[s] for s in order])
    b1 = stacked[int((stacked @ stacked.mT).mean(1).argmax())]
    return _plane("all sites", b1, first_component(stacked, centred=True), stacked.flip(0))


def _own_plane(
    site: str, positive: Rows, negative: Float[Tensor, "other d"], paired: bool
) -> Plane:
    if paired:
        rows = positive.double() - negative.double()
    else:
        rows = torch.cat([r.double() - r.double().mean(0) for r in (positive, negative)])
    b1 = unit(mean_difference(positive, negative))
    return _plane(site, b1, first_component(rows, centred=True), rows)


def _plane(where: str, b1: Vector, second: Vector, rows: Iterable[Vector]) -> Plane:
    """b1 and the part of `second` beside it, on the side of the first row that has one."""
    flat = second - (second @ b1) * b1
    if float(flat.norm()) < 1e-6 or not any(float(_beside(row, b1)) > 1e-6 for row in rows):
        raise WorkbenchError(
            f"Angular.fit at {where}",
            "the data have one direction, so there is no plane",
            expected="directions that vary between sites or rows",
            got="a second direction along the first",
            do="record more sites, or more prompts that differ",
        )
    b2 = unit(flat)
    b2 = unit(b2 - (b2 @ b1) * b1)  # twice: once leaves rounding where `second` lay near b1
    sides = (float(row @ b2) for row in rows)
    side = next((side for side in sides if abs(side) > 1e-12), 1.0)
    return b1, b2 if side > 0 else -b2


def _beside(row: Vector, b1: Vector) -> Float[Tensor, ""]:
    """How far, relative to its length, a row lies beside b1."""
    return (row - (row @ b1) * b1).norm() / row.norm().clamp_min(1e-300)
