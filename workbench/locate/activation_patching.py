"""Activation patching: put one run's activation into another and see how much of the answer comes along.

    base run <- source value at one place;   metric of the last position
    recovered = (metric - metric_base) / (metric_source - metric_base)

Shapes: `[case, layer, pos]`; `[case, layer, head]` for heads (`[case, layer, head, pos]` with
    positions="each"); a "part" axis in front with part="all".
Units: recovered is a fraction, 0 the base run and 1 the source run; beside it the metric itself.
Source: Vig et al. (2020), Investigating Gender Bias in Language Models Using Causal Mediation Analysis,
    https://arxiv.org/abs/2004.12265; Meng, Bau, Andonian and Belinkov (2022), Locating and Editing Factual
    Associations in GPT, https://arxiv.org/abs/2202.05262; denoising and noising as in Heimersheim and
    Nanda (2024), How to use and interpret activation patching, https://arxiv.org/abs/2404.15255.
Differs from the paper: Meng et al. corrupt by noise on the subject's embeddings and restore windows of
    ten layers of a part; here the corrupted side is a prompt and a place is one layer. The control, a
    random change of the same norm at the strongest places, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from workbench.locate import sides
from workbench.locate.base import (
    METRICS,
    Axis,
    Cases,
    Localiser,
    Need,
    Patch,
    Reads,
    Scores,
    head_axis,
    layer_axis,
    pos_axis,
)
from workbench.locate.sides import Direction, Per, Sides
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.tensors import Intervention

HEADS = ("z", "q", "k", "v")
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
ALL = ("resid_pre", "attn_out", "mlp_out")


@register(
    "locate",
    Citation(
        "Meng, Bau, Andonian, Belinkov",
        "Locating and Editing Factual Associations in GPT",
        2022,
        "https://arxiv.org/abs/2202.05262",
    ),
)
@dataclass(frozen=True)
class ActivationPatching(Localiser):
    """Put the clean run's activations into the corrupted run, place by place, or the other way round.

    Attributes:
        part: what is put in; "z", "q", "k", "v" are heads (k and v: key-value heads), "all" is
            resid_pre, attn_out and mlp_out.
        direction: "denoising" puts clean into corrupted, "noising" corrupted into clean.
        metric: see `Cases.metric`.
        positions: one at a time or all at once; by default all for heads, else each.
        control: "top" puts random changes of the same norm in at the strongest places, "none" nothing.
        top: how many places the control takes.
        per: divide by the mean difference of the two runs, or by each case's own.
        seed: of the control.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "patched", "dims", "decode")
    reads: ClassVar[tuple[Reads, ...]] = ("answer", "corrupted")
    part: str = "resid_pre"
    direction: str = "denoising"
    metric: str = "logit_difference"
    positions: str | None = None
    control: str = "top"
    top: int = 5
    per: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        name = "ActivationPatching"
        sides.chosen(f"{name}(part=...)", self.part, (*STREAM, *HEADS, "all"))
        sides.chosen(f"{name}(direction=...)", self.direction, Direction)
        sides.chosen(f"{name}(positions=...)", self.positions, ("each", "all", None))
        sides.chosen(f"{name}(control=...)", self.control, ("top", "none"))
        sides.chosen(f"{name}(per=...)", self.per, Per)
        sides.known_metric(name, self.metric)
        sides.at_least_one(f"{name}(top=...)", self.top)

    def find(
        self,
        cases: Cases,
        *,
        run: Callable[..., Any],
        patched: Callable[..., Tensor],
        dims: Any,
        decode: Callable[[int], str],
    ) -> Scores:
        """The effect of every place."""
        two = Sides.of(cases, self.direction)
        parts = ALL if self.part == "all" else (self.part,)
        read = [f"L*.{part}" for part in parts]
        base = run(two.base, record=read, logits="last")
        source = run(two.source, record=read, logits="last")
        old = base.values
        new = {site: two.put(old[site], value) for site, value in source.values.items()}
        measured = (cases.metric(t.logits[:, -1], self.metric) for t in (base, source))
        job = _Job(self, two, patched, dims, old, new, *measured)
        del source  # as large as what is kept
        axes = self._axes(dims)
        axes = (*axes, pos_axis(cases, decode)) if self._each else axes
        metric = job.metrics(axes)
        recovered = job.fraction(metric)
        also = {}
        if self.control == "top" and bool(recovered.isfinite().any()):
            also["control"] = job.control(axes, recovered)
        clean, corrupted = ("source", "base")[:: 1 if self.direction == "denoising" else -1]
        return Scores(
            {"recovered": recovered, self.metric: metric},
            axes,
            {"recovered": "fraction", self.metric: METRICS[self.metric]},
            caption=self._caption(len(cases)),
            reference={"clean": getattr(job, clean), "corrupted": getattr(job, corrupted)},
            edit=job.edit,
            also=also,
        )

    @property
    def _each(self) -> bool:
        return (self.positions or ("all" if self.part in HEADS else "each")) == "each"

    def _axes(self, dims: Any) -> tuple[Axis, ...]:
        axes = (layer_axis(dims.n_layers),)
        if self.part == "all":
            axes = (Axis("part", ALL), *axes)
        if self.part in HEADS:
            axes = (*axes, head_axis(dims.n_kv_heads if self.part in ("k", "v") else dims.n_heads))
        return axes

    def _caption(self, n: int) -> str:
        into = "clean values into the corrupted run"
        if self.direction == "noising":
            into = "corrupted values into the clean run"
        what = {"all": "each part"}.get(self.part, self.part)
        return (
            f"Putting {into} at {what}: 0 is the run that is changed and 1 the run that the values "
            f"come from, in {self.metric.replace('_', ' ')}, mean over {n} cases."
        )


