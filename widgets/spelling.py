"""What each token of a text adds to it, so that the pieces joined are the text: no byte lost or twice.

A tokenizer of bytes may cut a character in several tokens. Then one of them holds the whole
character in `text`, the others hold nothing, and `shown` says of each which bytes it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from workbench.model.model import Model
from workbench.prompts import chat
from workbench.records import Prompt

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BEFORE = 8
"""Tokens of context that decide how the next one is written: its space, its half of a character."""


@dataclass(frozen=True)
class Spelled:
    """One token.

    Attributes:
        text: what it adds to the text; "" where it adds none of its own.
        shown: what to show in place of `text`, "" where `text` itself is honest.
        special: whether it is a special token, such as the beginning of the sequence.
    """

    text: str
    shown: str = ""
    special: bool = False


def spell(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[Spelled]:
    """Tokens without their text, such as generated ones. Special tokens add nothing to the text.

    Args:
        before: ids that come before, for spaces that a first token would lose.
    """
    context = [int(i) for i in before][-BEFORE:]
    every, special = [*context, *map(int, ids)], set(tokenizer.all_special_ids)
    out: list[Spelled] = []
    start, read = 0, len(context)
    for k in range(len(context), len(every)):
        if every[k] in special:
            out += _partial(tokenizer, every[read:k], "")
            out.append(Spelled("", tokenizer.convert_ids_to_tokens(every[k]), True))
            start = read = k + 1
            continue
        whole = _decoded(tokenizer, every[start : k + 1])
        if whole.endswith("\ufffd") and k + 1 < len(every):
            continue
        added = whole[len(_decoded(tokenizer, every[start:read])) :]
        if read == k and "\ufffd" not in added:
            out.append(Spelled(added))
        else:
            out += _partial(tokenizer, every[read : k + 1], added)
        start, read = max(start, read - BEFORE, 0), k + 1
    return out


def spell_prompt(model: Model, prompt: Prompt) -> tuple[list[int], str, list[Spelled]]:
    """The ids that the model reads for a prompt, the text they are of, and what each adds to it.

    Raises:
        PromptError: empty, longer than the context, or not spelled by this vocabulary.
    """
    ids = model.tokens([prompt]).ids[0].tolist()
    written = prompt.messages is not None  # a template writes the special tokens itself
    text = chat.render(model.tokenizer, prompt.messages or ()) if written else prompt.text or ""
    return ids, text, spell_text(model.tokenizer, text, ids, special=not written)


def spell_text(tokenizer: Any, text: str, ids: Sequence[int], special: bool) -> list[Spelled]:
    """Tokens of a text that the tokenizer read, by their places in it.

    Args:
        ids: what the model reads for `text`.
        special: whether the tokenizer added special tokens of its own.
    """
    places = _places(tokenizer, text, list(ids), special)
    if places is None:
        return spell(tokenizer, ids)
    names, done, out = set(tokenizer.all_special_ids), 0, []
    for k, (start, stop) in enumerate(places):
        shared = start < done or (k + 1 < len(places) and start < stop > places[k + 1][0] > 0)
        piece = text[max(start, done) : stop] if stop > start else ""
        is_special = ids[k] in names
        shown = ""
        if is_special:
            shown = tokenizer.convert_ids_to_tokens(int(ids[k]))
        elif shared or not piece:
            shown = _bytes_of(tokenizer, int(ids[k]))
        out.append(Spelled(piece, shown, is_special))
        done = max(done, stop)
    return out


def _places(
    tokenizer: Any, text: str, ids: list[int], special: bool
) -> list[tuple[int, int]] | None:
    """Where in the text each id comes from, or None where the tokenizer does not say."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    read = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    skipped = len(read["input_ids"]) - len(ids)
    if skipped not in (0, 1) or list(read["input_ids"])[skipped:] != ids:
        return None
    return [tuple(place) for place in read["offset_mapping"]][skipped:]


def _partial(tokenizer: Any, ids: Sequence[int], text: str) -> list[Spelled]:
    """Tokens that spell `text` together: the last one holds it."""
    shown = [_bytes_of(tokenizer, i) for i in ids]
    return [Spelled(text if k + 1 == len(shown) else "", name) for k, name in enumerate(shown)]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False) if ids else ""


def _bytes_of(tokenizer: Any, token: int) -> str:
    """A token that is no whole text, as its bytes in hexadecimal, else as its vocabulary writes it."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    if found := _BYTE.fullmatch(name):
        return f"⟨{found[1].upper()}⟩"
    if name and all(c in _byte_characters() for c in name):
        read = [_byte_characters()[c] for c in name]
        return "".join(chr(b) if 32 < b < 127 else "·" if b == 32 else f"⟨{b:02X}⟩" for b in read)
    return name


@cache
def _byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(moved)}
