"""SteeringLab: train steering methods, see what each costs, read what the model then says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench import registry, worker
from workbench.comparison.metrics.base import Metric
from workbench.comparison.table import Table
from workbench.errors import WorkbenchError, unknown
from workbench.model.model import Model
from workbench.sweep.methods import MethodPoint, MethodSweep
from workbench.tensors import Intervention
from workbench_widgets.filling import Filling
from workbench_widgets.live_edit.widget import LiveEdit
from workbench_widgets.steering_lab.code import Recipe
from workbench_widgets.steering_lab.figures import Figures
from workbench_widgets.steering_lab.settings import (
    CONTROL,
    METHOD,
    Fit,
    Place,
    Settings,
    in_words,
    is_edit,
    kind_of,
    place_of,
)
from workbench_widgets.steering_lab.still import still
from workbench_widgets.transcripts import affordable, packed, shown

PROMPTS_KEPT = 8
TOKENS_KEPT = 120_000
SIDE_EFFECTS = ("kl_nats", "next_token_kl_nats", "perplexity")
"""What lies on the other axis at first, where it is measured."""


class SteeringLab(Filling):
    """Steering methods by layer and strength: what each achieves against what it costs.

    Methods and layers are chosen in the widget; Train fits and measures them on the model's thread,
    setting by setting. The plot sets one metric against another, a line per method and layer along
    its strength, beside the baseline, a random direction of the same norm (hollow) and a prompt. A
    point opens on its continuations beside the baseline's, as Python, or as a LiveEdit. Nothing runs
    before Train is pressed, a cancel keeps what is done, and nothing is computed twice.

    Args:
        data: labelled prompts that the methods are fitted on.
        methods: registry names or methods with options, all chosen at first; by default those that
            need rows alone, the mean difference chosen.
        layers, strengths, prompts, metrics, options: as in `wb.steering.sweep`.

    Continuations of the first 8 prompts go with a saved page, fewer where they are long; a running
    kernel gives all of them.

    Raises:
        UnknownName: no such method.
        WorkbenchError: no prompts, layers or strengths, or a prompt that a metric cannot judge.

    Example:
        lab = SteeringLab(model, data, ["mean_difference", "ace"], layers=[2, 3])
        lab.train()                                  # as the button does
        lab.choose("ace", 2, 1.0).to_record()        # the edit of a point
        lab.live()                                   # the same in a LiveEdit
    """

    folder = "steering_lab"

    def __init__(
        self,
        model: Model,
        data: Any,
        methods: Any = None,
        *,
        layers: Iterable[int] | None = None,
        strengths: Any = None,
        prompts: Any = None,
        metrics: Sequence[str | Metric] | None = None,
        link: str = "",
        **options: Any,
    ):
        few = methods is None
        sweep = MethodSweep(
            model,
            data,
            _plain_methods() if few else methods,
            layers=layers,
            strengths=strengths,
            prompts=prompts,
            metrics=metrics,
            **options,
        )
        self._open(sweep, link, few)

    @classmethod
    def of(cls, sweep: MethodSweep, link: str = "") -> SteeringLab:
        """The lab of a sweep that was made elsewhere, with all that it has computed."""
        lab = cls.__new__(cls)
        lab._open(sweep, link)
        return lab

    def _open(self, sweep: MethodSweep, link: str, few: bool = False) -> None:
        self._sweep, self._settings = sweep, Settings(sweep)
        self._figures, self._recipe = Figures(self._settings), Recipe(sweep)
        self._told_of = ""
        names, metrics = list(sweep.methods), list(sweep.metrics)
        side = next((metrics.index(n) for n in SIDE_EFFECTS if n in metrics), len(metrics) - 1)
        spec = {"methods": names[:1] if few else names, "layers": list(sweep.layers)}
        super().__init__(
            spec={**spec, "x": side, "y": 0, "controls": True, "chosen": None},
            meta=_meta(sweep),
            link=link,
        )
        # nothing runs before it is asked for
        self._went, self._held, self._took_ms = 0, True, 0.0
        self._tell_complete()
        self._publish(self._picture(), 0, last=True)

    # --- what Python asks for --------------------------------------------------------------------

    def train(
        self, methods: Sequence[str] | None = None, layers: Iterable[int] | None = None
    ) -> SteeringLab:
        """Fit and measure what is missing of these methods and layers, by default of those chosen.

        Raises:
            UnknownName: a method that the lab does not have.
            WorkbenchError: a layer that it does not have.
        """
        spec = self.spec
        wanted = spec["methods"] if methods is None else list(methods)
        for name in wanted:
            if name not in list(self._sweep.methods):
                raise unknown("SteeringLab.train", "method", name, self._sweep.methods)
        places = spec["layers"] if layers is None else list(layers)
        if not set(places) <= set(self._sweep.layers):
            raise _refused("train", "has no such layer", f"some of {self._sweep.layers}", places)
        self.ask(methods=wanted, layers=places, go=int(spec["go"]) + 1)
        return self

    @property
    def chosen(self) -> MethodPoint | None:
        """The chosen point of the sweep, None where there is none."""
        asked = self.spec.get("chosen")
        try:
            return self._settings.find(Place(**asked))
        except TypeError:  # none, or what no browser of ours sends
            return None

    def choose(
        self, method: str, layer: int | None, strength: float | int, control: bool = False
    ) -> SteeringLab:
        """Choose a point. Returns the widget.

        Raises:
            WorkbenchError: the lab has no such point, or its method is not trained yet.
        """
        kind = METHOD if method in self._sweep.methods else method
        asked = Place(CONTROL if control else kind, method, layer, float(strength))
        point = self._settings.find(asked)
        if point is None:
            have = [p for p in self._settings.points() if p.method == method]
            near = [p for p in have if p.layer == layer] or have
            said = ", ".join(map(in_words, near[:12])) or f"one of {list(self._sweep.methods)}"
            raise _refused("choose", "has no such point", said, tuple(asked)[1:])
        self.ask(chosen=place_of(point)._asdict())
        return self

    def table(self) -> Table:
        """Every computed number, as `wb.steering.sweep` gives it."""
        return self._sweep.table()

    def to_record(self) -> Intervention:
        """The intervention of the chosen point, at its strength.

        Raises:
            WorkbenchError: no point is chosen, or it is no edit.
        """
        point = self.chosen
        edit = self._sweep.edit_at(point) if point is not None and is_edit(point) else None
        if edit is None:
            got = "no point" if point is None else in_words(point)
            raise _refused("to_record", "has no edit chosen", "a point of a method", got)
        return edit

    def to_code(self, folder: str = "edits") -> str:
        """A cell that fits the edit of the chosen point again, and generates with it."""
        edit, point = self.to_record(), self.chosen
        assert point is not None
        return self._recipe.cell(point, edit, folder)

    def live(self, **options: Any) -> LiveEdit:
        """The chosen edit in a LiveEdit, on the sweep's prompts; without an edit at the baseline.

        Args:
            options: of LiveEdit.
        """
        point = self.chosen
        edits = [] if point == self._sweep.BASE else [self.to_record()]
        asked = {"max_new_tokens": self._sweep.options["max_new_tokens"], "seed": self._sweep.seed}
        return LiveEdit(self._sweep.model, self._sweep.prompts, edits, **(asked | options))

    def precompute(self, grid: Any = None) -> SteeringLab:
        """Train all that is chosen and wait: the frame holds what a page without a kernel shows."""
        self.train()
        self.settle()
        return self

    # --- filling ---------------------------------------------------------------------------------

    def _next(self, spec: Mapping[str, Any], held: bool) -> MethodPoint | Fit | None:
        if held:
            return None
        done = self._sweep.done
        return next((p for p in self._settings.wanted(spec) if p not in done), None)

    def _piece(self, piece: MethodPoint | Fit, job: worker.Job) -> None:
        if isinstance(piece, Fit):
            self._sweep.points_of(piece.method)
        else:
            self._sweep.cell(piece)

    def _tell_left(
        self, job: worker.Job, piece: MethodPoint | Fit, began: float, first: int
    ) -> None:
        if piece.method != self._told_of:
            # its fit may take minutes: what is said of it is not dropped as too soon
            self._told_of, self._told_s = piece.method, 0.0
        super()._tell_left(job, piece, began, first)

    def _counted(self) -> tuple[int, int]:
        return self._settings.counted(self.spec)

    def _named(self, piece: MethodPoint | Fit) -> str:
        return in_words(piece)

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        frame = super()._frame(spec, job)
        self._held = True  # another choice waits for Train
        return frame

    def _asked(self, change: Mapping[str, Any]) -> None:
        super()._asked(change)
        if not self._jobs():
            self._tell_complete()

    def _tell_complete(self) -> None:
        # a part of the settings is a whole plot
        has = bool(self._sweep.done)
        self.meta = {**self.meta, "complete": has, "but": self._but() if has else ""}

    def _but(self) -> str:
        done, total = self._counted()
        n, missing = self._kept(), total - done
        parts = [f"{missing} settings not computed"] if missing else []
        if n < len(self._sweep.prompts):
            parts.append(f"texts after the first {n} prompts")
        return " and ".join(parts)

    # --- frames ----------------------------------------------------------------------------------

    def _picture(self) -> Mapping[str, Any]:
        done, total = self._counted()
        return {
            "done": done,
            "total": total,
            "lines": self._settings.lines(),
            "notes": self._sweep.notes,
            **self._figures.frame(),
            **self._recipe.frame(),
            **self._texts(),
        }

    def _with_texts(self) -> list[MethodPoint]:
        shown, done = self._settings.shown(), self._sweep.done
        return [p for p in shown if kind_of(p) != CONTROL and done[p].generations]

    def _kept(self) -> int:
        """For how many prompts, the first ones, the continuations go with the frame."""
        groups = [self._sweep.done[p].generations for p in self._with_texts()]
        most = min(PROMPTS_KEPT, len(self._sweep.prompts))
        return min(most, affordable(groups, TOKENS_KEPT)) if groups else most

    def _texts(self) -> dict[str, Any]:
        """Continuations that go with the frame: `slots` says of each point where its own begin, in
        prompts, or -1."""
        with_texts, n, kept = self._with_texts(), self._kept(), []
        slots = {point: i for i, point in enumerate(with_texts)}
        for point in with_texts:
            kept += self._sweep.done[point].generations[:n]
        places = [slots.get(point, -1) for point in self._settings.shown()]
        return {"slots": places, "kept": n, **packed(self._sweep.model, kept)}

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what == "code":
            return {"code": self.to_code()}
        if what == "open":
            return {"opened": self._opened()}
        if what != "texts":
            return super()._fetch(what, arguments, job)
        point, done = self.chosen, self._sweep.done
        if point is None or point not in done:
            raise _refused("texts", "has no such texts", "a computed point", arguments)
        both = [*done[self._sweep.BASE].generations, *done[point].generations]
        prompts = [shown(p) for p in self._sweep.prompts]
        return {"kept": len(prompts), "prompts": prompts, **packed(self._sweep.model, both)}

    def _opened(self) -> str:
        """A LiveEdit of the chosen point, below the plot; the one before it goes."""
        before = getattr(self, "_shown_live", None)
        self._shown_live = made = self.live()
        reference = f"IPY_MODEL_{made.model_id}"
        self.meta = {**self.meta, "opened": reference}
        if before is not None:
            before.close()
        return reference

    # --- words -----------------------------------------------------------------------------------

    def _words(self) -> str:
        done, total = self._counted()
        n = len(self.spec["methods"])
        said = f"{n} method{'s' * (n != 1)}, {done} of {total} settings"
        point = self.chosen
        if point is None or point not in self._sweep.done:
            return said
        name = list(self._sweep.metrics)[int(self.spec["y"])]
        own, gap = self._figures.of(point, name)
        return f"{said}; {in_words(point)}: {name} {own.mean:.3f}, {gap.mean:+.3f} to the baseline"

    def _still(self) -> str:
        return still(self.frame, self.meta, self.spec, self.status["msg"] or self._words())


def _refused(where: str, wrong: str, expected: str, got: object) -> WorkbenchError:
    return WorkbenchError(
        f"SteeringLab.{where}", wrong, expected=expected, got=got, do="choose one of these"
    )


def _plain_methods() -> list[str]:
    """Methods that need rows alone; the first one is the plainest."""
    needless = [e.name for e in registry.entries("steering") if e.cls().needs == ()]
    return sorted(needless, key=lambda name: (name != "mean_difference", name))


def _meta(sweep: Any) -> dict[str, Any]:
    metrics = [
        {"name": name, "unit": metric.unit, "better": metric.better}
        for name, metric in sweep.metrics.items()
    ]
    return {
        "title": f"Steering {sweep.model.name}",
        "methods": list(sweep.methods),
        "layers": list(sweep.layers),
        "metrics": metrics,
        "prompts": [shown(p) for p in sweep.prompts[:PROMPTS_KEPT]],
        "n_prompts": len(sweep.prompts),
        "opened": "",
    }
