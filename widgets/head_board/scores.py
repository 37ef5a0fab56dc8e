"""Scores of heads out of maps: every measure of every map that has a layer and a head.

Shapes: per score mean, low, high and n are `[layer, head]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.patching.map import Map

MOST = 64
PARTS = ("mean", "low", "high", "n")
PLACES = ("layer", "head")


@dataclass(frozen=True)
class HeadScore:
    """One number per head.

    Attributes:
        name: what a menu calls it.
        unit: of the number.
        values: mean, low, high and n, `[4, layer, head]`.
    """

    name: str
    unit: str
    values: np.ndarray


def scores_of(found: Any, model: Model) -> list[HeadScore]:
    """The scores of one map or several; axes besides layer and head become scores of their own.

    Raises:
        WorkbenchError: no map, one without heads, of another model, or more than 64 scores.
    """
    many = [found] if isinstance(found, Map) else list(found) if isinstance(found, Sequence) else []
    if not many or not all(isinstance(one, Map) for one in many):
        raise _misfit("a Map or a list of them, as locate.find gives", type(found).__name__)
    scores = [score for one in many for score in _of(one, model)]
    if len(scores) > MOST:
        raise _misfit(f"at most {MOST} scores", f"{len(scores)}")
    return _named_once(scores)


def _of(found: Map, model: Model) -> list[HeadScore]:
    made = found.provenance.get("fingerprint") or {}
    for name in ("d_model", "n_layers"):
        own = getattr(model.fingerprint_shape, name)
        if name in made and made[name] != own:
            raise _misfit(f"maps of a model of {name} {own}", f"{made[name]}")
    method = str(found.provenance.get("method", "")).replace("_", " ")
    # some methods keep heads beside their main map
    parts = {"": found, **found.also}
    scores = [
        score
        for part, one in parts.items()
        if set(PLACES) <= set(one.axes)
        for score in _flat(one, f"{method} {part}".strip(), model)
    ]
    if not scores:
        raise _misfit("maps with a layer and a head", f"{method} over {', '.join(found.axes)}")
    return scores


def _flat(found: Map, name: str, model: Model) -> Iterator[HeadScore]:
    axes = found.scores.axes
    names = [axis.name for axis in axes]
    at, rest = [names.index(place) for place in PLACES], [a for a in axes if a.name not in PLACES]
    sizes = [len(axis.labels) for axis in axes]
    _whole([axes[i] for i in at], model)
    shape = (len(found.measures), *sizes)
    arrays = [np.asarray(found.columns[part], float).reshape(shape) for part in PARTS]
    # layer and head last, so that the others can be walked over
    moved = np.moveaxis(np.stack(arrays), [2 + i for i in at], [-2, -1])
    for m, measure in enumerate(found.measures):
        for place in product(*(range(len(axis.labels)) for axis in rest)):
            words = "".join(
                f", {axis.name} {axis.labels[i]}" for axis, i in zip(rest, place, strict=True)
            )
            values = moved[(slice(None), m, *place)]
            yield HeadScore(f"{name}: {measure}{words}", found.scores.units[measure], values)


def _whole(axes: Sequence[Any], model: Model) -> None:
    wanted = (tuple(range(model.n_layers)), tuple(range(model.n_heads)))
    for axis, labels in zip(axes, wanted, strict=True):
        if axis.labels != labels:
            raise _misfit(f"a map of {len(labels)} {axis.name}s", f"{len(axis.labels)}")


def _named_once(scores: list[HeadScore]) -> list[HeadScore]:
    """The same scores; where two have one name, such as of two options, they are numbered."""
    seen: dict[str, int] = {}
    found = []
    for score in scores:
        seen[score.name] = seen.get(score.name, 0) + 1
        again = seen[score.name]
        name = score.name if again == 1 else f"{score.name} ({again})"
        found.append(HeadScore(name, score.unit, score.values))
    return found


def _misfit(expected: str, got: str) -> WorkbenchError:
    return WorkbenchError(
        "HeadBoard",
        "needs scores of heads",
        expected=expected,
        got=got,
        do="locate with a method of heads, such as induction_heads or head_ablation",
    )
