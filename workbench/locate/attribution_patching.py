"""Attribution patching: what every patch would do to the metric, from one gradient.

    effect(s, p) ~ (a_source[s, p] - a_base[s, p]) . d metric / d a[s, p]  at the base run
    with steps = m: the mean of the gradients at the m midpoints of the way from base to source

Shapes: activations `[case, pos, ...]`; scores as of `activation_patching`: `[case, layer, pos]`,
    `[case, layer, head]` (or neuron), a "part" axis in front with part="all".
Units: the metric's; recovered is the effect as a fraction of source minus base. The base run is the
    corrupted one with "denoising" (clean values go in), the clean one with "noising".
Source: Nanda (2023), https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed,
    Rager and Conmy (2023), Attribution Patching Outperforms Automated Circuit Discovery,
    https://arxiv.org/abs/2310.10348; Kramar, Lieberum, Shah and Nanda (2024), AtP*,
    https://arxiv.org/abs/2403.00745. Steps: Sundararajan, Taly and Yan (2017), Axiomatic Attribution for
    Deep Networks, https://arxiv.org/abs/1703.01365; along the input embeddings for all sites at once:
    Hanna, Pezzelle and Belinkov (2024), https://arxiv.org/abs/2403.17806.
Differs from the paper: AtP*'s two repairs (the softmax of queries and keys taken exactly, gradients
    dropped layer by layer) are not here; `also["exact"]` shows how far off the top cells are instead.
    Steps are midpoints, where Hanna et al. take right ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError
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
    layer_axis,
    pos_axis,
)
from workbench.locate.sides import Direction, Per, Sides
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.tensors import Intervention

PARTS = {
    "resid_pre": "",
    "resid_mid": "",
    "resid_post": "",
    "attn_out": "",
    "mlp_out": "",
    "z": "head",
    "q": "head",
    "k": "head",
    "v": "head",
    "mlp_post": "neuron",
}
"""What can be patched, and the axis it has beside position."""
ALL = ("resid_pre", "attn_out", "mlp_out")
Path = Literal["inputs", "values"]


@register(
    "locate",
    Citation(
        "Nanda; Syed, Rager, Conmy; Kramar, Lieberum, Shah, Nanda",
        "Attribution Patching Outperforms Automated Circuit Discovery",
        2023,
        "https://arxiv.org/abs/2310.10348",
    ),
)
@dataclass(frozen=True)
class AttributionPatching(Localiser):
    """Every activation patch at once, to first order: two forwards and a backward.

    Attributes:
        part: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z" (heads), "q", "k", "v",
            "mlp_post" (neurons), or "all" for the stream, attention and MLP side by side.
        direction: "denoising" puts clean values into the corrupted run, "noising" corrupted ones
            into the clean run.
        metric: "logit_difference", "logprob" or "probability".
        positions: "each" patches positions one by one, "all" all of them together; by default "all"
            for heads and neurons.
        steps: 0 for the gradient at the base run; else gradients are averaged over this many points.
        path: what runs from base to source over the steps. "inputs": the embeddings, in `steps`
            forwards for all sites. "values": each site's own values, in `steps` forwards per site; the
            sum over positions is then the effect of patching all of them, exactly in the limit.
        per: recovered divides by the mean difference of the two runs, or by each case's own.
        exact: for how many top cells the patch itself is run beside its estimate; 0 for none.
    """

    reads: ClassVar[tuple[Reads, ...]] = ("answer", "corrupted")
    part: str = "resid_pre"
    direction: Direction = "denoising"
    metric: str = "logit_difference"
    positions: Literal["each", "all"] | None = None
    steps: int = 0
    path: Path = "inputs"
    per: Per = "mean"
    exact: int = 8

    @property
    def needs(self) -> tuple[Need, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whole runs and gradients; runs with patches where exact values are asked for."""
        always: tuple[Need, ...] = ("run", "gradients", "dims", "decode")
        return (*always, "patched") if self.exact else always

    def __post_init__(self) -> None:
        name = "AttributionPatching"
        sides.chosen(f"{name}(part=...)", self.part, (*PARTS, "all"))
        sides.chosen(f"{name}(direction=...)", self.direction, Direction)
        sides.chosen(f"{name}(positions=...)", self.positions, ("each", "all", None))
        sides.chosen(f"{name}(path=...)", self.path, Path)
        sides.chosen(f"{name}(per=...)", self.per, Per)
        sides.known_metric(name, self.metric)
        if self.steps < 0 or self.exact < 0:
            raise WorkbenchError(
                name,
                "steps and exact count something",
                expected="0 or more",
                got=(self.steps, self.exact),
                do="use steps=0 for the plain gradient, exact=0 for no exact patches",
            )

    def find(
        self,
        cases: Cases,
        *,
        run: Callable[..., Any],
        gradients: Callable[..., Any],
        dims: Any,
        decode: Callable[[int], str],
        patched: Callable[..., Tensor] | None = None,
    ) -> Scores:
        """Estimated effects of patches at every place."""
        read = lambda logits: cases.metric(logits, self.metric)  # noqa: E731
        job = _Job.of(self, Sides.of(cases, self.direction), dims.n_layers, run, gradients, read)
        effect = job.effects()
        axes = self._axes(cases, effect, decode)
        clean, corrupted = (job.source_metric, job.base_metric)
        if self.direction == "noising":
            clean, corrupted = corrupted, clean
        recovered = job.fraction(effect.movedim(0, -1) + job.base_metric).movedim(-1, 0)
        also = {}
        if patched and self.exact and bool(effect.isfinite().any()):
            also["exact"] = job.checked(effect, axes, patched)
        return Scores(
            {"effect": effect, "recovered": recovered},
            axes,
            {"effect": METRICS[self.metric], "recovered": "fraction"},
            caption=f"Estimated change of the {self.metric.replace('_', ' ')} by {self.direction} "
            f"at each place, mean over {len(cases)} cases.",
            reference={"clean": clean, "corrupted": corrupted},
            edit=job.edit,
            also=also,
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What is patched, one after the other."""
        return ALL if self.part == "all" else (self.part,)

    @property
    def each(self) -> bool:
        """Whether positions are told apart."""
        return (self.positions or ("all" if PARTS.get(self.part) else "each")) == "each"

    def _axes(self, cases: Cases, effect: Tensor, decode: Any) -> tuple[Axis, ...]:
        axes = [Axis("part", ALL)] if self.part == "all" else []
        axes.append(layer_axis(effect.shape[1 + len(axes)]))
        if name := PARTS.get(self.part, ""):
            axes.append(Axis(name, tuple(range(effect.shape[1 + len(axes)]))))
        return (*axes, *([pos_axis(cases, decode)] if self.each else []))


@dataclass(frozen=True)
class _Job:
    """Two runs on the columns of the base one, and the gradients between them.

    Attributes:
        base, source, grads: `[case, base pos, ...]` per site; source is base where it has no
            counterpart.
        base_metric, source_metric: `[case]`.
    """

    method: AttributionPatching
    sides: Sides
    sites: dict[str, list[str]]
    read: Callable[[Tensor], Tensor]
    base: dict[str, Tensor]
    source: dict[str, Tensor]
    grads: dict[str, Tensor]
    base_metric: Tensor
    source_metric: Tensor

    @classmethod
    def of(
        cls, method: Any, two: Sides, n_layers: int, run: Any, gradients: Any, read: Any
    ) -> _Job:
        """Two forwards and a backward, and those of the steps."""
        sites = {part: [f"L{i}.{part}" for i in range(n_layers)] for part in method.parts}
        every = [site for many in sites.values() for site in many]
        record = [*every, *(["embed"] if method.steps and method.path == "inputs" else [])]
        other = run(two.source, record=record, logits="last")
        base, grads, metric = gradients(two.base, record, read)
        source = {site: two.put(base[site], other[site]) for site in record}
        ends = (metric, read(other.logits[:, -1]))
        job = cls(method, two, sites, read, base, source, grads, *ends)
        if not method.steps:
            return job
        groups = [(every, "embed")] if method.path == "inputs" else [([s], s) for s in every]
        for many, start in groups:
            grads.update(job.averaged(many, start, gradients))
        return job

    def averaged(self, sites: list[str], start: str, gradients: Any) -> dict[str, Tensor]:
        """Mean gradients at `sites` while the value at `start` goes from base to source."""
        total = {s: torch.zeros_like(self.base[s], dtype=torch.float32) for s in sites}
        steps = self.method.steps
        for step in range(steps):
            between = torch.lerp(self.base[start], self.source[start], (step + 0.5) / steps)
            _, grads, _ = gradients(self.sides.base, sites, self.read, put={start: between})
            for site in sites:
                total[site] += grads[site] / steps
        return total

    def effects(self) -> Tensor:
        """`[case, (part,) layer, (head or neuron,) (pos)]`."""
        parts = []
        for part, sites in self.sites.items():
            parts.append(torch.stack([self._placed(part, site) for site in sites], 1))
        return torch.stack(parts, 1) if self.method.part == "all" else parts[0]

    def _placed(self, part: str, site: str) -> Tensor:
        product = self._change(site) * self.grads[site].float()
        found = product if PARTS[part] == "neuron" else product.sum(-1)
        if not self.method.each:
            return found.sum(1)  # what has no counterpart is 0 in the product
        columns = self.sides.columns.to(found.device)
        rows = torch.arange(len(found), device=found.device)[:, None]
        blank = (columns < 0).reshape(*columns.shape, *[1] * (found.dim() - 2))
        return found[rows, columns.clamp(min=0)].masked_fill(blank, float("nan")).movedim(1, -1)

    def _change(self, site: str) -> Tensor:
        return self.source[site].float() - self.base[site].float()

    def fraction(self, metric: Tensor) -> Tensor:
        """Of `[..., case]`, from the base run (0) to the source run (1)."""
        return sides.fraction(metric, self.base_metric, self.source_metric, self.method.per)

    def checked(self, effect: Tensor, axes: tuple[Axis, ...], patched: Any) -> Scores:
        """The top cells with what patching them really does."""
        cells = list(sides.strongest(effect, self.method.exact))
        names = [axis.name for axis in axes]
        variants = [self._patches(**dict(zip(names, cell, strict=True))) for cell in cells]
        exact = (patched(self.sides.base, variants, self.read) - self.base_metric).T
        estimate = torch.stack([effect[(slice(None), *cell)] for cell in cells], 1)
        exact = exact.to(estimate).masked_fill(estimate.isnan(), float("nan"))
        found = {"exact": exact, "estimate": estimate, "error": estimate - exact}
        return Scores(
            found,
            (Axis("place", tuple(_told(axes, cell) for cell in cells)),),
            dict.fromkeys(found, METRICS[self.method.metric]),
            caption=f"The {len(cells)} largest estimates and what the patches themselves do, "
            f"mean over {len(effect)} cases.",
        )

    def _site(self, layer: int, part: str | None = None) -> str:
        return f"L{layer}.{part or self.method.part}"

    def _patches(
        self,
        layer: int,
        part: int | None = None,
        head: int | None = None,
        neuron: int | None = None,
        pos: int | None = None,
    ) -> list[Patch]:
        """What is put in at a place, given by its indices on the axes."""
        site = self._site(layer, None if part is None else ALL[part])
        values = self.source[site]
        if neuron is not None:
            values = self.base[site].clone()
            values[..., neuron] = self.source[site][..., neuron]
        return self.sides.patches(site, values, pos, head)

    def edit(
        self,
        layer: int,
        part: str | None = None,
        head: int | None = None,
        neuron: int | None = None,
        pos: int | None = None,
    ) -> Intervention:
        """The mean over cases of source minus base, as an addition; labels as on the axes."""
        site, at = self._site(layer, part), None
        if pos is not None:
            width = self.sides.columns.shape[1]
            at = self.sides.columns[:, pos if pos >= 0 else width + pos]
        change = self._change(site)
        if neuron is not None:
            only = torch.zeros_like(change)
            only[..., neuron] = change[..., neuron]
            change = only
        about = {"method": "attribution_patching", "name": f"patch of {site}"}
        return sides.shifts(site, change, self.sides.base, at, head=head, **about)


def _told(axes: tuple[Axis, ...], cell: tuple[int, ...]) -> str:
    words = []
    for axis, i in zip(axes, cell, strict=True):
        label = axis.labels[i]
        short = {"part": str(label), "layer": f"L{label}"}
        words.append(short.get(axis.name, f"{axis.name} {label}"))
    return " ".join(words)
