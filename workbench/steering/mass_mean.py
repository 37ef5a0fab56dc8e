"""The mass-mean direction, whitened: the class difference seen through the classes' own spread.

    d = mean(h+) - mean(h-)      w = Sigma^-1 d      w^ = w / |w|
    v = (w^ . d) w^              h' = h + s v

Sigma is the covariance within the classes. A coordinate in which both classes vary much counts for
little: w is the direction that tells two Gaussian classes of one covariance apart best, and
sigmoid(w . (h - middle)) the probability. With Sigma a multiple of I, v is the class difference.

Shapes: rows `[row, d]` per class and site; Sigma `[d, d]`, fitted in float64 and not kept; v `[d]`.
Units: strength s counts class gaps along w^: s = 1 moves the negative mean's projection on w^ to the
    positive mean's.
Source: Marks and Tegmark (2023), The Geometry of Truth, https://arxiv.org/abs/2310.06824.
Differs from the paper: the paper probes with the whitened direction and intervenes with the plain
    difference, which is `mean_difference` here. Fewer rows than the width leave Sigma singular, so it
    is shrunk towards a multiple of I by the amount that Ledoit and Wolf (2004),
    https://doi.org/10.1016/S0047-259X(03)00096-4, estimate from the rows; where they find the spread
    to be alike in all directions, the shrinkage is whole and v is the class difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.errors import WorkbenchError
from workbench.linalg import mean_difference, unit
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Marks, Tegmark",
        "The Geometry of Truth: Emergent Linear Structure in Large Language Model Representations",
        2023,
        "https://arxiv.org/abs/2310.06824",
    ),
)
@dataclass(frozen=True)
class MassMean(SteeringMethod):
    """Add the class difference whitened by the spread within the classes.

    Attributes:
        shrinkage: share of a multiple of I in Sigma, 0 to 1; None takes Ledoit and Wolf's.
    """

    shrinkage: float | int | None = None

    def fit(self, contrast: Contrast) -> Intervention:
        """The addition of the whitened difference at every recorded site.

        Raises:
            WorkbenchError: `shrinkage` outside 0 to 1, rows that do not vary within their class, or
                a covariance that is singular at the shrinkage asked for.
        """
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise WorkbenchError(
                "MassMean(shrinkage)",
                "is no share",
                expected="None, or a number from 0 to 1",
                got=self.shrinkage,
                do="None estimates it",
            )
        tensors = {
            site: {"shift": self._direction(site, positive, negative).float()}
            for site, positive, negative in sites_of(contrast, "MassMean")
        }
        return Intervention(
            "mass_mean",
            "affine",
            tensors,
            unit="class gaps along the whitened direction",
            params={"shrinkage": None if self.shrinkage is None else float(self.shrinkage)},
            model=contrast.model,
        )

    def _direction(self, site: str, positive: Rows, negative: Float[Tensor, "other d"]) -> Vector:
        difference = mean_difference(positive, negative)
        whitened = torch.linalg.solve(self._covariance(site, positive, negative), difference)
        direction = unit(whitened)
        return (direction @ difference) * direction

    def _covariance(
        self, site: str, positive: Rows, negative: Float[Tensor, "other d"]
    ) -> Float[Tensor, "d d"]:
        from sklearn.covariance import ledoit_wolf, shrunk_covariance

        within = torch.cat([rows.double() - rows.double().mean(0) for rows in (positive, negative)])
        scale = float(torch.cat([positive, negative]).double().square().mean())
        if float(within.square().mean()) <= 1e-18 * scale:
            raise _flat(site, len(positive), len(negative))
        if self.shrinkage is None:
            return torch.from_numpy(ledoit_wolf(within.cpu().numpy(), assume_centered=True)[0])
        plain = (within.mT @ within / len(within)).cpu().numpy()
        shrunk = torch.from_numpy(shrunk_covariance(plain, float(self.shrinkage)))
        values = torch.linalg.eigvalsh(shrunk)
        if float(values[0]) <= 1e-12 * float(values[-1]):
            raise _singular(site, len(within), len(plain))
        return shrunk


def _flat(site: str, n_positive: int, n_negative: int) -> WorkbenchError:
    return WorkbenchError(
        f"MassMean.fit at {site}",
        "rows do not vary within their class, so there is no covariance",
        expected="several rows of each class that differ",
        got=f"{n_positive} and {n_negative} rows without spread",
        do="add prompts, or use mean_difference",
    )


def _singular(site: str, n: int, d: int) -> WorkbenchError:
    return WorkbenchError(
        f"MassMean.fit at {site}",
        "the covariance is singular at this shrinkage",
        expected=f"more than {d} rows, or shrinkage above 0",
        got=f"{n} rows of width {d}",
        do="leave shrinkage at None",
    )
