"""Ridge probe: least squares with an L2 penalty, for numeric targets.

    minimise  sum_i (y_i - w' . z_i - b')^2 + alpha |w'|^2
    z = (h - mean) / std,   w = w' / std,   b = mean(y) - w . mean

Shapes: rows `[row, d]`, targets `[row]`; weight `[d]`, bias `[]` in the rows' own units.
Units: the score is in the targets' own units.
Source: Hoerl and Kennard (1970), Ridge Regression: Biased Estimation for Nonorthogonal Problems,
    https://doi.org/10.1080/00401706.1970.10488634.
Differs from the paper: penalises coordinates at unit variance where the paper scales them to a
    correlation matrix; that is the same up to the unit of alpha. On the classes 0 and 1 it predicts
    the class's number, so its boundary is 1/2 and not 0; for classes, `lda` is the better least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from workbench.errors import WorkbenchError
from workbench.linalg import standardise
from workbench.probes.base import Data, numbers
from workbench.probes.linear import LinearProbe, line_tensors, warn_if_wide
from workbench.registry import Citation, register
from workbench.shapes import Rows, Tensor, Vector


@register(
    "probes",
    Citation(
        "Hoerl, Kennard",
        "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
        1970,
        "https://doi.org/10.1080/00401706.1970.10488634",
    ),
)
@dataclass(frozen=True)
class Ridge(LinearProbe):
    """Least squares with an L2 penalty, for numbers.

    Attributes:
        penalty: scikit-learn's alpha.
        standardised: penalise coordinates at unit variance; False penalises the raw ones.
    """

    target: ClassVar[Literal["class", "number"]] = "number"
    penalty: float | int = 1.0
    standardised: bool = True

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Weight and bias at the optimum; a UserWarning for more features than rows.

        Raises:
            WorkbenchError: targets that are no numbers or do not vary, or a penalty not above 0.
        """
        if not 0 < self.penalty < math.inf:
            raise WorkbenchError(
                "Ridge(penalty)",
                "is not a strength of a penalty",
                expected="a finite number above 0",
                got=self.penalty,
                do="1.0 is the usual value",
            )
        warn_if_wide("Ridge.fit", numbers("Ridge.fit", data))
        rows = data.rows.double()
        z, mean, scale = (x[0] for x in standardise(rows[None], self.standardised))
        targets = data.targets.to(rows)
        weight = _solve(z[:, :-1], targets - targets.mean(), float(self.penalty)) / scale
        return line_tensors(weight, targets.mean() - weight @ mean)


def _solve(z: Rows, targets: Tensor, penalty: float) -> Vector:
    """The weight; through the smaller of the two Gram matrices."""
    wide = z.shape[1] > z.shape[0]
    gram = z @ z.mT if wide else z.mT @ z
    gram.diagonal().add_(penalty)
    factor = torch.linalg.cholesky(gram)
    if wide:
        return z.mT @ torch.cholesky_solve(targets[:, None], factor)[:, 0]
    return torch.cholesky_solve((z.mT @ targets)[:, None], factor)[:, 0]
