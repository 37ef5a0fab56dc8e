"""PatchGrid: a map of the model as a grid; a cell opens on what a patch there does to the next token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from workbench import registry, worker
from workbench.errors import UnknownName, WorkbenchError, unknown
from workbench.locate.base import Localiser
from workbench.model.model import Model
from workbench.patching.cases import cases_of
from workbench.patching.find import find
from workbench.patching.map import Map
from workbench.tensors import Intervention
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.patch_grid import maps
from workbench_widgets.patch_grid.code import cell
from workbench_widgets.patch_grid.opened import Opened
from workbench_widgets.patch_grid.still import still
from workbench_widgets.stills.words import cut, number
from workbench_widgets.transcripts import shown

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
STRONGEST = 3.0
VALUES_KEPT = 2**18
"""Numbers of single cases that go with a page without a kernel."""
CASES_NAMED = 200


class PatchGrid(Widget):
    """Where in the model something happens, as a grid of places; click one to see what it does.

    A place shows its mean with a 95 % interval over cases, its control where the method has one, the
    tokens there, and the most probable next tokens of the base run, the source run and the patched run.
    "Make it an edit": a slider moves the strength of the map's own edit of that place, and the next
    token's probabilities follow. A patch puts in each case's own value; the edit adds their mean change.

    Args:
        model: any loaded model.
        cases: prompts as `locate.find` takes them.
        method: a registry name, a localiser with options, or a Map made before.
        top: next tokens shown of each run.
        link: widgets of the same text share their selected layer and head.
        handed: what the method needs and a model cannot give.

    Example:
        grid = PatchGrid(model, cases, "activation_patching")
        grid.choose(layer=3, pos=7).to_record()     # an Intervention

    Raises:
        UnknownName: no such method.
        WorkbenchError: prompts lack what the method reads, or a map of another model or other cases.
    """

    folder = "patch_grid"

    def __init__(
        self,
        model: Model,
        cases: Any,
        method: str | Localiser | Map = "activation_patching",
        *,
        top: int = 6,
        link: str = "",
        **handed: Any,
    ):
        self._model, self._handed = model, handed
        self._top = max(1, min(int(top), model.dims.n_vocab))
        self._found: Map | None = None
        self._runs: dict[int | None, Opened] = {}
        self._method = None if isinstance(method, Map) else _localiser(method)
        self._cases = cases_of(model, cases, self._method.reads if self._method else ())
        if self._method is None:
            self._found = maps.check(method, model, self._cases, "PatchGrid")
        spec = {"place": None, "case": None, "strength": 1.0}
        super().__init__(spec=spec, meta=self._about(), link=link)
        self.refresh()

    @classmethod
    def of(cls, found: Map, model: Model, cases: Any, **options: Any) -> PatchGrid:
        """The grid of a map that `locate.find(method, model, cases)` gave.

        Raises:
            WorkbenchError: a map of another model or of other cases.
        """
        return cls(
            model,
            cases,
            maps.check(found, model, cases_of(model, cases), "PatchGrid.of"),
            **options,
        )

    # --- what is chosen ------------------------------------------------------------------------

    @property
    def found(self) -> Map:
        """The map, computed first where it is not there yet.

        Raises:
            WorkbenchError: the method failed.
        """
        if self._found is None:
            self.settle()
        if self._found is None:
            raise WorkbenchError(
                "PatchGrid",
                "has no map yet",
                expected="a method that ran to its end",
                got=self.status["msg"] or self.status["state"],
                do="correct the cases and make the widget again",
            )
        return self._found

    @property
    def place(self) -> dict[str, Any] | None:
        """Labels of the chosen place by axis name, or None."""
        at = self.spec["place"]
        return None if at is None else maps.labels(self.found, self._checked(at))

    def choose(
        self, *, case: int | None = None, strength: float | int | None = None, **place: Any
    ) -> PatchGrid:
        """Open a place by its labels, such as `choose(layer=3, pos=7)`. Returns the widget.

        Args:
            case: one case instead of the mean over all.
            strength: of the edit; as it was by default.

        Raises:
            UnknownName: the map has no such axis or label.
        """
        axes = self.found.scores.axes
        for name in place:
            if name not in self.found.axes:
                raise unknown("PatchGrid.choose", "axis", name, self.found.axes)
        at = []
        for axis in axes:
            if place.get(axis.name) not in axis.labels:
                known = [str(label) for label in axis.labels]
                raise unknown("PatchGrid.choose", axis.name, place.get(axis.name), known)
            at.append(axis.labels.index(place[axis.name]))
        now = self.spec["strength"] if strength is None else float(strength)
        self._case(case)
        self.ask(place=at, case=case, strength=now)
        return self

    def _case(self, case: Any) -> int | None:
        known = (
            isinstance(case, int) and not isinstance(case, bool) and 0 <= case < len(self._cases)
        )
        if case is None or known:
            return case
        raise WorkbenchError(
            "PatchGrid",
            "has no such case",
            expected=f"0 to {len(self._cases) - 1}, or None for all",
            got=case,
            do="count from 0",
        )

    def _checked(self, place: Any) -> tuple[int, ...]:
        sizes = [len(axis.labels) for axis in self.found.scores.axes]
        fits = isinstance(place, Sequence) and len(place) == len(sizes)
        if fits and all(
            isinstance(i, int) and 0 <= i < n for i, n in zip(place, sizes, strict=True)
        ):
            return tuple(place)
        raise WorkbenchError(
            "PatchGrid",
            "has no such place",
            expected=f"an index per axis {self.found.axes}, below {sizes}",
            got=place,
            do="use choose(...) with the axes' labels",
        )

    # --- frames --------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        prompts = [cut(shown(p), 90) for p in self._cases.clean.prompts[:CASES_NAMED]]
        found = self._found
        name = type(self._method).__module__.rpartition(".")[2]
        mine = {"method": name, "axes": [], "measures": [], "edits": False, "caption": ""}
        return {
            "title": "Patches",
            **(maps.about(found) if found else mine),
            "n_cases": len(self._cases),
            "cases_apart": found is None or maps.has_cases(found, self._cases),
            "prompts": prompts,
            "strength": {"min": -STRONGEST, "max": STRONGEST, "step": 0.05},
            "complete": False,
        }

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if self._found is None:
            self._locate(job)
        assert self._found is not None
        case = self._case(spec.get("case"))
        frame: dict[str, Any] = maps.arrays(self._found)
        if case is not None and maps.has_cases(self._found, self._cases):
            frame["one"] = maps.of_case(self._found, case)
        if spec.get("place") is not None:
            strength = _strength(spec.get("strength"))
            frame["opened"] = self._opened(case).at(self._checked(spec["place"]), strength)
        return frame

    def _locate(self, job: worker.Job) -> None:
        assert self._method is not None
        job.progress(0, 0, f"running {self.meta['method'].replace('_', ' ')}")
        found = find(self._method, self._model, self._cases, progress=False, **self._handed)
        self._found = found
        self.meta = self._about()

    def _opened(self, case: int | None) -> Opened:
        """The runs of a case or of all, the last two kept."""
        if case not in self._runs:
            rows = [*range(len(self._cases))] if case is None else [case]
            while len(self._runs) > 1:
                self._runs.pop(next(iter(self._runs)))
            self._runs[case] = Opened(self._model, self._cases, self.found, rows, self._top)
        return self._runs[case]

    # --- as Python -----------------------------------------------------------------------------

    def to_record(self) -> Intervention:
        """The map's edit of the chosen place, at the slider's strength.

        Raises:
            WorkbenchError: no place is chosen, or the method changes nothing.
        """
        place = self.place
        if place is None:
            raise WorkbenchError(
                "PatchGrid.to_record",
                "has no place chosen",
                expected="a clicked cell",
                got="none",
                do=f"click one, or choose({', '.join(f'{a}=...' for a in self.found.axes)})",
            )
        return self.found.edit(**place).at(_strength(self.spec["strength"]))

    def to_code(self) -> str:
        """A cell that finds the map, and makes the edit of the chosen place, without the widget."""
        found = self.found
        place = self.place if found.scores.edit is not None else None
        return cell(
            self._model, self._cases, self._method, found, place, _strength(self.spec["strength"])
        )

    def precompute(self, grid: Iterable[float] | None = None, places: int = 12) -> PatchGrid:
        """Keep the strongest places, and the chosen one, at several strengths for a page without a kernel.

        Single cases go with it where they are few. Returns the widget.

        Args:
            grid: strengths; 0 to 2 in halves by default.
            places: how many of the largest absolute mean.

        Raises:
            WorkbenchError: no strengths, or one that is not a finite number.
        """
        found, spec = self.found, self.spec
        strengths = _grid(grid, float(spec["strength"])) if found.scores.edit else [1.0]
        wanted = maps.best(found, places)
        if spec["place"] is not None:
            wanted.append(self._checked(spec["place"]))
        case = self._case(spec["case"])
        job = worker.submit(
            lambda job: self._swept(dict.fromkeys(wanted), strengths, case, job),
            label="PatchGrid.precompute",
        )
        kept = {"grid": strengths, "case": case, "opened": job.result()}
        self.sweep = pack({**kept, **self._singles()})
        return self

    def _swept(
        self,
        places: Iterable[tuple[int, ...]],
        strengths: Sequence[float],
        case: Any,
        job: worker.Job,
    ) -> dict[str, Any]:
        many, opened, kept = list(places), self._opened(case), {}
        for done, place in enumerate(many):
            kept[",".join(map(str, place))] = [opened.at(place, s) for s in strengths]
            job.progress(done + 1, len(many), "places")
        return kept

    def _singles(self) -> dict[str, np.ndarray]:
        n = len(self._cases)
        if not maps.has_cases(self.found, self._cases):
            return {}
        if n * self.found.grid().size * len(self.found.measures) > VALUES_KEPT:
            return {}
        return {"cases": np.stack([maps.of_case(self.found, i) for i in range(n)])}

    # --- pictures ------------------------------------------------------------------------------

    def _measure(self) -> int:
        chosen = self.view.get("measure", 0)
        return min(max(int(chosen or 0), 0), len(self.meta["measures"]) - 1)

    def _words(self) -> str:
        if self._found is None:
            return self.meta["method"]
        sizes = " x ".join(f"{len(a.labels)} {a.name}" for a in self._found.scores.axes)
        (place,) = maps.best(self._found, 1)
        at = ", ".join(f"{k} {v}" for k, v in maps.labels(self._found, place).items())
        most = f"{self._found.measures[0]} {number(float(self._found.grid()[place]))} at {at}"
        return f"{self.meta['method']}: {sizes}, {len(self._cases)} cases; {most}"

    def _still(self) -> str:
        if self._found is None or not self.frame:
            return "<p>Patches: not computed</p>"
        return still(self.frame, self.meta, self._measure(), self.view.get("panel"))


def _localiser(method: Any) -> Localiser:
    found = registry.get("locate", method)() if isinstance(method, str) else method
    if isinstance(found, Localiser):
        return found
    raise UnknownName(
        "PatchGrid",
        "takes no such method",
        expected="a registry name, a Localiser or a Map",
        got=type(method).__name__,
        do="run `workbench methods locate` for the names",
    )


def _strength(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    raise WorkbenchError(
        "PatchGrid", "needs a strength", expected="a finite number", got=value, do="choose one"
    )


def _grid(given: Iterable[float] | None, now: float) -> list[float]:
    try:
        found = [_strength(s) for s in (STRENGTHS if given is None else given)]
    except TypeError:
        found = []
    if not found:
        raise WorkbenchError(
            "PatchGrid.precompute",
            "needs strengths",
            expected="a list of finite numbers",
            got=repr(given)[:80],
            do="pass some, or leave it out",
        )
    return sorted({*found, now})
