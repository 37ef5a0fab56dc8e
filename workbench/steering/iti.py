"""Inference-time intervention: push the attention heads that know, each along its own direction.

    for every head of every layer: a logistic probe on z[head], scored on held-out rows
    the n_heads best heads:   theta^ = unit(probe weight)  or  unit(mean(z+) - mean(z-))
                              sigma = std of theta^ . z[head] over all rows
    z[head]' = z[head] + s sigma theta^

At every position this is a constant added to what attention writes, the output projection's bias
`sum_head W_o[head] (s sigma theta^)`.

Shapes: rows `[row, n_heads * d_head]` per layer; one `shift` `[d_head]` per chosen head, at the site
    `L{layer}.z[head={h}]`.
Units: strength s is the paper's alpha: standard deviations of each head's own projections. The paper
    uses 15.
Source: Li, Patel, Viegas, Pfister and Wattenberg (2023), Inference-Time Intervention, https://arxiv.org/abs/2306.03341.
Differs from the paper: by default 48 heads, the paper's number, or a third of the heads read where
    that is fewer (48 of LLaMA-7B's 1024 are a twentieth; all of a small model's would choose none).
    Heads of equal score are taken from the lowest layer and head upwards. Our reading: probes
    standardise inside, and the direction of a chosen head is fitted on all rows, held-out ones too.
    The paper adds at every generated position; here the scope is the caller's. Released code edits
    the last index of each forward, which differs with and without a cache, and only the first row of
    a batch; neither is offered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.linalg import logistic, mean_difference, projection_spread, unit
from workbench.registry import Citation, register
from workbench.seeds import derive
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.sites import depth_of, parse
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, above_zero

PAPER_HEADS = 48
DIRECTIONS = ("probe", "mass_mean")
Classes = tuple[Rows, Float[Tensor, "other d"]]


@register(
    "steering",
    Citation(
        "Li, Patel, Viegas, Pfister, Wattenberg",
        "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model",
        2023,
        "https://arxiv.org/abs/2306.03341",
    ),
)
@dataclass(frozen=True)
class Iti(SteeringMethod):
    """Push the attention heads whose probes tell the classes apart best.

    Attributes:
        n_heads: heads to push, over all recorded layers; None is the paper's 48, or a third of the
            heads read where that is fewer.
        direction: "probe" is the probe's weight, "mass_mean" the plain difference of class means.
        held_out: share of each class's rows that scores the probes.
        seed: which rows those are. Pairs stay together.
        inverse_penalty: scikit-learn's C of the probes.
    """

    needs: ClassVar[tuple[Need, ...]] = ("dims",)
    sites: ClassVar[str] = "L*.z"

    n_heads: int | None = None
    direction: str = "probe"
    held_out: float = 0.2
    seed: int = 0
    inverse_penalty: float | int = 1.0

    def fit(self, contrast: Contrast, *, dims: Any) -> Intervention:
        """The pushes at the chosen heads, best head first.

        Raises:
            UnknownName: no such direction.
            WorkbenchError: a site is not whole `z`, a class has fewer than two rows, or more heads
                are asked for than were read.
            EditError: `held_out` or `inverse_penalty` out of range.
        """
        self._check()
        classes: dict[str, Classes] = {}
        for found in sorted(sites_of(contrast, "Iti"), key=lambda one: depth_of(one[0])):
            classes |= dict(_heads(*found, dims))
        split = self._split(contrast, *next(iter(classes.values())))
        scores = {site: self._accuracy(pair, split) for site, pair in classes.items()}
        best = sorted(scores, key=lambda site: -scores[site])  # stable: ties in forward order
        chosen = [s for s in best if _differ(*classes[s])][: self._count(len(classes))]
        return Intervention(
            "iti",
            "affine",
            {site: {"shift": self._push(*classes[site]).float()} for site in chosen},
            unit="alpha, in standard deviations of each head's projections",
            params={
                "direction": self.direction,
                "held_out_accuracy": {site: scores[site] for site in chosen},
                "seed": self.seed,
            },
            model=contrast.model,
        )

    def _check(self) -> None:
        if self.direction not in DIRECTIONS:
            raise unknown("Iti(direction)", "direction", self.direction, DIRECTIONS)
        above_zero("Iti(inverse_penalty)", self.inverse_penalty)
        if not 0 < self.held_out < 1:
            raise WorkbenchError(
                "Iti(held_out)",
                "is no share of the rows",
                expected="a number between 0 and 1",
                got=self.held_out,
                do="the paper uses 0.2",
            )

    def _count(self, read: int) -> int:
        if self.n_heads is None:
            return min(PAPER_HEADS, max(1, read // 3))
        if not 0 < self.n_heads <= read:
            raise WorkbenchError(
                "Iti(n_heads)",
                "asks for another number of heads than were read",
                expected=f"1 to {read}",
                got=self.n_heads,
                do="record more layers, or ask for fewer",
            )
        return self.n_heads

    def _split(self, contrast: Contrast, positive: Rows, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Per class, which rows are held out; the same ones of both where rows are pairs."""
        held = self._held(len(positive), "positive")
        return held, held if contrast.paired else self._held(len(negative), "negative")

    def _held(self, n: int, name: str) -> Tensor:
        if n < 2:
            raise WorkbenchError(
                "Iti.fit",
                f"the {name} class is too small to hold a row out",
                expected="at least 2 rows of each class",
                got=n,
                do="add prompts",
            )
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(self.seed, name)))
        held = torch.zeros(n, dtype=torch.bool)
        held[order[: min(n - 1, max(1, round(self.held_out * n)))]] = True
        return held

    def _accuracy(self, classes: Classes, split: tuple[Tensor, Tensor]) -> float:
        """Share of held-out rows on the right side of a probe fitted on the others."""
        (positive, negative), (held, other) = classes, split
        weight, bias = logistic(positive[~held], negative[~other], self.inverse_penalty)
        right = torch.cat(
            [
                positive[held].double() @ weight + bias > 0,
                negative[other].double() @ weight + bias < 0,
            ]
        )
        return float(right.double().mean())

    def _push(self, positive: Rows, negative: Float[Tensor, "other d"]) -> Vector:
        if self.direction == "probe":
            theta = unit(logistic(positive, negative, self.inverse_penalty)[0])
        else:
            theta = unit(mean_difference(positive, negative))
        return projection_spread(positive, negative, theta) * theta


def _heads(
    site: str, positive: Rows, negative: Float[Tensor, "other d"], dims: Any
) -> Iterator[tuple[str, Classes]]:
    """Both classes of each head of a layer, by the head's own site."""
    (parsed,) = parse(site, dims.n_layers)
    width = dims.n_heads * dims.d_head
    if parsed.part != "z" or parsed.selectors or positive.shape[1] != width:
        raise WorkbenchError(
            f"Iti.fit at {site}",
            "is not the heads of a layer",
            expected=f"L<layer>.z, {dims.n_heads} heads of {dims.d_head}",
            got=f"{site}, {positive.shape[1]} wide",
            do="record 'L*.z'",
        )
    halves = [rows.unflatten(1, (dims.n_heads, dims.d_head)) for rows in (positive, negative)]
    for head in range(dims.n_heads):
        yield f"{site}[head={head}]", (halves[0][:, head], halves[1][:, head])


def _differ(positive: Rows, negative: Float[Tensor, "other d"]) -> bool:
    """Whether a head's classes have two means; a head that is off has none to push along."""
    size = float(torch.cat([positive, negative]).double().norm(dim=-1).mean())
    return float(mean_difference(positive, negative).norm()) > 1e-9 * size
