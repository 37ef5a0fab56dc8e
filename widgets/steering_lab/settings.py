"""The settings of a sweep of methods as the lab asks for them, none fitted before it is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any, NamedTuple

from workbench.sweep.fitted import MULTIPLES
from workbench.sweep.methods import MethodPoint, MethodSweep

BASE, PROMPTING, METHOD, CONTROL = "base", "prompting", "method", "control"


class Fit(NamedTuple):
    """A method to be fitted, whose strengths are not known yet."""

    method: str


class Place(NamedTuple):
    """A setting as the browser names it."""

    kind: str
    method: str
    layer: int | None
    strength: float


class Settings:
    """Points of a sweep, by what is known of them.

    Attributes:
        sweep: of methods by layers by strengths; its `done` grows.
    """

    def __init__(self, sweep: MethodSweep):
        self.sweep = sweep

    def points(self) -> list[MethodPoint]:
        """The unedited model, the prompt, and all points of methods whose strengths are known."""
        sweep = self.sweep
        ready = [p for name in sweep.methods if sweep.ready(name) for p in sweep.points_of(name)]
        return [sweep.BASE, *([sweep.PROMPTING] if sweep.prompting else []), *ready]

    def shown(self) -> list[MethodPoint]:
        """Points that are done, failed ones too."""
        return [point for point in self.points() if point in self.sweep.done]

    def wanted(self, spec: Mapping[str, Any]) -> list[MethodPoint | Fit]:
        """What the chosen methods and layers ask for, in order: the baseline, then method by method
        its fit and its points, then the controls."""
        points = [p for p in self.points() if self._chosen(p, spec)]
        fits = [Fit(n) for n in self.sweep.methods if n in spec["methods"] and not self._known(n)]
        edits = [p for p in points if kind_of(p) == METHOD]
        plain = [p for p in points if not is_edit(p)]
        return [*plain, *edits, *fits, *(p for p in points if kind_of(p) == CONTROL)]

    def counted(self, spec: Mapping[str, Any]) -> tuple[int, int]:
        """Settings done and in all; a method that is not fitted yet counts as many strengths as it
        is likely to get."""
        lines = [line for line in self.lines() if self._chosen(Place(**line["of"]), spec)]
        return sum(line["done"] for line in lines), sum(line["total"] for line in lines)

    def lines(self) -> list[dict[str, Any]]:
        """What there is to compute: `of` a kind, method and layer, settings `done` and in `total`."""
        found: dict[Place, list[bool]] = {}
        for point in self.points():
            key = place_of(point)._replace(strength=0.0)
            found.setdefault(key, []).append(point in self.sweep.done)
        kinds = [METHOD, CONTROL] if self.sweep.control else [METHOD]
        for name in self.sweep.methods:
            if not self.sweep.ready(name):
                layers = self.sweep.layers_of(name)
                keys = [Place(kind, name, y, 0.0) for kind in kinds for y in layers]
                found |= {key: [False] * len(MULTIPLES) for key in keys}
        return [
            {"of": key._asdict(), "done": sum(done), "total": len(done)}
            for key, done in found.items()
        ]

    def find(self, place: Place) -> MethodPoint | None:
        """The point of a setting, None where the sweep has none."""
        for point in self.points():
            own = place_of(point)
            if own[:3] == place[:3] and isclose(own.strength, place.strength, rel_tol=1e-3):
                return point
        return None

    def _known(self, name: str) -> bool:
        return self.sweep.ready(name)

    def _chosen(self, point: MethodPoint | Place, spec: Mapping[str, Any]) -> bool:
        if point.method not in self.sweep.methods:
            return True
        whole = point.layer is None and None not in self.sweep.layers
        return point.method in spec["methods"] and (whole or point.layer in spec["layers"])


def kind_of(point: MethodPoint) -> str:
    """What a point is: the model as it is, a prompt, a method's edit or its control."""
    if point.method in (BASE, PROMPTING):
        return point.method
    return CONTROL if point.control else METHOD


def is_edit(point: MethodPoint) -> bool:
    """Whether a point has an intervention."""
    return kind_of(point) in (METHOD, CONTROL)


def place_of(point: MethodPoint) -> Place:
    """The point as the browser names it."""
    return Place(kind_of(point), point.method, point.layer, float(point.strength))


def in_words(piece: MethodPoint | Fit) -> str:
    """A setting as the widget names it."""
    if isinstance(piece, Fit):
        return f"fitting {piece.method}"
    if not is_edit(piece):
        return "baseline" if kind_of(piece) == BASE else "prompting"
    parts = [piece.method]
    parts += [f"layer {piece.layer}"] if piece.layer is not None else []
    parts += [f"strength {piece.strength:.4g}"]
    parts += ["random direction"] if kind_of(piece) == CONTROL else []
    return ", ".join(parts)
