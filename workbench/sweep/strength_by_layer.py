"""An edit at every strength and layer: each cell a pass over all prompts, computed once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from workbench import sites
from workbench.comparison.doses import Cell
from workbench.comparison.metrics.base import Metric
from workbench.comparison.provenance import provenance
from workbench.comparison.run import Comparison, checked_metrics
from workbench.comparison.table import Table
from workbench.errors import EditError, WorkbenchError
from workbench.interventions.control import random_control
from workbench.model.tokens import as_prompts
from workbench.tensors import Arm, Intervention

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
MAX_CELLS = 2000


class Point(NamedTuple):
    """One setting. `control` is the random direction of the same norm."""

    layer: int
    strength: float
    control: bool = False


BASE = Point(-1, 0.0)
"""The model as it is; strength 0 at any layer is this, bit for bit."""


class StrengthByLayer:
    """Metrics of an edit against its strength and the layer it acts at.

    Args:
        edit: one with sites in several layers, each layer's sites taken alone, or a callable from a
            layer's number to the edit there (called once per layer).
        layers: those of the edit, or all, by default.
        metrics: as in `wb.compare`.
        control: also a random direction of the same norm for every cell.

    Attributes:
        layers, strengths: the axes, sorted.
        metrics: Metric by name.
        done: Cell by Point.

    Raises:
        WorkbenchError: no prompts, layers or strengths, too many cells, a strength that is not
            finite, or a prompt that a metric cannot judge.
        PromptError: a prompt too long for the context.
    """

    def __init__(
        self,
        model: Any,
        prompts: Any,
        edit: Intervention | Callable[[int], Intervention],
        *,
        layers: Iterable[int] | None = None,
        strengths: Iterable[float | int] = STRENGTHS,
        metrics: Sequence[str | Metric] = ("accuracy", "kl_nats"),
        control: bool = True,
        control_seed: int = 0,
        max_new_tokens: int = 64,
        decoder: Any = None,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        batch_size: int | None = None,
    ):
        self.model, self.seed, self.control, self.control_seed = model, seed, control, control_seed
        self.options = {"max_new_tokens": max_new_tokens, "stop": stop, "batch_size": batch_size}
        self._job = Comparison(
            model, as_prompts(prompts), checked_metrics(metrics), decoder, self.options
        )
        self._job.refuse([seed])
        model.tokens(self._job.prompts, room=max_new_tokens)
        self._edit, self._edits = edit, {}
        self._by_layer = {} if callable(edit) else sites_by_layer(edit, model.n_layers)
        have = range(model.n_layers) if callable(edit) else self._by_layer
        self.layers = checked_layers(have if layers is None else layers, have)
        self.strengths = checked_strengths(strengths)
        self.done: dict[Point, Cell] = {}
        n = len(self.layers) * len(self.strengths)
        if n > MAX_CELLS:
            raise _refused("has too many cells", f"at most {MAX_CELLS}", n, "take fewer of either")

    @property
    def prompts(self) -> list[Any]:
        """What every cell answers."""
        return self._job.prompts

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name."""
        return self._job.metrics

    @property
    def decoder(self) -> Any:
        """As given; None is greedy."""
        return self._job.decoder

    def points(self) -> list[Point]:
        """Every setting to compute: the base, the cells by layer, then the controls."""
        moved = [s for s in self.strengths if s != 0]
        kinds = [False, True] if self.control else [False]
        return [BASE, *(Point(y, s, c) for c in kinds for y in self.layers for s in moved)]

    def edit_at(self, layer: int, strength: float, control: bool = False) -> Intervention | None:
        """The edit of a cell, or its control: None where it has none."""
        if layer not in self._edits:
            if callable(self._edit):
                self._edits[layer] = self._edit(layer)
            else:
                self._edits[layer] = self._edit.only(*self._by_layer[layer])
        edit = self._edits[layer]
        found = random_control(edit, self.control_seed) if control else edit
        return None if found is None else found.at(strength)

    def cell(self, point: Point) -> Cell:
        """The setting's cell; computed where it is not there yet.

        An edit that cannot be applied, or makes the model overflow, gives a cell that says so.
        """
        point = BASE if point.strength == 0 else point
        if point not in self.done:
            try:
                self.done[point] = self._computed(point)
            except EditError as error:
                self.done[point] = Cell(error=str(error))
        return self.done[point]

    def table(self) -> Table:
        """All computed numbers, a row per setting, prompt and metric."""
        rows = [
            (_kind(point), point.layer, point.strength, i, name, value, self.metrics[name].unit)
            for point in self.points()
            if point in self.done
            for name, values in self.done[point].values.items()
            for i, value in enumerate(values)
        ]
        names = ("kind", "layer", "strength", "prompt", "metric", "value", "unit")
        columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
        units = {name: metric.unit for name, metric in self.metrics.items()}
        texts = [g for p in self.points() if p in self.done for g in self.done[p].generations]
        return Table(columns, units, self._provenance(), tuple(texts))

    def _computed(self, point: Point) -> Cell:
        edits = []
        if point != BASE:
            edit = self.edit_at(*point)
            if edit is None:
                return Cell(error="no random control: the edit has no direction")
            edits = [edit]
        arm = Arm(_name(point), edits)
        texts = self._job.generate(arm, self.seed)
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        for rows in self._job.judge(arm, self.seed, texts):
            for _, _, _, name, value, _ in rows:
                values[name].append(value)
        return Cell(values, tuple(texts))

    def _provenance(self) -> dict[str, Any]:
        arms = [Arm(f"L{y}", [e]) for y, e in self._edits.items()]
        missing = sum(point not in self.done for point in self.points())
        return provenance(
            arms,
            self.model,
            self.prompts,
            [self.seed],
            self.decoder,
            strengths=self.strengths,
            layers=self.layers,
            control_seed=self.control_seed,
            not_computed=missing,
            **self.options,
        )


