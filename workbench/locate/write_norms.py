"""Write norms: how much each block and each half of a block adds to the residual stream.

    norm(l, t) = ||attn_out_l[t]||,  ||mlp_out_l[t]||,  ||resid_post_l[t]||
    share      = norm / ||resid_pre_l[t]||

Shapes: `[case, layer, pos]` per part.
Units: the activations' own; a share of what entered the block.
Source: Zhang et al. (2026), the magnitude family of the survey "Locate, Steer, and Improve",
    https://arxiv.org/abs/2601.14004, section 3; norms per head are in `head_norms`.
Differs from the paper: the survey names the family, not this statistic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.locate.base import Cases, Localiser, Need, Scores, layer_axis, pos_axis
from workbench.registry import Citation, register
from workbench.shapes import Tensor

PARTS = {"attention": "attn_out", "MLP": "mlp_out", "stream": "resid_post"}


@register(
    "locate",
    Citation(
        "Zhang et al.",
        "Locate, Steer, and Improve",
        2026,
        "https://arxiv.org/abs/2601.14004",
    ),
)
@dataclass(frozen=True)
class WriteNorms(Localiser):
    """How much attention and MLP of each block add to the residual stream.

    Attributes:
        relative: as a share of the stream that enters the block.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims", "decode")
    relative: bool = False

    def find(
        self, cases: Cases, *, run: Callable[..., Any], dims: Any, decode: Callable[[int], str]
    ) -> Scores:
        """Norms at every layer and position."""
        parts = (*PARTS.values(), *(["resid_pre"] if self.relative else []))
        trace = run(cases.clean, record=[f"L*.{part}" for part in parts])
        # a layer at a time: in float32 all of them would be as large as the recording again
        entered = _norms(trace, "resid_pre", dims.n_layers) if self.relative else None
        values = {}
        for name, part in PARTS.items():
            norms = _norms(trace, part, dims.n_layers)
            norms = norms if entered is None else norms / entered.clamp(min=1e-12)
            values[name] = _without_padding(norms, cases.clean.mask).cpu()
        unit = "share of the stream" if self.relative else "norm"
        return Scores(
            values,
            (layer_axis(dims.n_layers), pos_axis(cases, decode)),
            dict.fromkeys(values, unit),
            caption=f"Mean {unit} over {len(cases)} prompts.",
        )


def _norms(trace: Any, part: str, n_layers: int) -> Tensor:
    """`[case, layer, pos]`."""
    layers = [trace[f"L{layer}.{part}"].float().norm(dim=-1) for layer in range(n_layers)]
    return torch.stack(layers, 1)


def _without_padding(values: Tensor, mask: Tensor) -> Tensor:
    """`[case, layer, pos]` with NaN on padding."""
    return torch.where(mask[:, None], values, float("nan"))
