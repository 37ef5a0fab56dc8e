"""One call at a time: edits live on the module while a call lasts, so two calls must not overlap."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from workbench.errors import WorkbenchError
from workbench.model.stopping import watched

_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def turn(backend: Any) -> Iterator[None]:
    """Wait until no other thread runs this module, then keep the others out.

    Raises:
        WorkbenchError: this thread runs it already, as in a callback of `generate`.
    """
    module = getattr(backend, "hf", backend)
    with _making:
        lock = _locks.setdefault(module, threading.Lock())
    if _owners.get(module) == threading.get_ident():
        raise WorkbenchError(
            "model",
            "is in the middle of a call, whose edits would act on this one too",
            expected="one call at a time",
            got="a call inside a callback",
            do="collect what you need in the callback and call afterwards",
        )
    with lock:
        _owners[module] = threading.get_ident()
        try:
            with watched(backend):
                yield
        finally:
            del _owners[module]
