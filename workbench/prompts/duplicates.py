"""Texts that say the same: left on both sides of a split, they let a probe be tested on what it learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from workbench.records import Prompt

_ENDS = ".!?;:, "


def said(prompt: Prompt) -> str:
    """All words of a prompt: its text or turns, and the completion that is read behind it."""
    turns = [turn["content"] for turn in prompt.messages or ()]
    return "\n".join([prompt.text or "", *turns]).strip("\n") + prompt.meta.get("completion", "")


def normalised(text: str) -> str:
    """The text without what near-duplicates differ in: case, spaces, punctuation at its end."""
    plain = " ".join(text.split()).casefold()
    return plain.rstrip(_ENDS) or plain


def repeated(texts: Iterable[str]) -> tuple[int, int]:
    """How many texts repeat an earlier one exactly, and how many all but exactly."""
    many = list(texts)
    exact = len(many) - len(set(many))
    return exact, len(many) - len(set(map(normalised, many))) - exact


def contradicting(texts: Sequence[str], labels: Sequence[object]) -> int:
    """Texts (up to near-duplicates) that carry more than one label."""
    pairs = {(normalised(t), label) for t, label in zip(texts, labels, strict=True)}
    return sum(n > 1 for n in Counter(text for text, _ in pairs).values())
