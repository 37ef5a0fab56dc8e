"""GPT-NeoX and Pythia: parallel blocks by default, query-key-value interleaved per head."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.model.layouts.base import HEADS, Dims, Layout, Point, View, attention_points


def _interleaved(index: int) -> View:
    def read(raw: Tensor, dims: Dims) -> Tensor:
        return raw.unflatten(-1, (dims.n_heads, 3 * dims.d_head)).chunk(3, -1)[index]

    def write(raw: Tensor, new: Tensor, dims: Dims) -> Tensor:
        parts = list(raw.unflatten(-1, (dims.n_heads, 3 * dims.d_head)).chunk(3, -1))
        parts[index] = new
        return torch.cat(parts, -1).flatten(-2)

    return View(read, write)


LAYOUT = Layout(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    outside={
        "embed": Point("gpt_neox.embed_in"),
        "final_norm": Point("gpt_neox.final_layer_norm"),
    },
    inside={
        "resid_pre": Point("", "in"),
        "attn_norm_out": Point("input_layernorm"),
        "q": Point("attention.query_key_value", view=_interleaved(0)),
        "k": Point("attention.query_key_value", view=_interleaved(1)),
        "v": Point("attention.query_key_value", view=_interleaved(2)),
        **attention_points("attention"),
        "z": Point("attention.dense", "in", HEADS),
        "attn_out": Point("attention"),
        "resid_mid": Point("post_attention_layernorm", "in", via="resid_mid"),
        "mlp_norm_out": Point("post_attention_layernorm"),
        "mlp_pre": Point("mlp.dense_h_to_4h"),
        "mlp_post": Point("mlp.dense_4h_to_h", "in"),
        "mlp_out": Point("mlp"),
        "resid_post": Point(""),
    },
    attention="attention",
    parallel=lambda config: bool(getattr(config, "use_parallel_residual", False)),
)
