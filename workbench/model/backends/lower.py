"""Running only the lower blocks of a model: a forward that ends where nothing above is asked for.

The model's own forward runs, so every value is what a whole one gives, bit for bit. A hook on the first
module that nobody needs raises, and the forward is left as it is left by any exception; that module,
those above it, and the unembedding do not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from workbench.model.backends.base import Tap
from workbench.model.backends.hooks import Transformers
from workbench.sites import Site


class _Ended(Exception):
    """Raised in a forward that has run as far as it is needed; never leaves this module."""


@contextmanager
def ended_above(backend: Any, taps: Sequence[Tap]) -> Iterator[None]:
    """While open, a forward runs up to the highest tap and then leaves the `with` block quietly.

    On backends other than "transformers", on a model spread over several devices (whose weights move
    with the forward), and with a tap that no block holds, it runs to its end.
    """
    module = _first_unneeded(backend, taps)
    if module is None:
        yield
        return

    def end(_module: nn.Module, _args: Any) -> None:
        raise _Ended

    handle = module.register_forward_pre_hook(end)
    try:
        yield
    except _Ended:
        pass
    finally:
        handle.remove()


def _first_unneeded(backend: Any, taps: Sequence[Tap]) -> nn.Module | None:
    """What a forward reaches first after the highest tap; None where that is not known."""
    if not isinstance(backend, Transformers) or hasattr(backend.hf, "hf_device_map"):
        return None
    if any(t.site.layer is None and t.site.part not in ("embed", "final_norm") for t in taps):
        return None
    if any(t.site.part == "final_norm" for t in taps):
        return backend.hf.get_output_embeddings()
    count = 1 + max((t.site.layer for t in taps if t.site.layer is not None), default=-1)
    if count < len(backend.blocks):
        return backend.blocks[count]
    return backend.place(Site(None, "final_norm"))[0]
