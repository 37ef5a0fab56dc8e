"""The map a localiser draws: a table of places with intervals, its figure, and edits of its places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import isfinite, prod
from typing import Any

import numpy as np

from workbench.comparison.layout import interval
from workbench.comparison.provenance import versions
from workbench.comparison.stats import mean_intervals
from workbench.comparison.table import Figure, Table
from workbench.errors import WorkbenchError, unknown
from workbench.locate.base import Cases, Localiser, Scores
from workbench.patching import map_files
from workbench.tensors import Intervention


@dataclass(frozen=True, repr=False)
class Map(Table):
    """A Table with a row per place and measure: mean, 95 % interval and number of cases.

    `save` keeps it whole but for its edits, `Map.load` gives it back; `Table.load` reads the rows of
    such a file.

    Attributes:
        scores: the values per case behind the rows.
        also: maps that belong to it, such as a control or the exact values of the top cells.
    """

    scores: Any = None
    also: Mapping[str, Map] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, in the order of `grid`."""
        return tuple(axis.name for axis in self.scores.axes)

    @property
    def measures(self) -> list[str]:
        """What was measured; the first is the main one."""
        return list(self.scores.values)

    def grid(self, measure: str | None = None) -> np.ndarray:
        """Means over cases as an array over `axes`; NaN where no case has such a place."""
        shape = [len(axis.labels) for axis in self.scores.axes]
        first = self.measures.index(self._measure(measure)) * prod(shape)
        return np.array(self.columns["mean"][first : first + prod(shape)], float).reshape(shape)

    def top(self, n: int = 10, measure: str | None = None) -> Any:
        """The `n` places of the largest absolute mean, as a DataFrame."""
        frame = self.frame()
        frame = frame[frame["measure"] == self._measure(measure)]
        order = frame["mean"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order[:n]].reset_index(drop=True)

    def at(self, **place: Any) -> Any:
        """The rows of a place, e.g. `at(layer=3, head=1)`, as a DataFrame; of all along other axes.

        Raises:
            UnknownName: no such axis, or no such label on it.
        """
        frame = self.frame()
        for name, label in self._labels("Map.at", place).items():
            frame = frame[frame[name] == label]
        return frame.reset_index(drop=True)

    def edit(self, **place: Any) -> Intervention:
        """The intervention that changes the model at a place: "make it an edit".

        Raises:
            WorkbenchError: the method has none, or there is no such place.
        """
        if self.scores.edit is None:
            raise WorkbenchError(
                "Map.edit",
                "this method changes nothing, so a place of it is no edit",
                expected="a map of a method that intervenes, such as activation_patching",
                got=self.provenance.get("method"),
                do="locate it with such a method first",
            )
        # an axis left out is asked for as None, which no axis has
        return self.scores.edit(**self._labels("Map.edit", {**dict.fromkeys(self.axes), **place}))

    def _labels(self, where: str, place: Mapping[str, Any]) -> dict[str, Any]:
        """The place in the axes' own labels: a data frame's 3 is no int."""
        known, found = {axis.name: axis.labels for axis in self.scores.axes}, {}
        for name, label in place.items():
            if name not in known:
                raise unknown(where, "axis", name, known)
            if label not in known[name]:
                raise unknown(f"{where}({name}=...)", name, label, map(str, known[name]))
            found[name] = known[name][known[name].index(label)]
        return found

    def figure(self, measure: str | None = None) -> Figure:
        """The picture of one measure, the main one by default."""
        scores: Scores = self.scores
        chosen = self._measure(measure)
        spec = {
            "kind": scores.figure,
            "measure": chosen,
            "unit": scores.units[chosen],
            "axes": [asdict(axis) for axis in scores.axes],
            "reference": _means(scores),
        }
        return Figure(self, spec, scores.caption)

    def _plain(self) -> dict[str, Any]:
        return {**super()._plain(), "map": map_files.plain(self)}

    @classmethod
    def _of(cls, plain: dict[str, Any]) -> Any:
        also = {name: cls._of(other) for name, other in plain["map"]["also"].items()}
        scores = map_files.scores(plain["map"], {name: one.scores for name, one in also.items()})
        return replace(super()._of(plain), scores=scores, also=also)

    def _measure(self, measure: str | None) -> str:
        if measure is not None and measure not in self.measures:
            raise unknown("Map", "measure", measure, self.measures)
        return measure or self.measures[0]

    @property
    def _shown(self) -> Any:  # what a Figure calls its numbers
        return self.frame()

    def _head(self) -> Any:
        shown = self.top(8)
        ends = zip(shown["low"], shown["high"], shown["n"], strict=True)
        shown["95 %"] = [interval(low, high, int(n)) for low, high, n in ends]
        return shown[[*self.axes, "measure", "mean", "95 %", "n", "unit"]]

    def __repr__(self) -> str:
        about = self.provenance
        shape = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in self.scores.axes)
        title = f"Map({about['method']} of {about['model']}: {shape}, {about['n_cases']} cases)"
        return title + "\n" + self._head().to_string(index=False, float_format="%.4g")

    def _repr_html_(self) -> str:
        from html import escape

        title = escape(repr(self).split("\n")[0])
        table = self._head().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        return f"<div><code>{title}</code>, largest first{table}</div>"


def as_map(scores: Scores, cases: Cases, method: Localiser, model: Any) -> Map:
    """Rows, intervals and provenance of scores."""
    provenance = {
        "method": _name(method),
        "options": {k: v for k, v in asdict(method).items() if isinstance(v, _PLAIN)},
        "model": model.name,
        "fingerprint": asdict(model.fingerprint_shape),
        "n_cases": len(next(iter(scores.values.values()))),
        "n_prompts": len(cases),
        "reference": _means(scores),
        "versions": versions(),
    }
    return _map(scores, provenance)


_PLAIN = (str, int, float, bool, tuple, list, type(None))


def _means(scores: Scores) -> dict[str, float]:
    """What frames the values, where there is a number at all."""
    found = {k: float(v.double().nanmean()) for k, v in scores.reference.items()}
    return {k: v for k, v in found.items() if isfinite(v)}


def _name(method: Localiser) -> str:
    return type(method).__module__.rpartition(".")[2]


def _map(scores: Scores, provenance: Mapping[str, Any]) -> Map:
    places = list(product(*(axis.labels for axis in scores.axes)))
    columns: dict[str, list[Any]] = {axis.name: [] for axis in scores.axes}
    rows: dict[str, list[Any]] = {k: [] for k in ("measure", "mean", "low", "high", "n", "unit")}
    for measure, values in scores.values.items():
        found = mean_intervals(values.flatten(1).double().cpu().numpy())
        for name, column in zip(columns, zip(*places, strict=True), strict=True):
            columns[name] += column
        rows["measure"] += [measure] * len(places)
        rows["unit"] += [scores.units[measure]] * len(places)
        for key, column in zip(("mean", "low", "high", "n"), found, strict=True):
            rows[key] += column.tolist()
    also = {name: _map(other, provenance) for name, other in scores.also.items()}
    return Map({**columns, **rows}, dict(scores.units), provenance, scores=scores, also=also)
