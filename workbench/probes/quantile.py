"""Quantiles of a number, read from a row: a small network per site, fitted with the pinball loss.

    pinball_q(e) = max(q e, (q - 1) e),   e = y - predicted        loss = sum over levels q, mean over rows

The pinball loss of level q is least at the q-quantile of y given the row, so the outputs are a predicted
distribution. Nothing keeps quantiles of one row in order: `crossing` says how often they are not, and
`sort=True` puts them in order when they are read.

Shapes: rows `[example, d]`, targets `[example]`; each level `[example]`; the score is the median.
Units: those of the targets; they are standardised inside and folded back.
Source: Piskorz, Kobalczyk and van der Schaar (2026), Eliciting Numerical Predictive Distributions of
    LLMs Without Autoregression, https://arxiv.org/abs/2603.02913; the loss: Koenker and Bassett
    (1978), Regression Quantiles.
Differs from the paper: the paper reads eight last layers side by side and trains 512 hidden units with
    Adam at 1e-5, weight decay 0.1, the learning rate halved every 100 of 600 epochs, patience 200
    (`Quantile.published()`); the defaults here fit in seconds on standardised rows. The biases
    start at the quantiles of the targets. Held-out rows stop the training (our reading).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError
from workbench.probes.base import Data, Examples, Probe, Weights, numbers
from workbench.probes.training import (
    Leaves,
    check_options,
    descend,
    moments,
    run_net,
    start_net,
    unstandardised,
)
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor

LEVELS = (0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975)


@register(
    "probes",
    Citation(
        "Piskorz, Kobalczyk, van der Schaar",
        "Eliciting Numerical Predictive Distributions of LLMs Without Autoregression",
        2026,
        "https://arxiv.org/abs/2603.02913",
    ),
)
@dataclass(frozen=True)
class Quantile(Probe):
    """Quantiles of a number by a small network with the pinball loss; the score is the median.

    Attributes:
        levels: of the quantiles, rising, with 0.5 among them.
        sort: put each row's quantiles in order when they are read.
        hidden: units of the hidden layer; 0 for linear quantile regression.
        weight_decay, epochs, lr, batch, halve, held_out, patience, seed: of the training loop.
    """

    levels: tuple[float, ...] = LEVELS
    sort: bool = False
    hidden: int = 64
    weight_decay: float | int = 0.03
    epochs: int = 200
    lr: float | int = 1e-2
    batch: int = 64
    halve: int | None = 50
    held_out: float = 0.15
    patience: int = 30
    seed: int = 0

    target: ClassVar[Literal["class", "number"]] = "number"

    @classmethod
    def published(cls, **options: Any) -> Quantile:
        """The sizes and steps of the source; they are slow, and meant for raw rows of width 32,768."""
        known = {"hidden": 512, "weight_decay": 0.1, "epochs": 600, "lr": 1e-5, "patience": 200}
        return cls(**{**known, "halve": 100, **options})

    def fit(self, data: Data) -> dict[str, Tensor]:
        """The network's tensors for raw rows and raw targets.

        Raises:
            WorkbenchError: targets that do not vary, NaN, or an option out of range.
        """
        _check(self)
        numbers("Quantile", data)
        mean, scale = moments(data.rows)
        middle, size = data.targets.mean(), data.targets.std(correction=0)
        rows, targets = (data.rows.float() - mean) / scale, ((data.targets - middle) / size).float()
        levels = torch.tensor(self.levels)
        start = start_net(rows.shape[1], self.hidden, targets.quantile(levels), self.seed)
        found = descend(
            lambda leaves, chosen: pinball(run_net(leaves, rows[chosen]), targets[chosen], levels),
            start,
            len(data),
            where="Quantile",
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            weight_decay=self.weight_decay,
            held_out=self.held_out,
            patience=self.patience,
            halve=self.halve,
            seed=self.seed,
        )
        return _in_units(unstandardised(found, mean, scale), float(middle), float(size))

    @property
    def params(self) -> dict[str, Any]:
        """The levels, and whether they are put in order."""
        return {"levels": list(self.levels), "sort": self.sort}

    @staticmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """The median, `[example]`."""
        return Quantile.spread(weights, params, rows)[0.5]

    @staticmethod
    def spread(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> dict[float, Tensor]:
        """The quantile of each level, `[example]`."""
        found = run_net({k: v.to(rows.device) for k, v in weights.items()}, rows.float())
        if params["sort"]:
            found = found.sort(-1).values
        return dict(zip(params["levels"], found.unbind(-1), strict=True))

    @staticmethod
    def crossing(weights: Weights, params: Mapping[str, Any], rows: Examples) -> float:
        """Share of the rows whose quantiles, as predicted, are not in order somewhere."""
        found = Quantile.spread(weights, {**params, "sort": False}, rows)
        steps = torch.stack(list(found.values()), -1).diff(dim=-1)
        return float((steps < 0).any(-1).double().mean())


def pinball(
    predicted: Float[Tensor, "example level"],
    targets: Float[Tensor, " example"],
    levels: Float[Tensor, " level"],
) -> Float[Tensor, ""]:
    """The pinball loss, summed over levels, averaged over examples."""
    error = targets[:, None] - predicted
    return torch.maximum(levels * error, (levels - 1) * error).sum(-1).mean()


def _in_units(leaves: Leaves, middle: float, size: float) -> dict[str, Tensor]:
    """Outputs in the units of the targets."""
    last, bias = ("out", "out_bias") if "out" in leaves else ("weight", "bias")
    return {**leaves, last: leaves[last] * size, bias: leaves[bias] * size + middle}


def _check(probe: Quantile) -> None:
    levels = probe.levels
    rising = all(a < b for a, b in zip(levels, levels[1:], strict=False))
    if not rising or 0.5 not in levels or not 0 < levels[0] <= levels[-1] < 1:
        raise WorkbenchError(
            "Quantile(levels=...)",
            "are no quantile levels",
            expected="rising numbers between 0 and 1, with 0.5 among them",
            got=levels,
            do=f"the default is {LEVELS}",
        )
    check_options("Quantile", hidden=probe.hidden + 1)
