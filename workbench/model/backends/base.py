"""What a backend is: something that runs one forward while callbacks see and change sites.

Scopes, selectors, receipts, recording and generation are built on this and know no backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from workbench.errors import SiteUnavailable
from workbench.sites import Site


@dataclass(frozen=True)
class Tap:
    """A callback at one site (no selectors). `fn(h) -> h`; returning `h` itself means no change.

    `writes` says whether `fn` may change the value: what can be read cannot always be written.
    """

    site: Site
    fn: Callable[[Tensor], Tensor]
    writes: bool = True


@dataclass(frozen=True)
class Step:
    """Result of one forward: `logits` `[batch, kept pos, vocab]` and the KV cache (or None)."""

    logits: Tensor
    cache: Any


@runtime_checkable
class Backend(Protocol):
    """One way to run the model. See `workbench.model.backends.hooks` for the reference one."""

    name: str

    def check(self, site: Site, *, write: bool) -> None:
        """Raise `SiteUnavailable` where the site cannot be read (or written, if `write`)."""

    def attach(self, taps: Sequence[Tap]) -> AbstractContextManager[None]:
        """While open, every forward calls the taps. Leaves nothing behind, whatever happens."""
        ...

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: Any,
        use_cache: bool,
        keep: int,
    ) -> Step:
        """One forward of `ids` `[batch, pos]`.

        `mask` `[batch, all pos]` and `positions` `[batch, pos]` are None for an unpadded batch;
        `keep` is how many last positions get logits, 0 for all.
        """
        ...

    def new_cache(self) -> Any:
        """An empty KV cache for `forward`."""

    def unwrap(self) -> Any:
        """The native object, for power users."""


class Carry:
    """A write at `resid_mid`. What every engine calls by that name is the second norm's input, which
    misses the skip connection: `before` is for there, and `after` adds its change at the block's output.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        self._fn = fn
        self._change: Tensor | None = None

    def before(self, h: Tensor) -> Tensor:
        """The norm's new input."""
        new = self._fn(h)
        self._change = None if new is h else new - h
        return new

    def after(self, h: Tensor) -> Tensor:
        """The block's new output."""
        change, self._change = self._change, None
        return h if change is None else h + change


def unavailable(site: Site, backend: str, why: str, instead: str) -> SiteUnavailable:
    """The error for a site that the model has and this backend cannot offer."""
    return SiteUnavailable(
        f"site {site}",
        f"the {backend} backend cannot offer it: {why}",
        expected=f"a site from model.sites(), or the backend {instead!r}",
        got=str(site),
        do=f"wb.load(..., backend={instead!r}) has it",
    )
