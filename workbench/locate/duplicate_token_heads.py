"""Heads that attend to earlier occurrences of the same token.

    score(h) = mean over the q whose token stood before of the sum of A_h[q, k] over those k < q

Shapes: `[case, layer, head]`; NaN for a prompt without a repeated token.
Units: attention, 0 to 1; chance is even attention over what is visible: occurrences / (q + 1).
Source: Wang et al. (2022), Interpretability in the Wild: a Circuit for Indirect Object Identification
    in GPT-2 small, https://arxiv.org/abs/2211.00593; patterns of Elhage et al. (2021),
    https://transformer-circuits.pub/2021/framework/index.html.
Differs from the paper: the paper reads this off one position of its task; here over every repeated
    token. The measure "share" (of the attention of all queries) is the default score of
    TransformerLens' head detector. A sliding window is not counted in the chance level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench.locate.attending import head_scores, matched
from workbench.locate.base import Cases, Localiser, Need, Scores
from workbench.registry import Citation, register


@register(
    "locate",
    Citation(
        "Wang et al.",
        "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
        2022,
        "https://arxiv.org/abs/2211.00593",
    ),
)
@dataclass(frozen=True)
class DuplicateTokenHeads(Localiser):
    """How much each head attends to earlier occurrences of the same token."""

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims")

    def find(self, cases: Cases, *, run: Callable[..., Any], dims: Any) -> Scores:
        """Attention to earlier equals, of every head.

        Raises:
            WorkbenchError: no prompt repeats a token.
        """
        ids = cases.clean.ids
        same = (ids[:, :, None] == ids[:, None, :]).tril(-1)
        measures, chance = matched(run, cases.clean, dims, same, "a repeated token")
        repeating = int(chance.isfinite().sum())
        caption = f"Mean attention to earlier occurrences of the same token, {repeating} prompts"
        return head_scores(measures, chance, dims, caption)