def _name(point: Point) -> str:
    if point == BASE:
        return "base"
    return f"L{point.layer} x {point.strength:g}" + (" (random control)" if point.control else "")


def _kind(point: Point) -> str:
    return "base" if point == BASE else "control" if point.control else "edit"


def sites_by_layer(edit: Intervention, n_layers: int) -> dict[int, list[str]]:
    """An edit's site texts by layer; refuses a site that is in no layer or in several."""
    found: dict[int, list[str]] = {}
    for text in edit.sites:
        layers = {site.layer for site in sites.parse(text, n_layers)}
        if len(layers) != 1 or None in layers:
            raise EditError(
                f"sweep of {edit.label!r}",
                "has a site that is not in one layer",
                expected="sites such as L3.resid_post",
                got=text,
                do="name one layer per site, or pass a callable layer -> Intervention",
            )
        found.setdefault(layers.pop() or 0, []).append(text)
    return found


def checked_layers(asked: Iterable[int], have: Iterable[int]) -> list[int]:
    """Layers in order, once each; refuses none, and those that an edit or model lacks."""
    layers, have = sorted(set(asked)), sorted(have)
    if not layers or not set(layers) <= set(have):
        raise _refused("has no such layers", f"some of {have}", layers, "name layers of the edit")
    return layers


def checked_strengths(asked: float | int | Iterable[float | int]) -> list[float]:
    """Strengths in order, once each, or the only one; refuses none, and what is not finite."""
    many = [asked] if isinstance(asked, float | int) else asked
    strengths = sorted({float(s) for s in many})
    if not strengths or not all(map(math.isfinite, strengths)):
        raise _refused("has no strengths", "finite numbers", strengths, "pass strengths=[-1, 0, 1]")
    return strengths


def _refused(wrong: str, expected: str, got: object, do: str) -> WorkbenchError:
    return WorkbenchError("sweep", wrong, expected=expected, got=got, do=do)
