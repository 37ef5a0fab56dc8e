"""Gemma 2 and 3: a norm before and after each half, so what is added is the second norm's output."""

from __future__ import annotations

from dataclasses import replace

from workbench.model.layouts.base import Point
from workbench.model.layouts.llama_like import LAYOUT as LLAMA_LIKE

LAYOUT = replace(
    LLAMA_LIKE,
    name="gemma",
    model_types=("gemma2", "gemma3_text"),
    inside={
        **LLAMA_LIKE.inside,
        "attn_out": Point("post_attention_layernorm"),
        "resid_mid": Point("pre_feedforward_layernorm", "in", via="resid_mid"),
        "mlp_norm_out": Point("pre_feedforward_layernorm"),
        "mlp_out": Point("post_feedforward_layernorm"),
    },
)
