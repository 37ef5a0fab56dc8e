"""Heads that attend to what followed the same token before: ... A B ... A -> B.

    score(h) = mean over the q whose token stood at an earlier p of the sum of A_h[q, p + 1], p + 1 < q

By default on random tokens, said twice: there nothing but the repetition tells what comes next.

Shapes: `[sequence, layer, head]`, or `[case, layer, head]` on the prompts.
Units: attention, 0 to 1; chance is even attention over what is visible.
Source: Olsson et al. (2022), In-context Learning and Induction Heads,
    https://arxiv.org/abs/2209.11895.
Differs from the paper: the paper's prefix-matching score is the same number on its own sequences of
    random tokens said four times, the most and least common tokens left out; here each is said twice,
    a token stands once in it, and every id may be drawn but the one that all prompts begin with, which
    is put in front. Attention to the token itself is not counted where a token follows its equal,
    which TransformerLens' head detector counts; elsewhere the measure "share" is its default score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.locate.attending import head_scores, matched, visible
from workbench.locate.base import Cases, Localiser, Need, Scores
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.tensors import Tokens

WHERE = ("random", "prompts")


@register(
    "locate",
    Citation(
        "Olsson et al.",
        "In-context Learning and Induction Heads",
        2022,
        "https://arxiv.org/abs/2209.11895",
    ),
)
@dataclass(frozen=True)
class InductionHeads(Localiser):
    """How much each head attends to what followed the same token before.

    Attributes:
        on: "random" sequences said twice, or the "prompts" themselves.
        sequences: how many random sequences.
        length: tokens of a random sequence, before it is said again; less where vocabulary or context
            is short.
        seed: of the random sequences.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims")
    on: Literal["random", "prompts"] = "random"
    sequences: int = 16
    length: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on not in WHERE:
            raise unknown("InductionHeads(on=)", "source of tokens", self.on, WHERE)
        if self.sequences < 1 or self.length < 2:
            raise WorkbenchError(
                "InductionHeads",
                "has no random sequences",
                expected="sequences of at least 1, length of at least 2",
                got=f"sequences={self.sequences}, length={self.length}",
                do="choose larger ones",
            )

    def find(self, cases: Cases, *, run: Callable[..., Any], dims: Any) -> Scores:
        """Attention to what followed the earlier equals, of every head.

        Raises:
            WorkbenchError: on the prompts, where none repeats a token; or a vocabulary or context too
                small for a random sequence.
        """
        tokens = self._random(cases.clean, dims) if self.on == "random" else cases.clean
        ids = tokens.ids
        # a real token may have the id that pads, so padding is left out before the shift
        same = (ids[:, :, None] == ids[:, None, :]).tril(-1) & visible(tokens.mask)
        after = torch.zeros_like(same)
        after[:, :, 1:] = same[:, :, :-1]
        after = after.tril(-1)
        measures, chance = matched(run, tokens, dims, after, "a token that something followed")
        which = f"{len(tokens)} random sequences said twice"
        which = which if self.on == "random" else f"{int(chance.isfinite().sum())} prompts"
        return head_scores(
            measures, chance, dims, f"Mean attention to what followed the same token, {which}"
        )

    def _random(self, prompts: Tokens, dims: Any) -> Tokens:
        """`[sequence, 1 + 2 length]`: the first token that all prompts share, a sequence, and it again."""
        firsts = prompts.ids[prompts.positions == 0]
        head = firsts[:1].cpu() if len(set(firsts.tolist())) == 1 else firsts[:0].cpu()
        free = torch.arange(dims.n_vocab)
        free = free[~torch.isin(free, head)]
        room = (dims.n_context - len(head)) // 2 if dims.n_context else self.length
        length = min(self.length, room, len(free))
        if length < 2:
            raise WorkbenchError(
                "InductionHeads",
                "finds no room for two random tokens said twice",
                expected="a vocabulary of 3 and a context of 5 tokens",
                got=f"{dims.n_vocab} and {dims.n_context}",
                do="use on='prompts'",
            )
        draw = torch.Generator().manual_seed(self.seed)
        once = torch.stack(
            [
                free[torch.randperm(len(free), generator=draw)[:length]]
                for _ in range(self.sequences)
            ]
        )
        ids = torch.cat([head.expand(self.sequences, -1), once, once], 1).to(prompts.ids.device)
        made = tuple(Prompt("random tokens", source=f"random {i}") for i in range(self.sequences))
        return Tokens(
            ids, torch.ones_like(ids, dtype=torch.bool), made, (ids.shape[1],) * self.sequences
        )
