"""Codes of a corpus, a part at a time: what every count over features runs on, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from workbench.errors import PromptError
from workbench.model.tokens import as_prompts, is_special
from workbench.records import Prompt
from workbench.sae.dictionary import Dictionary
from workbench.sae.fitting import check_fits
from workbench.shapes import Bool, Codes, Int, Rows, Tensor
from workbench.tensors import Intervention

PART_BYTES = 64 * 2**20
"""Codes of one part, or its activations where those are wider. A prompt is never split."""


@dataclass(frozen=True)
class Part:
    """Some tokens of a corpus, whole prompts, in order.

    Attributes:
        rows: activations at the dictionary's site, in the model's dtype, on the dictionary's device.
        codes: their features, there too.
        ids: the token of each row; like the next two, on the CPU.
        prompts: which prompt each row belongs to, counted over the whole corpus.
        positions: absolute token position of each row in its prompt.
    """

    rows: Rows
    codes: Codes
    ids: Int[Tensor, " row"]
    prompts: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]


def stream(
    dictionary: Dictionary,
    model: Any,
    prompts: Any,
    *,
    completions: Sequence[Sequence[int]] | None = None,
    edits: Sequence[Intervention] = (),
    last: Sequence[int] | None = None,
    special: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Iterator[Part]:
    """Codes of every token of `prompts`, in parts of at most `PART_BYTES` (at least one prompt).

    Args:
        dictionary, model: whose features of what.
        prompts: text, prompts, or a list of either.
        completions: ids read after each prompt.
        edits: applied while the model reads.
        last: how many tokens at the end of each prompt with its completion are kept; all by default.
        special: keep tokens such as the first one of a text, whose activations are often of another
            size than all others; SAELens leaves them out of training as well.
        force: read another model than the dictionary was trained on.
        progress: show a bar over prompts.

    Raises:
        WorkbenchError: the dictionary does not fit, see `check_fits`; NaN in the activations.
        PromptError: a prompt that is empty or longer than the context.
    """
    check_fits(dictionary, model, "sae.stream", force=force)
    text = tokenised(model, prompts, completions, last=last, special=special)
    width = max(dictionary.n_features, dictionary.d)
    lengths = [len(one) for one in text.ids]
    with tqdm(total=len(lengths), desc="features", unit="prompt", disable=not progress) as bar:
        for start, stop in _parts(PART_BYTES // (4 * width), lengths):
            some = range(start, stop)
            rows, where = text.rows(model, dictionary.site, some, edits)
            rows = rows.to(dictionary.device)
            ids = torch.cat([text.ids[i][text.kept[i]] for i in some])
            owners = torch.arange(start, stop).repeat_interleave(text.counts[start:stop])
            yield Part(rows, dictionary.encode(rows), ids, owners, where)
            bar.update(stop - start)


@dataclass(frozen=True)
class Tokenised:
    """Prompts as tokens, and which of these count.

    Attributes:
        prompts: what is read.
        tails: ids read after each prompt; None where nothing is.
        ids: all tokens of each prompt with its tail.
        kept: which of these count; False for special tokens that are left out.
    """

    prompts: list[Prompt]
    tails: list[list[int]] | None
    ids: list[Int[Tensor, " _"]]
    kept: list[Bool[Tensor, " _"]]

    @property
    def counts(self) -> Int[Tensor, " prompt"]:
        """How many tokens of each prompt count."""
        return torch.tensor([int(one.sum()) for one in self.kept], dtype=torch.long)

    def rows(
        self, model: Any, site: str, some: Sequence[int], edits: Sequence[Intervention] = ()
    ) -> tuple[Rows, Int[Tensor, " row"]]:
        """Activations of the tokens that count of some prompts, and their positions, on the CPU.

        Edits that hold something per prompt need `some` to be a run of prompts.
        """
        acts = model.record(
            [self.prompts[i] for i in some],
            site,
            pool="all",
            completions=None if self.tails is None else [self.tails[i] for i in some],
            edits=[edit.for_rows(some[0], len(some)) for edit in edits],
            progress=False,
        )
        keep = torch.cat([self.kept[i] for i in some])
        (values,) = acts.values.values()
        return values[keep], torch.tensor(acts.positions)[keep]


def tokenised(
    model: Any,
    prompts: Any,
    completions: Sequence[Sequence[int]] | None = None,
    *,
    last: Sequence[int] | None = None,
    special: bool = False,
) -> Tokenised:
    """Tokens of every prompt, and which of them count.

    Args:
        last: how many at the end of each prompt with its completion count; all by default.
        special: whether special tokens count.

    Raises:
        PromptError: a prompt that is empty or longer than the context; not one completion or `last` per
            prompt.
    """
    many = as_prompts(prompts)
    for name, given in (("completions", completions), ("last", last)):
        if given is not None and len(given) != len(many):
            raise PromptError(
                f"sae.stream({name}=...)",
                "are not one per prompt",
                expected=len(many),
                got=len(given),
                do="pass as many as there are prompts",
            )
    tails = [list(map(int, tail)) for tail in completions] if completions is not None else None
    ids = [
        model.tokens(prompt, completions=[tails[i]] if tails else None).ids[0].cpu()
        for i, prompt in enumerate(many)
    ]
    kept = [~is_special(model.tokenizer, one) | special for one in ids]
    if last is not None:
        ends = [torch.arange(len(one), 0, -1) <= n for one, n in zip(ids, last, strict=True)]
        kept = [one & end for one, end in zip(kept, ends, strict=True)]
    return Tokenised(many, tails, ids, kept)


def _parts(budget: int, lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of whole prompts whose tokens stay within the budget."""
    start, held = 0, 0
    for i, length in enumerate(lengths):
        if held and held + length > budget:
            yield start, i
            start, held = i, 0
        held += length
    if lengths:
        yield start, len(lengths)
