"""Leaving out the lower blocks of a forward pass: stand-ins take their places for the time of one call.

The model's own forward still makes masks, positions and logits, so no architecture is known here, and
the blocks themselves are untouched: their hooks do not fire twice and nothing is left on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class StandIn(nn.Module):
    """Stands where a block stood and returns `output`; any other attribute is the block's."""

    def __init__(self, block: nn.Module, output: Tensor):
        super().__init__()
        # set past nn.Module, or the block would become this module's child
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_output", output)

    def forward(self, *_args: Any, **_options: Any) -> Tensor:
        """The kept output, whatever comes in."""
        return self._output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block, name)


@contextmanager
def skipped(blocks: nn.ModuleList, count: int, output: Tensor | None) -> Iterator[None]:
    """While open, the first `count` blocks do not run and the last of them gives `output`."""
    if not count or output is None:
        yield
        return
    kept = [blocks[i] for i in range(count)]
    try:
        for i, block in enumerate(kept):
            blocks._modules[str(i)] = StandIn(block, output)
        yield
    finally:
        for i, block in enumerate(kept):
            blocks._modules[str(i)] = block
