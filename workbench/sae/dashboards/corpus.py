"""A corpus as its tokens and their non-zero codes: one pass, and 8 bytes for each active feature of a token.

    corpus, codes = read(dictionary, model, prompts)
    codes               scipy.sparse [row, feature], by feature: on which rows each is active, and how much

A feature is active where its code is above 0. Codes are made dense for one part of the corpus at a time
(`workbench.sae.reading.stream`); what is held after it grows with the active codes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from workbench.errors import PromptError, WorkbenchError
from workbench.sae.dictionary import Dictionary
from workbench.sae.reading import Part, stream
from workbench.shapes import Int

Sparse = Any
"""scipy.sparse's csc_array (by column) or csr_array (by row); their stubs say that the parts may be None."""
STORE_BYTES = 2**30
"""Non-zero codes that are held at most; 100k tokens with 1,300 active features each."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """The tokens that were read, in order, whole prompts.

    Attributes:
        ids: the token of each row.
        prompts: which prompt each row belongs to.
        positions: token position of each row in its prompt.
        texts: the text of every token id that occurs.
    """

    ids: Int[np.ndarray, " row"]
    prompts: Int[np.ndarray, " row"]
    positions: Int[np.ndarray, " row"]
    texts: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Corpus({len(self):,} tokens of {len(np.unique(self.prompts)):,} prompts)"

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each row's token."""
        return [self.texts[i] for i in self.ids.tolist()]

    def window(self, row: int, before: int, after: int) -> slice:
        """Rows from `before` ahead of `row` to `after` behind it, inside its prompt."""
        first = int(np.searchsorted(self.prompts, self.prompts[row], "left"))
        last = int(np.searchsorted(self.prompts, self.prompts[row], "right"))
        return slice(max(first, row - before), min(last, row + after + 1))


def read(
    dictionary: Dictionary,
    model: Any,
    prompts: Any,
    *,
    completions: Sequence[Sequence[int]] | None = None,
    special: bool = False,
    force: bool = False,
    progress: bool = True,
) -> tuple[Corpus, Sparse]:
    """The tokens of `prompts` and their active codes, `[row, feature]`.

    Args:
        dictionary, model, prompts, completions, special, force, progress: as in `sae.stream`.

    Raises:
        WorkbenchError: as `sae.stream`; more active codes than `STORE_BYTES` hold; codes that are NaN.
        PromptError: as `sae.stream`; no token is left.
    """
    options = {"completions": completions, "special": special, "force": force}
    tokens, blocks, held = [], [], 0
    for part in stream(dictionary, model, prompts, progress=progress, **options):
        tokens.append([_plain(t) for t in (part.ids, part.prompts, part.positions)])
        blocks.append(active(part))
        held += 8 * blocks[-1].nnz
        del part  # its dense codes, before the next ones are made
        if held > STORE_BYTES:
            raise _too_many(sum(block.shape[0] for block in blocks), held)
    ids, owners, positions = (np.concatenate(column) for column in zip(*tokens, strict=True))
    if not len(ids):
        raise PromptError(
            "prompts",
            "hold no token but special ones",
            expected="text",
            got="0 tokens",
            do="pass longer prompts, or special=True",
        )
    texts = texts_of(model.tokenizer, np.unique(ids))
    return Corpus(ids, owners, positions, texts), stacked(blocks)


def active(part: Part) -> Sparse:
    """The codes of a part that are above 0.

    Raises:
        WorkbenchError: some are NaN or infinite.
    """
    codes, n = part.codes.reshape(-1), part.codes.shape[1]
    # `codes > 0` would take NaN for silence; numpy skips runs of False many times faster than torch
    place = np.flatnonzero((codes <= 0).logical_not_().cpu().numpy())
    values = codes[torch.from_numpy(place).to(codes.device)].float().cpu().numpy()
    if not np.isfinite(values).all():
        raise _not_finite(place[~np.isfinite(values)] % n)
    bounds = np.searchsorted(place, np.arange(len(part.codes) + 1) * n)
    shape = tuple(part.codes.shape)
    return sparse.csr_array((values, (place % n).astype(np.int32), bounds), shape=shape)


def stacked(blocks: Sequence[Sparse]) -> Sparse:
    """Active codes of parts below each other, by feature; rows stay in order within each."""
    return sparse.vstack(blocks, format="csr").tocsc()


def texts_of(tokenizer: Any, ids: Any) -> dict[int, str]:
    """The text of each token id alone, the space that a word begins with included."""
    return {int(i): _text(tokenizer, int(i)) for i in ids}


def blocks_of(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` columns of `width` numbers each, that are not much at once."""
    step = max(1, 2**22 // max(width, 1))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def _text(tokenizer: Any, i: int) -> str:
    text = tokenizer.decode([i])
    # sentencepiece drops the space of a word that nothing stands before
    raw = tokenizer.convert_ids_to_tokens(i)
    spaced = isinstance(raw, str) and raw.startswith("\u2581") and not text.startswith(" ")
    return f" {text}" if spaced else text


def _plain(tensor: Any) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.int64)


def _not_finite(features: Int[np.ndarray, " code"]) -> WorkbenchError:
    return WorkbenchError(
        "sae corpus",
        "codes are NaN or infinite",
        expected="a dictionary of finite weights",
        got=f"features {np.unique(features)[:5].tolist()}",
        do="load the dictionary again, or in float32",
    )


def _too_many(rows: int, held: int) -> WorkbenchError:
    return WorkbenchError(
        "sae corpus",
        "too many features are active to be held",
        expected=f"{STORE_BYTES // 2**20} MiB at most",
        got=f"{held // 2**20} MiB after {rows:,} tokens, {held // 8 // max(rows, 1)} active on each",
        do="read fewer prompts, or a sparser dictionary",
    )
