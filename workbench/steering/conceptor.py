"""Conceptor steering: project softly onto the ellipsoid of the wanted class's activations.

    R = X^T X / n        C = R (R + alpha^-2 I)^-1        h' = h + s (beta C h - h)

At s = 1 that is the paper's h' = beta C h. C has R's eigenvectors and eigenvalues in [0, 1): along
directions in which the class is large against 1 / alpha it lets h through, along others it does not.

    phi(C, g) = C (C + g^-2 (I - C))^-1        aperture g times as large
    NOT C = I - C        A AND B = (A^-1 + B^-1 - I)^-1 on the space that both have
    A OR B = NOT (NOT A AND NOT B)

Shapes: X the positive rows `[row, d]` per site; C = V^T diag(c) V as `down` = V, `up` = beta c V, both
    `[rank, d]`, and `scale` = -1 `[d]` for the -h.
Units: strength s is the fraction of the way from h to beta C h. The aperture alpha counts inverse
    root mean squares of the rows' coordinates, so that it means the same in every model and layer;
    with `relative=False` it is the paper's, in inverse units of the activation.
Source: Postmus and Abreu (2024), Steering Large Language Models using Conceptors,
    https://arxiv.org/abs/2410.16314; conceptor logic by Jaeger (2014), Controlling Recurrent Neural
    Networks by Conceptors, https://arxiv.org/abs/1403.3369.
Differs from the paper: the paper searches alpha and beta per task and model; alpha = 10 in relative
    units and beta = 1 are ours, and its unit is (see Units). The paper uses the wanted class alone,
    and so does the default; `without_negative=True` is C+ AND NOT C-. `compat="released"` is the
    released helper's h + beta C h, which amplifies where the paper's form projects (the helper also
    acts on prompt tokens alone: scope "prompt").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, above_zero

Matrix = Float[Tensor, "d d"]
FORMS = ("paper", "released")
RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest are rounding."""


@register(
    "steering",
    Citation(
        "Postmus, Abreu",
        "Steering Large Language Models using Conceptors: Improving Addition-Based Activation Engineering",
        2024,
        "https://arxiv.org/abs/2410.16314",
    ),
)
@dataclass(frozen=True)
class Conceptor(SteeringMethod):
    """Project softly onto the ellipsoid of the wanted class's activations.

    Attributes:
        aperture: how much of h passes; larger is nearer to the identity on the class's span.
        beta: factor on what passes.
        relative: the aperture counts inverse root mean squares of the rows' coordinates.
        without_negative: take the unwanted class's conceptor out, C+ AND NOT C-.
        compat: "paper", or "released" for h + beta C h.
    """

    aperture: float | int = 10.0
    beta: float | int = 1.0
    relative: bool = True
    without_negative: bool = False
    compat: str = "paper"

    def fit(self, contrast: Contrast) -> Intervention:
        """The soft projection at every recorded site.

        Raises:
            UnknownName: no such `compat`.
            EditError: `aperture` or `beta` is not above 0.
            WorkbenchError: `without_negative` leaves nothing of the wanted class.
        """
        above_zero("Conceptor(aperture)", self.aperture)
        above_zero("Conceptor(beta)", self.beta)
        if self.compat not in FORMS:
            raise unknown("Conceptor(compat)", "form", self.compat, FORMS)
        released = self.compat == "released"
        return Intervention(
            "conceptor",
            "affine",
            {s: self._tensors(s, p, n) for s, p, n in sites_of(contrast, "Conceptor")},
            unit="times beta C h" if released else "fraction of the way to beta C h",
            params={
                "aperture": float(self.aperture),
                "beta": float(self.beta),
                "relative": self.relative,
                "without_negative": self.without_negative,
                "compat": self.compat,
                **({} if released else {"max_strength": 1.0}),
            },
            model=contrast.model,
        )

    def _tensors(
        self, site: str, positive: Rows, negative: Float[Tensor, "other d"]
    ) -> dict[str, Float[Tensor, ...]]:
        rms = float(torch.cat([positive, negative]).double().square().mean().sqrt())
        aperture = self.aperture / rms if self.relative else float(self.aperture)
        if self.without_negative:
            values, axes = _of_rows_without(positive, negative, aperture)
        else:
            values, axes = _of_rows(positive, aperture)
        if not len(values):
            raise WorkbenchError(
                f"Conceptor.fit at {site}",
                "nothing of the wanted class is left",
                expected="rows that are not all zero, or a wanted class beside the unwanted one",
                got="a conceptor of rank 0",
                do="use without_negative=False, or other rows",
            )
        tensors = {"down": axes.float(), "up": (self.beta * values[:, None] * axes).float()}
        if self.compat == "paper":
            tensors["scale"] = -torch.ones(positive.shape[1])
        return tensors


