"""SweepExplorer: a metric against strength and layer; every cell opens on what the model then says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workbench import worker
from workbench.comparison.metrics.base import Metric
from workbench.comparison.table import Table
from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.sweep import BASE, Point, StrengthByLayer
from workbench.sweep.strength_by_layer import STRENGTHS, Cell
from workbench.tensors import Intervention
from workbench_widgets.filling import Filling
from workbench_widgets.sweep_explorer.code import cell_code
from workbench_widgets.sweep_explorer.figures import Figures, states
from workbench_widgets.sweep_explorer.still import still
from workbench_widgets.transcripts import affordable, packed, shown

PROMPTS_KEPT = 8
TOKENS_KEPT = 120_000


class SweepExplorer(Filling):
    """An edit at every strength and layer, filled cell by cell.

    The grid shows a metric; below it stands the strength curve of the chosen layer with 95 %
    intervals, beside the baseline and a random direction of the same norm. A cell opens on its
    continuations, each beside the baseline's. A cancel keeps what is done; nothing is computed twice.

    Args:
        edit: an intervention with sites in several layers, taken one layer at a time, or a callable
            from a layer's number to an intervention.
        layers: those of the edit, or all, by default.
        strengths: multiples in the edit's own unit; 0 is the baseline.
        metrics: as in `wb.compare`. For prompts without a task leave out "accuracy".
        control: also the random direction of the same norm.
        max_new_tokens, decoder, seed, stop, batch_size: as in `model.generate`.

    Continuations of the first 8 prompts go with a saved page, fewer where they are long; a running
    kernel gives all of them.

    Raises:
        WorkbenchError: no prompts, layers or strengths, or a prompt that a metric cannot judge.
        PromptError: a prompt too long for the context.

    Example:
        explorer = SweepExplorer(model, prompts, edit)
        explorer.table()        # every number
        explorer.to_record()    # the edit of the chosen cell
    """

    folder = "sweep_explorer"
    points_at = ("layer", "strength")

    def __init__(
        self,
        model: Model,
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
        link: str = "",
    ):
        stop = stop if isinstance(stop, str) else tuple(stop)
        asked = dict(control=control, control_seed=control_seed, max_new_tokens=max_new_tokens)
        asked |= dict(decoder=decoder, seed=seed, stop=stop, batch_size=batch_size)
        self._sweep = sweep = StrengthByLayer(
            model, prompts, edit, layers=layers, strengths=strengths, metrics=metrics, **asked
        )
        self._edit, self._options, self._figures = edit, asked, Figures(sweep)
        highest = len(sweep.strengths) - 1
        super().__init__(
            spec={"layer": 0, "strength": highest, "metric": 0, "show": "value"},
            meta=_meta(sweep),
            link=link,
        )
        self.refresh()

    @property
    def chosen(self) -> Point:
        """The chosen cell."""
        spec, sweep = self.spec, self._sweep
        layer = sweep.layers[_index(spec["layer"], len(sweep.layers))]
        return Point(layer, sweep.strengths[_index(spec["strength"], len(sweep.strengths))])

    def choose(self, layer: int, strength: float) -> SweepExplorer:
        """Choose a cell by its layer and strength. Returns the widget.

        Raises:
            WorkbenchError: the sweep has no such cell.
        """
        for name, value, have in (
            ("layer", layer, self._sweep.layers),
            ("strength", strength, self._sweep.strengths),
        ):
            if value not in have:
                raise WorkbenchError(
                    "SweepExplorer.choose",
                    f"has no such {name}",
                    expected=f"one of {have}",
                    got=value,
                    do="choose one of these, or make another sweep",
                )
        at = self._sweep.layers.index(layer), self._sweep.strengths.index(strength)
        self.ask(layer=at[0], strength=at[1])
        return self

    def table(self) -> Table:
        """Every computed number: a row per kind (base, edit, control), layer, strength, prompt, metric."""
        return self._sweep.table()

    def to_record(self) -> Intervention:
        """The intervention of the chosen cell, at its strength."""
        found = self._sweep.edit_at(*self.chosen)
        assert found is not None
        return found

    def to_code(self) -> str:
        """A cell that generates and measures the chosen cell without the widget."""
        metrics = list(self._sweep.metrics.values())
        return cell_code(
            self._sweep.model, self._sweep.prompts, self.to_record(), metrics, self._options
        )

    def precompute(self, grid: Any = None) -> SweepExplorer:
        """Fill every cell and wait: the frame then holds all that a page without a kernel shows."""
        self.go_on()
        self.settle()
        return self

    # --- filling -------------------------------------------------------------------------------

    def _next(self, spec: Mapping[str, Any], held: bool) -> Point | None:
        done, chosen = self._sweep.done, self.chosen
        if BASE not in done:
            return BASE
        if chosen.strength != 0 and chosen not in done:
            return chosen
        if held:
            return None
        missing = [p for p in self._sweep.points() if p not in done]
        # the chosen layer's curve first, its control with it
        return min(missing, key=lambda p: (p.layer != chosen.layer, p.control), default=None)

    def _piece(self, piece: Point, job: worker.Job) -> None:
        self._sweep.cell(piece)

    def _counted(self) -> tuple[int, int]:
        return len(self._sweep.done), len(self._sweep.points())

    def _named(self, piece: Point) -> str:
        if piece == BASE:
            return "baseline"
        control = ", random direction" if piece.control else ""
        return f"layer {piece.layer}, strength {piece.strength:g}{control}"

    def _picture(self) -> Mapping[str, Any]:
        done, total = self._counted()
        return {"done": done, "total": total, **self._figures.arrays(), **self._texts()} | dict(
            states(self._sweep)
        )

    def _but(self) -> str:
        n = self._kept()
        return f"texts after the first {n} prompts" if n < len(self._sweep.prompts) else ""

    def _with_texts(self) -> dict[Point, Cell]:
        return {p: c for p, c in self._sweep.done.items() if c.generations and not p.control}

    def _kept(self) -> int:
        """For how many prompts, the first ones, the continuations go with the frame."""
        groups = [cell.generations for cell in self._with_texts().values()]
        most = min(PROMPTS_KEPT, len(self._sweep.prompts))
        return min(most, affordable(groups, TOKENS_KEPT)) if groups else most

    def _texts(self) -> dict[str, Any]:
        """Continuations that go with the frame: `slots` says where a cell's begin, in prompts."""
        cells = self._with_texts()
        n = self._kept()
        sweep, slots, kept = self._sweep, {}, []
        for slot, (point, cell) in enumerate(cells.items()):
            kept += cell.generations[:n]
            slots[_key(sweep, point)] = slot
        return {"slots": slots, "kept": n, **packed(sweep.model, kept)}

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what != "texts":
            return super()._fetch(what, arguments, job)
        layer = self._sweep.layers[_index(arguments.get("layer"), len(self._sweep.layers))]
        at = _index(arguments.get("strength"), len(self._sweep.strengths))
        cell, base = (
            self._sweep.cell(Point(layer, self._sweep.strengths[at])),
            self._sweep.cell(BASE),
        )
        texts = [*base.generations, *cell.generations]
        prompts = [shown(p) for p in self._sweep.prompts]
        return {"kept": len(prompts), "prompts": prompts, **packed(self._sweep.model, texts)}

    def _words(self) -> str:
        done, total = self._counted()
        name = list(self._sweep.metrics)[_index(self.spec["metric"], len(self._sweep.metrics))]
        own, gap = self._figures.of(self.chosen, name)
        at = f"layer {self.chosen.layer}, strength {self.chosen.strength:g}"
        return (
            f"{at}: {name} {own.mean:.3f}, {gap.mean:+.3f} to the baseline; {done} of {total} cells"
        )

    def _still(self) -> str:
        return still(self.frame, self.meta, self.spec, self._words())


def _meta(sweep: StrengthByLayer) -> dict[str, Any]:
    metrics = [
        {"name": name, "unit": metric.unit, "better": metric.better}
        for name, metric in sweep.metrics.items()
    ]
    return {
        "title": "Sweep",
        "layers": sweep.layers,
        "strengths": sweep.strengths,
        "metrics": metrics,
        "prompts": [shown(p) for p in sweep.prompts[:PROMPTS_KEPT]],
        "n_prompts": len(sweep.prompts),
        "control": sweep.control,
    }


def _key(sweep: StrengthByLayer, point: Point) -> str:
    if point == BASE:
        return "base"
    return f"{sweep.layers.index(point.layer)},{sweep.strengths.index(point.strength)}"


def _index(value: Any, n: int) -> int:
    """A place on an axis, whatever the browser sent."""
    return min(max(int(value or 0), 0), n - 1)
