"""A number, read from a row as a power of ten and a factor, so that small and large ones both count.

    m = floor(log10 |y|)         class head: row -> logits over m       value head: (row, m) -> r_m
    score = sum over the 3 likeliest m of p_m r_m 10^m                  p: softmax over those 3
    loss  = 100 cross-entropy(m), then 50 (r_m - y / 10^m)^2

Shapes: rows `[example, d]`, targets `[example]`; score `[example]`.
Units: those of the targets.
Source: Piskorz, Kobalczyk and van der Schaar (2026), Eliciting Numerical Predictive Distributions of
    LLMs Without Autoregression, https://arxiv.org/abs/2603.02913.
Differs from the paper: the value head is trained at every exponent, its target y / 10^m held within
    -10 and 10; at the true one alone (`everywhere=False`) it says anything at the others, and a number
    just above 100 was read as 400. It is handed m, centred, where the released code hands 10^m. The
    paper reads eight last layers side by side and trains 512 hidden units with Adam at 1e-5, weight
    decay 1, the learning rate halved every 100 of 600 epochs, patience 200
    (`MagnitudeMean.published()`); the defaults here fit in seconds on standardised rows. Our reading:
    exponents are those between the smallest and the largest of the training targets; 0 has the
    smallest; held-out rows stop the training. The paper's target is the mean of a model's own sampled
    answers; here it is whatever number the caller gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import cross_entropy, mse_loss

from workbench.probes.base import Data, Examples, Probe, Weights, numbers
from workbench.probes.training import (
    Leaves,
    Loss,
    check_options,
    descend,
    moments,
    run_net,
    start_net,
    unstandardised,
)
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Int, Rows, Tensor

CLASS_LOSS, VALUE_LOSS = 100.0, 50.0


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
class MagnitudeMean(Probe):
    """A number as its power of ten and a factor, each from a small network.

    Attributes:
        everywhere: train the value head at every exponent; at the true one alone otherwise.
        top: likeliest exponents that the prediction averages over.
        hidden: units of each hidden layer; 0 for linear heads.
        weight_decay: beside losses that are multiplied by 100 and 50.
        epochs, lr, batch, halve, held_out, patience, seed: of the training loop, for each head.
    """

    everywhere: bool = True
    top: int = 3
    hidden: int = 64
    weight_decay: float | int = 1.0
    epochs: int = 200
    lr: float | int = 1e-2
    batch: int = 64
    halve: int | None = 50
    held_out: float = 0.15
    patience: int = 30
    seed: int = 0

    target: ClassVar[Literal["class", "number"]] = "number"

    @classmethod
    def published(cls, **options: Any) -> MagnitudeMean:
        """The sizes, steps and value head of the source; slow, for raw rows of width 32,768."""
        known = {"hidden": 512, "weight_decay": 1.0, "epochs": 600, "lr": 1e-5, "patience": 200}
        return cls(**{**known, "halve": 100, "everywhere": False, **options})

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Tensors of both heads for raw rows, and the exponents.

        Raises:
            WorkbenchError: targets that do not vary, NaN, or an option out of range.
        """
        check_options("MagnitudeMean", top=self.top, hidden=self.hidden + 1)
        numbers("MagnitudeMean", data)
        mean, scale = moments(data.rows)
        rows = (data.rows.float() - mean) / scale
        powers = exponents(data.targets)
        every = torch.arange(int(powers.min()), int(powers.max()) + 1)
        which = powers - every[0]
        classes = self._head(
            rows,
            which.bincount(minlength=len(every)).add(1).log().float(),
            lambda net, i: CLASS_LOSS * cross_entropy(run_net(net, rows[i]), which[i]),
        )
        # [example, exponent]: what the value head should say at each, and where it is asked
        factors = (data.targets[:, None] / 10.0 ** every.double()).clamp(-10, 10).float()
        asked = (which[:, None] == torch.arange(len(every))) | self.everywhere

        def value_loss(net: Leaves, chosen: Tensor) -> Tensor:
            at, power = asked[chosen].nonzero().unbind(-1)
            said = run_net(net, _with_power(rows[chosen[at]], every[power], every))[:, 0]
            return VALUE_LOSS * mse_loss(said, factors[chosen[at], power])

        column = torch.zeros(len(rows), 1)
        values = self._head(torch.cat([rows, column], 1), factors[asked].mean()[None], value_loss)
        pad = torch.zeros(1), torch.ones(1)
        values = unstandardised(values, torch.cat([mean, pad[0]]), torch.cat([scale, pad[1]]))
        named = {f"value.{k}": v for k, v in values.items()}
        return {**unstandardised(classes, mean, scale), **named, "exponents": every.float()}

    def _head(self, rows: Rows, bias: Tensor, loss: Loss) -> dict[str, Tensor]:
        return descend(
            loss,
            start_net(rows.shape[1], self.hidden, bias, self.seed),
            len(rows),
            where="MagnitudeMean",
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            weight_decay=self.weight_decay,
            held_out=self.held_out,
            patience=self.patience,
            halve=self.halve,
            seed=self.seed,
        )

    @property
    def params(self) -> dict[str, Any]:
        """How many exponents the prediction averages over."""
        return {"top": self.top}

    @staticmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """The predicted number, `[example]`."""
        rows = rows.float()
        weights = {k: v.to(rows.device) for k, v in weights.items()}
        every = weights["exponents"]
        best = run_net(weights, rows).topk(min(int(params["top"]), len(every)), -1)
        head = {k.removeprefix("value."): v for k, v in weights.items() if k.startswith("value.")}
        total = torch.zeros(len(rows), device=rows.device)
        for share, place in zip(
            best.values.softmax(-1).unbind(-1), best.indices.unbind(-1), strict=True
        ):
            power = every[place]
            factor = run_net(head, _with_power(rows, power, every))[:, 0]
            total = total + share * factor * 10.0**power
        return total

    @staticmethod
    def magnitude(
        weights: Weights, params: Mapping[str, Any], rows: Examples
    ) -> Int[Tensor, " example"]:
        """The likeliest exponent m, `[example]`."""
        found = run_net({k: v.to(rows.device) for k, v in weights.items()}, rows.float()).argmax(-1)
        return weights["exponents"].to(rows.device)[found].long()


def exponents(targets: Float[Tensor, " example"]) -> Int[Tensor, " example"]:
    """floor(log10 |y|); 0 takes the smallest exponent of the others.

    The logarithm is rounded, so that 1000 might fall to 2: each result is checked against its power.
    """
    size = targets.double().abs()
    size = torch.where(size > 0, size, size[size > 0].min())
    found = size.log10().floor()
    found = found + (size >= 10.0 ** (found + 1)).double() - (size < 10.0**found).double()
    return found.long()


def _with_power(rows: Rows, powers: Tensor, every: Tensor) -> Float[Tensor, "row more"]:
    """Rows with one more column: the exponent, counted from the middle of the exponents."""
    centred = powers.float() - every.float().mean()
    return torch.cat([rows, centred[:, None]], -1)
