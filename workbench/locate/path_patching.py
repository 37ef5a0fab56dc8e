"""Path patching: what a component says to another directly, with everything between them frozen.

    sender <- source value;  later heads (and MLPs) <- base values;  receiver recomputed
    the receiver's new value put into the base run;  metric of the last position

The direct way from a sender to the last residual stream is one run; to other receivers it is two: the
first gives the receivers' values, the second puts them in and freezes nothing.

Shapes: `[case, layer, head]` by sender; `[case, layer]` for MLPs.
Units: recovered is a fraction, 0 the base run and 1 the source run; beside it the metric itself.
Source: Goldowsky-Dill, MacLeod, Sato and Arora (2023), Localizing Model Behavior with Path Patching,
    https://arxiv.org/abs/2304.05969; Wang et al. (2022), Interpretability in the Wild,
    https://arxiv.org/abs/2211.00593, whose receivers are queries, keys and values of heads.
Differs from the paper: senders act at all positions at once. Wang et al. recompute the MLPs between,
    which is `mlps="recomputed"`; by default they are frozen, so that a path is one edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench import sites
from workbench.errors import WorkbenchError
from workbench.locate import sides
from workbench.locate.base import (
    METRICS,
    Cases,
    Localiser,
    Need,
    Patch,
    Reads,
    Scores,
    head_axis,
    layer_axis,
)
from workbench.locate.sides import Direction, Per, Sides
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.sites import Site
from workbench.tensors import Intervention

BLOCKED = (
    *("resid_pre", "attn_norm_out", "q", "k", "v"),
    *("k_cache", "v_cache", "attn_scores", "pattern"),
)
"""Parts that a block computes before its own attention writes."""


@register(
    "locate",
    Citation(
        "Goldowsky-Dill, MacLeod, Sato, Arora",
        "Localizing Model Behavior with Path Patching",
        2023,
        "https://arxiv.org/abs/2304.05969",
    ),
)
@dataclass(frozen=True)
class PathPatching(Localiser):
    """Patch only the direct path from each head or MLP to a receiver, everything else frozen.

    Attributes:
        receivers: sites that read the senders, such as "L4.q[head=1]" (k and v: key-value heads),
            "L4.z[head=1]" or "L4.mlp_norm_out"; empty for the last residual stream.
        senders: "heads" or "mlps".
        mlps: "frozen" at the base run's values, or "recomputed", so that paths through MLPs count.
        direction: "noising" puts corrupted into clean, "denoising" clean into corrupted.
        metric: see `Cases.metric`.
        per: divide by the mean difference of the two runs, or by each case's own.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "patched", "dims")
    reads: ClassVar[tuple[Reads, ...]] = ("answer", "corrupted")
    receivers: tuple[str, ...] = ()
    senders: str = "heads"
    mlps: str = "frozen"
    direction: str = "noising"
    metric: str = "logit_difference"
    per: str = "mean"

    def __post_init__(self) -> None:
        name = "PathPatching"
        sides.chosen(f"{name}(senders=...)", self.senders, ("heads", "mlps"))
        sides.chosen(f"{name}(mlps=...)", self.mlps, ("frozen", "recomputed"))
        sides.chosen(f"{name}(direction=...)", self.direction, Direction)
        sides.chosen(f"{name}(per=...)", self.per, Per)
        sides.known_metric(name, self.metric)
        if isinstance(self.receivers, str):
            raise WorkbenchError(
                f"{name}(receivers={self.receivers!r})",
                "is a text, not a tuple of texts",
                expected=f"({self.receivers!r},)",
                got=self.receivers,
                do="put it into brackets",
            )

    def find(self, cases: Cases, *, run: Callable[..., Any], patched: Any, dims: Any) -> Scores:
        """The effect of every sender's direct path."""
        two = Sides.of(cases, self.direction)
        receivers = [_receiver(text, dims) for text in self.receivers]
        read = ["L*.z", "L*.mlp_out"]
        base = run(two.base, [*read, *{str(site.base) for site in receivers}], logits="last")
        source = run(two.source, read, logits="last")
        new = {site: two.put(base.values[site], value) for site, value in source.values.items()}
        job = _Job(self, two, patched, dims, receivers, base.values, new)
        scores = [cases.metric(trace.logits[:, -1], self.metric) for trace in (base, source)]
        del base, source  # as large as what is kept
        metric = job.metrics(scores[0])
        moved = sides.fraction(metric, *scores, self.per)
        axes = (layer_axis(dims.n_layers), head_axis(dims.n_heads))
        axes = axes if self.senders == "heads" else axes[:1]
        shape = [len(axis.labels) for axis in axes]
        first = 1 if self.direction == "noising" else -1
        names = ("clean", "corrupted")[::first]
        return Scores(
            {
                "recovered": moved.movedim(-1, 0).unflatten(1, shape),
                self.metric: metric.movedim(-1, 0).unflatten(1, shape),
            },
            axes,
            {"recovered": "fraction", self.metric: METRICS[self.metric]},
            caption=self._caption(len(cases)),
            reference=dict(zip(names, scores, strict=True)),
            edit=job.edit,
        )

    def _caption(self, n: int) -> str:
        to = ", ".join(self.receivers) or "the last residual stream"
        return (
            f"The direct path from each of the {self.senders} to {to}: 0 is the run that is changed, "
            f"1 the run that the values come from, in {self.metric.replace('_', ' ')}, "
            f"mean over {n} cases."
        )


