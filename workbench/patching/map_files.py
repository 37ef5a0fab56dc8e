"""Maps in files: beside the rows of the table, the values per case and what a figure needs.

An edit is a function of the method that ran and is not kept; neither is what a method adds to its
scores, such as a trained lens, which has a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.locate.base import Axis, Scores


def plain(found: Any) -> dict[str, Any]:
    """The scores of a map, and the maps beside it, as values that JSON knows."""
    scores: Scores = found.scores
    return {
        "axes": [asdict(axis) for axis in scores.axes],
        "values": {name: _listed(v) for name, v in scores.values.items()},
        "reference": {name: _listed(v) for name, v in scores.reference.items()},
        "units": dict(scores.units),
        "figure": scores.figure,
        "caption": scores.caption,
        "edits": scores.edit is not None,
        "also": {name: other._plain() for name, other in found.also.items()},
    }


def scores(plain: Mapping[str, Any], also: Mapping[str, Scores]) -> Scores:
    """What `plain` was made of, in float32, with the scores of the maps beside it."""
    return Scores(
        {name: _tensor(v) for name, v in plain["values"].items()},
        tuple(
            Axis(axis["name"], tuple(axis["labels"]), tuple(axis["shown"]))
            for axis in plain["axes"]
        ),
        plain["units"],
        plain["figure"],
        plain["caption"],
        {name: _tensor(v) for name, v in plain["reference"].items()},
        _not_kept if plain["edits"] else None,
        also,
    )


def _listed(values: Tensor) -> list[Any]:
    """Nested lists, None where a number is not finite: such a place counts as unknown anyway."""
    array = values.double().cpu().numpy()
    return np.where(np.isfinite(array), array.astype(object), None).tolist()


def _tensor(values: list[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, float)).float()


def _not_kept(**_place: Any) -> NoReturn:
    raise WorkbenchError(
        "Map.edit",
        "this map was read from a file, which keeps no edits",
        expected="a map of locate.find",
        got="a loaded one",
        do="locate again, or save the edit itself with wb.save_edit",
    )
