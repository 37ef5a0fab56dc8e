"""Attention scores lowered between spans that exclude each other.

    query in span i, key in span j, (i, j) exclusive:                 score - alpha
    generated query, span a active in its row, key in j, (a, j) exclusive:   score - alpha

so that the unnormalised weight is e^-alpha of what it was.

Shapes: h `[batch, head, query, key]`; `bias` `[head]` is -alpha, 0 in heads left alone.
Units: nats; strength scales alpha.
Source: Lv, Qin, Hong, Liang, Wu, Li, Sun and Zhang (2026), Attend to the Active: Structure-Aware
    Dynamic Attention in LLMs for Compositional Instruction Following, known here from a note alone,
    https://openreview.net/forum?id=wwA0X3UfAn.
Differs from the paper: spans and their exclusion are given, see `workbench.steering.ata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from workbench.registry import Citation, register
from workbench.rules.base import Around
from workbench.shapes import Float, Tensor


@register(
    "rules",
    Citation(
        "Lv, Qin, Hong, Liang, Wu, Li, Sun, Zhang",
        "Attend to the Active: Structure-Aware Dynamic Attention in LLMs for Compositional "
        "Instruction Following",
        2026,
        "https://openreview.net/forum?id=wwA0X3UfAn",
    ),
)
class ExclusiveSpans:
    """Lower attention between spans that exclude each other."""

    around: ClassVar[bool] = True

    @staticmethod
    def change(
        h: Float[Tensor, "batch head query key"],
        tensors: Mapping[str, Tensor],
        params: Mapping[str, Any],
        around: Around,
    ) -> Float[Tensor, "batch head query key"]:
        """`bias` between exclusive spans, 0 elsewhere."""
        spans = params["spans"]
        excludes = torch.zeros(len(spans) + 1, len(spans) + 1, dtype=torch.bool)
        for i, j in params["exclusive"]:
            excludes[i, j] = excludes[j, i] = True
        queries = span_of(around.positions[:, -h.shape[2] :], spans)
        keys = span_of(around.all_positions[:, -h.shape[3] :], spans)
        active = around.values.get("active")
        if active is not None:
            later = around.positions[:, -h.shape[2] :] >= around.prompt_lengths
            queries = torch.where(later, active[:, None] % (len(spans) + 1), queries)
        lowered = excludes[queries[:, :, None], keys[:, None, :]]
        return lowered[:, None].to(h) * tensors["bias"].reshape(-1, 1, 1)


def span_of(positions: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
    """The span each position lies in, the number of spans where in none."""
    found = torch.full_like(positions, len(spans))
    for index, (first, stop) in enumerate(spans):
        found[(positions >= first) & (positions < stop)] = index
    return found
