"""Style at some heads, truth at some heads, and truth kept out of style's way (StyliTruth).

    V_s = right singular vectors of D_s, D_s[i] = a+_i - a-_i         per chosen head, at most `rank`
    P = I - V_s^T V_s        V_t = right singular vectors of D_t P    truth, where a head has both
    a' = a + s sum_i min(g_i gamma, cap) (v_i . mean(a+) - v_i . a) v_i        g_i = sigma_i / sqrt(d_head)

Shapes: rows `[pair, head * d_head]` per class and site; per chosen head `down` = V, `up` = -(gains V)
    `[rank, d_head]`, and `shift` `[d_head]`.
Units: strength s scales every gain; a gain of 1 moves a coordinate onto the positive mean.
Source: Shen, Sun, Shi, Zhang and Xu (2025), Balancing Stylization and Truth via Disentangled
    Representation Steering, https://arxiv.org/abs/2508.04530.
Differs from the paper: gamma is a constant of each subspace and kappa = (mean(a+) - a) . v is linear in
    a, so that the whole is one affine edit and needs no pass of its own. Our reading: d in g is the
    head's width; the cap bounds g gamma, so that at s <= 1 / cap no coordinate passes its target. Singular
    values below `tolerance` times the largest are dropped: behind the rank of D_t P they are
    arbitrary vectors, which need not be orthogonal to style. The paper computes the edit from the
    unsteered last token and adds it at all positions; here each position moves by its own
    coordinates. `compat="released"` is the published code's strength, w (1 + 0.5 sign(w) (V mean(a+)
    - V a)) with w = V (mean(a+) - mean(a-)), in place of the paper's product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor
from workbench.sites import depth_of, parse
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, finite

Head = tuple[str, int]
Sides = tuple[Rows, Rows]
ENOUGH_PAIRS = 4
"""With fewer, a probe is judged on the pairs it was fitted on."""


@register(
    "steering",
    Citation(
        "Shen, Sun, Shi, Zhang, Xu",
        "Balancing Stylization and Truth via Disentangled Representation Steering",
        2025,
        "https://arxiv.org/abs/2508.04530",
    ),
)
@dataclass(frozen=True)
class StyliTruth(SteeringMethod):
    """Move the heads that know a style, and those that know truth, in orthogonal subspaces.

    The contrast is the style's. `steering.fit(..., truth=contrast)` adds the truth part, from pairs
    of true and false answers recorded at the same sites; without it style is edited alone.

    Attributes:
        n_style_heads, n_truth_heads: heads to edit, by accuracy of a probe on held-out pairs; all
            there are, where the model has fewer.
        rank: at most this many directions per head and subspace (K).
        gamma_style, gamma_truth: strengths of the two subspaces.
        cap: bound of a direction's gain times gamma; None for no bound.
        tolerance: singular values below this part of the largest are dropped.
        compat: "released" for the strength in the published code.
    """

    n_style_heads: int = 32
    n_truth_heads: int = 32
    rank: int = 64
    gamma_style: float | int = 1.0
    gamma_truth: float | int = 1.0
    cap: float | int | None = 1.0
    tolerance: float = 1e-6
    compat: Literal["released"] | None = None

    needs: ClassVar = ("dims",)
    sites: ClassVar[str] = "L*.z"

    def fit(self, contrast: Contrast, *, dims: Any, truth: Contrast | None = None) -> Intervention:
        """The edit at every chosen head.

        Args:
            contrast: pairs with the style (positive) and without it.
            dims: sizes of the model, `n_heads` and `d_head`.
            truth: pairs of true (positive) and false answers, recorded at the same sites.

        Raises:
            WorkbenchError: options without a meaning, rows that cannot be fitted or are not paired,
                sites other than whole `z`, or truth recorded elsewhere than style.
        """
        self._check()
        style = _heads(contrast, dims)
        other = {} if truth is None else _heads(truth, dims)
        if other and set(other) != set(style):
            raise WorkbenchError(
                "StyliTruth.fit(truth)",
                "was recorded elsewhere than the style",
                expected=list(contrast.positive),
                got=list(truth.positive) if truth else [],
                do="record both at the same sites",
            )
        style_heads = _best(style, self.n_style_heads)
        truth_heads = _best(other, self.n_truth_heads)
        tensors = {}
        for head in sorted({*style_heads, *truth_heads}, key=_depth):
            found = self._edit(
                style[head] if head in style_heads else None,
                other[head] if head in truth_heads else None,
            )
            if found:
                tensors[f"{head[0]}[head={head[1]}]"] = found
        return Intervention(
            "styli_truth",
            "affine",
            tensors,
            unit="multiples of the fitted gains",
            params=self._params(),
            model=contrast.model,
        )

    def _params(self) -> dict[str, Any]:
        names = ("rank", "gamma_style", "gamma_truth", "cap", "compat")
        return {name: getattr(self, name) for name in names}

    def _check(self) -> None:
        for name in ("gamma_style", "gamma_truth", "tolerance"):
            finite(f"StyliTruth({name})", float(getattr(self, name)))
        if self.compat not in (None, "released"):
            raise unknown("StyliTruth(compat)", "form", self.compat, ["released"])
        smallest = {"n_style_heads": 1, "n_truth_heads": 0, "rank": 1, "tolerance": 0}
        if self.cap is not None:
            smallest["cap"] = 0
        for name, least in smallest.items():
            if not getattr(self, name) >= least:
                raise WorkbenchError(
                    f"StyliTruth({name})",
                    "is too small",
                    expected=f"at least {least}",
                    got=getattr(self, name),
                    do="correct it",
                )

    def _edit(self, style: Sides | None, truth: Sides | None) -> dict[str, Tensor]:
        """The affine edit of one head; empty where neither subspace has a direction."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        basis = None
        if style is not None:
            basis, sizes = _basis(style, self.rank, self.tolerance)
            parts.append(self._part(style, basis, sizes, self.gamma_style))
        if truth is not None:
            free, sizes = _basis(truth, self.rank, self.tolerance, without=basis)
            parts.append(self._part(truth, free, sizes, self.gamma_truth))
        down, up, shift = (list(tensors) for tensors in zip(*parts, strict=True))
        if not sum(map(len, down)):
            return {}
        return {
            "down": torch.cat(down).float(),
            "up": torch.cat(up).float(),
            "shift": torch.stack(shift).sum(0).float(),
        }

    def _part(
        self,
        sides: Sides,
        basis: Float[Tensor, "rank d"],
        sizes: Float[Tensor, " rank"],
        gamma: float | int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`down`, `up` and `shift` of one subspace."""
        target = basis @ sides[0].double().mean(0)
        if self.compat == "released":
            w = target - basis @ sides[1].double().mean(0)
            gains, constant = gamma * 0.5 * w.abs(), gamma * w
        else:
            gains, constant = gamma * sizes / basis.shape[1] ** 0.5, torch.zeros_like(sizes)
            gains = gains if self.cap is None else gains.clamp(max=float(self.cap))
        return basis, -gains[:, None] * basis, (constant + gains * target) @ basis


def _heads(contrast: Contrast, dims: Any) -> dict[Head, Sides]:
    """Rows of every head, lowest layer first."""
    found: dict[Head, Sides] = {}
    for text, positive, negative in sites_of(contrast, "StyliTruth", paired=True):
        site = parse(text, 10**6)[0]
        width = dims.n_heads * dims.d_head
        if site.part != "z" or site.selectors or positive.shape[1] != width:
            raise WorkbenchError(
                f"StyliTruth.fit at {text}",
                "does not hold all heads of a layer",
                expected=f"sites such as L3.z, rows {width} wide",
                got=f"{text}, rows {positive.shape[1]} wide",
                do="record L*.z, without selectors",
            )
        split = [rows.unflatten(1, (dims.n_heads, dims.d_head)) for rows in (positive, negative)]
        found |= {(text, h): (split[0][:, h], split[1][:, h]) for h in range(dims.n_heads)}
    return dict(sorted(found.items(), key=lambda item: _depth(item[0])))


def _depth(head: Head) -> tuple[int, int]:
    return depth_of(head[0])[0], head[1]


def _best(heads: Mapping[Head, Sides], n: int) -> set[Head]:
    """The `n` heads whose probes are most often right; ties go to the lowest layer and head."""
    accuracy = {head: _accuracy(*sides) for head, sides in heads.items()}
    return set(sorted(accuracy, key=lambda head: -accuracy[head])[:n])


def _accuracy(positive: Rows, negative: Rows) -> float:
    """Of a logistic probe fitted on every other pair, on the rest."""
    few = len(positive) < ENOUGH_PAIRS
    train, held = (slice(None),) * 2 if few else (slice(0, None, 2), slice(1, None, 2))

    def data(part: slice) -> tuple[np.ndarray, np.ndarray]:
        rows = torch.cat([positive[part], negative[part]]).double().numpy()
        return rows, np.repeat([1, 0], len(rows) // 2)

    return float(LogisticRegression(max_iter=1000).fit(*data(train)).score(*data(held)))


def _basis(
    sides: Sides, rank: int, tolerance: float, without: Float[Tensor, "some d"] | None = None
) -> tuple[Float[Tensor, "rank d"], Float[Tensor, " rank"]]:
    """Orthonormal directions of the pair differences `[rank, d]` with their singular values.

    `without` is projected out first; what is then left of rank is judged against the whole.
    """
    differences = sides[0].double() - sides[1].double()
    largest = torch.linalg.matrix_norm(differences, ord=2)
    if without is not None:
        differences = differences - (differences @ without.mT) @ without
    _, sizes, directions = torch.linalg.svd(differences, full_matrices=False)
    n = min(int((sizes > tolerance * largest).sum()), rank)
    return directions[:n], sizes[:n]
