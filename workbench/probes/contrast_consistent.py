"""A direction that calls one of each pair true and the other false, found without labels (CCS).

    p = sigmoid(w.x + b)     loss = mean over pairs of (p_1 + p_2 - 1)^2 + min(p_1, p_2)^2
    x = (h - mean of its side) / scale

A pair is one statement asserted and denied ("... Yes", "... No"): its first row and its second are the
two sides. Each side's mean is taken off first, so that the wording of a side is no answer. Nothing in
the loss says which end is "true": the sign is turned so that labelled rows lie right on average.

Targets are truth, 0 or 1, NaN where unknown: a few labels are enough, and they decide the sign alone.
One case reads them once more. Where the first of every pair has one label and the second the other,
"first" and "true" cannot be told apart, and taking each side's mean off would take the answer off. Then
`normalise="auto"` takes the two as (true, false) without a wording of their own and one mean of all rows
off. If the targets only mark the sides, say `normalise="sides"`: no label is read, the sign stays as found.

Shapes: rows `[example, d]`, pairs `[example]`; w `[d]`, b `[]`.
Units: the score is a logit in nats of odds that the row is true, for a row of either side.
Source: Burns, Ye, Klein and Steinhardt (2022), Discovering Latent Knowledge in Language Models Without
    Supervision, https://arxiv.org/abs/2212.03827.
Differs from the paper: the paper scores a pair, (p_1 + 1 - p_2) / 2; a probe here scores single rows
    of unknown side. So all columns of both sides share one scale, and where their means differ by more
    than that difference spreads over pairs, the weight is kept orthogonal to it; the bias stands at the
    midpoint. The paper decides the sign by the better of both accuracies; here see above. Restarts are
    trained at once; the L2 penalty stands for the release's weight decay. With more columns than pairs
    consistent directions are many, and the one found need not be truth: check it on held-out labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.linalg import unit
from workbench.probes.base import Data, two_classes
from workbench.probes.linear import LinearProbe, line_tensors
from workbench.probes.training import Leaves, check_options, descend
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor, Vector

NORMALISE = ("auto", "sides", "all")


@register(
    "probes",
    Citation(
        "Burns, Ye, Klein, Steinhardt",
        "Discovering Latent Knowledge in Language Models Without Supervision",
        2022,
        "https://arxiv.org/abs/2212.03827",
    ),
)
@dataclass(frozen=True)
class ContrastConsistent(LinearProbe):
    """A direction that is consistent over contrast pairs, found without labels.

    Attributes:
        normalise: "sides", each side's mean is taken off; "all", one mean of all rows; "auto", sides
            unless labels and sides are the same thing.
        restarts: random starts; the one with the lowest loss is kept.
        l2: penalty `l2 / 2 |w|^2` on the normalised columns, beside the loss. It prefers directions
            along which rows differ much, and matters where there are many columns: without it almost
            any direction can be made consistent.
        epochs, lr, patience, seed: of the training loop (all pairs at once).
    """

    normalise: str = "auto"
    restarts: int = 10
    l2: float | int = 0.1
    epochs: int = 500
    lr: float | int = 0.02
    patience: int = 30
    seed: int = 0

    reads: ClassVar[Literal["rows", "tokens", "pairs"]] = "pairs"

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Weight and bias for raw rows.

        Raises:
            WorkbenchError: no pairs, NaN rows, constant labels, or an option out of range.
        """
        _check(self)
        first, second = _sides(data)
        rows = data.rows.float()
        known = data.targets.isfinite()
        marks = torch.zeros(len(data), dtype=torch.float64).index_fill(0, first, 1.0)
        two_classes("ContrastConsistent", replace(data, targets=marks))  # NaN rows
        if bool(known.any()):
            two_classes("ContrastConsistent", data.at(known.nonzero()[:, 0]))
        same = torch.equal(data.targets, marks) or torch.equal(data.targets, 1 - marks)
        apart = self.normalise == "sides" or (self.normalise == "auto" and not same)
        weight, bias = self._consistent(rows[first], rows[second], apart)
        if not (apart and same) and bool(known.any()):
            weight, bias = _turned(weight, bias, rows[known], data.targets[known])
        return line_tensors(weight, bias)

    def _consistent(self, a: Rows, b: Rows, apart: bool) -> tuple[Tensor, Tensor]:
        """Weight and bias of the restart with the lowest loss; `apart` takes each side's mean off."""
        middle = (a.double().mean(0) + b.double().mean(0)).float() / 2
        between = (a.double() - b.double()).mean(0).float() if apart else torch.zeros_like(middle)
        scale = torch.cat([a - between / 2, b + between / 2]).var(0, correction=0).mean().sqrt()
        if not float(scale) > 1e-6 * float(middle.abs().max()):  # rounding
            raise WorkbenchError(
                "ContrastConsistent",
                "rows of a side do not vary",
                expected="pairs that differ from each other",
                got=f"{len(a)} pairs alike",
                do="add pairs, or record another site",
            )
        wording = _wording(a, b, between) if apart else torch.zeros_like(middle)
        a, b = (
            _clean((side - middle) / scale, wording) for side in (a - between / 2, b + between / 2)
        )

        def losses(leaves: Leaves) -> Float[Tensor, " restart"]:
            p, q = ((x @ leaves["weight"] + leaves["bias"]).sigmoid() for x in (a, b))
            found = (p + q - 1).square() + torch.minimum(p, q).square()
            return found.mean(0) + self.l2 / 2 * leaves["weight"].square().sum(0)

        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(a.shape[1], self.restarts, generator=generator)
        found = descend(
            lambda leaves, _: losses(leaves).sum(),
            {"weight": start / start.norm(dim=0), "bias": torch.zeros(self.restarts)},
            len(a),
            where="ContrastConsistent",
            epochs=self.epochs,
            lr=self.lr,
            batch=len(a),
            patience=self.patience,
            seed=self.seed,
        )
        best = int(losses(found).argmin())
        weight = _clean(found["weight"][:, best][None], wording)[0] / scale
        return weight, found["bias"][best] - weight @ middle


