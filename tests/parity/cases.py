"""What the parity suite compares: prompts, one edit per part, and the sites a backend may lack."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.scopes import Scope
from workbench.sites import PARTS, Site
from workbench.tensors import Intervention, Trace

OTHERS = ("transformer_lens", "nnsight")
TOLERANCE = 1e-5
"""Largest difference at fp32, as a share of the larger of 1 and the largest reference value."""

PROMPTS = ["the cat sat on a mat and then 12+34", "ab cd"]
"""Of different length, so that the batch is left-padded, and longer than Gemma's window of 16."""

LAYER = 1
STEPS = 5
"""Generated tokens; the first prompt grows past the window whatever their number."""

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2 upcast": dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
    "gpt_neox serial": dict(use_parallel_residual=False, rotary_pct=0.25),
    "llama eager": dict(attn_implementation="eager"),
    "mistral window": dict(sliding_window=8),
    "olmoe clipped": dict(clip_qkv=0.5),
    "qwen2_moe mixed": dict(mlp_only_layers=[0]),
}
"""Family and a word -> options that take another path through its code."""

UNAVAILABLE: dict[tuple[str, str], set[str]] = {
    ("nnsight", "gpt2 upcast"): {"attn_scores", "pattern", "k_cache", "v_cache"},
}
"""(backend, family or variant) -> parts the reference has there and this backend refuses, in words.

gpt2 upcast: that option computes attention without the function whose source nnsight opens.
"""

ABSENT = {
    **{family: {"router_logits", "expert"} for family in tiny.DENSE},
    **{family: {"mlp_pre", "mlp_post"} for family in tiny.MOE},
    "gpt_neox": {"router_logits", "expert", "resid_mid"},
}
"""Family -> parts that no backend has, because the architecture does not."""


def parts(model: wb.Model, *, write: bool = False) -> set[str]:
    """Names of the parts a model offers."""
    return {site.split(".")[-1] for site in model.sites(write=write)}


def site_of(part: str) -> str:
    """The part's site in the layer that is edited."""
    return f"L{LAYER}.{part}" if PARTS[part].in_block else part


@cache
def reference(family: str) -> Trace:
    """Everything the reference backend reads."""
    model = tiny.model(family)
    return model.run(PROMPTS, record=model.sites())


def edit(family: str, part: str, sign: float = 1.0, scope: str = "all") -> Intervention:
    """A random shift at one site; for attention scores, a bias on some keys only."""
    site = site_of(part)
    value = reference(family)[site]
    noise = torch.Generator().manual_seed(len(part))
    if part in ("attn_scores", "pattern"):
        bias = torch.randn(value.shape[1], generator=noise)
        tensors, operation, params = {"bias": bias}, "score_bias", {"keys": "span(1, 3)"}
    else:
        shift = torch.randn(value.shape[-1], generator=noise)
        tensors, operation, params = {"shift": shift}, "affine", {}
    return Intervention(
        "custom", operation, {site: tensors}, 0.5 * sign, scope=Scope.parse(scope), params=params
    )


@cache
def edited(family: str, part: str, sign: float, scope: str) -> Trace:
    """The run with `edit` on the reference backend."""
    return tiny.model(family).run(PROMPTS, edits=[edit(family, part, sign, scope)])


@cache
def generated(family: str, part: str, n_prompts: int) -> Any:
    """What the reference backend generates with `edit` at every step."""
    change = [edit(family, part)]
    return tiny.model(family).generate(PROMPTS[:n_prompts], change, max_new_tokens=STEPS)


def real(site: str, value: Tensor, mask: Tensor) -> Tensor:
    """The value with padding set to 0: what stands there is nobody's business."""
    value, axes = value.clamp(min=-1e9), wb.sites.parse(site, 99)[0].axes
    for dim, axis in enumerate(axes, start=1):
        if axis in ("pos", "q", "k"):
            shape = [mask.shape[0], *[1] * len(axes)]
            shape[dim] = mask.shape[1]
            value = value * mask.reshape(shape)
    return value


def differs(site: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> str:
    """How far two values of a site are apart, or '' where that is within tolerance."""
    if ours.shape != theirs.shape:
        return f"{site}: shape {list(theirs.shape)} instead of {list(ours.shape)}"
    ours, theirs = real(site, ours, mask), real(site, theirs, mask)
    error = float((ours - theirs).abs().max())
    allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
    return "" if error <= allowed else f"{site}: off by {error:.2g}"


def place(model: wb.Model, part: str) -> Site:
    """`site_of` as a Site."""
    return wb.sites.parse(site_of(part), model.n_layers)[0]
