"""Logit lens: what the model would say if it stopped behind a block.

    logits_l = unembed(final_norm(resid_post_l));  the last block's are the model's own

Shapes: `[case, layer]`, with positions="all" `[case, layer, pos]`.
Units: logits, probability, rank (1 is the first choice), KL and entropy in nats.
Source: nostalgebraist (2020), interpreting GPT: the logit lens,
    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens.
Differs from the paper: blocks alone are read, not the embedding before them, and the final norm is
    always applied. Early layers need not write in the basis that the head reads: see tuned_lens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench.locate.base import Cases, Localiser, Need, Scores
from workbench.locate.reading import UNITS, lens_axes, read_streams, statistics, target_of
from workbench.registry import Citation, register


@register(
    "locate",
    Citation(
        "nostalgebraist",
        "interpreting GPT: the logit lens",
        2020,
        "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
    ),
)
@dataclass(frozen=True)
class LogitLens(Localiser):
    """What the model would say if it stopped after each layer.

    Where cases have no answer, the target is the model's own first choice at each place. Where they
    have no foil, the main measure is the target's logit itself.

    Attributes:
        positions: "last" of each prompt, or "all"; the answer is then looked for at every position.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "head", "dims", "decode")
    positions: str = "last"

    def find(
        self,
        cases: Cases,
        *,
        run: Callable[..., Any],
        head: Any,
        dims: Any,
        decode: Callable[[int], str],
    ) -> Scores:
        """Every layer's prediction; UnknownName where `positions` is no choice."""
        streams = read_streams(cases, run, self.positions)
        values = {k: streams.placed(v) for k, v in statistics(streams, head).items()}
        return Scores(
            values,
            lens_axes(cases, dims.n_layers, self.positions, decode),
            {name: UNITS[name] for name in values},
            figure="lines" if self.positions == "last" else "heat",
            caption=f"Logit lens on {target_of(cases)}: mean over {len(cases)} prompts.",
        )
