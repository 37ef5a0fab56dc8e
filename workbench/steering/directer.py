"""Amplify the cached keys of a span, and take what is then said only where it stays plausible.

    k' = alpha k  for the span's keys, after rotary positions; values as they are; decode steps only
    a steered token y counts where p_raw(y) > beta max p_raw; see `workbench.stepwise.directer`

Shapes: `factor` `[]` per layer.
Units: strength s scales every key of the span by 1 + s (alpha - 1); 0 is no edit.
Source: Kang and Kim (2026), Enhancing Instruction Following of LLMs via Activation Steering with
    Dynamic Rejection, https://arxiv.org/abs/2603.06745.
Differs from the paper: the cache keeps its keys and every reading scales them anew, which is the same;
    the released code ends the span one token late, which is not offered. Without a span it is the whole
    prompt but its first token. Greedy decoding alone; needs `model.generate` and its cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.steering.base import SteeringMethod
from workbench.tensors import Contrast, Intervention, finite


@register(
    "steering",
    Citation(
        "Kang, Kim",
        "Enhancing Instruction Following of LLMs via Activation Steering with Dynamic Rejection",
        2026,
        "https://arxiv.org/abs/2603.06745",
    ),
)
@dataclass(frozen=True)
class Directer(SteeringMethod):
    """Amplify the keys of an instruction while the steered token stays plausible.

    Attributes:
        span: absolute positions `(first, stop)` of the instruction, the beginning-of-sequence token
            being 0; None is the prompt without position 0. `edit.within(...)` moves it later.
        alpha: factor on the keys.
        beta: part of the largest raw probability that a steered token must exceed: 0 always steers, 1
            never.
        max_trials: sets of layers tried per step.
        ranking: "paper", or "released" for the released code's averaging over the other axis.
    """

    span: tuple[int, int] | None = None
    alpha: float | int = 100.0
    beta: float | int = 0.5
    max_trials: int = 10
    ranking: Literal["paper", "released"] = "paper"

    needs = ("dims",)
    sites = ""

    def fit(self, contrast: Contrast, *, dims: Any) -> Intervention:
        """The edit in every layer; it needs no data.

        Raises:
            WorkbenchError: an option out of range, or a span that holds nothing.
        """
        finite("Directer(alpha)", float(self.alpha))
        if self.ranking not in ("paper", "released"):
            raise unknown("Directer(ranking)", "ranking", self.ranking, ("paper", "released"))
        if not 0 <= self.beta <= 1 or self.max_trials < 1 or self.alpha <= 0:
            raise WorkbenchError(
                "Directer",
                "an option is out of range",
                expected="alpha above 0, beta from 0 to 1, at least one trial",
                got=f"alpha {self.alpha}, beta {self.beta}, max_trials {self.max_trials}",
                do="correct it",
            )
        scope = Scope.parse("prompt-span(0, 1)") if self.span is None else Scope.span(*self.span)
        return Intervention(
            "directer",
            "scale_keys",
            {
                f"L{n}.k_cache": {"factor": torch.tensor(float(self.alpha))}
                for n in range(dims.n_layers)
            },
            unit=f"of the way to keys {self.alpha:g} times as long, where plausible",
            scope=scope,
            params={
                "stepwise": "directer",
                "beta": float(self.beta),
                "max_trials": self.max_trials,
                "ranking": self.ranking,
            },
            model=contrast.model,
            conditional=True,
        )
