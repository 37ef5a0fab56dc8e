"""Tokens as the texts that people read, one per id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def pieces(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each id alone; a token that is part of a character shows as the replacement mark."""
    return [tokenizer.decode([int(i)]) for i in ids]
