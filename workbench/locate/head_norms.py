"""Head norms: how much each head adds to the residual stream.

    norm(l, h, t) = || z_l[t, h] W_O[l, h] ||;  share = norm / ||resid_pre_l[t]||

Shapes: `[case, layer, head]`.
Units: the activations' own; a share of what entered the block.
Source: Kobayashi et al. (2020), Attention is Not Only a Weight,
    https://arxiv.org/abs/2004.10102, who measure ||alpha f(x)|| per attended token.
Differs from the paper: the sum over attended tokens is measured, what the head writes at a position.
    Where a norm stands behind the output projection (Gemma 2 and 3) the write is what enters it.
    A large norm is no effect: what a head writes may be undone or ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.errors import unknown
from workbench.locate.base import Cases, Localiser, Need, Scores, head_axis, layer_axis
from workbench.registry import Citation, register
from workbench.shapes import Tensor

CHOICES = ("mean", "last")


@register(
    "locate",
    Citation(
        "Kobayashi et al.",
        "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms",
        2020,
        "https://arxiv.org/abs/2004.10102",
    ),
)
@dataclass(frozen=True)
class HeadNorms(Localiser):
    """How much each attention head adds to the residual stream.

    Attributes:
        positions: "mean" over all but the first token of a prompt, where attention sinks write as
            nowhere else (over the first where there is no other), or the "last".
        relative: as a share of the stream that enters the block.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "head", "dims")
    positions: str = "mean"
    relative: bool = False

    def find(self, cases: Cases, *, run: Callable[..., Any], head: Any, dims: Any) -> Scores:
        """Norms of all heads; UnknownName where `positions` is no choice."""
        if self.positions not in CHOICES:
            raise unknown("head_norms(positions=)", "choice", self.positions, CHOICES)
        at = "[pos=-1]" if self.positions == "last" else ""
        parts = ("z", "resid_pre") if self.relative else ("z",)
        trace = run(cases.clean, record=[f"L*.{part}{at}" for part in parts])
        layers = []
        for layer in range(dims.n_layers):
            norms = head.write_norms(layer, trace[f"L{layer}.z{at}"])
            if self.relative:
                entered = trace[f"L{layer}.resid_pre{at}"].float().norm(dim=-1)
                norms = norms / entered.clamp(min=1e-12)[..., None]
            layers.append(norms if at else _mean(norms, cases.clean.positions))
        unit = "share of the stream" if self.relative else "norm"
        where = "the last position" if at else "positions behind the first"
        return Scores(
            {"write": torch.stack(layers, 1).cpu()},
            (layer_axis(dims.n_layers), head_axis(dims.n_heads)),
            {"write": unit},
            caption=f"Each head's write at {where}: mean {unit} over {len(cases)} prompts.",
        )


def _mean(norms: Tensor, positions: Tensor) -> Tensor:
    """`[case, head]` of `[case, pos, head]`: over what stands behind each row's first token."""
    counted = torch.where((positions > 0).any(-1, keepdim=True), positions > 0, positions == 0)
    # nothing of what stands on padding is touched, which need not be a number
    return torch.where(counted[..., None], norms, 0.0).sum(1) / counted.sum(-1, keepdim=True)
