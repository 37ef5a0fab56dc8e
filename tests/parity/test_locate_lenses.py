"""Logit lens and direct logit attribution are TransformerLens' own numbers, to 1e-4.

TransformerLens attributes logits to parts under the convention that the final norm's weights are folded
into the unembedding, so it gets the model folded by hand; ours reads the model as it is.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests import tiny
from workbench import locate

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
TOLERANCE = 1e-4
SHE, HE = "▁She", "▁He"
STORY = "Once upon a time there was a little {}."
NAMED = [STORY.format(n) for n in ("girl named Lily", "boy named Tim", "girl named Sue")]
LETTERS = ["the cat sat on a mat, and", "a dog ran to the log, too", "0123456789 + 98765 = 2"]

stories = pytest.param(
    "stories260K",
    marks=pytest.mark.skipif(not FOLDER.is_dir(), reason="stories260K is not in ../shared/data"),
)
every = pytest.mark.parametrize("name", [stories, "gpt2"])


@cache
def plain(name: str) -> wb.Model:
    """stories260K, or GPT-2's 12 blocks of 12 heads at a quarter of its width, with random weights."""
    if name == "stories260K":
        return wb.load(FOLDER)
    hf = tiny.module("gpt2", n_layer=12, n_head=12, n_embd=192)
    return wb.load(hf, tiny.tokenizer())


def folded(name: str) -> Any:
    """A bridge on the same model, the final norm's weights in its unembedding: equal logits."""
    hf: Any = copy.deepcopy(plain(name).hf)
    norm = hf.model.norm if name == "stories260K" else hf.transformer.ln_f
    weight = hf.lm_head.weight.detach()
    hf.lm_head.weight = nn.Parameter(weight * norm.weight, requires_grad=False)
    if getattr(norm, "bias", None) is not None:
        hf.lm_head.bias = nn.Parameter(weight @ norm.bias, requires_grad=False)
        norm.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)
    norm.weight = nn.Parameter(torch.ones_like(norm.weight), requires_grad=False)
    return wb.load(hf, plain(name).tokenizer, backend="transformer_lens").unwrap()


def prompts_of(name: str) -> tuple[list[str], list[int], list[int]]:
    """Prompts of one length each, answers and foils."""
    if name == "gpt2":
        return LETTERS, [5, 6, 7], [20, 30, 40]
    she, he = plain(name).tokenizer.convert_tokens_to_ids([SHE, HE])
    return NAMED, [she, he, she], [he, she, he]


def ours(name: str, method: Any) -> Any:
    texts, answers, foils = prompts_of(name)
    made = wb.prompts.counterfactuals(clean=texts, corrupted=texts, answers=answers, foils=foils)
    return locate.find(method, plain(name), made, progress=False)


@cache
def theirs(name: str) -> list[tuple[Any, torch.Tensor, Any, int, int]]:
    """Per prompt: bridge, its logits, its cache, answer and foil. One at a time: no padding."""
    bridge, (texts, answers, foils) = folded(name), prompts_of(name)
    found = []
    for text, answer, foil in zip(texts, answers, foils, strict=True):
        logits, cache_ = bridge.run_with_cache(plain(name).tokens([text]).ids)
        found.append((bridge, logits.detach(), cache_, answer, foil))
    return found


def assert_equal(found: Any, wanted: Any) -> None:
    wanted = np.asarray(wanted, float)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * max(1, np.abs(wanted).max()))


@every
def test_folding_keeps_the_logits(name: str) -> None:
    for text, (_, logits, *_rest) in zip(prompts_of(name)[0], theirs(name), strict=True):
        own = plain(name).run(text).logits
        assert_equal(logits.numpy(), own.numpy())


@every
def test_the_logit_lens(name: str) -> None:
    found = ours(name, "logit_lens").scores.values
    for case, (bridge, logits, cache_, answer, foil) in enumerate(theirs(name)):
        streams = cache_.accumulated_resid(apply_ln=True)[1:]  # the first is the embedding
        with torch.no_grad():
            z = torch.cat([bridge.unembed(stream)[:, -1] for stream in streams]).double()
        own = logits[0, -1].double().log_softmax(-1)
        logp = z.log_softmax(-1)
        assert_equal(found["logit_difference"][case], z[:, answer] - z[:, foil])
        assert_equal(found["probability"][case], logp[:, answer].exp())
        assert_equal(found["kl"][case], (own.exp() * (own - logp)).sum(-1))


@every
def test_direct_logit_attribution_of_halves(name: str) -> None:
    found = ours(name, "direct_logit_attribution").scores
    labels = found.axes[0].labels
    for case, (_, logits, cache_, answer, foil) in enumerate(theirs(name)):
        stack, names = cache_.decompose_resid(return_labels=True)
        shares = dict(zip(names, attributed(cache_, stack, answer, foil), strict=True))
        wanted = {"embed": shares["embed"] + shares.get("pos_embed", 0.0)}
        for layer in range(plain(name).n_layers):
            wanted |= {f"L{layer}.{h}": shares[f"{layer}_{h}"] for h in ("attn_out", "mlp_out")}
        whole = float(logits[0, -1, answer] - logits[0, -1, foil])
        wanted["bias"] = whole - sum(wanted.values())
        assert_equal(found.values["logit_difference"][case], [wanted[part] for part in labels])


@every
def test_direct_logit_attribution_of_heads(name: str) -> None:
    found = ours(name, locate.DirectLogitAttribution(heads=True)).scores
    labels = list(found.axes[0].labels)
    heads = [i for i, part in enumerate(labels) if ".h" in part]
    biases = [i for i, part in enumerate(labels) if part.endswith("attn_bias")]
    for case, (_, _logits, cache_, answer, foil) in enumerate(theirs(name)):
        stack, names = cache_.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
        shares = dict(zip(names, attributed(cache_, stack, answer, foil), strict=True))
        values = found.values["logit_difference"][case]
        named = [f"L{part[1:].replace('.h', 'H')}" for part in (labels[i] for i in heads)]
        assert_equal(values[heads], [shares[name_] for name_ in named])
        assert_equal(values[biases].sum(), shares["bias"])


def attributed(cache_: Any, stack: Any, answer: int, foil: int) -> list[float]:
    """TransformerLens' shares at the last position."""
    shares = cache_.logit_attrs(
        stack[:, 0, -1:],
        tokens=torch.tensor([answer]),
        incorrect_tokens=torch.tensor([foil]),
        pos_slice=-1,
        batch_slice=0,
        has_batch_dim=False,
    )
    return shares.detach().flatten().tolist()
