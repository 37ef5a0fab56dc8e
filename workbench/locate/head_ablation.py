"""Head ablation: take away what a head says, and see how much of the answer goes.

    z_lh <- 0, its mean over cases at the position, or its value in another case
    drop = metric - metric with the head replaced

Shapes: `[case, layer, head]`.
Units: those of the metric, logits by default; beside the drop the metric itself.
Source: Michel, Levy and Neubig (2019), Are Sixteen Heads Really Better than One?,
    https://arxiv.org/abs/1905.10650 (zero); mean ablation as in Wang et al. (2022), Interpretability in the
    Wild, https://arxiv.org/abs/2211.00593; resampling as in Chan et al. (2022), Causal Scrubbing.
Differs from the paper: Michel et al. measure the loss or score of a task over its test set, here it is
    the metric of the last position. Wang et al. take means over another distribution of prompts by
    template, here over the cases themselves, counted from the end where their lengths differ. The
    control, a random change of the same norm at the strongest heads, is ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

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
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.tensors import Intervention, Tokens

VALUES = ("zero", "mean", "resample")


@register(
    "locate",
    Citation(
        "Michel, Levy, Neubig",
        "Are Sixteen Heads Really Better than One?",
        2019,
        "https://arxiv.org/abs/1905.10650",
    ),
)
@dataclass(frozen=True)
class HeadAblation(Localiser):
    """Replace a head's output by zero, by its mean, or by another case's, and see what is lost.

    Attributes:
        value: "zero", "mean" (over cases, each position on its own) or "resample" (other cases' values).
        draws: of "resample": how many other cases stand in, averaged; all where there are fewer.
        metric: see `Cases.metric`.
        control: "top" puts random changes of the same norm in at the strongest heads, "none" nothing.
        top: how many heads the control takes.
        seed: of the draws.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "patched", "dims")
    reads: ClassVar[tuple[Reads, ...]] = ("answer",)
    value: str = "zero"
    draws: int = 5
    metric: str = "logit_difference"
    control: str = "top"
    top: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        sides.chosen("HeadAblation(value=...)", self.value, VALUES)
        sides.chosen("HeadAblation(control=...)", self.control, ("top", "none"))
        sides.known_metric("HeadAblation", self.metric)
        sides.at_least_one("HeadAblation(draws=...)", self.draws)
        sides.at_least_one("HeadAblation(top=...)", self.top)

    def find(
        self, cases: Cases, *, run: Callable[..., Any], patched: Callable[..., Tensor], dims: Any
    ) -> Scores:
        """What each head is worth."""
        if self.value != "zero" and len(cases) < 2:
            raise _too_few(self.value)
        tokens = cases.clean
        trace = run(tokens, record="L*.z", logits="last")
        whole = cases.metric(trace.logits[:, -1], self.metric)
        measured = lambda many: patched(tokens, many, lambda x: cases.metric(x, self.metric))  # noqa: E731
        means = {site: _mean(z, tokens) for site, z in trace.values.items()}
        standing = {s: self._values(z, means[s], tokens) for s, z in trace.values.items()}
        shape = (dims.n_layers, dims.n_heads)
        variants = [
            [Patch(f"L{layer}.z", value, None, head)]
            for layer in range(dims.n_layers)
            for head in range(dims.n_heads)
            for value in standing[f"L{layer}.z"]
        ]
        metric = measured(variants).unflatten(0, (*shape, -1)).mean(2).movedim(-1, 0)
        drop = whole[:, None, None] - metric
        also = {}
        if self.control == "top":
            lost = lambda many: whole - measured(many)  # noqa: E731
            also["control"] = self._control(drop, standing, trace.values, lost)
        unit = METRICS[self.metric]
        return Scores(
            {"drop": drop, self.metric: metric},
            (layer_axis(dims.n_layers), head_axis(dims.n_heads)),
            {"drop": unit, self.metric: unit},
            caption=f"What {self.metric.replace('_', ' ')} loses when a head is replaced "
            f"({self.value}), mean over {len(cases)} cases.",
            reference={"whole": whole},
            edit=_Edit(self.value, {site: mean.cpu() for site, mean in means.items()}, tokens),
            also=also,
        )

    def _values(self, z: Tensor, mean: Tensor, tokens: Tokens) -> list[Tensor]:
        """What stands in for all heads of a layer, `[case, pos, head, d_head]` per draw."""
        if self.value == "zero":
            return [z.new_zeros(()).expand_as(z)]
        if self.value == "mean":
            return [mean.to(z).expand_as(z)]
        n = len(tokens)
        turns = random.Random(self.seed).sample(range(1, n), min(self.draws, n - 1))
        return [_turned(z, tokens, turn) for turn in sorted(turns)]

    def _control(
        self,
        drop: Tensor,
        standing: Mapping[str, list[Tensor]],
        z: Mapping[str, Tensor],
        lost: Callable[[list[list[Patch]]], Tensor],
    ) -> Scores:
        places = []
        for layer, head in sides.strongest(drop, self.top):
            site = f"L{layer}.z"
            make = lambda values, site=site, head=head: [Patch(site, values, None, head)]  # noqa: E731
            places.append((f"{site} head {head}", make, standing[site], z[site]))
        return sides.control(places, lost, self.seed, METRICS[self.metric])


def _mean(z: Tensor, tokens: Tokens) -> Tensor:
    """Mean over the cases that have a column, `[pos, head, d_head]`."""
    mask = tokens.mask.to(z.device)[:, :, None, None]
    return (z.float() * mask).sum(0) / mask.sum(0).clamp(min=1)


def _turned(z: Tensor, tokens: Tokens, turn: int) -> Tensor:
    """Each case's values those of the case `turn` further on, its own where that one is shorter."""
    has = tokens.mask.roll(-turn, 0).to(z.device)[:, :, None, None]
    return torch.where(has, z.roll(-turn, 0), z)


@dataclass(frozen=True)
class _Edit:
    """Makes a head's ablation an edit; "resample" becomes the mean that it averages to.

    `means` has what each head says on average, `[pos, head, d_head]` on CPU.
    """

    value: str
    means: Mapping[str, Tensor]
    tokens: Tokens

    def __call__(self, layer: int, head: int) -> Intervention:
        """The ablation of one head."""
        site = f"L{layer}.z"
        mean = self.means[site][:, head]
        about = {"unit": "share of the ablation", "name": f"{self.value} ablation of {site} {head}"}
        if self.value == "zero":
            weights = {f"{site}[head={head}]": {"scale": -torch.ones(mean.shape[-1])}}
            return Intervention("head_ablation", "affine", weights, **about)
        width, shortest = len(mean), min(self.tokens.lengths)
        equal = width == shortest
        weights = {
            f"{site}[head={head}, pos={c if equal else c - width}]": {"value": mean[c]}
            for c in range(width - shortest, width)
        }
        # where every prompt begins alike the mean is what the head says anyway
        return Intervention("head_ablation", "set", weights, conditional=True, **about)


def _too_few(value: str) -> WorkbenchError:
    return WorkbenchError(
        f"HeadAblation(value={value!r})",
        "has no other case to take values from",
        expected="two cases or more",
        got=1,
        do="pass more prompts, or use value='zero'",
    )
