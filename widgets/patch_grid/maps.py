"""A map as arrays and as words: what the grid draws, and what one of its places says.

Shapes: means and intervals `[measure, *axes]`, values of one case `[measure, *axes]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.locate.base import Cases
from workbench.model.model import Model
from workbench.patching.map import Map

PATCHES = ("activation_patching", "attribution_patching")
"""Methods whose places are patches: a value of one run put into another."""
ROWS_AT_MOST = 6


def check(found: Any, model: Model, cases: Cases, where: str) -> Map:
    """The map, where it is one of this model and these cases.

    Raises:
        WorkbenchError: no map, another model's, or another number of cases or positions.
    """
    if not isinstance(found, Map):
        raise _misfit(where, "a Map, as locate.find gives", type(found).__name__)
    made, own = found.provenance.get("fingerprint") or {}, model.fingerprint_shape
    for name in ("d_model", "n_layers"):
        if name in made and made[name] != getattr(own, name):
            raise _misfit(where, f"{name} {getattr(own, name)}", f"{made[name]}")
    n = found.provenance.get("n_cases", len(cases))
    if n != len(cases):
        raise _misfit(where, f"a map of {len(cases)} cases", f"{n} cases")
    wide = [len(axis.labels) for axis in found.scores.axes if axis.name == "pos"]
    if wide and wide[0] > cases.clean.ids.shape[1]:
        raise _misfit(where, f"at most {cases.clean.ids.shape[1]} positions", f"{wide[0]}")
    return found


def arrays(found: Map) -> dict[str, np.ndarray]:
    """Mean, low, high and n of every place."""
    sizes = [len(axis.labels) for axis in found.scores.axes]
    shape = (len(found.measures), *sizes)
    return {
        name: np.asarray(found.columns[name], float).reshape(shape)
        for name in ("mean", "low", "high", "n")
    }


def has_cases(found: Map, cases: Cases) -> bool:
    """Whether the values behind a map are of these cases; some methods make sequences of their own."""
    return next(iter(found.scores.values.values())).shape[0] == len(cases)


def of_case(found: Map, case: int) -> np.ndarray:
    """The values of one case."""
    values = [v[case].double().cpu().numpy() for v in found.scores.values.values()]
    return np.stack(values)


def labels(found: Map, place: Sequence[int]) -> dict[str, Any]:
    """The labels of a place by axis name."""
    return {axis.name: axis.labels[i] for axis, i in zip(found.scores.axes, place, strict=True)}


def column(found: Map, place: Sequence[int], cases: Cases) -> int | None:
    """Which column of the padded batch a place is at; None for all.

    A map may hold a part of the positions: labels count from the end where they are negative.
    """
    width = cases.clean.ids.shape[1]
    for axis, i in zip(found.scores.axes, place, strict=True):
        label = axis.labels[i]
        if axis.name == "pos" and isinstance(label, int):
            return label % width
    return None


def direction(found: Map) -> str | None:
    """ "denoising" or "noising" where the method has a base and a source run, else None."""
    said = (found.provenance.get("options") or {}).get("direction")
    return str(said) if said in ("denoising", "noising") else None


def puts_values_in(found: Map) -> bool:
    """Whether a place says all of what is put in there."""
    return found.provenance.get("method") in PATCHES and direction(found) is not None


def beside(found: Map, place: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the maps that belong to this one, such as its control, at the same place.

    Such a map has the same axes, or one of texts that name places, such as "L3.z head 1".
    """
    at, rows = labels(found, place), []
    for name, other in found.also.items():
        frame, shared = other.frame(), [axis for axis in other.axes if axis in at]
        for axis in shared:
            frame = frame[frame[axis] == at[axis]]
        rest = [axis for axis in other.axes if axis not in at]
        if not shared and len(rest) == 1:
            frame = frame[[_says(str(label), at) for label in frame[rest.pop()]]]
        elif not shared:
            continue
        frame = frame[np.isfinite(frame["mean"].astype(float))]
        for row in frame.head(ROWS_AT_MOST).to_dict("records"):
            words = "".join(f" {axis} {row[axis]}" for axis in rest)
            kept = {k: _plain(row[k]) for k in ("measure", "mean", "low", "high", "n", "unit")}
            rows.append({"of": f"{name}{words}", **kept})
    return rows


def _says(label: str, at: Mapping[str, Any]) -> bool:
    """Whether a text such as "L3.resid_pre pos 7" or "resid_pre L3 pos 7" names the place."""
    said, words = {}, iter(label.replace(".", " ", 1).split())
    for word in words:
        if word in ("head", "pos", "neuron"):
            said[word] = next(words, "")
        elif word[0] == "L" and word[1:].isdigit():
            said["layer"] = word[1:]
        else:
            said["part"] = word
    return all(said.get(axis) == str(value) for axis, value in at.items())


def best(found: Map, n: int) -> list[tuple[int, ...]]:
    """The `n` places of the largest absolute mean of the main measure."""
    values = np.abs(np.nan_to_num(found.grid()))
    order = np.argsort(-values, axis=None, kind="stable")[:n]
    return [tuple(int(i) for i in np.unravel_index(k, values.shape)) for k in order]


def about(found: Map) -> dict[str, Any]:
    """What the browser has to know of a map once."""
    return {
        "method": found.provenance.get("method", ""),
        "caption": found.scores.caption,
        "axes": [_axis(axis) for axis in found.scores.axes],
        "measures": [{"name": m, "unit": found.scores.units[m]} for m in found.measures],
        "edits": found.scores.edit is not None,
    }


def _axis(axis: Any) -> Mapping[str, Any]:
    shown = axis.shown or tuple(str(label) for label in axis.labels)
    return {"name": axis.name, "labels": list(axis.labels), "shown": list(shown)}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _misfit(where: str, expected: str, got: Any) -> WorkbenchError:
    return WorkbenchError(
        where,
        "is given something that does not fit",
        expected=expected,
        got=got,
        do="use the map that locate.find made of this model and these cases",
    )
