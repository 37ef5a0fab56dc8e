"""What a strip shows: the tokens of a text, a prompt or a generation, and numbers for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.model import tokens as tokenising
from workbench.model.model import Model
from workbench.records import Generation, Prompt
from workbench_widgets.spelling import Spelled, spell, spell_prompt

VALUE = "value"
"""The name of a row of values given without one."""


@dataclass(frozen=True)
class Side:
    """One text.

    Attributes:
        pieces: its tokens.
        keys: what tokens are compared by: ids where the model is known, else their texts.
        first: the absolute position of the first one.
        rows: `[token]` float64 by name, NaN where there is no number.
    """

    pieces: list[Spelled]
    keys: list[int | str]
    first: int
    rows: dict[str, np.ndarray]


def read(
    tokens: Any, values: Any, model: Model | None, first: int | None, name: str = "TokenStrip"
) -> Side:
    """Tokens and their rows of values, checked against each other.

    Args:
        first: the absolute position of the first token; None where the tokens say it themselves.

    Raises:
        WorkbenchError: no tokens, a text without a model, a first position below 0, or values that
            are not one per token.
    """
    if isinstance(tokens, Generation):
        side = _generated(tokens, _needed(model, name))
    elif isinstance(tokens, str | Prompt):
        side = _prompted(tokens, _needed(model, name))
    else:
        side = _listed(tokens, name)
    if not side.pieces:
        raise WorkbenchError(name, "has no tokens", expected="at least one", got=0, do="pass some")
    rows = {key: _row(key, row, len(side.pieces), name) for key, row in _named(values).items()}
    return Side(side.pieces, side.keys, side.first if first is None else _at(first, name), rows)


def _at(first: Any, name: str) -> int:
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise WorkbenchError(
            f"{name}, first",
            "is no position",
            expected="a whole number from 0",
            got=repr(first),
            do="pass the absolute position of the first token",
        )
    return first


def _needed(model: Model | None, name: str) -> Model:
    if model is None:
        raise WorkbenchError(
            name,
            "has a text and no tokenizer to cut it",
            expected="model=",
            got="None",
            do="pass the model, or a list with the text of each token",
        )
    return model


def _listed(tokens: Any, name: str) -> Side:
    many = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    wrong = next((t for t in many if not isinstance(t, str)), None)
    if wrong is not None:
        raise WorkbenchError(
            name,
            "has a token that is no text",
            expected="a list of texts, a text, a Prompt or a Generation",
            got=type(wrong).__name__,
            do="decode ids first, or pass what they come from",
        )
    return Side([Spelled(t) for t in many], list(many), 0, {})


def _prompted(prompt: str | Prompt, model: Model) -> Side:
    ids, _, pieces = spell_prompt(model, Prompt(text=prompt) if isinstance(prompt, str) else prompt)
    return Side(pieces, ids, 0, {})


def _generated(generation: Generation, model: Model) -> Side:
    before = tokenising.encode(model.tokenizer, generation.prompt)
    ids = list(generation.ids)
    return Side(spell(model.tokenizer, ids, before), ids, len(before), {})


def _named(values: Any) -> dict[str, Any]:
    if values is None:
        return {}
    return (
        {str(k): v for k, v in values.items()} if isinstance(values, Mapping) else {VALUE: values}
    )


def _row(key: str, values: Any, n: int, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        row = np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)
    except (TypeError, ValueError):
        row = np.zeros((0, 0))
    if row.shape != (n,):
        raise WorkbenchError(
            f"{name}, values {key!r}",
            "are not one number per token",
            expected=f"{n} numbers",
            got=f"shape {row.shape}" if row.size else type(values).__name__,
            do="give each token a number, or None where it has none",
        )
    return row


def scale(rows: Sequence[np.ndarray], diverging: bool | None, unit: str) -> dict[str, Any]:
    """The scale of one name over both texts: signed numbers are diverging unless said otherwise."""
    every = np.concatenate([row[np.isfinite(row)] for row in rows])
    lo, hi = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    signed = lo < 0 < hi if diverging is None else diverging
    return {"kind": "diverging" if signed else "sequential", "lo": lo, "hi": hi, "unit": unit}


def summary(row: np.ndarray) -> dict[str, float | int]:
    """Mean, smallest, largest and how many, over the finite numbers."""
    found = row[np.isfinite(row)]
    if not found.size:
        return {"n": 0, "mean": float("nan"), "min": float("nan"), "max": float("nan")}
    return {
        "n": int(found.size),
        # a mean that is rounding alone would be another number on another machine
        "mean": 0.0 if abs(found.mean()) < 1e-12 * abs(found).max() else float(found.mean()),
        "min": float(found.min()),
        "max": float(found.max()),
    }
