"""A linear score of an example's tokens, pooled by a learned query.

    a_t = softmax_t(q.h_t / tau)          score = w . sum_t a_t h_t + b

With q = 0 or tau = infinity this is the linear probe of the mean token; with tau -> 0 it reads the one
token that the query likes best. Fitting starts at q = 0, so it starts as mean pooling.

Shapes: rows `[example, pos, d]`, mask `[example, pos]`; q, w `[d]`, b `[]`; score `[example]`.
Units: the score is a logit in nats of odds; the same shift added to all tokens leaves the a_t as they
    are, so it moves the score by exactly `w . shift`.
Source: McKenzie et al. (2025), Detecting High-Stakes Interactions with Activation Probes,
    https://arxiv.org/abs/2506.10805; also Kantamneni et al. (2025), Are Sparse Autoencoders Useful?,
    https://arxiv.org/abs/2502.16681, as a baseline over several tokens.
Differs from the paper: columns are standardised inside and folded back; an L2 penalty on q and w of
    the standardised columns, full control of the temperature, and a start at mean pooling are ours.
    One query (one head), no position bias. L-BFGS over all examples in place of AdamW in batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from workbench.errors import WorkbenchError
from workbench.probes.base import Data, Examples, Probe, Weights, two_classes
from workbench.probes.pooling import softmax_weights, tokens_of
from workbench.probes.training import Leaves, minimise, moments
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor


@register(
    "probes",
    Citation(
        "McKenzie, Pawar, Blandfort, Bankes, Krueger, Lubana, Krasheninnikov",
        "Detecting High-Stakes Interactions with Activation Probes",
        2025,
        "https://arxiv.org/abs/2506.10805",
    ),
)
@dataclass(frozen=True)
class AttentionPooled(Probe):
    """A linear probe of the tokens' weighted mean, the weights from a learned query.

    Attributes:
        temperature: of the softmax over tokens; infinity for the plain mean.
        l2: penalty `l2 / 2 (|q|^2 + |w|^2)` on standardised columns, beside the mean loss in nats.
        steps: of L-BFGS, at most.
    """

    temperature: float | int = 1.0
    l2: float | int = 1e-2
    steps: int = 100

    reads: ClassVar[Literal["rows", "tokens", "pairs"]] = "tokens"

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Query, weight and bias for raw rows.

        Raises:
            WorkbenchError: single rows, one class, NaN, or an option out of range.
        """
        _check(self)
        rows, mask = tokens_of("AttentionPooled", data.rows, data.mask)
        two_classes("AttentionPooled", Data(rows, data.targets, mask))
        targets = data.targets.float()
        mean, scale = moments(rows[mask])

        def loss(leaves: Leaves) -> Tensor:
            logits = _pooled(_raw(leaves, mean, scale), rows, mask, self.temperature)
            size = leaves["query"].square().sum() + leaves["weight"].square().sum()
            return binary_cross_entropy_with_logits(logits, targets) + self.l2 / 2 * size

        zero = torch.zeros(rows.shape[-1])
        start = {"query": zero, "weight": zero, "bias": torch.zeros(())}
        found = minimise(loss, start, where="AttentionPooled", steps=self.steps)
        return _raw(found, mean, scale)

    @property
    def params(self) -> dict[str, Any]:
        """The temperature."""
        return {"temperature": str(float(self.temperature))}  # text: JSON has no infinity

    @staticmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """The logit of class 1, `[example]`."""
        rows, mask = tokens_of("AttentionPooled", rows, mask)
        weights = {k: v.to(rows.device) for k, v in weights.items()}
        return _pooled(weights, rows, mask, float(params["temperature"]))

    @staticmethod
    def line(weights: Weights, params: Mapping[str, Any]) -> tuple[Tensor, float] | None:
        """The score of an example of one token; the same shift of all tokens moves a score along it."""
        return weights["weight"], float(weights["bias"])

    @staticmethod
    def attention(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, "example pos"]:
        """How much each token weighs, `[example, pos]`; rows sum to 1, padding is 0."""
        rows, mask = tokens_of("AttentionPooled", rows, mask)
        liked = rows @ weights["query"].to(rows.device)
        return softmax_weights(liked, mask, float(params["temperature"]))


def _pooled(
    weights: Weights, rows: Tensor, mask: Tensor, temperature: float | int
) -> Float[Tensor, " example"]:
    attention = softmax_weights(rows @ weights["query"], mask, temperature)
    return (attention * (rows @ weights["weight"])).sum(-1) + weights["bias"]


def _raw(leaves: Leaves, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """From standardised columns to raw ones; the query's constant falls out of the softmax."""
    weight = leaves["weight"] / scale
    return {
        "query": leaves["query"] / scale,
        "weight": weight,
        "bias": leaves["bias"] - weight @ mean,
    }


def _check(probe: AttentionPooled) -> None:
    if not probe.temperature > 0 or not probe.l2 >= 0:
        raise WorkbenchError(
            "AttentionPooled",
            "an option is out of range",
            expected="temperature > 0 and l2 >= 0",
            got=f"temperature={probe.temperature}, l2={probe.l2}",
            do="temperature=float('inf') is mean pooling",
        )