@dataclass(frozen=True)
class _Job:
    """One map in the making: base values, and the source's in their places."""

    method: PathPatching
    sides: Sides
    patched: Any
    dims: Any
    receivers: list[Site]
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]

    def metrics(self, base: Tensor) -> Tensor:
        """The metric per sender, `[sender, case]`; that of the base run where no path leads on."""
        layers = range(self.dims.n_layers)
        if not self.receivers:
            return self.measured([path for layer in layers for path in self.paths(layer)])
        # layer by layer, since what the receivers hear of each sender is kept until it is put in
        return torch.cat([self.through_receivers(layer, base) for layer in layers])

    def measured(self, variants: list[list[Patch]]) -> Tensor:
        """The metric of variants, `[variant, case]`."""
        cases, kind = self.sides.cases, self.method.metric
        return self.patched(self.sides.base, variants, lambda x: cases.metric(x, kind))

    def through_receivers(self, layer: int, base: Tensor) -> Tensor:
        """The metric per sender of a layer when the receivers above are as they hear it."""
        count = len(self.paths(layer))
        ahead = [site for site in self.receivers if self._ahead(site, layer)]
        if not ahead:
            return base.expand(count, -1)
        heard = self.arriving(layer, ahead)
        put = [(str(site.base), _head(site)) for site in ahead]
        return self.measured(
            [[Patch(name, heard[name][i], None, head) for name, head in put] for i in range(count)]
        )

    def arriving(
        self, layer: int, ends: list[Site], sender: int | None = None
    ) -> dict[str, Tensor]:
        """Per site of `ends` its value by each sender's path; with `sender` by its path and by none."""
        alike: dict[str, list[str]] = {}
        for site in ends:
            alike.setdefault(_open(site), []).append(str(site.base))
        found: dict[str, Tensor] = {}
        for name, texts in alike.items():
            variants = self.paths(layer, name)
            variants = variants if sender is None else [variants[sender], []]
            found |= self.patched.values(self.sides.base, variants, list(dict.fromkeys(texts)))
        return found

    def paths(self, layer: int, end: str = "") -> list[list[Patch]]:
        """Per sender of a layer: its source value, and what is frozen behind it."""
        heads = self.method.senders == "heads"
        site = f"L{layer}.{'z' if heads else 'mlp_out'}"
        value = self.new[site]
        frozen = self.frozen(layer, end)
        many = range(self.dims.n_heads) if heads else [None]
        return [[Patch(site, value, None, head), *frozen] for head in many]

    def frozen(self, layer: int, end: str) -> list[Patch]:
        """Base values of everything between a sender of this layer and where the path ends."""
        first = layer if self.method.senders == "heads" else layer + 1
        names = [f"L{i}.z" for i in range(layer + 1, self.dims.n_layers)]
        if self.method.mlps == "frozen":
            names += [f"L{i}.mlp_out" for i in range(first, self.dims.n_layers)]
        return [Patch(name, self.old[name]) for name in names if name != end]

    def _ahead(self, site: Site, layer: int) -> bool:
        assert site.layer is not None
        if self.method.senders == "mlps":
            return site.layer > layer or (site.layer == layer and site.part == "resid_post")
        inside = site.layer == layer and site.part not in (*BLOCKED, "z")
        return site.layer > layer or inside

    def edit(self, layer: int, head: int | None = None) -> Intervention:
        """The mean over cases of what the path brings to the receivers, as an addition.

        Receivers of several layers hear each other's additions too, which the patch overwrites.
        """
        ahead = [s for s in self.receivers if self._ahead(s, layer)]
        last = Site(self.dims.n_layers - 1, "resid_post")
        ends = ahead if self.receivers else [last]
        if not ends:
            raise _no_path(layer, self.method.receivers)
        heard = self.arriving(layer, ends, head or 0)
        made = [
            sides.shifts(
                str(site.base),
                heard[str(site.base)][0].float() - heard[str(site.base)][1].float(),
                self.sides.base,
                head=_head(site),
                method="path_patching",
                name=f"path from L{layer}",
            )
            for site in ends
        ]
        tensors = {text: weights for one in made for text, weights in one.tensors.items()}
        return Intervention(
            "path_patching", "affine", tensors, unit=made[0].unit, name=made[0].name
        )


def _open(site: Site) -> str:
    """What must not be frozen for a receiver to be computed anew, "" where that is nothing.

    Each receiver has runs of its own, or one would pass on to the next what is no direct path.
    """
    if site.part == "attn_out":
        return f"L{site.layer}.z"
    return str(site.base) if site.part in ("z", "mlp_out") else ""


def _head(site: Site) -> int | None:
    head = site.selector("head")
    assert head is None or isinstance(head, int)
    return head


def _receiver(text: str, dims: Any) -> Site:
    found = sites.parse(text, dims.n_layers)
    (site, *more) = found
    keys = [key for key, _ in site.selectors]
    one = all(isinstance(index, int) and index >= 0 for _, index in site.selectors)
    if more or keys not in ([], ["head"]) or not one or site.layer is None:
        raise WorkbenchError(
            f"PathPatching(receivers=[{text!r}])",
            "is not one receiver",
            expected="a site of one layer, with at most one head, such as L4.q[head=1]",
            got=text,
            do="list several receivers one by one",
        )
    heads = dims.n_kv_heads if site.part in ("k", "v", "k_cache", "v_cache") else dims.n_heads
    if (_head(site) or 0) >= heads:
        raise WorkbenchError(
            f"PathPatching(receivers=[{text!r}])",
            "names a head that the model lacks",
            expected=f"heads 0 to {heads - 1}",
            got=_head(site),
            do="count from 0; keys and values have key-value heads",
        )
    return site


def _no_path(layer: int, receivers: tuple[str, ...]) -> WorkbenchError:
    return WorkbenchError(
        "Map.edit",
        f"no path leads from layer {layer} to the receivers",
        expected=f"a sender below {', '.join(receivers)}",
        got=f"layer {layer}",
        do="choose an earlier sender",
    )