def _sides(data: Data) -> tuple[Tensor, Tensor]:
    """The examples that come first in their pair, and their partners in the same order."""
    counts = None if data.pairs is None else data.pairs.unique(return_counts=True)[1]
    if data.pairs is None or not bool((counts == 2).all()):
        raise WorkbenchError(
            "ContrastConsistent",
            "needs pairs",
            expected="two examples of each pair",
            got="none" if counts is None else f"{int((counts != 2).sum())} pairs of another size",
            do="make the prompts with wb.prompts.pairs, and keep pairs together when splitting",
        )
    # a stable sort keeps the order of the two rows of a pair
    order = data.pairs.argsort(stable=True)
    first, second = order[0::2], order[1::2]
    by_place = first.argsort()
    return first[by_place], second[by_place]


def _wording(a: Rows, b: Rows, between: Vector) -> Vector:
    """Unit direction in which the sides differ in themselves; 0 where they do not.

    Chance, or more true statements among the firsts, also parts the means, but by less than the
    pairs' own spread in that direction.
    """
    along = unit(between)
    steps = (a - b) @ along
    return along if steps.mean() > steps.std(correction=0) else torch.zeros_like(along)


def _clean(rows: Rows, direction: Vector) -> Rows:
    return rows - (rows @ direction)[:, None] * direction


def _turned(weight: Vector, bias: Tensor, rows: Rows, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The line with its sign so that true rows lie above false ones."""
    scores = rows @ weight
    above = scores[targets == 1].mean() >= scores[targets == 0].mean()
    return (weight, bias) if bool(above) else (-weight, -bias)


def _check(probe: ContrastConsistent) -> None:
    check_options("ContrastConsistent", restarts=probe.restarts)
    if probe.normalise not in NORMALISE:
        raise unknown("ContrastConsistent(normalise=...)", "choice", probe.normalise, NORMALISE)
    if not probe.l2 >= 0:
        raise WorkbenchError(
            "ContrastConsistent",
            "an option is out of range",
            expected="l2 >= 0",
            got=f"l2={probe.l2}",
            do="correct it",
        )
