"""Codes of a corpus, a part at a time: what every count over features runs on, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.sae.dictionary import Dictionary
from workbench.sae.fitting import check_fits
from workbench.shapes import Codes, Int, Rows, Tensor
from workbench.tensors import Intervention

PART_BYTES = 64 * 2**20
"""Codes of one part; its activations are smaller."""


@dataclass(frozen=True)
class Part:
    """Some tokens of a corpus, whole prompts, in order.

    Attributes:
        rows: activations at the dictionary's site, on its device.
        codes: their features.
        ids: the token of each row.
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
        special: keep tokens such as the first one of a text, whose activations are often of another
            size than all others; SAELens leaves them out of training as well.
        force: read another model than the dictionary was trained on.
        progress: show a bar over prompts.

    Raises:
        WorkbenchError: the dictionary does not fit, see `check_fits`; NaN in the activations.
        PromptError: a prompt that is empty or longer than the context.
    """
    check_fits(dictionary, model, "sae.stream", force=force)
    many = as_prompts(prompts)
    tails = [list(tail) for tail in completions] if completions is not None else [[]] * len(many)
    ids = [_ids(model, prompt, tail) for prompt, tail in zip(many, tails, strict=True)]
    left_out = torch.tensor([] if special else sorted(set(model.tokenizer.all_special_ids)))
    with tqdm(total=len(many), desc="features", unit="prompt", disable=not progress) as bar:
        for start, stop in _parts(dictionary, [len(one) for one in ids]):
            given = tails[start:stop] if completions is not None else None
            cut = [edit.for_rows(start, stop - start) for edit in edits]
            acts = model.record(
                many[start:stop],
                dictionary.site,
                pool="all",
                completions=given,
                edits=cut,
                progress=False,
            )
            lengths = torch.tensor([len(one) for one in ids[start:stop]])
            owners = torch.arange(start, stop).repeat_interleave(lengths)
            read = torch.cat(ids[start:stop])
            keep = ~torch.isin(read, left_out)
            rows = acts[dictionary.site][keep].to(dictionary.device)
            where = torch.tensor(acts.positions)[keep]
            yield Part(rows, dictionary.encode(rows), read[keep], owners[keep], where)
            bar.update(stop - start)


def _ids(model: Any, prompt: Prompt, tail: list[int]) -> Int[Tensor, " pos"]:
    return model.tokens(prompt, completions=[tail]).ids[0].cpu()


def _parts(dictionary: Dictionary, lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of whole prompts whose codes stay within the budget."""
    budget = PART_BYTES // (4 * dictionary.n_features)
    start, held = 0, 0
    for i, length in enumerate(lengths):
        if held and held + length > budget:
            yield start, i
            start, held = i, 0
        held += length
    if lengths:
        yield start, len(lengths)
