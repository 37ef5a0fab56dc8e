"""Tokens as the texts that people read, one per id; see `spelling` for what a cut character shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from workbench_widgets.spelling import spell


def pieces(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """The texts of a run of tokens that follows `before`."""
    return [one.shown or one.text for one in spell(tokenizer, ids, before)]


def alternatives(tokenizer: Any, ids: Iterable[int], before: Sequence[int] = ()) -> list[str]:
    """The texts of tokens each of which could follow `before`."""
    return [text for i in ids for text in pieces(tokenizer, [i], before)]
