"""From prompts to a left-padded batch of token ids, refusing in words what a model cannot read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from workbench.errors import PromptError
from workbench.prompts import chat
from workbench.records import Prompt
from workbench.shapes import Bool, Int, Tensor
from workbench.tensors import Tokens


def is_special(tokenizer: Any, ids: Int[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
    """Which tokens are none of the text's own, such as the first one of a text."""
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=ids.dtype)
    return torch.isin(ids, special.to(ids.device))


def as_prompts(prompts: Any) -> list[Prompt]:
    """One or many texts or prompts as a list of `Prompt`.

    Raises:
        PromptError: no prompts, or an empty one.
    """
    one = isinstance(prompts, str | Prompt) or not isinstance(prompts, Iterable)
    many = [prompts] if one else list(prompts)
    if not many:
        raise PromptError(
            "prompts", "there are none", expected="at least one", got="0", do="pass a prompt"
        )
    for p in many:
        if not isinstance(p, str | Prompt):
            raise PromptError(
                "prompts",
                "hold something that is no prompt",
                expected="text, Prompt, or a list of either",
                got=type(p).__name__,
                do="pass the text; Tokens are for model.run",
            )
    return [p if isinstance(p, Prompt) else Prompt(text=p) for p in many]


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of one prompt, special tokens included.

    A text that begins with the beginning-of-sequence token's own text keeps one such token, not two;
    that text alone is how to start from nothing.

    Raises:
        PromptError: text the vocabulary cannot spell, or that becomes no token at all.
    """
    if prompt.messages is not None:
        text, special = chat.render(tokenizer, prompt.messages), False
    else:
        text, special = prompt.text or "", True
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids and unknown != tokenizer.eos_token_id:
        spelled = [c for c in dict.fromkeys(text) if unknown in _plain(tokenizer, c)]
        raise PromptError(
            f"prompt {text[:40]!r}",
            "has a token outside the vocabulary",
            expected="text this tokenizer can spell",
            got=f"{spelled[:8] or 'an unknown token'}",
            do="leave it out",
        )
    if not ids:
        raise PromptError(
            f"prompt {text[:40]!r}",
            "has no tokens",
            expected="at least one",
            got="0",
            do="add text",
        )
    return ids


def batch(
    tokenizer: Any,
    prompts: Any,
    *,
    n_context: int,
    n_vocab: int,
    device: torch.device,
    completions: Sequence[Iterable[int]] | None = None,
    room: int = 0,
) -> Tokens:
    """A left-padded batch. `completions` are ids put after each prompt, as if generated.

    Raises:
        PromptError: a prompt with its completion and `room` more tokens exceeds the context, or an
            id is outside the vocabulary.
    """
    many = as_prompts(prompts)
    heads = [encode(tokenizer, p) for p in many]
    tails = (
        [list(map(int, c)) for c in completions] if completions is not None else [[]] * len(many)
    )
    if len(tails) != len(heads):
        raise PromptError(
            "completions",
            "are not one per prompt",
            expected=len(heads),
            got=len(tails),
            do="pass one list of ids per prompt",
        )
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    for prompt, row in zip(many, rows, strict=True):
        _check(prompt, row, n_context, n_vocab, room)
    ids, mask = _pad(rows, pad_id(tokenizer), device)
    return Tokens(ids, mask, tuple(many), tuple(map(len, heads)))


def pad_id(tokenizer: Any) -> int:
    """The padding id, or the end-of-sequence id, or 0: padding is masked, so any will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _pad(
    rows: list[list[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rows])
    return ids.to(device), mask.to(device)


def _check(prompt: Prompt, row: list[int], n_context: int, n_vocab: int, room: int) -> None:
    where = f"prompt {(prompt.text or str(prompt.messages))[:40]!r}"
    if n_context and len(row) + room > n_context:
        raise PromptError(
            where,
            "is longer than the context",
            expected=f"at most {n_context} tokens"
            + (f", {room} of them generated" if room else ""),
            got=len(row),
            do="shorten it or ask for fewer new tokens",
        )
    if max(row) >= n_vocab or min(row) < 0:
        raise PromptError(
            where,
            "has a token outside the vocabulary",
            expected=f"ids 0 to {n_vocab - 1}",
            got=max(row),
            do="check the ids",
        )


def _plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
