"""Ablation: what the metric loses when a feature is taken out, everything else in the activation kept.

    score_j = mean over cases of  m(h) - m(h - f_j d_j),  at all chosen positions at once

Run for a few candidates, one forward each: those given, or those of the largest attribution (see
`attribution`). These are chosen by the same cases that judge them, so their p asks how often the
attribution of any feature at all is as steady with random signs; that of given ones asks it of these
alone. Beside each stands the same amount, |f_j d_j| per position, taken out along the decoder row of a
random active feature.

Shapes: `values` `[case, candidate]`.
Units: the metric's.
Source: Marks et al. (2024), Sparse Feature Circuits, https://arxiv.org/abs/2403.19647, for ablations with
    the error kept; Bricken et al. (2023), Towards Monosemanticity,
    https://transformer-circuits.pub/2023/monosemantic-features.
Differs from the paper: the sign is that of the contribution. The control along other features is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.sae.scorers.base import (
    Block,
    FeatureScores,
    MetricScorer,
    Need,
    metric_name,
    metric_unit,
)
from workbench.sae.scorers.cases import flipped, strongest, totals
from workbench.seeds import derive
from workbench.shapes import Float, Int, Tensor


@register(
    "scorers",
    Citation(
        "Marks, Rager, Michaud, Belinkov, Bau, Mueller",
        "Sparse Feature Circuits",
        2024,
        "https://arxiv.org/abs/2403.19647",
    ),
)
@dataclass(frozen=True)
class Ablation(MetricScorer):
    """What the metric loses when a feature is taken out: exact, for a few candidates.

    Attributes:
        features: which are tried; by default those of the largest attribution.
        candidates: how many, where `features` does not say.
        metric, steps: as in `Attribution`; steps are of the choice alone.
    """

    needs: ClassVar[tuple[Need, ...]] = ("n_cases", "slopes", "switched_off")
    features: tuple[int, ...] = ()
    candidates: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise WorkbenchError(
                "Ablation(candidates)",
                "is no number of features",
                expected="1 or more",
                got=self.candidates,
                do="say candidates=16",
            )

    def score(
        self,
        *,
        n_cases: int,
        slopes: Callable[..., Iterable[Block]],
        switched_off: Callable[..., Float[Tensor, "case f"]],
    ) -> FeatureScores:
        """What the metric loses without each candidate, and without its control."""
        attributed, active = self._surveyed(slopes, n_cases)
        chosen = self._chosen(attributed.double().mean(0), active)
        effects = switched_off(self.metric, chosen.tolist())
        control = torch.full((len(chosen),), float("nan"), dtype=torch.float64)
        others = self._others(chosen, active)
        if others is not None:
            found = switched_off(self.metric, chosen.tolist(), along=others.tolist())
            control = found.double().mean(0)
        _, largest, scale = flipped(effects, self.draws, self.seed)
        if not self.features:  # chosen among all, by what these cases say
            largest = flipped(attributed, self.draws, self.seed)[1]
        return FeatureScores(
            effects,
            control,
            largest,
            f"ablation of the {metric_name(self.metric)}",
            metric_unit(self.metric),
            "the same amount taken out along a random active feature",
            features=chosen,
            scale=scale,
            also={"attribution": attributed[:, chosen].double().mean(0)},
            caption=f"What the {metric_name(self.metric)} loses without a feature, "
            f"mean over {n_cases} prompts.",
        )

    def _surveyed(
        self, slopes: Callable[..., Iterable[Block]], n_cases: int
    ) -> tuple[Float[Tensor, "case feature"], Float[Tensor, " feature"]]:
        """Attribution of every case, and total activation, of every feature."""
        active: list[Tensor] = []

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for block in slopes(self.metric, self.steps, "asked"):
                assert block.slopes is not None
                active.append(block.codes.abs().sum(0).double().cpu())
                yield block.codes * block.slopes, block.cases

        return totals(parts(), n_cases), torch.stack(active).sum(0)

    def _chosen(
        self, attributed: Float[Tensor, " feature"], active: Float[Tensor, " feature"]
    ) -> Int[Tensor, " f"]:
        n = len(attributed)
        wrong = [j for j in self.features if not 0 <= j < n]
        if wrong:
            raise WorkbenchError(
                "Ablation(features)",
                "the dictionary has no such feature",
                expected=f"0 to {n - 1}",
                got=wrong,
                do="count from 0",
            )
        if self.features:
            return torch.tensor(self.features)
        alive = int((active > 0).sum())
        if alive == 0:
            raise WorkbenchError(
                "Ablation",
                "no feature is active at the chosen positions",
                expected="an active feature",
                got=f"0 of {n}",
                do="choose other positions or another dictionary",
            )
        return strongest(attributed.masked_fill(active <= 0, 0), min(self.candidates, alive))

    def _others(
        self, chosen: Int[Tensor, " f"], active: Float[Tensor, " feature"]
    ) -> Int[Tensor, " f"] | None:
        """For each candidate a random active feature that is none of them; None where there is none."""
        free = active > 0
        free[chosen] = False
        left = free.nonzero()[:, 0]
        if not len(left):
            return None
        generator = torch.Generator().manual_seed(derive(self.seed, "control"))
        return left[torch.randint(0, len(left), (len(chosen),), generator=generator)]
