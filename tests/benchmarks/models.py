"""The models every benchmark runs on, and the edit it makes."""

from __future__ import annotations

import copy
import random
from functools import cache

import torch

import workbench as wb
from tests import tiny

CALM = 0.05
"""Size of the edit relative to the residual stream: large enough to count, small enough to stay in range."""


@cache
def reasoner() -> wb.Model:
    """The shipped model, or a random one of its shape where it has not been built."""
    if "reasoner" in wb.shipped():
        return wb.load("reasoner")
    shape = dict(
        vocab_size=tiny.N_VOCAB, hidden_size=144, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=16, max_position_embeddings=256,
    )  # fmt: skip
    return wb.load(tiny.module("llama", **shape), tiny.tokenizer())


@cache
def gpt2() -> wb.Model:
    """Random weights in the shape of GPT-2 small, 124 M parameters."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return wb.load(AutoModelForCausalLM.from_config(config).eval(), tiny.tokenizer())


def prompts(rows: int, length: int) -> list[wb.Prompt]:
    """Sums of `length` tokens each, the beginning of sequence counted: both tokenizers spell characters."""
    draw = random.Random(rows)
    return [wb.Prompt("".join(draw.choices("0123456789+=", k=length - 1))) for _ in range(rows)]


def batch(model: wb.Model, rows: int, length: int) -> wb.Tokens:
    """The same as a batch, in which nothing is padded."""
    tokens = model.tokens(prompts(rows, length))
    assert set(tokens.lengths) == {length}, f"prompts became {set(tokens.lengths)} tokens"
    return tokens


def edit(model: wb.Model, site: str | None = None, strength: float = 1.0) -> wb.Intervention:
    """A vector added to the residual stream, at the middle layer unless said otherwise."""
    draw = torch.Generator().manual_seed(1)
    shift = CALM * torch.randn(model.d_model, generator=draw)
    site = site or f"L{model.n_layers // 2}.resid_post"
    return wb.Intervention("custom", "affine", {site: {"shift": shift}}, strength)


def shift(one: wb.Intervention) -> torch.Tensor:
    """The vector of `edit`, for the other libraries."""
    return next(iter(one.tensors.values()))["shift"]


def shell(model: wb.Model) -> torch.nn.Module:
    """A second module that shares every weight: what another library may rewire as it likes."""
    shared = [*model.hf.parameters(), *model.hf.buffers()]
    clone = copy.deepcopy(model.hf, {id(t): t for t in shared})
    clone.config.architectures = [type(model.hf).__name__]
    return clone
