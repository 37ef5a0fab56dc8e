"""Activation patching beside TransformerLens: maps of the residual stream and of heads, to 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.locate import ActivationPatching
from workbench.patching.cases import cases_of

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
STORY = "There was a little {} named {}."
QUICK: dict[str, Any] = {"control": "none"}


def gpt2() -> Any:
    """A random GPT-2 that is nobody's default shape."""
    return tiny.module("gpt2", n_layer=2, n_embd=48, n_head=6), tiny.tokenizer()


@cache
def models(name: str) -> tuple[wb.Model, Any]:
    """Ours and TransformerLens' bridge around the same weights."""
    if name == "stories260K":
        if not STORIES.is_dir():
            pytest.skip("stories260K is not in ../shared/data")
        ours = wb.load(STORIES)
    else:
        ours = wb.load(*gpt2())
    other = wb.load(ours.hf, ours.tokenizer, backend="transformer_lens", proof=False)
    return ours, other.unwrap()


def prompts(name: str) -> wb.Prompts:
    """One clean and one corrupted prompt of the same length."""
    if name == "stories260K":
        girl, boy = STORY.format("girl", "Lily"), STORY.format("boy", "Tim")
        return wb.prompts.counterfactuals(
            clean=[girl], corrupted=[boy], answers=" She", foils=" He"
        )
    return wb.prompts.counterfactuals(
        clean=["ab cab c"], corrupted=["ax cyb c"], answers="a", foils="x"
    )


def theirs(name: str, patch: str) -> np.ndarray:
    """A map of `transformer_lens.patching`, clean into corrupted."""
    from transformer_lens import patching

    ours, bridge = models(name)
    cases = cases_of(ours, prompts(name))
    assert cases.corrupted is not None

    def metric(logits: Tensor) -> Tensor:
        return cases.metric(logits[:, -1], "logit_difference")[0]

    with torch.no_grad():
        _, cache = bridge.run_with_cache(cases.clean.ids)
        function: Callable[..., Tensor] = getattr(patching, patch)
        return function(bridge, cases.corrupted.ids, cache, metric).numpy()


def ours(name: str, part: str, **options: Any) -> np.ndarray:
    """The same map of this library."""
    model, _ = models(name)
    found = locate.find(
        ActivationPatching(part, **QUICK, **options), model, prompts(name), progress=False
    )
    return found.grid("logit_difference")


MAPS = {
    "resid_pre": "get_act_patch_resid_pre",
    "resid_mid": "get_act_patch_resid_mid",
    "attn_out": "get_act_patch_attn_out",
    "mlp_out": "get_act_patch_mlp_out",
    "z": "get_act_patch_attn_head_out_all_pos",
    "q": "get_act_patch_attn_head_q_all_pos",
    "k": "get_act_patch_attn_head_k_all_pos",
    "v": "get_act_patch_attn_head_v_all_pos",
}
GROUPED = ("resid_pre", "z", "k")
"""What is asked again of a model with fewer key-value heads and rotary positions."""


@pytest.mark.parametrize(
    ("name", "part"),
    [*(("gpt2", part) for part in MAPS), *(("stories260K", part) for part in GROUPED)],
)
def test_maps_are_those_of_transformer_lens(name: str, part: str) -> None:
    a, b = ours(name, part), theirs(name, MAPS[part])
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=min(1e-4, float(np.ptp(a)) / 50), rtol=0)


def test_heads_at_each_position_are_those_of_transformer_lens() -> None:
    a = ours("gpt2", "z", positions="each")
    b = theirs("gpt2", "get_act_patch_attn_head_out_by_pos")
    np.testing.assert_allclose(a.transpose(0, 2, 1), b, atol=1e-4, rtol=0)
