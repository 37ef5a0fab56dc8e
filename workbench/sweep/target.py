"""The next token that a sweep looks at, and how likely the model finds every token there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.records import Prompt

Token = int | str
Target = Token | Sequence[Token] | Callable[[Prompt], Token]


def target_ids(model: Any, prompts: Sequence[Prompt], target: Target | None) -> list[int]:
    """The wanted next token of every prompt; empty for None.

    Raises:
        WorkbenchError: not one token, outside the vocabulary, or not one per prompt.
    """
    if target is None:
        return []
    if callable(target):
        many = [target(p) for p in prompts]
    else:
        many = [target] * len(prompts) if isinstance(target, int | str) else list(target)
    if len(many) != len(prompts):
        raise _bad_target(f"{len(prompts)} tokens, one per prompt", len(many))
    return [_token(model, one) for one in many]


def _token(model: Any, asked: Token) -> int:
    ids = (
        model.tokenizer(asked, add_special_tokens=False)["input_ids"]
        if isinstance(asked, str)
        else [asked]
    )
    if len(ids) != 1 or not 0 <= ids[0] < model.dims.n_vocab:
        raise _bad_target("an id or a text of exactly one token", asked)
    return ids[0]


def _bad_target(expected: str, got: object) -> WorkbenchError:
    return WorkbenchError(
        "sweep(target=...)",
        "is not the next token of every prompt",
        expected=expected,
        got=got,
        do="see model.tokenizer",
    )


def last_logprobs(model: Any, prompts: list[Prompt], batch_size: int | None) -> torch.Tensor:
    """Log-probabilities `[prompt, vocab]` of the next token, float64 on the CPU."""
    size = batch_size or model.fitting_batch(prompts, 0)
    parts = [
        model.run(prompts[i : i + size], logits="last").logits[:, -1].detach().cpu()
        for i in range(0, len(prompts), size)
    ]
    return torch.cat(parts).double().log_softmax(-1)
