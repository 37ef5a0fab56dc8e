"""Heads that attend to the token just before.

    score(h) = mean over q >= 1 of A_h[q, q - 1]

Shapes: `[case, layer, head]`.
Units: attention, 0 to 1; chance, the mean of 1 / (q + 1), is even attention over what is visible.
Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits,
    https://transformer-circuits.pub/2021/framework/index.html.
Differs from the paper: the paper shows patterns and names no statistic; the measure "share" (of the
    attention of all queries, the first one too) is the default score of TransformerLens' head detector.
    A sliding window is not counted in the chance level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.locate.attending import head_scores, matched
from workbench.locate.base import Cases, Localiser, Need, Scores
from workbench.registry import Citation, register


@register(
    "locate",
    Citation(
        "Elhage et al.",
        "A Mathematical Framework for Transformer Circuits",
        2021,
        "https://transformer-circuits.pub/2021/framework/index.html",
    ),
)
@dataclass(frozen=True)
class PreviousTokenHeads(Localiser):
    """How much each head attends to the token just before."""

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims")

    def find(self, cases: Cases, *, run: Callable[..., Any], dims: Any) -> Scores:
        """Attention one back, of every head.

        Raises:
            WorkbenchError: every prompt is a single token.
        """
        tokens = cases.clean
        width = tokens.ids.shape[1]
        back = torch.ones(width, width, dtype=torch.bool, device=tokens.mask.device)
        back = back.tril(-1).triu(-1).expand(len(tokens), -1, -1)
        measures, chance = matched(run, tokens, dims, back, "a token before another")
        caption = f"Mean attention to the token before, {len(cases)} prompts"
        return head_scores(measures, chance, dims, caption)
