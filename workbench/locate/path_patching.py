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

BLOCKED = ("resid_pre", "attn_norm_out", "q", "k", "v", "attn_scores", "pattern")
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
        found = []
        for layer in range(self.dims.n_layers):
            paths = self.paths(layer)
            if not self.receivers:
                found += paths
                continue
            ahead = [site for site in self.receivers if self._ahead(site, layer)]
            changed = (
                self.patched.values(self.sides.base, paths, [*{str(s.base) for s in ahead}])
                if ahead
                else {}
            )
            found += [_arrived(ahead, changed, i) for i in range(len(paths))]
        led = [i for i, variant in enumerate(found) if variant]
        metric = base.expand(len(found), -1).clone()
        if led:
            cases, kind = self.sides.cases, self.method.metric
            variants = [found[i] for i in led]
            metric[led] = self.patched(self.sides.base, variants, lambda x: cases.metric(x, kind))
        return metric

    def paths(self, layer: int) -> list[list[Patch]]:
        """Per sender of a layer: its source value, and what is frozen behind it."""
        heads = self.method.senders == "heads"
        site = f"L{layer}.{'z' if heads else 'mlp_out'}"
        value = self.new[site]
        frozen = self.frozen(layer)
        many = range(self.dims.n_heads) if heads else [None]
        return [[Patch(site, value, None, head), *frozen] for head in many]

    def frozen(self, layer: int) -> list[Patch]:
        """Base values of everything between a sender of this layer and the receivers."""
        first = layer if self.method.senders == "heads" else layer + 1
        names = [f"L{i}.z" for i in range(layer + 1, self.dims.n_layers)]
        if self.method.mlps == "frozen":
            names += [f"L{i}.mlp_out" for i in range(first, self.dims.n_layers)]
        # a receiver is recomputed, whatever freezes the others
        own = {str(site.base) for site in self.receivers}
        return [Patch(name, self.old[name]) for name in names if name not in own]

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
        variant = self.paths(layer)[head or 0]
        ahead = [s for s in self.receivers if self._ahead(s, layer)]
        last = Site(self.dims.n_layers - 1, "resid_post")
        ends = ahead if self.receivers else [last]
        if not ends:
            raise _no_path(layer, self.method.receivers)
        names = [*{str(site.base) for site in ends}]
        pair = self.patched.values(self.sides.base, [variant, []], names)
        made = [
            sides.shifts(
                str(site.base),
                pair[str(site.base)][0].float() - pair[str(site.base)][1].float(),
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


def _arrived(ahead: list[Site], changed: Mapping[str, Tensor], i: int) -> list[Patch]:
    """The receivers' values of variant `i`, put in."""
    return [Patch(str(s.base), changed[str(s.base)][i], None, _head(s)) for s in ahead]


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
    return site


def _no_path(layer: int, receivers: tuple[str, ...]) -> WorkbenchError:
    return WorkbenchError(
        "Map.edit",
        f"no path leads from layer {layer} to the receivers",
        expected=f"a sender below {', '.join(receivers)}",
        got=f"layer {layer}",
        do="choose an earlier sender",
    )