def conceptor(rows: Rows, aperture: float | int) -> Matrix:
    """`C = R (R + aperture^-2 I)^-1` of the rows, `[d, d]` in float64."""
    values, axes = _of_rows(rows, aperture)
    return (axes.mT * values) @ axes


def rescaled(c: Matrix, factor: float | int) -> Matrix:
    """phi(C, factor): the conceptor of the same rows at `factor` times the aperture."""
    eye = torch.eye(len(c), dtype=c.dtype)
    return torch.linalg.solve(c + (eye - c) / factor**2, c, left=False)


def negation(c: Matrix) -> Matrix:
    """NOT C: what C does not let through, I - C."""
    return torch.eye(len(c), dtype=c.dtype) - c


def conjunction(a: Matrix, b: Matrix) -> Matrix:
    """A AND B: what both let through; 0 outside the space that both span."""
    outside = sum(torch.eye(len(c), dtype=c.dtype) - axes.mT @ axes for c, axes in _spans(a, b))
    values, vectors = torch.linalg.eigh(outside)
    basis = vectors[:, values < 1e-8]
    if not basis.shape[1]:
        return torch.zeros_like(a)
    eye = torch.eye(len(a), dtype=a.dtype)
    inner = _pseudo_inverse(a) + _pseudo_inverse(b) - eye
    return basis @ torch.linalg.inv(basis.mT @ inner @ basis) @ basis.mT


def disjunction(a: Matrix, b: Matrix) -> Matrix:
    """A OR B, by De Morgan's law; the conceptor of both rows' correlations added."""
    return negation(conjunction(negation(a), negation(b)))


def _of_rows(
    rows: Rows, aperture: float | int
) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank d"]]:
    """Eigenvalues above 0 and eigenvectors of the rows' conceptor, without a `d x d` matrix."""
    found = torch.linalg.svd(rows.double(), full_matrices=False)
    second_moments = found.S.square() / len(rows)
    kept = found.S.greater(RANK_TOLERANCE * found.S[0])
    values = second_moments / (second_moments + aperture**-2)
    return values[kept], found.Vh[kept]


def _of_rows_without(
    rows: Rows, unwanted: Float[Tensor, "other d"], aperture: float | int
) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank d"]]:
    """The same of C AND NOT C_unwanted: its inverse on the span of C is C^-1 + aperture^2 R_unwanted."""
    values, axes = _of_rows(rows, aperture)
    seen = aperture * (unwanted.double() @ axes.mT) / len(unwanted) ** 0.5
    inverse, turned = torch.linalg.eigh(torch.diag(1 / values) + seen.mT @ seen)
    return 1 / inverse, turned.mT @ axes


def _axes(c: Matrix) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank d"]]:
    """Eigenvalues above 0 and eigenvectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh((c + c.mT) / 2)
    kept = values > RANK_TOLERANCE
    return values[kept], vectors.mT[kept]


def _spans(*conceptors: Matrix) -> list[tuple[Matrix, Float[Tensor, "rank d"]]]:
    return [(c, _axes(c)[1]) for c in conceptors]


def _pseudo_inverse(c: Matrix) -> Matrix:
    values, axes = _axes(c)
    return (axes.mT / values) @ axes
