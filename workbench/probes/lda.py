"""Linear discriminant analysis: the class means seen through a shrunk within-class covariance.

    S = covariance within the classes, (1 - a) S + a (tr S / d) I where shrunk
    w = S^-1 (mean(h1) - mean(h0))        b = -w . (mean(h1) + mean(h0)) / 2 + log(n1 / n0)

Shapes: rows `[row, d]`, targets `[row]`; weight `[d]`, bias `[]`.
Units: the score is the log odds of class 1 in nats, for Gaussian classes of one covariance.
Source: Fisher (1936), The use of multiple measurements in taxonomic problems,
    https://doi.org/10.1111/j.1469-1809.1936.tb02137.x; shrinkage "auto" after Ledoit and Wolf (2004),
    A well-conditioned estimator for large-dimensional covariance matrices,
    https://doi.org/10.1016/S0047-259X(03)00096-4.
Differs from the paper: the bias (equal to scikit-learn's) and shrinkage are later additions; as in
    scikit-learn, "auto" shrinks each class's covariance on standardised rows, then pools them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from workbench.errors import WorkbenchError
from workbench.probes.base import Data, two_classes
from workbench.probes.linear import (
    LinearProbe,
    by_class,
    halfway,
    line_tensors,
    pooled_covariance,
    warn,
    whitened,
)
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor


@register(
    "probes",
    Citation(
        "Fisher",
        "The use of multiple measurements in taxonomic problems",
        1936,
        "https://doi.org/10.1111/j.1469-1809.1936.tb02137.x",
    ),
)
@dataclass(frozen=True)
class Lda(LinearProbe):
    """Linear discriminant analysis with a shrunk covariance.

    Attributes:
        shrinkage: "auto" (Ledoit and Wolf), a share from 0 to 1, or None for the plain covariance,
            which needs more rows than features.
    """

    shrinkage: float | int | Literal["auto"] | None = "auto"

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Weight and bias; a UserWarning where shrinkage alone makes the covariance invertible.

        Raises:
            WorkbenchError: not two classes, shrinkage out of range, or a covariance that cannot be
                inverted.
        """
        self._check(two_classes("Lda.fit", data))
        positive, negative = by_class(data)
        means = positive.mean(0), negative.mean(0)
        covariance = self._covariance(positive, negative)
        weight = whitened("Lda.fit", covariance, means[0] - means[1], len(data))
        odds = torch.tensor(len(positive) / len(negative), dtype=torch.float64).log()
        return line_tensors(weight, halfway(weight, *means) + odds.to(weight.device))

    def _covariance(
        self, positive: Float[Tensor, "p d"], negative: Float[Tensor, "n d"]
    ) -> Float[Tensor, "d d"]:
        if self.shrinkage == "auto":
            parts = [len(rows) * _ledoit_wolf(rows) for rows in (positive, negative)]
            return (parts[0] + parts[1]) / (len(positive) + len(negative))
        found = pooled_covariance(positive, negative)
        share, d = float(self.shrinkage or 0), len(found)
        return (1 - share) * found + share * found.trace() / d * torch.eye(d).to(found)

    def _check(self, data: Data) -> None:
        n, d = data.rows.shape
        share = 0.0 if self.shrinkage in ("auto", None) else self.shrinkage
        if isinstance(share, str) or not 0 <= share <= 1:
            raise WorkbenchError(
                "Lda(shrinkage)",
                "is no share",
                expected="'auto', None, or a number from 0 to 1",
                got=self.shrinkage,
                do="use 'auto'",
            )
        if d > n - 2 and self.shrinkage:
            warn(
                f"Lda.fit: {d} features and only {n} rows; the covariance is known by its shrinkage "
                "alone, so trust held-out scores only, or add rows"
            )


def _ledoit_wolf(rows: Rows) -> Float[Tensor, "d d"]:
    """Shrunk covariance of one class, shrunk where its coordinates have unit variance."""
    from sklearn.covariance import ledoit_wolf

    scale = rows.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    if len(rows) == 1:
        return torch.zeros_like(rows.mT @ rows)  # nothing varies
    shrunk, _ = ledoit_wolf(((rows - rows.mean(0)) / scale).cpu().numpy())
    return torch.from_numpy(shrunk).to(rows.device) * scale[:, None] * scale