@dataclass(frozen=True)
class _Job:
    """One map in the making."""

    method: ActivationPatching
    sides: Sides
    patched: Callable[..., Tensor]
    dims: Any
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    base: Tensor
    source: Tensor

    def metrics(self, axes: tuple[Axis, ...]) -> Tensor:
        """The metric at every place, `[case, *axes]`; NaN where a case has no such place."""
        names = [axis.name for axis in axes]
        places = [
            dict(zip(names, p, strict=True)) for p in product(*(range(len(a.labels)) for a in axes))
        ]
        found = self.measured([self.patches(**place) for place in places])
        found = found.unflatten(0, [len(axis.labels) for axis in axes]).movedim(-1, 0)
        if "pos" not in names:
            return found
        missing = (self.sides.columns < 0).reshape(len(found), *[1] * (found.dim() - 2), -1)
        return found.masked_fill(missing.to(found.device), float("nan"))

    def measured(self, variants: list[list[Patch]]) -> Tensor:
        """The metric of variants, `[variant, case]`."""
        cases, metric = self.sides.cases, self.method.metric
        return self.patched(self.sides.base, variants, lambda x: cases.metric(x, metric))

    def fraction(self, metric: Tensor) -> Tensor:
        """Of `[case, ...]`."""
        moved = metric.movedim(0, -1)
        return sides.fraction(moved, self.base, self.source, self.method.per).movedim(-1, 0)

    def site(self, layer: int, part: int = 0) -> str:
        """The site of indices on the axes."""
        return f"L{layer}.{ALL[part] if self.method.part == 'all' else self.method.part}"

    def patches(self, values: Tensor | None = None, **place: int) -> list[Patch]:
        """What is put in at a place, given by its indices on the axes."""
        site = self.site(place["layer"], place.get("part", 0))
        values = self.new[site] if values is None else values
        return self.sides.patches(site, values, place.get("pos"), place.get("head"))

    def control(self, axes: tuple[Axis, ...], recovered: Tensor) -> Scores:
        """Random changes of the same norm at the strongest places."""
        places = []
        for indices in sides.strongest(recovered, self.method.top):
            place = dict(zip([axis.name for axis in axes], indices, strict=True))
            site = self.site(place["layer"], place.get("part", 0))
            label = site + "".join(
                f" {axis.name} {axis.labels[i]}"
                for axis, i in zip(axes, indices, strict=True)
                if axis.name in ("head", "pos")
            )
            make = lambda values, place=place: self.patches(values, **place)  # noqa: E731
            places.append((label, make, [self.new[site]], self.old[site]))
        measured = lambda many: sides.fraction(  # noqa: E731
            self.measured(many), self.base, self.source, self.method.per
        )
        return sides.control(places, measured, self.method.seed, "fraction")

    def edit(
        self,
        layer: int,
        part: str | None = None,
        head: int | None = None,
        pos: int | None = None,
    ) -> Intervention:
        """The mean over cases of what the place changes, as an addition; labels as on the axes."""
        site = f"L{layer}.{part or self.method.part}"
        at = None
        if pos is not None:
            width = self.sides.columns.shape[1]
            at = self.sides.columns[:, pos if pos >= 0 else width + pos]
        about = {"method": "activation_patching", "name": f"patch of {site}"}
        change = self.new[site].float() - self.old[site].float()
        return sides.shifts(site, change, self.sides.base, at, head=head, **about)
