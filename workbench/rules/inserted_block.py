"""Logits on the way to those of the model with one block more, standing before block 0.

    l' = l + s (l_block - l)

Shapes: l `[batch, pos, vocab]`; tensors `block.<parameter>` and `writer.<parameter>`, the inserted
    block's parameters under their names in block 0. Writers are what the block writes with.
Units: strength is the share of the model with the block: 0 without, 1 with it, beyond to extrapolate.
Source: Zhu, Xie, Zhang and Wang (2025), Flexible Realignment of Language Models,
    https://arxiv.org/abs/2506.12704.
Differs from the paper: the second stream has no cache of its own; it reads the whole prefix at every
    step. Other edits of the call act on the stream without the block alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from workbench.registry import Citation, register
from workbench.rules.base import Around
from workbench.shapes import Float, Tensor


@register(
    "rules",
    Citation(
        "Zhu, Xie, Zhang, Wang",
        "Flexible Realignment of Language Models",
        2025,
        "https://arxiv.org/abs/2506.12704",
    ),
)
class InsertedBlock:
    """Go from the logits to those of the model with a block more."""

    around: ClassVar[bool] = True

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"],
        tensors: Mapping[str, Tensor],
        params: Mapping[str, Any],  # noqa: ARG004 - every rule is handed them
        around: Around,
    ) -> Float[Tensor, "*batch d"]:
        """The difference of the two streams' logits."""
        assert around.again is not None
        block = {name.partition(".")[2]: t for name, t in tensors.items()}
        return around.again("logits", h.shape[1], before=block) - h
