"""A prompt as plain JSON values and back; tuples become lists on the way and tuples again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from workbench.records import Prompt

FIELDS = tuple(f.name for f in fields(Prompt))
_EMPTY = (None, (), {})


def to_plain(prompt: Prompt) -> dict[str, Any]:
    """The fields that are set."""
    return {k: v for k, v in asdict(prompt).items() if v not in _EMPTY}


def from_plain(values: Mapping[str, Any]) -> Prompt:
    """The prompt of plain values; unknown keys are an error of the caller."""
    known = dict(values)
    for name in ("messages", "choices"):
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    meta = {k: tuple(v) if isinstance(v, list) else v for k, v in known.get("meta", {}).items()}
    return Prompt(**{**known, "meta": meta})
