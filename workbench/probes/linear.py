"""What linear probes share: one weight and one bias, scored as `w . h + b`."""

from __future__ import annotations

import sys
import warnings
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.probes.base import Data, Examples, Probe, Weights
from workbench.shapes import Bool, Float, Tensor, Vector

INSIDE = ("workbench", "jaxtyping", "beartype")
"""Packages whose lines no warning should name: this one and its run-time checks."""


@dataclass(frozen=True)
class LinearProbe(Probe, ABC):
    """A probe whose tensors are "weight" `[d]` and "bias" `[]`."""

    @staticmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """`[example]`: weight times row plus bias, in float32 where the rows are."""
        weight = weights["weight"].to(rows.device)
        return rows.to(weight.dtype) @ weight + weights["bias"].to(rows.device)

    @staticmethod
    def line(weights: Weights, params: Mapping[str, Any]) -> tuple[Vector, float]:
        """The weight and the bias themselves."""
        return weights["weight"], float(weights["bias"])


def line_tensors(weight: Vector, bias: Float[Tensor, ""]) -> dict[str, Tensor]:
    """A linear probe's tensors, float32 on the CPU."""
    return {"weight": weight.float().cpu(), "bias": bias.float().cpu()}


SINGULAR, STILL = 1e-10, 1e-20
"""Least part of a feature's variance that the features before it leave free, in a covariance that counts
as invertible: float32 rows leave about 1e-14 where they have none. Least variance beside the largest."""


def whitened(where: str, covariance: Float[Tensor, "d d"], theta: Vector, n: int) -> Vector:
    """`S^-1 theta`, for a covariance `S` of `n` rows.

    Raises:
        WorkbenchError: `S` cannot be inverted.
    """
    variance = covariance.diagonal()
    # features at variance 1, so that the unit of one says nothing about the others
    scale = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    factor, failed = torch.linalg.cholesky_ex(covariance / scale[:, None] / scale)
    still = bool((variance <= STILL * variance.max()).any())
    if still or int(failed) or not float(factor.diagonal().square().min()) >= SINGULAR:
        raise WorkbenchError(
            where,
            "the covariance within the classes cannot be inverted",
            expected=f"{len(theta) + 2} rows or more that vary along each of {len(theta)} features",
            got=f"{n} rows",
            do="add rows, or shrink the covariance: Lda(shrinkage='auto')",
        )
    return torch.cholesky_solve((theta / scale)[:, None], factor)[:, 0] / scale


def halfway(weight: Vector, positive: Vector, negative: Vector) -> Float[Tensor, ""]:
    """The bias at which the score is 0 halfway between two means."""
    return -(weight @ (positive + negative)) / 2


def warn_if_wide(where: str, data: Data) -> None:
    """Say that a fit has more features than rows, so that its penalty alone decides part of it."""
    n, d = data.rows.shape[0], data.rows.shape[-1]
    if d > n:
        warn(
            f"{where}: {d} features and only {n} rows; any labels can be fitted, so trust held-out "
            "scores and the shuffled-label control alone, and add rows or a stronger penalty"
        )


def warn(said: str) -> None:
    """A UserWarning at the line that called the library, however deep the fit was called in it."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(said, UserWarning, stacklevel=level)


def by_class(data: Data) -> tuple[Float[Tensor, "p d"], Float[Tensor, "n d"]]:
    """The rows of class 1 and those of class 0, in float64."""
    one = (data.targets == 1).to(data.rows.device)
    rows = data.rows.double()
    return rows[one], rows[~one]


def pooled_covariance(
    positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"]
) -> Float[Tensor, "d d"]:
    """Covariance of all rows about their own class's mean, divided by their number."""
    centred = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
    return centred.mT @ centred / len(centred)
