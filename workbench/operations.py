"""The few operations every intervention is made of: pure functions of an activation.

Each takes the activation `h` with its trailing axes as in `workbench.sites.PARTS`, the tensors of
the intervention, its strength (a float, or a tensor that broadcasts over the batch), and a
`Context`. Each returns a new tensor and never changes `h`. Strength 0 returns `h`'s values exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.errors import EditError, unknown

Strength = float | Tensor
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What an operation may need beside the activation.

    Attributes:
        params: the intervention's plain parameters.
        keys: for attention scores, which key positions are meant: `[batch, 1, 1, k]`, or None for all.
        rule: for `adaptive`, the function `(h, tensors, params) -> change at strength 1`.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    keys: Tensor | None = None
    rule: Callable[[Tensor, Weights, Mapping[str, Any]], Tensor] | None = None


def affine(h: Tensor, w: Weights, s: Strength, _: Context) -> Tensor:
    """`h + s (M h + c)`: `shift` is c `[d]`; M is `up^T down` (both `[rank, d]`) or diagonal `scale`."""
    change = w.get("shift")
    if "down" in w:
        low_rank = (h @ w["down"].mT) @ w["up"]
        change = low_rank if change is None else low_rank + change
    if "scale" in w:
        scaled = h * w["scale"]
        change = scaled if change is None else scaled + change
    if change is None:
        raise _missing("affine", "shift, down with up, or scale", w)
    return h + s * change


def set_value(h: Tensor, w: Weights, s: Strength, _: Context) -> Tensor:
    """`h` replaced by `value` (`[d]`, or the activation's own shape); strength 1 sets it exactly."""
    value = w["value"].expand_as(h)
    return torch.lerp(h, value, s if isinstance(s, float) else s.expand_as(h).to(h.dtype))


def rotate(h: Tensor, w: Weights, s: Strength, _: Context) -> Tensor:
    """Turn `h` by `s` degrees in the plane of orthonormal `b1`, `b2` (`[d]`), norm kept.

    Source: Vu and Nguyen (2025), Angular Steering, https://arxiv.org/abs/2510.26243. Here the angle is
    relative to where `h` stands, so that 0 is no edit; the paper turns to an absolute angle.
    """
    x, y = (h @ w["b1"])[..., None], (h @ w["b2"])[..., None]
    angle = torch.deg2rad(torch.as_tensor(s, dtype=h.dtype, device=h.device))
    cos, sin = torch.cos(angle) - 1, torch.sin(angle)
    return h + (x * cos - y * sin) * w["b1"] + (x * sin + y * cos) * w["b2"]


def adaptive(h: Tensor, w: Weights, s: Strength, context: Context) -> Tensor:
    """`h + s rule(h)`: the change is a function of `h`, named in `workbench.rules`."""
    if context.rule is None:
        raise _missing("adaptive", "params['rule'], a name in workbench.rules", w)
    return h + s * context.rule(h, w, context.params)


def score_bias(h: Tensor, w: Weights, s: Strength, context: Context) -> Tensor:
    """Add `s * bias` (`[head]` or a number) to attention scores, at the key positions meant.

    `params["keys"]` is their scope: a bias on all keys would cancel in the softmax.
    """
    bias = s * w["bias"].reshape(-1, 1, 1)
    return h + (bias if context.keys is None else bias * context.keys)


def scale_keys(h: Tensor, w: Weights, s: Strength, _: Context) -> Tensor:
    """Scale cached keys or values by `factor` (`[head]` or a number) at strength 1, `k^(s=0) = k`.

    The cache itself keeps its values: the scaling is applied in every forward that reads it, so runs
    with and without a cache agree.
    """
    return h + s * (w["factor"].reshape(-1, 1, 1) - 1) * h


def route(h: Tensor, w: Weights, s: Strength, _: Context) -> Tensor:
    """Add `s * bias` (`[expert]`) to MoE router logits."""
    return h + s * w["bias"]


def block(h: Tensor, w: Weights, s: Strength, _: Context) -> Tensor:
    """An inserted residual layer: `h + s (gelu(h w_in^T + b_in) w_out^T + b_out)`."""
    hidden = torch.nn.functional.linear(h, w["w_in"], w.get("b_in"))
    return h + s * torch.nn.functional.linear(
        torch.nn.functional.gelu(hidden), w["w_out"], w.get("b_out")
    )


OPERATIONS: dict[str, Callable[[Tensor, Weights, Strength, Context], Tensor]] = {
    "affine": affine,
    "set": set_value,
    "rotate": rotate,
    "adaptive": adaptive,
    "score_bias": score_bias,
    "scale_keys": scale_keys,
    "route": route,
    "block": block,
}

REQUIRED: dict[str, tuple[str, ...]] = {
    "set": ("value",),
    "rotate": ("b1", "b2"),
    "score_bias": ("bias",),
    "scale_keys": ("factor",),
    "route": ("bias",),
    "block": ("w_in", "w_out"),
}
"""Tensors an operation cannot do without; `affine` takes any of its own."""

ONLY_AT: dict[str, tuple[str, ...]] = {
    "score_bias": ("attn_scores", "pattern"),
    "scale_keys": ("k_cache", "v_cache"),
    "route": ("router_logits",),
}
"""Operations that mean something at some parts alone."""

WIDTH_TENSORS = ("shift", "scale", "down", "up", "value", "b1", "b2", "w_in", "probe")
"""Tensors whose last axis is the site's own width."""


def operation(name: str) -> Callable[[Tensor, Weights, Strength, Context], Tensor]:
    """The operation of that name.

    Raises:
        UnknownName: no such operation.
    """
    if name not in OPERATIONS:
        raise unknown("operation", "operation", name, OPERATIONS)
    return OPERATIONS[name]


def _missing(name: str, expected: str, got: Weights) -> EditError:
    return EditError(
        f"operation {name!r}",
        "lacks a tensor or parameter",
        expected=expected,
        got=sorted(got),
        do="add it to the intervention",
    )
