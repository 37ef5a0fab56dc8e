"""Architecture families, one file each. `find` picks the family of a model, by type or by skeleton."""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from workbench.errors import WorkbenchError
from workbench.model.layouts.base import Dims, Layout


def layouts() -> list[Layout]:
    """Every family that has a file here."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base":
            found.append(importlib.import_module(f"{__name__}.{module.name}").LAYOUT)
    return found


def find(hf: nn.Module) -> Layout:
    """The family of `hf`: the one that names its `model_type`, else one whose skeleton fits.

    A guess is safe, since the proof at load refuses a model whose sites do not hold what they promise.

    Raises:
        WorkbenchError: no family fits.
    """
    model_type = hf.config.model_type
    for layout in layouts():
        if model_type in layout.model_types:
            return layout
    # the more specific skeletons first: an MoE model also has most of Llama's modules
    fitting = [one for one in layouts() if one.fits(hf)]
    if fitting:
        return max(fitting, key=lambda one: _modules_found(one, hf))
    raise WorkbenchError(
        f"wb.load({model_type!r})",
        "is an architecture without a layout",
        expected=f"one of {sorted(t for one in layouts() for t in one.model_types)} or a relative",
        got=model_type,
        do="add a file to workbench/model/layouts, or open an issue with its module tree",
    )


def dims(config: object) -> Dims:
    """Sizes of a Hugging Face configuration under one set of names."""
    get = lambda *names: next((v for n in names if (v := getattr(config, n, None))), 0)  # noqa: E731
    d_model, n_heads = get("hidden_size", "n_embd"), get("num_attention_heads", "n_head")
    return Dims(
        n_layers=get("num_hidden_layers", "n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=get("num_key_value_heads") or n_heads,
        d_head=get("head_dim") or d_model // n_heads,
        d_mlp=get("intermediate_size", "n_inner") or 4 * d_model,
        n_experts=get("num_local_experts", "num_experts", "n_routed_experts"),
        n_vocab=get("vocab_size"),
        n_context=get("max_position_embeddings", "n_positions"),
        n_routed=get("num_experts_per_tok", "num_experts_per_token"),
    )


def _modules_found(layout: Layout, hf: nn.Module) -> int:
    block = hf.get_submodule(layout.blocks)[0]
    paths = {name for name, _ in block.named_modules()}
    return sum(point.module in paths for point in layout.inside.values())
