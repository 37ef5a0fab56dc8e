"""The numbers of a sweep's picture: every cell's interval and its difference to the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.comparison.stats import Interval, holm, mean_interval, paired_difference
from workbench.sweep import BASE, Cell, Point, StrengthByLayer

NAN = float("nan")
NOTHING = Interval(NAN, NAN, NAN, 0, NAN)
LEVEL = 0.05


class Figures:
    """Intervals of computed cells, each computed once: a bootstrap takes milliseconds."""

    def __init__(self, sweep: StrengthByLayer):
        self.sweep = sweep
        self._kept: dict[tuple[Point, str], tuple[Interval, Interval]] = {}

    def of(self, point: Point, metric: str) -> tuple[Interval, Interval]:
        """The mean over prompts with its interval, and the paired difference to the base."""
        point = BASE if point.strength == 0 else point
        cell, base = self.sweep.done.get(point), self.sweep.done.get(BASE)
        if cell is None or base is None or cell.error:
            return NOTHING, NOTHING
        if (point, metric) not in self._kept:
            self._kept[point, metric] = self._computed(point, metric, cell, base)
        return self._kept[point, metric]

    def arrays(self) -> dict[str, Any]:
        """All cells: `[metric, layer, strength]` of mean, low, high, difference and its interval, of
        the edit and of its control (`control_...`); `differs` marks cells.

        `differs`: the interval of the paired difference leaves out 0 and its sign-flip p-value,
        Holm-corrected over the metric's cells, is below 0.05.
        """
        sweep = self.sweep
        edit, control = ([self._stack(name, c) for name in sweep.metrics] for c in (False, True))
        found: dict[str, Any] = {}
        names = ("mean", "low", "high", "difference", "difference_low", "difference_high")
        for i, name in enumerate(names):
            found[name] = np.stack([m[..., i] for m in edit]).astype(np.float32)
            found[f"control_{name}"] = np.stack([m[..., i] for m in control]).astype(np.float32)
        found["differs"] = np.stack([_differs(m) for m in edit]).astype(np.uint8)
        base = [self.of(BASE, name)[0] for name in sweep.metrics]
        found["base"] = np.array([[b.mean, b.low, b.high] for b in base], np.float32)
        return found

    def _stack(self, metric: str, control: bool) -> np.ndarray:
        """`[layer, strength, 7]`: mean, low, high, difference, low, high, p."""
        rows = [
            [self._row(Point(y, s, control), metric) for s in self.sweep.strengths]
            for y in self.sweep.layers
        ]
        return np.array(rows, float)

    def _row(self, point: Point, metric: str) -> list[float]:
        own, gap = self.of(point, metric)
        p = NAN if gap.p is None else gap.p
        return [own.mean, own.low, own.high, gap.mean, gap.low, gap.high, p]

    def _computed(
        self, point: Point, metric: str, cell: Cell, base: Cell
    ) -> tuple[Interval, Interval]:
        proportion = self.sweep.metrics[metric].unit.startswith("fraction")
        own = mean_interval(cell.values[metric], proportion)
        if point == BASE:
            return own, Interval(0.0, 0.0, 0.0, own.n, NAN)
        return own, paired_difference(cell.values[metric], base.values[metric], proportion)


def _differs(stack: np.ndarray) -> np.ndarray:
    low, high, p = stack[..., 4], stack[..., 5], stack[..., 6]
    corrected = np.array(holm(p.ravel().tolist())).reshape(p.shape)
    with np.errstate(invalid="ignore"):
        return ((low > 0) | (high < 0)) & (corrected < LEVEL)


def states(sweep: StrengthByLayer) -> Mapping[str, Any]:
    """`state` `[layer, strength]`: 0 not computed, 1 computed, 2 failed; and the failures' words."""
    state = np.zeros((len(sweep.layers), len(sweep.strengths)), np.uint8)
    errors = {}
    for i, layer in enumerate(sweep.layers):
        for j, strength in enumerate(sweep.strengths):
            cell = sweep.done.get(BASE if strength == 0 else Point(layer, strength))
            if cell is not None:
                state[i, j] = 2 if cell.error else 1
                if cell.error:
                    errors[f"{i},{j}"] = cell.error
    return {"state": state, "errors": errors}
