"""Stopping a model in the middle of a call: a check before every block of every forward.

Whoever may want to stop, the worker's jobs, says so with `stoppable(check)`; what runs the model
knows nothing of it. A check that raises leaves the call like any exception: no hook stays behind.
On TransformerLens, whose blocks are not the Hugging Face module's, it comes once per forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


@contextmanager
def stoppable(check: Callable[[], None]) -> Iterator[None]:
    """Model calls of this thread made inside call `check` before every block."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def check() -> None:
    """Raise where somebody asked this thread to stop; for long loops that call no model themselves."""
    ask = _check.get()
    if ask is not None:
        ask()


@contextmanager
def watched(backend: Any) -> Iterator[None]:
    """While open, blocks of the backend's module check; free where nobody asked to."""
    ask = _check.get()
    if ask is None:
        yield
        return

    def before(_module: nn.Module, _args: Any) -> None:
        ask()

    ask()
    handles = [block.register_forward_pre_hook(before) for block in _blocks(backend)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(backend: Any) -> list[nn.Module]:
    module, layout = getattr(backend, "hf", None), getattr(backend, "layout", None)
    if module is None or layout is None:
        return []
    return list(module.get_submodule(layout.blocks))
