"""Edge attribution: which edges between components carry the answer, and how far they alone get.

    score(s -> r) = sum over positions of (w_s(source) - w_s(base)) . d metric / d input(r)
    noising:   base = clean, source = corrupted; the score is the change when the edge is corrupted
    denoising: base = corrupted, source = clean; the score is the change when the edge is repaired
    faithfulness(k) = (m(top k edges) - m(no edge)) / (m(all edges) - m(no edge)),  m: mean over cases

Shapes: writes and gradients `[component, case, pos, d]`; scores `[case, edge]`.
Units: the metric's; faithfulness is a share, 1 for the whole model, 0 where every edge is cut. Edges that
    are not kept carry the corrupted run's writes.
Source: EAP: Syed, Rager and Conmy (2023), Attribution Patching Outperforms Automated Circuit Discovery,
    https://arxiv.org/abs/2310.10348. EAP-IG and normalised faithfulness: Hanna, Pezzelle and Belinkov
    (2024), Have Faith in Faithfulness, https://arxiv.org/abs/2403.17806.
Differs from the paper: integrated gradients take midpoints, where EAP-IG takes right ends; the k edges of
    the largest absolute mean score are kept, without its greedy search and without pruning of edges that
    lead nowhere, so a circuit of k edges may use fewer; positions are not told apart, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.locate import sides
from workbench.locate.base import METRICS, Axis, Cases, Localiser, Need, Reads, Scores
from workbench.locate.sides import Direction
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor


@register(
    "locate",
    Citation(
        "Syed, Rager, Conmy; Hanna, Pezzelle, Belinkov",
        "Attribution Patching Outperforms Automated Circuit Discovery; Have Faith in Faithfulness",
        2023,
        "https://arxiv.org/abs/2310.10348",
    ),
)
@dataclass(frozen=True)
class EdgeAttribution(Localiser):
    """Circuits: edges between heads and MLPs by their effect, and how far the best of them get.

    Attributes:
        direction: "noising" takes gradients at the clean run, "denoising" at the corrupted one.
        metric: "logit_difference", "logprob" or "probability".
        steps: 0 for EAP; else EAP-IG with that many steps between the embeddings of both runs.
        points: how many circuit sizes, from 1 edge to all of them, evenly in their logarithm.
        draws: circuits of random edges per size.
        seed: of the random edges.
    """

    needs: ClassVar[tuple[Need, ...]] = ("edges",)
    reads: ClassVar[tuple[Reads, ...]] = ("answer", "corrupted")
    direction: Direction = "noising"
    metric: str = "logit_difference"
    steps: int = 5
    points: int = 8
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        sides.chosen("EdgeAttribution(direction=...)", self.direction, Direction)
        sides.known_metric("EdgeAttribution", self.metric)
        if self.steps < 0 or self.points < 2 or self.draws < 0:
            raise WorkbenchError(
                "EdgeAttribution",
                "cannot be drawn so",
                expected="steps and draws of 0 or more, at least 2 points",
                got=(self.steps, self.draws, self.points),
                do="choose other numbers",
            )

    def find(self, cases: Cases, *, edges: Any) -> Scores:
        """Scores of all edges, and the curve of what the best ones recover."""
        assert cases.corrupted is not None
        read = lambda logits: cases.metric(logits, self.metric)  # noqa: E731
        two = (cases.clean, cases.corrupted)
        base, source = two if self.direction == "noising" else two[::-1]
        scores = edges.scores(base, source, read, self.steps)
        unit = METRICS[self.metric]
        return Scores(
            {"score": scores},
            (Axis("edge", edges.names),),
            {"score": unit},
            figure="ranked",
            caption=f"Effect of each edge on the {self.metric.replace('_', ' ')} by "
            f"{self.direction}, estimated; mean over {len(cases)} cases.",
            also=self._curves(cases, scores, edges, read),
        )

    def _curves(
        self, cases: Cases, scores: Float[Tensor, "case edge"], edges: Any, read: Callable[..., Any]
    ) -> dict[str, Scores]:
        """What circuits of the best and of random edges recover, as a share and in the metric's unit."""
        n = scores.shape[1]
        sizes = _sizes(n, self.points)
        order = scores.mean(0).abs().argsort(descending=True, stable=True).cpu()
        rank = torch.Generator().manual_seed(self.seed)
        orders = [order, *(torch.randperm(n, generator=rank) for _ in range(self.draws))]
        circuits = [_first(order, size) for order in orders for size in sizes]
        ends = [torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)]
        found = edges.kept(cases.clean, cases.corrupted, torch.stack([*ends, *circuits]), read)
        # per case over the mean gap, so that the mean over cases is the ratio of means
        share = sides.fraction(found, found[1], found[0], "mean")
        names = ("best edges", *(f"random {i + 1}" for i in range(self.draws)))
        axes = (Axis("circuit", names), Axis("edges", sizes))
        return {
            "faithfulness": _curve("faithfulness", share, axes, "share of the model's effect", n),
            self.metric: _curve(self.metric, found, axes, METRICS[self.metric], n),
        }


def _curve(
    measure: str,
    found: Float[Tensor, "circuit case"],
    axes: tuple[Axis, ...],
    unit: str,
    n: int,
) -> Scores:
    """Circuits on their axes; the first two are the whole model and no edge."""
    whole, empty, circuits = found[0], found[1], found[2:]
    return Scores(
        {measure: circuits.T.unflatten(1, tuple(len(axis.labels) for axis in axes))},
        axes,
        {measure: unit},
        figure="curve",
        caption=f"What circuits of k of {n} edges recover, mean over {len(whole)} cases.",
        reference={"whole model": whole, "no edge": empty},
    )


def _sizes(n: int, points: int) -> tuple[int, ...]:
    """Whole numbers from 1 to n, evenly in their logarithm."""
    exact = torch.logspace(0, torch.tensor(float(n)).log10().item(), points, dtype=torch.float64)
    return tuple(sorted({min(n, max(1, round(float(x)))) for x in exact} | {n}))


def _first(order: Tensor, size: int) -> Bool[Tensor, " edge"]:
    keep = torch.zeros(len(order), dtype=torch.bool)
    keep[order[:size]] = True
    return keep
