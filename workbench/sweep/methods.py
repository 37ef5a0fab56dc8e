"""Steering methods at every layer and strength, beside random controls and prompting.

    found = steering.sweep(model, pairs, ["mean_difference", "ace"], prompts=prompts, path="sweep")
    found.best("accuracy"), found.table().frame(), found.edit_at(found.best("accuracy"))

Every method is fitted once over all its layers; methods that read the same sites share one recording.
A row (a method in a layer) is computed in one batch of all its strengths, so the first cell asked of
a row finishes the others. What a widget needs, and nothing else, is in this shape:

    MethodSweep(model, data, methods, layers=, strengths=, prompts=, metrics=, target=, ...)
        .methods     {name: SteeringMethod}
        .layers      [0, 1, ..., or None for the whole edit]
        .strengths   {name: [float]} in the method's own unit; fits and calibrates what it must
        .metrics     {name: has .unit and .better}
        .prompts     what every cell answers
        .points()    [MethodPoint(method, layer, strength, control)], the base and prompting first
        .cell(point) Cell(values {metric: [per prompt]}, generations, error)
        .done        {MethodPoint: Cell}, what is there already
        .edit_at(point)  the Intervention of a point, at its strength
        .unit(name)  what a method's strength counts, in words
        .table()     a Table, a row per setting, prompt and metric
        .best(metric)    the point with the best mean
        .run()       everything, with a progress bar; stop it and run it again
        .notes       what a reader of the numbers should know
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.comparison.arms import prefixed
from workbench.comparison.doses import Cell, doses, undosed
from workbench.comparison.metrics.base import Metric
from workbench.comparison.provenance import provenance
from workbench.comparison.run import Comparison, checked_metrics
from workbench.comparison.table import Table
from workbench.errors import EditError, WorkbenchError, unknown
from workbench.interventions.control import random_control
from workbench.linalg import kl_divergence
from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.sweep.fitted import MULTIPLES, Fitted, Methods, named_methods, said
from workbench.sweep.next_token import next_token
from workbench.sweep.saved import Folder, hash_of
from workbench.sweep.strength_by_layer import MAX_CELLS, checked_layers, checked_strengths
from workbench.sweep.target import Target, last_logprobs, target_ids
from workbench.sweep.told import told
from workbench.tensors import Arm, Intervention
from workbench.worker import Cancelled

Numbers = float | int | Iterable[float | int]
Strengths = Numbers | Mapping[str, Numbers] | None


class MethodPoint(NamedTuple):
    """One setting. `layer` None is the method's whole edit; `control` its random direction."""

    method: str
    layer: int | None
    strength: float
    control: bool = False


class Measure(NamedTuple):
    """What a number of the next token is counted in, and which way is better."""

    unit: str
    better: Literal["higher", "lower"] | None = None


BASE = MethodPoint("base", None, 0.0)
"""The model as it is; strength 0 of any method is this, bit for bit."""
PROMPTING = MethodPoint("prompting", None, 1.0)
"""The model told in words what the methods steer towards, where words were given."""
NEXT = {
    "target_probability": Measure("fraction", "higher"),
    "next_token_kl_nats": Measure("nats"),
}
"""What `target=` measures: of the next token alone, so no text is written for it."""


def sweep(
    model: Any,
    data: Any,
    methods: Methods,
    *,
    progress: bool = True,
    **options: Any,
) -> MethodSweep:
    """Every method in every layer at every strength; see `MethodSweep` for the options.

    Interrupting it keeps what is finished: `found.run()` goes on, and so does a later call with the
    same `path`.
    """
    found = MethodSweep(model, data, methods, **options)
    found.run(progress=progress)
    return found


