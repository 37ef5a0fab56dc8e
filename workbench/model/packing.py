"""How branches stand behind their sequence in one row: columns, positions, who sees whom.

    columns    sequence tokens 0 .. t-1 | branch 0 | branch 1 | ...
    positions  0 .. t-1                 | prefix, prefix + 1, ... in each branch
    visible    a sequence token sees itself and what is before it; a branch token sees its prefix and
               its own branch up to itself

A layer with a sliding window sees of these only what is less than a window away in *position*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from workbench import registry
from workbench.model.model import Model
from workbench.shapes import Bool, Int
from workbench.sites import parse_all
from workbench.tensors import Intervention

_KERNELS = ("eager", "sdpa")
_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Branch:
    """A continuation `ids` of the sequence's first `prefix` tokens."""

    prefix: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """A sequence and the branches behind it, as one row.

    Attributes:
        ids, positions: of every column.
        owners: the branch of a column, -1 for the sequence.
        prefixes: how much of the sequence a column sees.
        reads: columns whose logits are needed.
        which: for every token of every branch, the place in `reads` that predicts it.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    owners: tuple[int, ...]
    prefixes: tuple[int, ...]
    reads: tuple[int, ...]
    which: tuple[int, ...]

    @classmethod
    def of(cls, trunk: Sequence[int], branches: Sequence[Branch]) -> Pack:
        """Only as much of `trunk` as the longest prefix needs goes in."""
        end = max(b.prefix for b in branches)
        inputs = [b.ids[:-1] for b in branches]
        starts = list(accumulate((len(i) for i in inputs), initial=end))
        ids, positions = list(trunk[:end]), list(range(end))
        owners, prefixes = [-1] * end, list(range(1, end + 1))
        columns: list[int] = []
        for n, (branch, own) in enumerate(zip(branches, inputs, strict=True)):
            ids += own
            positions += range(branch.prefix, branch.prefix + len(own))
            owners += [n] * len(own)
            prefixes += [branch.prefix] * len(own)
            columns += [branch.prefix - 1, *range(starts[n], starts[n + 1])]
        reads = sorted(set(columns))
        place = {column: i for i, column in enumerate(reads)}
        which = (place[c] for c in columns)
        return cls(*map(tuple, (ids, positions, owners, prefixes, reads, which)))

    def visible(self, device: torch.device) -> Bool[Tensor, "q k"]:
        """Which columns each column sees."""
        owner = torch.tensor(self.owners, device=device)
        column = torch.arange(len(self.ids), device=device)
        prefix = torch.tensor(self.prefixes, device=device)
        sequence = (owner == -1) & (column < prefix[:, None])
        own = (owner[:, None] == owner) & (owner != -1) & (column <= column[:, None])
        return sequence | own


def masks(
    model: Model, visible: Bool[Tensor, "q k"], positions: Int[Tensor, " q"]
) -> Tensor | dict[str, Tensor]:
    """The attention mask `[1, 1, q, k]`, additive; one per kind of layer where windows are shorter."""
    config = model.hf.config
    window, kinds = getattr(config, "sliding_window", None), _kinds(model)
    full = _additive(visible, model.dtype)
    if not window or int(positions.max()) < window or kinds == {"full_attention"}:
        return full
    near = _additive(visible & (positions[:, None] - positions < window), model.dtype)
    return {"full_attention": full, "sliding_attention": near} if len(kinds) > 1 else near


def why_not(model: Model, edits: Iterable[Intervention]) -> str:
    """Why branches of this model and these edits cannot be packed, or ""."""
    kernel = getattr(model.hf.config, "_attn_implementation", None)
    if model.backend.name != "transformers":
        return f"backend {model.backend.name} is given no packed masks"
    if kernel not in _KERNELS:
        return f"attention kernel {kernel!r} takes no packed mask"
    if strange := _kinds(model) - _KINDS:
        return f"layers of kind {sorted(strange)} see more than a mask says"
    for edit in edits:
        joins = [s for s in parse_all(edit.sites, model.n_layers) if s.axes[-2:] == ("q", "k")]
        if joins and edit.operation != "score_bias":
            return f"edit {edit.label!r} at {joins[0]} could join branches"
        rule = registry.get("rules", str(edit.params["rule"])) if "rule" in edit.params else None
        if getattr(rule, "around", False):
            return f"edit {edit.label!r} looks at the tokens around, each branch at its own"
    return ""


def _kinds(model: Model) -> set[str]:
    return set(getattr(model.hf.config, "layer_types", None) or ())


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
