"""Llama and its many relatives: RMS norm before each half, separate projections, a gated MLP."""

from __future__ import annotations

from workbench.model.layouts.base import HEADS, Layout, Point, attention_points

OUTSIDE = {"embed": Point("model.embed_tokens"), "final_norm": Point("model.norm")}

ATTENTION = {
    "resid_pre": Point("", "in"),
    "attn_norm_out": Point("input_layernorm"),
    "q": Point("self_attn.q_proj", view=HEADS),
    "k": Point("self_attn.k_proj", view=HEADS),
    "v": Point("self_attn.v_proj", view=HEADS),
    **attention_points("self_attn"),
    "z": Point("self_attn.o_proj", "in", HEADS),
    "attn_out": Point("self_attn"),
    "resid_mid": Point("post_attention_layernorm", "in", via="resid_mid"),
    "mlp_norm_out": Point("post_attention_layernorm"),
}

LAYOUT = Layout(
    name="llama_like",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    blocks="model.layers",
    outside=OUTSIDE,
    inside={
        **ATTENTION,
        "mlp_pre": Point("mlp.gate_proj"),
        "mlp_post": Point("mlp.down_proj", "in"),
        "mlp_out": Point("mlp"),
        "resid_post": Point(""),
    },
    attention="self_attn",
)
