"""The two shipped architectures: a Llama and its mixture-of-experts sibling."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from workbench.errors import unknown
from workbench.zoo.tokenizer import BOS, CONTEXT, EOS, PAD, VOCABULARY

NAMES = ("reasoner", "reasoner-moe")
SHARED: dict[str, Any] = dict(
    vocab_size=len(VOCABULARY), hidden_size=128, num_attention_heads=8, num_key_value_heads=4,
    # wavelengths from 6 to 350 characters: a base of 10000 spends half of them beyond the context
    rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    max_position_embeddings=CONTEXT, tie_word_embeddings=True,
    pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
)  # fmt: skip


def new_model(name: str, seed: int, **sizes: Any) -> PreTrainedModel:
    """The untrained model of that name in float32, its weights drawn from the seed.

    ``sizes`` replaces fields of the configuration, for miniatures.
    """
    if name not in NAMES:
        raise unknown("zoo", "model", name, NAMES)
    # the caller's random state stays as it is
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = llama(sizes) if name == "reasoner" else mixtral(sizes)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=160, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS
    )
    return model


def llama(sizes: dict[str, Any]) -> PreTrainedModel:
    """Six layers, 1.19 M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(**SHARED | dict(num_hidden_layers=6, intermediate_size=384) | sizes)
    )


def mixtral(sizes: dict[str, Any]) -> PreTrainedModel:
    """The same six layers with four experts each, two of them per token; 3.85 M parameters."""
    experts = dict(num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.01)
    shape = dict(num_hidden_layers=6, intermediate_size=384, sliding_window=None, rms_norm_eps=1e-6)
    return MixtralForCausalLM(MixtralConfig(**SHARED | shape | experts | sizes))
