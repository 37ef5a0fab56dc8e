"""The numbers of the trade-off plot: a point for every setting, each metric with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.comparison.stats import Interval, holm, mean_interval, paired_difference
from workbench.sweep.methods import MethodPoint
from workbench.sweep.strength_by_layer import Cell
from workbench_widgets.steering_lab.settings import METHOD, Settings, kind_of, place_of

NAN = float("nan")
NOTHING = Interval(NAN, NAN, NAN, 0, NAN)
LEVEL = 0.05
COLUMNS = ("mean", "low", "high", "difference", "difference_low", "difference_high", "p")


class Figures:
    """Intervals of computed settings, each computed once: a bootstrap takes milliseconds."""

    def __init__(self, settings: Settings):
        self.settings, self.sweep = settings, settings.sweep
        self._kept: dict[tuple[MethodPoint, str], tuple[Interval, Interval]] = {}

    def of(self, point: MethodPoint, metric: str) -> tuple[Interval, Interval]:
        """The mean over prompts with its interval, and the paired difference to the baseline."""
        cell, base = self.sweep.done.get(point), self.sweep.done.get(self.sweep.BASE)
        if cell is None or base is None or metric not in cell.values or metric not in base.values:
            return NOTHING, NOTHING
        if (point, metric) not in self._kept:
            proportion = self.sweep.metrics[metric].unit.startswith("fraction")
            own = mean_interval(cell.values[metric], proportion)
            gap = paired_difference(cell.values[metric], base.values[metric], proportion)
            if point == self.sweep.BASE:
                gap = Interval(0.0, 0.0, 0.0, own.n, NAN)
            self._kept[point, metric] = own, gap
        return self._kept[point, metric]

    def frame(self) -> dict[str, Any]:
        """`points`: kind, method, layer and strength by point; per column of `COLUMNS` `[metric,
        point]`; `differs` `[metric, point]`; `errors`: words and the points that failed with them.

        `differs`: the interval of the paired difference leaves out 0 and its sign-flip p-value,
        Holm-corrected over the metric's edits, is below 0.05.
        """
        points = self.settings.shown()
        names = list(self.sweep.metrics)
        rows = [[self._row(point, name) for point in points] for name in names]
        stack = np.array(rows, float).reshape(len(names), len(points), len(COLUMNS))
        edits = np.array([kind_of(point) == METHOD for point in points], bool)
        return {
            "points": listing(points),
            "errors": errors(self.sweep.done, points),
            **{name: stack[..., i].astype(np.float32) for i, name in enumerate(COLUMNS)},
            "differs": np.stack([_differs(one, edits) for one in stack]).astype(np.uint8),
        }

    def _row(self, point: MethodPoint, metric: str) -> list[float]:
        own, gap = self.of(point, metric)
        p = NAN if gap.p is None else gap.p
        return [own.mean, own.low, own.high, gap.mean, gap.low, gap.high, p]


def listing(points: Sequence[MethodPoint]) -> dict[str, list[Any]]:
    """The points as columns; a layer is None for a method's whole edit."""
    places = [place_of(point) for point in points]
    names = ("kind", "method", "layer", "strength")
    return {name: [getattr(place, name) for place in places] for name in names}


def errors(done: Mapping[MethodPoint, Cell], points: Sequence[MethodPoint]) -> list[list[Any]]:
    """`[words, [indices of points]]`, each text once."""
    found: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        if done[point].error:
            found.setdefault(done[point].error, []).append(i)
    return [[words, places] for words, places in found.items()]


def _differs(columns: np.ndarray, edits: np.ndarray) -> np.ndarray:
    low, high, p = (columns[:, COLUMNS.index(n)] for n in COLUMNS[-3:])
    corrected = np.full(len(p), NAN)
    corrected[edits] = holm(p[edits].tolist())
    with np.errstate(invalid="ignore"):
        return ((low > 0) | (high < 0)) & (corrected < LEVEL)
