"""Tiny random models of every architecture family, built in memory: no hub, no files, milliseconds."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

import workbench as wb

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 +-*=?#.,\n"
N_VOCAB = 96

_COMMON = dict(
    vocab_size=N_VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_KV = dict(num_key_value_heads=2)
_MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        vocab_size=N_VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "llama": _COMMON | _KV,
    "mistral": _COMMON | _KV | dict(sliding_window=None, head_dim=8),
    "qwen2": _COMMON | _KV,
    "qwen3": _COMMON | _KV | dict(head_dim=16),
    "gemma2": _COMMON | _KV | dict(head_dim=8, sliding_window=16),
    "gemma3_text": _COMMON | _KV | dict(head_dim=8, sliding_window=16),
    "gpt_neox": _COMMON,
    "mixtral": _COMMON | _KV | dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _COMMON | _KV | _MOE | dict(shared_expert_intermediate_size=32),
    "qwen3_moe": _COMMON | _KV | _MOE | dict(head_dim=8),
    "olmoe": _COMMON | _KV | dict(num_experts=4, num_experts_per_tok=2),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
DENSE = tuple(f for f in FAMILIES if "num_experts_per_tok" not in CONFIGS[f])
MOE = tuple(f for f in FAMILIES if f not in DENSE)


@cache
def tokenizer() -> Any:
    """A character tokenizer with a beginning-of-sequence token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {t: i for i, t in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *ALPHABET])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tok.decoder = decoders.Fuse()
    tok.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    )


def module(family: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """A fresh random Hugging Face module; weights and biases are spread so that mistakes show."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **CONFIGS[family] | overrides)
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            # fresh models have zero biases and unit norms, which hide transposed or forgotten terms
            p.add_(torch.randn_like(p) * (0.02 if "embed" in name or "wte" in name else 0.1))
    return hf.eval().requires_grad_(False)


@cache
def model(family: str = "llama", backend: str = "transformers") -> wb.Model:
    """A wrapped tiny model, shared by the whole test session: tests must leave it as they found it."""
    return wb.load(module(family), tokenizer(), backend=backend)
