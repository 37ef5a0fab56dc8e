"""From recorded activations to a probe's examples: rows, padded tokens, or pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.probes.base import Data
from workbench.tensors import Activations


def examples(
    acts: Activations, site: str, reads: str, targets: Sequence[Any] | None = None
) -> Data:
    """The examples of one site.

    Args:
        reads: "rows" or "pairs": a row of `acts` is an example; "tokens": all rows of a prompt are one
            (recorded with `pool="all"`).
        targets: one per example; 0 everywhere where they do not matter.

    Raises:
        WorkbenchError: tokens are asked of pooled rows, pairs of prompts that have none, or the targets
            are not one per example.
    """
    rows = acts[site].detach().float().cpu()
    mask = pairs = None
    if reads == "tokens":
        rows, mask = _tokens(acts, rows)
    if reads == "pairs":
        pairs = _pairs(acts)
    n = rows.shape[0]
    if targets is not None and len(targets) != n:
        raise WorkbenchError(
            "probes",
            "targets are not one per example",
            expected=n,
            got=len(targets),
            do="pass one target per prompt, in the prompts' order",
        )
    found = torch.zeros(n) if targets is None else torch.tensor([float(t) for t in targets])
    return Data(rows, found.double(), mask, pairs)


def owners(acts: Activations) -> list[int]:
    """The number of the prompt behind each row, for `pool="all"`: rows of a prompt follow each other."""
    found, last = [], None
    for prompt, position in zip(acts.rows, acts.positions, strict=True):
        begins = prompt is not last or position == 0
        found.append((found[-1] + 1 if found else 0) if begins else found[-1])
        last = prompt
    return found


def _tokens(acts: Activations, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if acts.pool != "all":
        raise WorkbenchError(
            "probes",
            "this probe reads all tokens of a prompt",
            expected="activations recorded with pool='all'",
            got=f"pool={acts.pool!r}",
            do="record them again",
        )
    many = torch.tensor(owners(acts))
    counts = torch.bincount(many)
    padded = rows.new_zeros(len(counts), int(counts.max()), rows.shape[1])
    mask = torch.arange(padded.shape[1])[None] < counts[:, None]
    padded[mask] = rows
    return padded, mask


def _pairs(acts: Activations) -> torch.Tensor:
    pairs = [p.pair for p in acts.rows]
    if None in pairs or set(Counter(pairs).values()) - {2}:
        raise WorkbenchError(
            "probes",
            "this probe reads pairs",
            expected="prompts in pairs, two of each",
            got="prompts without a partner",
            do="make them with wb.prompts.pairs",
        )
    return torch.tensor(pairs)
