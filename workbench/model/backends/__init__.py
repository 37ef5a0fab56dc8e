"""Ways to run a model under the same sites. `make` builds one by name; its library loads only then."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from workbench.errors import WorkbenchError, unknown
from workbench.model.backends.base import Backend
from workbench.model.layouts.base import Dims, Layout

BACKENDS = {
    "transformers": ("workbench.model.backends.hooks", "Transformers", ""),
    "transformer_lens": ("workbench.model.backends.transformer_lens", "TransformerLens", "tl"),
    "nnsight": ("workbench.model.backends.nnsight", "Nnsight", "nnsight"),
}
"""Name -> module, class, and the extra that installs its library."""


def make(name: str, hf: nn.Module, layout: Layout, dims: Dims, tokenizer: Any) -> Backend:
    """The backend called `name` around `hf`.

    Raises:
        UnknownName: no such backend.
        WorkbenchError: its library is not installed.
    """
    if name not in BACKENDS:
        raise unknown("wb.load", "backend", name, BACKENDS)
    module, cls, extra = BACKENDS[name]
    try:
        return getattr(importlib.import_module(module), cls)(hf, layout, dims, tokenizer)
    except ModuleNotFoundError as missing:
        if not extra:
            raise
        raise WorkbenchError(
            f"wb.load(backend={name!r})",
            "its library is not installed",
            expected=f"{name} in this environment",
            got=f"no module {missing.name!r}",
            do=f"pip install 'interp-workbench[{extra}]'",
        ) from missing
