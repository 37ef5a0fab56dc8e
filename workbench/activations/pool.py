"""How the positions of a prompt become rows: its last, its first, their mean, or all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from workbench.errors import unknown
from workbench.shapes import Float, Mask, Rows, Tensor

Pool = Literal["last", "first", "mean", "all"]
POOLS: tuple[str, ...] = get_args(Pool)


@dataclass(frozen=True)
class Pooled:
    """Rows of one batch: which row of the batch each comes from, and its absolute position.

    For a mean the position is the last one averaged.
    """

    values: Rows
    prompts: list[int]
    positions: list[int]


def pool(values: Float[Tensor, "batch pos *rest"], mask: Mask, how: str) -> Pooled:
    """Rows `[row, d]` of a left-padded batch, trailing axes (heads) flattened into d.

    The mean is taken in float32 over the prompt's own tokens, beginning-of-sequence included, and
    cast back. Padding is never read.

    Raises:
        UnknownName: no such pool.
    """
    if how not in POOLS:
        raise unknown("record(pool=...)", "pool", how, POOLS)
    flat, mask = values.flatten(2) if values.dim() > 3 else values, mask.to(values.device)
    lengths = mask.sum(1)
    batch, width = mask.shape
    rows = torch.arange(batch, device=values.device)
    last = (lengths - 1).tolist()
    if how == "last":
        return Pooled(flat[:, -1], rows.tolist(), last)
    if how == "first":
        return Pooled(flat[rows, width - lengths], rows.tolist(), [0] * batch)
    if how == "mean":
        kept = torch.where(mask[..., None], flat.float(), 0.0).sum(1) / lengths[:, None]
        return Pooled(kept.to(flat.dtype), rows.tolist(), last)
    at = torch.arange(width, device=values.device) - (width - lengths)[:, None]
    owner = rows[:, None].expand_as(at)
    return Pooled(flat[mask], owner[mask].tolist(), at[mask].tolist())
