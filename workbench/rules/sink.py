"""The first token attends, without order or mask, to the whole prompt's residual stream.

    q = query of position 0        K = W_K h_info     V = W_V h_info     (no rotation of K)
    z_0 -> softmax(scale q K^T) V                                        (each head)

Rotary positions turn the query at position 0 by nothing, so with K left unturned the context has no
order: any permutation of it gives the same z_0.

Shapes: h `[batch, pos, head, d_head]`, the heads' outputs; `w_k`, `w_v` `[kv heads * d_head, d]` with
    `b_k`, `b_v` where the model has biases; `q_norm`, `k_norm` `[d_head]` (or all heads flattened)
    where it norms queries and keys. Without `w_k` and `w_v` the layer's own keys and values are read.
Units: strength 1 replaces position 0's output, 0 keeps it.
Source: SinkTrack: Attention Sink based Context Anchoring for Large Language Models (ICLR 2026), as
    released, https://github.com/67L1/SinkTrack.
Differs from the source: every column before the end of its row's prompt is attended to, padding never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from workbench.registry import Citation, register
from workbench.rules.base import Around
from workbench.shapes import Float, Tensor

EPS = 1e-6


@register(
    "rules",
    Citation(
        "Authors of 67L1/SinkTrack",
        "SinkTrack: Attention Sink based Context Anchoring for Large Language Models",
        2026,
        "https://github.com/67L1/SinkTrack",
    ),
)
class Sink:
    """Let position 0 attend to the whole prompt."""

    around: ClassVar[bool] = True

    @staticmethod
    def change(
        h: Float[Tensor, "batch pos head d_head"],
        tensors: Mapping[str, Tensor],
        params: Mapping[str, Any],
        around: Around,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """What moves position 0's heads onto their look at the prompt; 0 at every other position."""
        n_heads, d_head = h.shape[2:]
        rows = torch.arange(h.shape[0], device=h.device)
        first = (around.positions == 0).int().argmax(1).to(h.device)
        query = _normed(around.values["L{layer}.q"][rows, first], tensors.get("q_norm"))
        keys, values = _keys_and_values(tensors, around.values, d_head)
        keys = _normed(keys, tensors.get("k_norm"))
        group = n_heads // keys.shape[2]
        keys, values = (t.repeat_interleave(group, 2) for t in (keys, values))
        scores = torch.einsum("bhd,bphd->bhp", query, keys).float() * params["scale"]
        at = around.positions
        seen = ((at >= 0) & (at < around.prompt_lengths)).to(h.device)
        pattern = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).to(h.dtype)
        change = torch.zeros_like(h)
        change[rows, first] = torch.einsum("bhp,bphd->bhd", pattern, values) - h[rows, first]
        return change


def _keys_and_values(
    tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], d_head: int
) -> tuple[Tensor, Tensor]:
    """`[batch, pos, kv head, d_head]` each."""
    if "w_k" not in tensors:
        return values["L{layer}.k"], values["L{layer}.v"]
    info = values["L{layer}.resid_pre"]
    made = [
        torch.nn.functional.linear(info, tensors[f"w_{x}"], tensors.get(f"b_{x}")) for x in "kv"
    ]
    return made[0].unflatten(-1, (-1, d_head)), made[1].unflatten(-1, (-1, d_head))


def _normed(heads: Tensor, weight: Tensor | None) -> Tensor:
    """Root-mean-square norm per head, or over all heads where the weight spans them."""
    if weight is None:
        return heads
    flat = heads.flatten(-2) if weight.numel() != heads.shape[-1] else heads
    normed = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + EPS) * weight
    return normed.reshape(heads.shape)
