"""What an architecture family says about itself: which module holds which part, seen through which view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

Side = Literal["in", "out"]
Via = Literal["hook", "resid_mid", "attention", "router", "experts"]


@dataclass(frozen=True)
class Dims:
    """Sizes read off a configuration. `d_mlp` is the dense MLP's width, `n_experts` 0 without MoE,
    `n_routed` how many of them read a token."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_experts: int
    n_vocab: int
    n_context: int
    n_routed: int = 0


@dataclass(frozen=True)
class View:
    """How a module's raw tensor becomes a part's axes and back.

    `read(raw, dims)` may return a view; `write(raw, new, dims)` returns a new raw tensor.
    """

    read: Callable[[Tensor, Dims], Tensor]
    write: Callable[[Tensor, Tensor, Dims], Tensor]


SAME = View(lambda raw, _: raw, lambda _raw, new, _dims: new)
HEADS = View(
    lambda raw, dims: raw.unflatten(-1, (-1, dims.d_head)),
    lambda _raw, new, _dims: new.flatten(-2),
)


@dataclass(frozen=True)
class Point:
    """Where a part lives: a module's path (below its block, or from the root), its side, its view."""

    module: str
    side: Side = "out"
    view: View = SAME
    via: Via = "hook"


@dataclass(frozen=True)
class Layout:
    """One architecture family.

    Attributes:
        name: file name of the family.
        model_types: Hugging Face `model_type`s it was tested on.
        blocks: path of the block list.
        outside: points of the parts outside the blocks (`logits` is the model's own output).
        inside: points of the parts inside a block, paths below the block.
        attention: path of the attention module below the block.
        parallel: config -> whether attention and MLP read the same stream (no `resid_mid` then).
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    outside: Mapping[str, Point]
    inside: Mapping[str, Point]
    attention: str
    parallel: Callable[[object], bool] = field(default=lambda _config: False)

    def fits(self, hf: nn.Module) -> bool:
        """Whether `hf` has this family's skeleton: block list, embedding, norms, attention and MLP."""
        paths = {name for name, _ in hf.named_modules()}
        first = f"{self.blocks}.0."
        core = ("attn_norm_out", "attn_out", "mlp_out", "z")
        return all(p.module in paths for p in self.outside.values()) and all(
            first + self.inside[part].module in paths for part in core
        )


def attention_points(attention: str) -> dict[str, Point]:
    """The parts that only the attention function sees."""
    return {
        part: Point(attention, via="attention")
        for part in ("k_cache", "v_cache", "attn_scores", "pattern")
    }
