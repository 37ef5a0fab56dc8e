"""What a backend is: something that runs one forward while callbacks see and change sites.

Scopes, selectors, receipts, recording and generation are built on this and know no backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

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

    def new_cache(self) -> Any:
        """An empty KV cache for `forward`."""

    def unwrap(self) -> Any:
        """The native object, for power users."""