class MethodSweep:
    """Metrics of many methods against the layer and the strength, each cell computed once.

    Args:
        data: labelled prompts that the methods are fitted on, as in `steering.fit`.
        methods: registry names, or methods with options; a mapping gives names of your own.
        layers: blocks whose share of the edit is taken alone; None among them is the whole edit.
            All blocks by default. A method that reads no rows has the whole edit only.
        strengths: in each method's own unit, for all or by method; by default multiples 0.25 to 2 of
            what reaches `target_kl_nats` in the middle one of the layers.
        prompts: what every cell answers; those of `data` by default, which flatters (see `notes`).
        metrics: of generated text, as in `wb.compare`. By default none where there is a `target`,
            else accuracy (where the prompts have a task), length and kl_nats.
        target: the next token whose probability is measured: an id, a text of one token, one of
            these per prompt, or a callable from a prompt to it.
        sites: other sites than a method's own, for all or by method.
        control: also a random direction of the same norm for every cell.
        prompting: words before every prompt that ask for what the methods steer towards.
        path: a folder to keep finished rows in; the same call later goes on from there. What failed
            is tried again. Settings count by their content, tensors and functions included.
        handed: by method, what it needs and a model cannot give, such as `{"sae_feature":
            {"dictionary": ...}}`.

    Raises:
        UnknownName: no such method or metric.
        WorkbenchError: no prompts, layers or strengths, too many cells, a target that is not one
            token, a prompt that a metric cannot judge, or, with `path`, something handed over whose
            content cannot be seen.
        PromptError: a prompt too long for the context.
        FileRefused: `path` holds a sweep of other settings.
    """

    BASE, PROMPTING = BASE, PROMPTING

    def __init__(
        self,
        model: Any,
        data: Any,
        methods: Methods,
        *,
        layers: int | Iterable[int | None] | None = None,
        strengths: Strengths = None,
        prompts: Any = None,
        metrics: Sequence[str | Metric] | None = None,
        target: Target | None = None,
        sites: str | Mapping[str, Any] | None = None,
        control: bool = True,
        control_seed: int = 0,
        prompting: str = "",
        path: str | Path | None = None,
        seed: int = 0,
        max_new_tokens: int = 64,
        decoder: Any = None,
        stop: str | Iterable[str] = (),
        batch_size: int | None = None,
        target_kl_nats: float | int = 1.0,
        positive: Any = True,
        negative: Any = False,
        handed: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.model, self.seed, self.control, self.control_seed = model, seed, control, control_seed
        self.prompting, self.target_kl_nats = prompting, target_kl_nats
        self.methods = named_methods(methods)
        _refuse_reserved(self.methods)
        asked = as_prompts(data)
        self._fitted = Fitted(
            model, asked, self.methods, self._by_method(sites), self._handed(handed)
        )
        self._fitted.positive, self._fitted.negative = positive, negative
        self._fitted.batch_size = batch_size
        ends = stop if isinstance(stop, str) else tuple(stop)
        self.options = {"max_new_tokens": max_new_tokens, "stop": ends, "batch_size": batch_size}
        self._job = self._checked_job(asked, prompts, metrics, target, decoder)
        self._target = target_ids(model, self.prompts, target)
        self.layers = _checked_layers(layers, model.n_layers)
        given = self._by_method(strengths)
        self._strengths = {name: checked_strengths(one) for name, one in given.items()}
        self.done: dict[MethodPoint, Cell] = {}
        self._refuse_too_many()
        self._folder = Folder(path, self._settings(asked, sites, strengths)) if path else None

    @property
    def prompts(self) -> list[Prompt]:
        """What every cell answers."""
        return self._job.prompts

    @property
    def metrics(self) -> dict[str, Metric | Measure]:
        """Everything measured, by name, with its unit and which way is better."""
        return {**(NEXT if self._target else {}), **self._job.metrics}

    @property
    def decoder(self) -> Any:
        """As given; None is greedy."""
        return self._job.decoder

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        said = ["measured on the prompts that the methods were fitted on"] if self._same else []
        if not self.prompting:
            said.append("no prompting arm: pass prompting= to see whether words do as well")
        return said + list(dict.fromkeys(self._fitted.notes))

    @property
    def strengths(self) -> dict[str, list[float]]:
        """Per method in its own unit; fits and calibrates a method that was given none."""
        return {name: self._strengths_of(name) for name in self.methods}

    def unit(self, method: str) -> str:
        """What a method's strength counts, in words; "" where it cannot be fitted."""
        try:
            return self._fitted.edit(method).unit
        except EditError:
            return ""

    def layers_of(self, method: str) -> list[int | None]:
        """The layers a method is swept over."""
        return [None] if self._fitted.layerless(method) else self.layers

    def points(self) -> list[MethodPoint]:
        """Every setting: the base, prompting, then method by method the cells and their controls."""
        edits = [point for name in self.methods for point in self.points_of(name)]
        return [BASE, *([PROMPTING] if self.prompting else []), *edits]

    def points_of(self, method: str) -> list[MethodPoint]:
        """A method's cells, then their controls; fits and calibrates it where `ready` says no."""
        moved = [s for s in self._strengths_of(method) if s != 0]
        kinds, layers = [False, True] if self.control else [False], self.layers_of(method)
        return [MethodPoint(method, y, s, c) for c in kinds for y in layers for s in moved]

    def ready(self, method: str) -> bool:
        """Whether its strengths are known: given, or calibrated already."""
        return method in self._strengths

    def edit_at(self, point: MethodPoint) -> Intervention | None:
        """The edit of a point at its strength; None for the base, prompting, and a missing control.

        Raises:
            UnknownName: no such method.
            EditError: the method could not be fitted, or makes no edit in that layer.
        """
        if point in (BASE, PROMPTING):
            return None
        if point.method not in self.methods:
            raise unknown("sweep.edit_at", "method", point.method, self.methods)
        edit = self._fitted.at_layer(point.method, point.layer)
        found = random_control(edit, self.control_seed) if point.control else edit
        return None if found is None else found.at(point.strength)

    def cell(self, point: MethodPoint) -> Cell:
        """The setting's cell. Where it is not there yet, its whole row is computed.

        A method that cannot be fitted or applied gives a cell that says why.
        """
        point = BASE if point.strength == 0 else point
        if point not in self.done:
            row = self._row(point)
            self.done |= dict(zip(row, self._cells(row), strict=True))
        return self.done[point]

    def run(self, progress: bool = True) -> None:
        """Compute every cell. An interrupt stops it and keeps what is finished, with a warning."""
        try:
            self._fit_all(progress)
            points = self.points()
            with tqdm(
                total=len(points), unit="cell", desc="steering.sweep", disable=not progress
            ) as bar:
                for point in points:
                    bar.set_postfix_str(_name(point))
                    self.cell(point)
                    bar.update()
        except KeyboardInterrupt:
            warnings.warn(
                f"steering.sweep stopped with {len(self.done)} cells finished; run() goes on",
                UserWarning,
                stacklevel=2,
            )

    def _fit_all(self, progress: bool) -> None:
        """Strengths first: how many cells there are depends on them."""
        with tqdm(
            total=len(self.methods), unit="method", desc="fit, calibrate", disable=not progress
        ) as bar:
            for name in self.methods:
                bar.set_postfix_str(name)
                self._strengths_of(name)
                bar.update()

    def best(
        self,
        metric: str,
        *,
        method: str | None = None,
        at_most: Mapping[str, float | int] | None = None,
    ) -> MethodPoint:
        """The edit with the best mean of a metric among the cells that are done.

        Of equals it is the one that moves the model least, in nats where they are measured. The best
        of many cells on the same prompts looks better than it is: measure it again on others, such
        as with `steering.evaluate`.

        Args:
            method: only this one.
            at_most: upper bounds of the means of other metrics, such as `{"kl_nats": 1.0}`.

        Raises:
            UnknownName: no such metric.
            WorkbenchError: no direction is better for the metric, or no cell fits.
        """
        for name in (metric, *(at_most or {})):
            if name not in self.metrics:
                raise unknown("sweep.best", "metric", name, self.metrics)
        better = self.metrics[metric].better
        means = {
            p: self._means(p)
            for p in self.done
            if p not in (BASE, PROMPTING) and not p.control and method in (None, p.method)
        }
        fit = [
            p
            for p, m in means.items()
            if metric in m and all(m.get(k, math.nan) <= v for k, v in (at_most or {}).items())
        ]
        fit = [p for p in fit if math.isfinite(means[p][metric])]
        if better is None or not fit:
            raise WorkbenchError(
                f"sweep.best({metric!r})",
                "no cell can be the best" if better else "has no better and worse",
                expected="a cell within the bounds" if better else "a metric with a direction",
                got=f"{len(means)} cells, bounds {at_most}" if better else metric,
                do="run the sweep, or widen at_most="
                if better
                else "sort table().frame() yourself",
            )
        sign = 1.0 if better == "higher" else -1.0

        def rank(p: MethodPoint) -> tuple[float, float, float]:
            # strengths of two methods are in two units; nats are the same for all
            nats = means[p].get("kl_nats", means[p].get("next_token_kl_nats", 0.0))
            return sign * means[p][metric], -nats, -abs(p.strength)

        return max(fit, key=rank)

    def table(self) -> Table:
        """All computed numbers, a row per setting, prompt and metric."""
        points = list(self.done)
        rows = [
            (_kind(p), *p[:3], i, name, value, self.metrics[name].unit)
            for p in points
            for name, values in self.done[p].values.items()
            for i, value in enumerate(values)
        ]
        names = ("kind", "method", "layer", "strength", "prompt", "metric", "value", "unit")
        columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
        units = {name: m.unit for name, m in self.metrics.items()}
        texts = tuple(g for p in points for g in self.done[p].generations)
        return Table(columns, units, self._provenance(), texts)

    # -- one row: a method in a layer, at every strength ------------------------------------------

    def _row(self, point: MethodPoint) -> list[MethodPoint]:
        if point in (BASE, PROMPTING):
            return [point]
        if point.method not in self.methods:
            raise unknown("sweep.cell", "method", point.method, self.methods)
        moved = [s for s in self._strengths_of(point.method) if s != 0]
        known = point.strength in moved and point.layer in self.layers_of(point.method)
        return [point._replace(strength=s) for s in moved] if known else [point]

    def _cells(self, row: list[MethodPoint]) -> list[Cell]:
        arms, file = [_name(p) for p in row], self._file(row)
        kept = self._folder.cells(file, self.prompts, arms) if self._folder and file else None
        if kept is None:
            kept = self._computed(row, arms)
            if self._folder and file and not all(cell.error for cell in kept):
                self._folder.write_cells(file, kept)
        return kept

    def _computed(self, row: list[MethodPoint], arms: list[str]) -> list[Cell]:
        first = row[0]
        if first in (BASE, PROMPTING):
            prefix = self.prompting if first == PROMPTING else ""
            return [self._unedited(Arm(arms[0], prefix=prefix))]
        try:
            edit = self.edit_at(first._replace(strength=1.0))
        except EditError as error:
            return [Cell(error=str(error))] * len(row)
        if edit is None:
            return [Cell(error="no random control: the edit has no direction")] * len(row)
        strengths = [p.strength for p in row]
        written, read = [Cell()] * len(row), [Cell()] * len(row)
        try:
            if self._job.metrics:
                written = doses(self._job, edit, strengths, self.seed, arms)
            if self._target:
                read = self._next_tokens(edit, strengths)
        except Cancelled:
            raise
        # as where it is fitted; what a metric raises of any text, the base has raised before
        except Exception as error:
            return [Cell(error=said(error))] * len(row)
        return [_merged(a, b) for a, b in zip(read, written, strict=True)]

    def _unedited(self, arm: Arm) -> Cell:
        written = undosed(self._job, arm, self.seed) if self._job.metrics else Cell()
        if not self._target:
            return _merged(written)
        base = last_logprobs(self.model, self.prompts, self.options["batch_size"])
        told = [prefixed(p, arm.prefix) for p in self.prompts]
        own = last_logprobs(self.model, told, self.options["batch_size"]) if arm.prefix else base
        chances = own.gather(1, torch.tensor(self._target)[:, None])[:, 0].exp()
        values = chances, kl_divergence(own, base)
        return _merged(Cell(dict(zip(NEXT, (v.tolist() for v in values), strict=True))), written)

    def _next_tokens(self, edit: Intervention, strengths: list[float]) -> list[Cell]:
        found = next_token(
            self.model,
            self.prompts,
            lambda _: edit,
            strengths,
            layers=[0],
            read=self._target,
            batch_size=self.options["batch_size"],
            progress=False,
        )
        chances, kl = found.probability(self._target)[0], found.kl[0]
        out = []
        for s in strengths:
            error, i = found.errors.get((0, s), ""), found.strengths.index(s)
            numbers = (chances[i].tolist(), kl[i].tolist())
            out.append(Cell({} if error else dict(zip(NEXT, numbers, strict=True)), (), error))
        return out

    def _strengths_of(self, name: str) -> list[float]:
        if name in self._strengths:
            return self._strengths[name]
        file = f"strengths-{list(self.methods).index(name):02d}"
        kept = self._folder.strengths(file) if self._folder else None
        if kept is None:
            before, layers = len(self._fitted.notes), self.layers_of(name)
            found = self._fitted.strengths(name, layers, self.prompts, self.target_kl_nats)
            # what failed is tried again when the sweep goes on: its reason may be gone by then
            if self._folder and self._fitted.fits(name):
                self._folder.write_strengths(file, found, self._fitted.notes[before:])
        else:
            found, notes = kept
            self._fitted.notes.extend(notes)
        self._strengths[name] = found
        return found

    def _means(self, point: MethodPoint) -> dict[str, float]:
        values = self.done[point].values.items()
        finite = {k: [x for x in v if math.isfinite(x)] for k, v in values}
        return {k: float(np.mean(v)) for k, v in finite.items() if v}

    # -- what was asked ---------------------------------------------------------------------------

    def _by_method(self, asked: Any) -> dict[str, Any]:
        if asked is None:
            return {}
        if not isinstance(asked, Mapping):
            many = asked if isinstance(asked, str | int | float) else list(asked)
            return dict.fromkeys(self.methods, many)
        for name in asked:
            if name not in self.methods:
                raise unknown("sweep", "method", name, self.methods)
        return dict(asked)

    def _handed(self, asked: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
        return {name: dict(given) for name, given in self._by_method(asked).items()}

    def _checked_job(
        self,
        data: list[Prompt],
        prompts: Any,
        metrics: Sequence[str | Metric] | None,
        target: Target | None,
        decoder: Any,
    ) -> Comparison:
        many = data if prompts is None else as_prompts(prompts)
        self._same = prompts is None
        if metrics is None:
            judged = ("accuracy",) if all(p.task for p in many) else ()
            metrics = () if target is not None else (*judged, "length", "kl_nats")
        if not len(metrics) and target is None:
            raise WorkbenchError(
                "sweep",
                "has nothing to measure",
                expected="metrics, a target, or both",
                got="neither",
                do="leave metrics out for the usual ones",
            )
        named = checked_metrics(metrics) if len(metrics) else {}
        job = Comparison(self.model, many, named, decoder, self.options)
        job.refuse([self.seed])
        told = [prefixed(prompt, self.prompting) for prompt in many]
        self.model.tokens(told, room=self.options["max_new_tokens"] if named else 0)
        return job

    def _refuse_too_many(self) -> None:
        kinds = 2 if self.control else 1
        lengths = [len(self._strengths.get(name, MULTIPLES)) for name in self.methods]
        n = sum(lengths) * len(self.layers) * kinds
        if n > MAX_CELLS:
            raise WorkbenchError(
                "sweep",
                "has too many cells",
                expected=f"at most {MAX_CELLS}",
                got=n,
                do="take fewer methods, layers or strengths",
            )

    def _file(self, row: list[MethodPoint]) -> str:
        first = row[0]
        if first in (BASE, PROMPTING):
            return f"row-{first.method}"
        if len(row) == 1 and first.strength not in self._strengths_of(first.method):
            return ""  # asked for by hand, no part of the sweep
        if first.layer not in self.layers_of(first.method):
            return ""
        layer = "all" if first.layer is None else f"L{first.layer}"
        index = list(self.methods).index(first.method)
        return f"row-{index:02d}-{layer}-{'control' if first.control else 'edit'}"

    def _settings(self, data: list[Prompt], sites: Any, strengths: Any) -> dict[str, Any]:
        fitted = self._fitted
        return {
            "model": asdict(self.model.fingerprint),
            "methods": told(self.methods),
            "data": hash_of(data),
            "prompts": hash_of(self.prompts),
            "layers": self.layers,
            "strengths": {k: self._strengths.get(k) for k in self.methods} if strengths else None,
            "metrics": told(self._job.metrics),
            "target": self._target,
            "sites": told(self._by_method(sites)),
            "handed": told(fitted.handed),
            "classes": told([fitted.positive, fitted.negative]),
            "control_seed": self.control_seed,
            "prompting": self.prompting,
            "decoder": told(self.decoder),
            "seed": self.seed,
            "target_kl_nats": self.target_kl_nats,
            "options": told(self.options),
        }

    def _provenance(self) -> dict[str, Any]:
        missing = sum(point not in self.done for point in self.points())
        return provenance(
            [],
            self.model,
            self.prompts,
            [self.seed],
            self.decoder,
            methods={name: repr(method) for name, method in self.methods.items()},
            strength_units={name: self.unit(name) for name in self.methods},
            strengths=self.strengths,
            layers=self.layers,
            control_seed=self.control_seed,
            not_computed=missing,
            errors={_name(p): c.error for p, c in self.done.items() if c.error},
            notes=self.notes,
            **self.options,
        )


def _merged(*parts: Cell) -> Cell:
    values = {k: v for part in parts for k, v in part.values.items()}
    texts = tuple(g for part in parts for g in part.generations)
    return Cell(values, texts, next((part.error for part in parts if part.error), ""))


def _name(point: MethodPoint) -> str:
    if point in (BASE, PROMPTING):
        return point.method
    place = "" if point.layer is None else f" L{point.layer}"
    said = f"{point.method}{place} x {point.strength:.4g}"
    return said + (" (random control)" if point.control else "")


def _kind(point: MethodPoint) -> str:
    if point in (BASE, PROMPTING):
        return point.method
    return "control" if point.control else "edit"


def _checked_layers(asked: int | Iterable[int | None] | None, n_layers: int) -> list[int | None]:
    if asked is None:
        return list(range(n_layers))
    many = [asked] if isinstance(asked, int) else list(asked)
    whole = [None] if None in many else []
    blocks = [y for y in many if y is not None]
    return [*(checked_layers(blocks, range(n_layers)) if blocks or not whole else []), *whole]


def _refuse_reserved(methods: Mapping[str, Any]) -> None:
    for name in (BASE.method, PROMPTING.method):
        if name in methods:
            raise WorkbenchError(
                "sweep(methods=...)",
                f"{name!r} names an arm that is there anyway",
                expected="another name",
                got=name,
                do="pass a mapping with a name of your own",
            )
