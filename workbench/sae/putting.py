"""A corpus a batch at a time, what stands at a site, and runs with something else put there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import WorkbenchError
from workbench.model.model import free_bytes
from workbench.model.tokens import as_prompts, is_special
from workbench.records import Prompt
from workbench.shapes import Float, Int, Logits, Mask, Rows, Tensor
from workbench.tensors import Intervention, Tokens

CPU_TOKENS = 768
"""Tokens of a batch on a CPU, where larger ones fall out of its caches."""
COPIES = 6
"""How often logits of a batch exist at once: of two runs, in float32, and as probabilities."""


@dataclass(frozen=True)
class Batches:
    """Prompts with their completions, in batches that fit into memory.

    Attributes:
        prompts, completions: what is read.
        batches: runs of prompts that are read together, as (start, stop).
        lengths: tokens of each prompt with its completion.
    """

    prompts: list[Prompt]
    completions: list[list[int]]
    batches: list[tuple[int, int]]
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def tokens(self, model: Any) -> Iterator[tuple[int, Tokens]]:
        """Each batch, and the number of its first prompt."""
        for start, stop in self.batches:
            tails = self.completions[start:stop]
            yield start, model.tokens(self.prompts[start:stop], completions=tails)


def batches_of(
    model: Any, prompts: Any, completions: Sequence[Sequence[int]] | None, where: str
) -> Batches:
    """Prompts, measured and cut into batches.

    Raises:
        PromptError: a prompt that is empty or longer than the context.
        WorkbenchError: completions that are not one per prompt.
    """
    many = as_prompts(prompts)
    tails = [[]] * len(many) if completions is None else [list(map(int, c)) for c in completions]
    if len(tails) != len(many):
        raise WorkbenchError(
            where,
            "completions are not one per prompt",
            expected=len(many),
            got=len(tails),
            do="pass one list of ids per prompt",
        )
    pairs = zip(many, tails, strict=True)
    lengths = [model.tokens(prompt, completions=[tail]).lengths[0] for prompt, tail in pairs]
    return Batches(many, tails, _batches(lengths, _budget(model)), lengths)


def _budget(model: Any) -> int:
    if model.device.type == "cpu":
        return CPU_TOKENS
    d = model.dims
    token = 4 * (COPIES * d.n_vocab + 16 * d.d_model + 4 * d.d_mlp)
    return max(1, free_bytes(model.device) // 4 // token)


def _batches(lengths: list[int], budget: int) -> list[tuple[int, int]]:
    """Runs of prompts of at most `budget` padded tokens, at least one prompt each."""
    found, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        grown = max(longest, length)
        if i > start and grown * (i + 1 - start) > budget:
            found.append((start, i))
            start, grown = i, length
        longest = grown
    return [*found, (start, len(lengths))]


def kept(model: Any, tokens: Tokens, special: bool) -> Mask:
    """Which positions count: no padding, and no special tokens unless `special`."""
    return tokens.mask if special else tokens.mask & ~is_special(model.tokenizer, tokens.ids)


def rows_at(values: Tensor, keep: Mask) -> Rows:
    """Values of the positions that count, heads joined: `[batch, pos, ...]` to `[row, d]`."""
    return values.flatten(2)[keep.to(values.device)]


def filled(values: Tensor, keep: Mask, rows: Float[Tensor, "row out"]) -> Tensor:
    """`values` with other rows where `keep` says, in its own shape."""
    new = values.flatten(2).clone()
    new[keep.to(values.device)] = rows.to(new)
    return new.view(values.shape)


def put(model: Any, tokens: Tokens, site: str, values: Tensor) -> Logits:
    """Logits of a run that goes on from `values` `[batch, *the site's axes]` at `site`."""
    # the identity changes nothing, and may
    edit = Intervention("custom", "set", {site: {"value": values}}, conditional=True)
    return model.run(tokens, edits=[edit]).logits


def losses(logits: Logits, tokens: Tokens) -> Float[Tensor, "batch next"]:
    """Cross-entropy of each next token in nats, at the position that predicts it."""
    said = logits[:, :-1].float()
    right = said.gather(-1, tokens.ids[:, 1:, None].to(said.device))[..., 0]
    return said.logsumexp(-1) - right


def per_prompt(values: Tensor, owners: Int[Tensor, " row"], n: int) -> Tensor:
    """Sums `[prompt, ...]` in float64 of rows that belong to prompts."""
    rows = values.double().cpu()
    return rows.new_zeros(n, *rows.shape[1:]).index_add_(0, owners.cpu(), rows)
