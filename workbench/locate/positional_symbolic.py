"""Heads that go by position and heads that go by content, told apart by swapping blocks of the prompt.

    d_i = mean attention of the last token to block i of m;   d' the same after blocks i and j change
    places in the prompt;   v = (d_i, d_j),  v' = (d'_i, d'_j)
    s_pos = cos(v', (d_i, d_j))        s_sym = cos(v', (d_j, d_i))         mean over pairs i < j

Cosines of numbers that are not negative are near 1 wherever attention is nearly even, so both scores
stand beside `flatness`, the mean of cos((d_i, d_j), (d_j, d_i)): where it is near 1, neither says
anything ("flat" is 1 where it is above 0.95).

Shapes: `[case, layer, head]`.
Units: cosines, 0 to 1; `difference` is the mean of |d_i - d_j| in attention per token.
Source: Urrutia et al. (2026), Decoupling Positional and Symbolic Attention in Transformers, known from
    its abstract and notes alone, https://arxiv.org/abs/2511.11579.
Differs from the paper: the number of blocks and how pairs are averaged were not found; here 8 and all
    pairs. Our reading: blocks are equally long and end before the last token; the first token and
    what does not fill a block stay out; pairs of equal blocks, whose swap changes nothing, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import torch

from workbench.errors import PromptError, WorkbenchError
from workbench.locate.attending import part_of, pieces
from workbench.locate.base import Cases, Localiser, Need, Scores, head_axis, layer_axis
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Int, Tensor
from workbench.tensors import Tokens

FLAT = 0.95
"""Flatness above which a head is flagged."""
UNITS = {
    "positional": "cosine",
    "symbolic": "cosine",
    "flatness": "cosine",
    "difference": "attention per token",
    "flat": "share of prompts",
}


@register(
    "locate",
    Citation(
        "Urrutia et al.",
        "Decoupling Positional and Symbolic Attention in Transformers",
        2026,
        "https://arxiv.org/abs/2511.11579",
    ),
)
@dataclass(frozen=True)
class PositionalSymbolic(Localiser):
    """Whether each head's attention stays with the position or goes with the content.

    Attributes:
        blocks: into how many equal blocks a prompt is cut.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims")
    blocks: int = 8

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise WorkbenchError(
                "PositionalSymbolic(blocks=)",
                "leaves no pair to swap",
                expected="at least 2",
                got=self.blocks,
                do="choose more blocks",
            )

    def find(self, cases: Cases, *, run: Callable[..., Any], dims: Any) -> Scores:
        """Both scores of every head, with what says whether they mean anything.

        Raises:
            PromptError: a prompt is too short for its blocks.
        """
        rows = [self._one(_alone(cases.clean, row), run, dims) for row in range(len(cases))]
        return Scores(
            {name: torch.stack([row[name] for row in rows]) for name in UNITS},
            (layer_axis(dims.n_layers), head_axis(dims.n_heads)),
            UNITS,
            caption=f"{self.blocks} blocks, all pairs swapped, {len(cases)} prompts; where flatness "
            "is near 1 neither score says anything.",
        )

    def _one(self, tokens: Tokens, run: Callable[..., Any], dims: Any) -> dict[str, Any]:
        """The measures of one prompt, a batch of one without padding."""
        blocks = self._columns(tokens)
        pairs = torch.tensor(list(combinations(range(self.blocks), 2)), device=blocks.device)
        batch = _variants(tokens, blocks, pairs)
        attention = torch.cat(
            [
                run(part_of(batch, some), record=["L*.pattern[pos=-1]"])
                .stack("pattern[pos=-1]")
                .float()
                .transpose(0, 1)
                for some in pieces(
                    len(batch), dims.n_layers * dims.n_heads * batch.ids.shape[1] ** 2
                )
            ]
        )
        means = attention[..., blocks.to(attention.device)].mean(-1)
        ids = tokens.ids[0][blocks]
        differ = (ids[pairs[:, 0]] != ids[pairs[:, 1]]).any(-1)
        return swap_scores(means[0], means[1:], pairs, differ)

    def _columns(self, tokens: Tokens) -> Int[Tensor, "block size"]:
        length = tokens.ids.shape[1]
        size = (length - 2) // self.blocks
        if size < 1:
            raise PromptError(
                f"prompt {(tokens.prompts[0].text or '')[:40]!r}",
                f"is too short for {self.blocks} blocks",
                expected=f"at least {self.blocks + 2} tokens",
                got=length,
                do="use a longer prompt or PositionalSymbolic(blocks=...)",
            )
        stop = length - 1
        columns = torch.arange(stop - size * self.blocks, stop, device=tokens.ids.device)
        return columns.reshape(self.blocks, size)


def _alone(tokens: Tokens, row: int) -> Tokens:
    """One prompt of a batch, without its padding."""
    one, pad = part_of(tokens, slice(row, row + 1)), tokens.ids.shape[1] - tokens.lengths[row]
    return replace(one, ids=one.ids[:, pad:], mask=one.mask[:, pad:])


def _variants(tokens: Tokens, blocks: Tensor, pairs: Tensor) -> Tokens:
    """The prompt as it is, then once per pair with the two blocks in each other's place."""
    n = len(pairs) + 1
    ids = tokens.ids.repeat(n, 1)
    for variant, (i, j) in enumerate(pairs.tolist(), start=1):
        ids[variant, blocks[i]] = tokens.ids[0, blocks[j]]
        ids[variant, blocks[j]] = tokens.ids[0, blocks[i]]
    return Tokens(ids, tokens.mask.repeat(n, 1), tokens.prompts * n, tokens.prompt_lengths * n)


def swap_scores(
    before: Float[Tensor, "*head block"],
    after: Float[Tensor, "pair *head block"],
    pairs: Int[Tensor, "pair two"],
    differ: Bool[Tensor, " pair"] | None = None,
) -> dict[str, Float[Tensor, "*head"]]:
    """The measures of this file, from mean attention per block without and with each swap.

    Args:
        differ: pairs to count; a pair of equal blocks says nothing. None counts all.

    Returns:
        "positional", "symbolic", "flatness", "difference" and "flat"; NaN where no pair counts.
    """
    pairs = pairs.to(before.device)
    old = before[..., pairs].movedim(-2, 0)
    index = pairs.reshape(len(pairs), *[1] * (after.dim() - 2), 2)
    new = after.gather(-1, index.expand(*after.shape[:-1], 2))
    found = {
        "positional": _cosine(new, old),
        "symbolic": _cosine(new, old.flip(-1)),
        "flatness": _cosine(old, old.flip(-1)),
        "difference": (old[..., 0] - old[..., 1]).abs(),
    }
    if differ is not None:
        out = ~differ.to(before.device).reshape(-1, *[1] * (before.dim() - 1))
        found = {name: value.masked_fill(out, torch.nan) for name, value in found.items()}
    means = {name: value.nanmean(0) for name, value in found.items()}
    flatness = means["flatness"]
    flat = torch.where(flatness.isnan(), flatness, (flatness > FLAT).to(flatness))
    return {**means, "flat": flat}


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Over the last axis; NaN where either is 0 throughout."""
    a, b = a.double(), b.double()
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).float()
