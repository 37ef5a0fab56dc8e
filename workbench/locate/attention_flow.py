"""Where the last token's attention goes, layer by layer, and where it came from through all layers.

    attention_l = mean over heads of A_{l,h}[last]
    rollout_l   = last row of  Ã_l Ã_{l-1} ... Ã_0,      Ã = (mean over heads of A + I) / 2
    value-weighted_l ~ mean over heads of A_{l,h}[last, k] ||v_{l,h}[k]||     (normed to sum 1)

Shapes: `[case, layer, pos]`; each row sums to 1 over `pos`.
Units: share of attention.
Source: Abnar and Zuidema (2020), Quantifying Attention Flow in Transformers,
    https://arxiv.org/abs/2005.00928; weighting by norms after Kobayashi et al. (2020), Attention is Not
    Only a Weight, https://arxiv.org/abs/2004.10102.
Differs from the paper: of its two methods this is rollout; the maximum flow is not computed. The
    weights are norms of the values before the output projection, not of each head's transformed vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.locate.attending import part_of, patterns, pieces
from workbench.locate.base import Cases, Localiser, Need, Scores, layer_axis, pos_axis
from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.tensors import Tokens


@register(
    "locate",
    Citation(
        "Abnar and Zuidema",
        "Quantifying Attention Flow in Transformers",
        2020,
        "https://arxiv.org/abs/2005.00928",
    ),
)
@dataclass(frozen=True)
class AttentionFlow(Localiser):
    """Where the last token's attention goes per layer, and rolled out through all layers below.

    Attributes:
        value_norms: also weigh attention by the norm of the values it carries.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims", "decode")
    value_norms: bool = False

    def find(
        self, cases: Cases, *, run: Callable[..., Any], dims: Any, decode: Callable[[int], str]
    ) -> Scores:
        """Attention of the last position to every other, at every layer."""
        tokens = cases.clean
        direct, rolled = [], []
        for _, found in patterns(run, tokens, dims):
            heads = found.mean(2)
            direct.append(heads[:, :, -1])
            rolled.append(rollout(heads)[:, :, -1])
        values = {"attention": torch.cat(direct), "rollout": torch.cat(rolled)}
        if self.value_norms:
            values["value-weighted"] = _weighted(run, tokens, dims)
        return Scores(
            {name: _without_padding(value, tokens.mask) for name, value in values.items()},
            (layer_axis(dims.n_layers), pos_axis(cases, decode)),
            dict.fromkeys(values, "share of attention"),
            caption=f"Attention of the last token, mean over heads and {len(cases)} prompts.",
        )


def rollout(
    heads: Float[Tensor, "*case layer q k"], stream: float = 0.5
) -> Float[Tensor, "*case layer q k"]:
    """Products of attention with the residual stream's own share, from the lowest layer up.

    Args:
        heads: attention averaged over heads.
        stream: the share of each row that stays where it is; the paper's 0.5.
    """
    stay = torch.eye(heads.shape[-1], dtype=heads.dtype, device=heads.device)
    mixed = stream * stay + (1 - stream) * heads
    found = [mixed[..., 0, :, :]]
    for layer in range(1, heads.shape[-3]):
        found.append(mixed[..., layer, :, :] @ found[-1])
    return torch.stack(found, -3)


def _weighted(
    run: Callable[..., Any], tokens: Tokens, dims: Any
) -> Float[Tensor, "case layer pos"]:
    found = []
    width = tokens.ids.shape[1]
    each = dims.n_layers * width * (dims.n_heads * width + dims.n_kv_heads * dims.d_head)
    for rows in pieces(len(tokens), each):
        trace = run(part_of(tokens, rows), record=["L*.pattern[pos=-1]", "L*.v"])
        last = trace.stack("pattern[pos=-1]").float()
        norms = trace.stack("v").float().norm(dim=-1).transpose(-1, -2)
        norms = norms.repeat_interleave(last.shape[2] // norms.shape[2], 2)
        carried = (last * norms).masked_fill(~tokens.mask[rows][:, None].to(last.device), 0)
        mean = carried.mean(2).transpose(0, 1)
        found.append(mean / mean.sum(-1, keepdim=True).clamp(min=1e-12))
    return torch.cat(found)


def _without_padding(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask[:, None].to(values.device), torch.nan)
