"""Steer with features of a dictionary: edits made from it directly, without two classes of prompts.

    edit = sae.steer(dictionary, 31, largest=board)                  # add it, at its largest activation
    edit = sae.steer(dictionary, 31, mode="clamp", level=0)          # hold it at 0, the error kept
    edits = sae.steer(dictionary, [31, 7], mode="scale")             # a list; -1 switches both off

What the modes do is in `workbench.steering.sae_feature`.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any, SupportsIndex, overload

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.sae.dictionary import Dictionary
from workbench.scopes import Scope
from workbench.shapes import Tensor
from workbench.steering.sae_feature import SaeFeature
from workbench.tensors import Activations, Intervention, above_zero


@overload
def steer(
    dictionary: Dictionary,
    feature: SupportsIndex,
    *,
    mode: str = ...,
    level: float | int = ...,
    largest: Any = ...,
    scope: str | Scope = ...,
) -> Intervention: ...
@overload
def steer(
    dictionary: Dictionary,
    feature: Iterable[SupportsIndex],
    *,
    mode: str = ...,
    level: float | int = ...,
    largest: Any = ...,
    scope: str | Scope = ...,
) -> list[Intervention]: ...
def steer(
    dictionary: Dictionary,
    feature: Any,
    *,
    mode: str = "add",
    level: float | int = 1.0,
    largest: Any = None,
    scope: str | Scope = "all",
) -> Intervention | list[Intervention]:
    """The edit of one feature, or a list of edits of several, which act in their order.

    Args:
        dictionary: whose features.
        feature: which, from 0.
        mode: "add", "clamp", "min_clamp" or "scale"; top-k features can be added alone.
        level: where clamps set the feature, in multiples of its largest activation; 0 is off.
        largest: its largest activation: a number, a Dashboard or a FeatureRanking that holds the feature,
            or activations `[row, d]` of the dictionary's site to take it from. Not asked for where
            nothing is counted in it: scale, and clamps at 0.
        scope: at which positions.

    Raises:
        UnknownName: no such mode.
        WorkbenchError: no such feature, a mode that the dictionary cannot do, or `largest` is missing, not
            above 0, or does not hold the feature.
    """
    if isinstance(feature, str):
        raise _no_feature(repr(feature))
    if isinstance(feature, Iterable):
        one = {"mode": mode, "level": level, "largest": largest, "scope": scope}
        edits = [steer(dictionary, j, **one) for j in feature]
        if not edits:
            raise _no_feature("an empty list")
        return edits
    feature = index(feature)
    method = SaeFeature(mode=mode, feature=feature, level=level)
    counted = mode == "add" or (mode != "scale" and level != 0)
    size = _largest(dictionary, feature, largest) if counted or largest is not None else 1.0
    made_on = dictionary.model if dictionary.model and dictionary.model.d_model else None
    edit = method.edit(dictionary, feature, size, made_on)
    named = f"feature {feature}" + (f" of {dictionary.name}" if dictionary.name else "")
    return edit.named(named).within(scope)


def _largest(dictionary: Dictionary, feature: int, given: Any) -> float:
    where = f"sae.steer(feature {feature}, largest=...)"
    if isinstance(given, Tensor | np.generic) and given.ndim == 0:
        given = given.item()
    if isinstance(given, int | float):
        return above_zero(where, given)
    if isinstance(given, Activations):
        given = given[dictionary.site]
    rows = isinstance(given, Tensor)
    found = _of_rows(dictionary, feature, given) if rows else _of_record(feature, given)
    if found is None:
        raise WorkbenchError(
            where,
            "the feature's largest activation is not known",
            expected="a number, a Dashboard or FeatureRanking with this feature, or rows of its site",
            got="nothing" if given is None else type(given).__name__,
            do="say largest=dashboard, or largest=model.record(prompts, dictionary.site, pool='all')",
        )
    if found > 0:
        return found
    raise WorkbenchError(
        where,
        "the feature is never active there",
        expected="a row that activates it",
        got="0 at the largest",
        do="give other rows, or its largest activation as a number",
    )


def _of_rows(dictionary: Dictionary, feature: int, rows: Tensor) -> float | None:
    if not len(rows) or not 0 <= feature < dictionary.n_features:
        return None
    step = max(1, 2**24 // dictionary.n_features)
    found = [float(dictionary.encode(part)[:, feature].max()) for part in rows.split(step)]
    return max(found)


def _of_record(feature: int, record: Any) -> float | None:
    """From what has `features` and their `largest`, such as a Dashboard."""
    features, largest = (getattr(record, name, None) for name in ("features", "largest"))
    if features is None or largest is None:
        return None
    known = torch.as_tensor(features).tolist()
    return float(largest[known.index(feature)]) if feature in known else None


def _no_feature(got: str) -> WorkbenchError:
    return WorkbenchError(
        "sae.steer",
        "names no feature",
        expected="a feature, or a list of them",
        got=got,
        do="say which, such as found.top(3)['feature']",
    )
