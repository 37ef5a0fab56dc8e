"""A linear score per token, smoothed, with its running maximum: the first stage of a cascade.

    z_t = w.h_t + b     m_t = mean of the last M of z_1..z_t     score_t = max of m_s over M <= s <= t
    fitted on   BCE(y, sum_t a_t m_t),   a = softmax(m / tau)

Until the window is full, at token M, the score is the mean so far; from then on it only rises. It is known
after each token and never looks ahead: `stream` gives it token by token, and its last value is the score
of the example. The second stage, its cost and its decision are in `workbench.probing.cascade`. A probe
reads one site; for several layers side by side, fit on joined sites (`probes.fit("cascade", acts,
join=True)`), whose rows are concatenated.

Shapes: rows `[example, pos, d]`, padding behind the tokens, mask `[example, pos]`; w `[d]`, b `[]`.
Units: logits, in nats of odds; the same shift added to all tokens moves every z_t, m_t and score by
    exactly `w . shift`.
Source: Cunningham et al. (2026), Constitutional Classifiers++: Efficient Production-Grade Defenses
    against Universal Jailbreaks, https://arxiv.org/abs/2601.04603.
Differs from the paper: known to us from the abstract and summaries; no code is public. Our reading: the
    loss is the cross-entropy of the weighted sum of m_t; windows that are not full count only where an
    example is shorter than M (a mean of few tokens varies so much that the maximum would mostly be
    one of those); the moving average ("ema") has decay 1 - 2 / (M + 1) and starts at z_1. Standardised
    columns inside, an L2 penalty and L-BFGS over all examples are ours. One site by
    default where the paper joins many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import avg_pool1d, binary_cross_entropy_with_logits, pad

from workbench.errors import WorkbenchError, unknown
from workbench.probes.base import Data, Examples, Probe, Weights, two_classes
from workbench.probes.pooling import softmax_weights, tokens_of
from workbench.probes.training import Leaves, check_options, minimise, moments
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor

SMOOTH = ("window", "ema")


@register(
    "probes",
    Citation(
        "Cunningham, Wei, Wang, et al.",
        "Constitutional Classifiers++: Efficient Production-Grade Defenses against Universal Jailbreaks",
        2026,
        "https://arxiv.org/abs/2601.04603",
    ),
)
@dataclass(frozen=True)
class Cascade(Probe):
    """A smoothed score per token whose running maximum is the score so far.

    Attributes:
        window: M, the tokens that the smoothing reaches back; 1 for none.
        smooth: "window", the mean of the last M; "ema", an exponential moving average of like reach.
        temperature: tau of the loss; towards 0 it looks at an example's largest m_t alone, at infinity
            at their mean.
        l2: penalty `l2 / 2 |w|^2` on standardised columns, beside the mean loss in nats.
        steps: of L-BFGS, at most.
    """

    window: int = 16
    smooth: str = "window"
    temperature: float | int = 1.0
    l2: float | int = 1e-2
    steps: int = 100

    reads: ClassVar[Literal["rows", "tokens", "pairs"]] = "tokens"

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Weight and bias of the logit per token, for raw rows.

        Raises:
            WorkbenchError: single rows, one class, NaN, or an option out of range.
        """
        _check(self)
        rows, mask = _tokens(data.rows, data.mask)
        two_classes("Cascade", Data(rows, data.targets, mask))
        targets, full = data.targets.float(), _full(mask, self.window)
        mean, scale = moments(rows[mask])

        def loss(leaves: Leaves) -> Tensor:
            smooth = _smoothed(_raw(leaves, mean, scale), self.params, rows, mask)
            attention = softmax_weights(smooth, full, self.temperature)
            error = binary_cross_entropy_with_logits((attention * smooth).sum(-1), targets)
            return error + self.l2 / 2 * leaves["weight"].square().sum()

        start = {"weight": torch.zeros(rows.shape[-1]), "bias": torch.zeros(())}
        found = minimise(loss, start, where="Cascade", steps=self.steps)
        return _raw(found, mean, scale)

    @property
    def params(self) -> dict[str, Any]:
        """How the logits are smoothed."""
        return {"window": self.window, "smooth": self.smooth}

    @staticmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """The largest smoothed logit of each example, `[example]`."""
        rows, mask = _tokens(rows, mask)
        smooth = _smoothed(weights, params, rows, mask)
        return smooth.masked_fill(~_full(mask, params["window"]), -torch.inf).max(-1).values

    @staticmethod
    def line(weights: Weights, params: Mapping[str, Any]) -> tuple[Tensor, float] | None:
        """The logit of one token, before smoothing: the score of an example of that token alone."""
        return weights["weight"], float(weights["bias"])

    @staticmethod
    def stream(
        weights: Weights, params: Mapping[str, Any], rows: Float[Tensor, "*example pos d"]
    ) -> Float[Tensor, "*example pos"]:
        """The score after each token; at an example's last token it is `score`.

        Tokens behind it change nothing before them, so padding needs no mask: read up to the last token.
        """
        many = rows if rows.ndim == 3 else rows[None]
        smooth = _smoothed(weights, params, *_tokens(many, None))
        start = params["window"] - 1
        found = torch.cat([smooth[:, :start], smooth[:, start:].cummax(-1).values], -1)
        return found if rows.ndim == 3 else found[0]


def _tokens(rows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, mask = tokens_of("Cascade", rows, mask)
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise WorkbenchError(
            "Cascade",
            "padding stands before or between an example's tokens",
            expected="an example's tokens first, padding behind them",
            got="a mask that turns from False to True",
            do="move each example's tokens to the front",
        )
    return rows, mask


def _full(mask: Tensor, window: int) -> Bool[Tensor, "example pos"]:
    """Tokens whose window is full; of a shorter example its last token."""
    first = mask.sum(-1).clamp(max=window) - 1
    return mask & (torch.arange(mask.shape[1], device=mask.device) >= first[:, None])


def _smoothed(
    weights: Weights, params: Mapping[str, Any], rows: Tensor, mask: Tensor
) -> Float[Tensor, "example pos"]:
    """m_t: each is made of tokens at and before t alone; what stands on padding means nothing."""
    logits = rows @ weights["weight"].to(rows.device) + weights["bias"].to(rows.device)
    logits = logits.masked_fill(~mask, 0.0)
    reach = int(params["window"])
    if params["smooth"] == "ema":
        return _moving_average(logits, 2 / (reach + 1))
    sums = avg_pool1d(pad(logits, (reach - 1, 0))[:, None], reach, 1)[:, 0] * reach
    return sums / torch.arange(1, logits.shape[1] + 1, device=rows.device).clamp(max=reach)


def _moving_average(logits: Tensor, new: float) -> Tensor:
    found = [logits[:, 0]]
    for t in range(1, logits.shape[1]):
        found.append((1 - new) * found[-1] + new * logits[:, t])
    return torch.stack(found, -1)


def _raw(leaves: Leaves, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    weight = leaves["weight"] / scale
    return {"weight": weight, "bias": leaves["bias"] - weight @ mean}


def _check(probe: Cascade) -> None:
    check_options("Cascade", window=probe.window)
    if probe.smooth not in SMOOTH:
        raise unknown("Cascade(smooth=...)", "smoothing", probe.smooth, SMOOTH)
    if not probe.temperature >= 0 or not probe.l2 >= 0:
        raise WorkbenchError(
            "Cascade",
            "an option is out of range",
            expected="temperature >= 0 and l2 >= 0",
            got=f"temperature={probe.temperature}, l2={probe.l2}",
            do="temperature=float('inf') looks at the mean over tokens",
        )
