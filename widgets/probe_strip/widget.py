"""ProbeStrip: a probe's score over a text while it is generated, without and with an edit."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from workbench import worker
from workbench.model.model import Model
from workbench.model.tokens import as_prompts
from workbench.probes.base import FittedProbe
from workbench.scopes import Scope
from workbench.tensors import Intervention, Readout
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.probe_strip import given
from workbench_widgets.probe_strip.code import cell
from workbench_widgets.probe_strip.engine import Engine, Superseded
from workbench_widgets.probe_strip.scores import about
from workbench_widgets.probe_strip.still import ended, still
from workbench_widgets.stills.words import number

NONE, PROBE = "none", "probe"
SCOPES = ("all", "prompt", "last_prompt", "generated")
MOST_STRENGTH = 1e6
MOVES = ("prompt", "edit", "scope", "strength", "window", "max_new_tokens")


class ProbeStrip(Widget):
    """Read and write a direction at once: a probe's score at every token while the model answers.

    Every token of prompt and continuation has the probe's score as its colour; under the text runs
    the score itself, smoothed over a window, and as the score so far with its threshold. Beside it is the
    same with an edit: the probe's own direction, where it is linear, or an edit of yours. All probes
    read one text, so another probe or threshold generates nothing again. Greedy decoding.

    Where a probe's own direction is written, its score rises by the strength, by construction; that it
    reads what the model uses shows in what the text does, and in probes of other layers.

    A row probe is asked at every token though it may have been fitted at the last one alone; whether it
    means the same there is for a test to say. The first token, where it begins the sequence, is left out
    of smoothing. Probabilities are the logistic function of the score, not calibrated.

    Args:
        model: any loaded model.
        prompts: one or many; one is shown at a time.
        probes: a FittedProbe, a list of them, or a dict by name; at any layers.
        edits: interventions to choose from beside the probe's own direction.
        max_new_tokens: longest continuation.
        window: M, tokens that the smoothing reaches back; a cascade probe keeps its own.
        threshold: of the score; class probes only.
        link: widgets of the same text share their selected token.

    Example:
        probe = wb.probes.fit("logistic", acts)["L3.resid_post"]
        strip = ProbeStrip(model, prompts, probe)
        strip.write(2.0).to_record()      # the probe's direction at strength 2, an Intervention

    Raises:
        WorkbenchError: no probes, probes of another model, an edit that fits no slider or no site, or
            a number out of its range.
    """

    folder = "probe_strip"

    def __init__(
        self,
        model: Model,
        prompts: Any,
        probes: Any,
        edits: Intervention | Iterable[Intervention] = (),
        *,
        max_new_tokens: int = 32,
        window: int = 16,
        threshold: float | int = 0.0,
        link: str = "",
    ):
        self._model, self._prompts = model, as_prompts(prompts)
        self._probes, self._edits = given.named(probes), given.movable(edits)
        given.fitting(model, self._probes)
        self._about = {name: about(probe) for name, probe in self._probes.items()}
        self._engine = Engine(model, self._prompts, self._probes, lambda: self.spec)
        # a site or an edit that does not fit the model is refused here, not in the first frame
        model.session(model.tokens([self._prompts[0]]), self._edits, self._engine.sites)
        self._swept: dict[str, Any] | None = None
        first = next(iter(self._probes))
        own = PROBE if self._about[first]["linear"] else NONE
        spec = {
            "prompt": 0,
            "probe": first,
            "edit": "0" if self._edits else own,
            "scope": "all",
            "strength": float(self._edits[0].strength) if self._edits else 0.0,
            "window": window,
            "threshold": threshold,
            "max_new_tokens": max_new_tokens,
        }
        self._checked(spec)
        super().__init__(spec=spec, meta=self._meta(), link=link)
        self.refresh()

    # --- what is chosen ------------------------------------------------------------------------

    @property
    def probe(self) -> FittedProbe:
        """The chosen probe."""
        return self._probes[given.chosen("probe", self.spec["probe"], self._probes)]

    def choose(self, **changes: Any) -> ProbeStrip:
        """Change the setting, such as `choose(prompt=1, probe="truth", threshold=0.5)`.

        Raises:
            WorkbenchError: no such setting, or a value out of range.
        """
        for name in changes:
            given.chosen("choose", name, [n for n in self.spec if n != "v"])
        self._checked({**self.spec, **changes})
        self.ask(**changes)
        return self

    def write(self, strength: float | int, edit: str = PROBE, scope: str = "all") -> ProbeStrip:
        """Show the edited side at a strength.

        Args:
            strength: for the probe's direction in units of its score; 0 for no edit.
            edit: "probe", its own direction; "0", "1", ... for the edits as given; or "none".
            scope: where the probe's direction is added; a given edit keeps its own.
        """
        return self.choose(edit=edit, strength=strength, scope=scope)

    def to_record(self) -> Intervention | Readout | FittedProbe:
        """The edit at the slider's strength. Where none is on: the probe's read-out, or the probe
        itself where it is not linear."""
        written = self._written(self._checked(self.spec))
        if written is not None:
            return written[1]
        return self.probe.readout if self._about[self.spec["probe"]]["linear"] else self.probe

    def to_code(self, folder: str = "edits") -> str:
        """A cell that generates the shown text and scores it; probes and edits go to `folder`."""
        spec = self._checked(self.spec)
        written = self._written(spec)
        own = spec["scope"] if spec["edit"] == PROBE else None
        edit = written[1] if written else None
        prompt = self._prompts[spec["prompt"]]
        return cell(self._model, prompt, self.probe, edit, own, spec["max_new_tokens"], folder)

    def precompute(self, grid: Any = None) -> ProbeStrip:
        """Frames for a page without a kernel: the chosen prompt and edit at every strength of `grid`.

        Every probe and every threshold is in each frame.

        Args:
            grid: strengths; 9 over the slider's range where left out.

        Raises:
            WorkbenchError: no edit is chosen, or a strength is no number.
        """
        spec = self._checked(self.spec)
        if spec["edit"] == NONE:
            raise self._has_no("edit to compute ahead: choose one with write()")
        self.settle()

        def work(job: worker.Job) -> list[dict[str, Any]]:
            values = self._grid(grid, self._reach(spec, job))
            frames = []
            for i, strength in enumerate(values):
                at = {**spec, "strength": strength}
                found = self._engine.frame(at, self._written(at), job)
                frames.append({"strength": strength, **found})
                job.progress(i + 1, len(values), f"strength {strength:g}")
            return frames

        frames = worker.submit(work, label="ProbeStrip.precompute").result(bar=True)
        shared = {k: frames[0][k] for k in ("base", "reach", "device")}
        values = [one["strength"] for one in frames]
        edited = [one["edited"] for one in frames]
        self._swept = spec
        self.sweep = pack({"grid": values, "of": spec, "shared": shared, "edited": edited})
        return self

    # --- frames --------------------------------------------------------------------------------

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        spec = self._checked(spec)

        def show(part: dict[str, Any]) -> None:
            if not worker.headless():
                self._show({"of": spec, **part})

        try:
            return self._engine.frame(spec, self._written(spec), job, show)
        except Superseded:
            return self.frame  # the later request's frame replaces it at once

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        if self._swept is not None and _rest(new) != _rest(self._swept):
            self.sweep, self._swept = b"", None  # it speaks of another setting
        return any(old.get(name) != new.get(name) for name in (*MOVES, "probe"))

    def _checked(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The spec, its numbers as numbers.

        Raises:
            WorkbenchError: something that there is not, or out of range.
        """
        edits = (NONE, PROBE, *map(str, range(len(self._edits))))
        found = {
            **spec,
            "prompt": given.chosen("prompt", spec["prompt"], range(len(self._prompts))),
            "probe": given.chosen("probe", spec["probe"], self._probes),
            "edit": given.chosen("edit", spec["edit"], edits),
            "scope": str(Scope.parse(spec["scope"])),
            "strength": given.number("strength", spec["strength"], -MOST_STRENGTH, MOST_STRENGTH),
            "window": given.number("window", spec["window"], 1, 10**4, whole=True),
            "threshold": given.number("threshold", spec["threshold"], -1e9, 1e9),
            "max_new_tokens": given.number(
                "max_new_tokens", spec["max_new_tokens"], 1, 10**5, whole=True
            ),
        }
        if found["edit"] == PROBE and found["strength"]:
            self._probes[found["probe"]].readout  # noqa: B018  says why there is no direction
        return found

    def _written(self, spec: Mapping[str, Any]) -> tuple[Any, Intervention] | None:
        """The edit of a setting with a key of what it is; None where nothing is written."""
        strength = float(spec["strength"])
        if spec["edit"] == NONE or strength == 0:
            return None
        if spec["edit"] == PROBE:
            edit = self._probes[spec["probe"]].edit().within(spec["scope"]).at(strength)
            return (PROBE, spec["probe"], spec["scope"], strength), edit
        return (spec["edit"], strength), self._edits[int(spec["edit"])].at(strength)

    def _reach(self, spec: Mapping[str, Any], job: worker.Job) -> float:
        if spec["edit"] != PROBE:
            return _reach(self._edits[int(spec["edit"])])
        return self._engine.frame(spec, None, job)["reach"]

    def _grid(self, grid: Any, reach: float) -> list[float]:
        now = float(self.spec["strength"])
        wanted = [-reach + reach * i / 4 for i in range(9)] if grid is None else grid
        try:
            many = list(wanted)
        except TypeError:
            many = [wanted]
        bounds = (-MOST_STRENGTH, MOST_STRENGTH)
        found = [given.number("precompute(grid=)", value, *bounds) for value in many]
        return sorted({round(float(value), 6) for value in found} | {now})

    # --- words ---------------------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        return {
            "title": self._model.name,
            "prompts": [_first_line(p) for p in self._prompts],
            "probes": [{"name": name, **self._about[name]} for name in self._probes],
            "edits": [
                {"name": e.label, "unit": e.unit, "scope": str(e.scope), "reach": _reach(e)}
                for e in self._edits
            ],
            "scopes": list(SCOPES),
        }

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what != "code":
            return super()._fetch(what, arguments, job)
        return {"code": self.to_code()}

    def _words(self) -> str:
        said, frame = f"{self._model.name}, {self.spec['probe']}", self.frame
        if "base" not in frame:
            return said
        which = list(self._probes).index(frame["of"]["probe"])
        for side in ("base", "edited"):
            if frame.get(side):
                said += f", {side} ends at {number(ended(frame[side], which))}"
        return said

    def _still(self) -> str:
        words = html.escape(self.status["msg"] or self._words())
        return still(self.frame, self.spec, self.meta, words)


def _rest(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep of strengths takes as given."""
    kept = {name: spec.get(name) for name in MOVES if name != "strength"}
    return {**kept, "probe": spec.get("probe") if spec.get("edit") == PROBE else None}


def _reach(edit: Intervention) -> float:
    return 180.0 if edit.operation == "rotate" else max(2.0, 2 * abs(float(edit.strength)))


def _first_line(prompt: Any) -> str:
    text = prompt.text if prompt.text is not None else prompt.messages[-1]["content"]
    return text.strip().replace("\n", " ")[:60]
