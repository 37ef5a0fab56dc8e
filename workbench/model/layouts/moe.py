"""Mixture of experts on the Llama skeleton: a router and fused experts where the MLP was.

Blocks without a router in a mixed model (`mlp_only_layers`) keep the dense parts instead.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.model.layouts.base import Point
from workbench.model.layouts.llama_like import LAYOUT as LLAMA_LIKE

LAYOUT = replace(
    LLAMA_LIKE,
    name="moe",
    model_types=("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
    inside={
        **LLAMA_LIKE.inside,
        "router_logits": Point("mlp.gate", via="router"),
        "expert": Point("mlp.experts", via="experts"),
    },
)
