"""GPT-2: learned positions, one joint query-key-value projection, layer norm before each half."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.model.layouts.base import HEADS, Dims, Layout, Point, View, attention_points


def _third(index: int) -> View:
    def read(raw: Tensor, dims: Dims) -> Tensor:
        return raw.chunk(3, -1)[index].unflatten(-1, (-1, dims.d_head))

    def write(raw: Tensor, new: Tensor, _: Dims) -> Tensor:
        parts = list(raw.chunk(3, -1))
        parts[index] = new.flatten(-2)
        return torch.cat(parts, -1)

    return View(read, write)


LAYOUT = Layout(
    name="gpt2",
    model_types=("gpt2",),
    blocks="transformer.h",
    outside={"embed": Point("transformer.wte"), "final_norm": Point("transformer.ln_f")},
    inside={
        "resid_pre": Point("", "in"),
        "attn_norm_out": Point("ln_1"),
        "q": Point("attn.c_attn", view=_third(0)),
        "k": Point("attn.c_attn", view=_third(1)),
        "v": Point("attn.c_attn", view=_third(2)),
        **attention_points("attn"),
        "z": Point("attn.c_proj", "in", HEADS),
        "attn_out": Point("attn"),
        "resid_mid": Point("ln_2", "in", via="resid_mid"),
        "mlp_norm_out": Point("ln_2"),
        "mlp_pre": Point("mlp.c_fc"),
        "mlp_post": Point("mlp.c_proj", "in"),
        "mlp_out": Point("mlp"),
        "resid_post": Point(""),
    },
    attention="attn",
)
