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
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.locate.base import METRICS, Axis, Cases, Localiser, Need, Reads, Scores
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor

DIRECTIONS = ("noising", "denoising")


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
    direction: Literal["noising", "denoising"] = "noising"
    metric: str = "logit_difference"
    steps: int = 5
    points: int = 8
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise unknown("EdgeAttribution", "direction", self.direction, DIRECTIONS)
        if self.metric not in METRICS:
            raise unknown("EdgeAttribution", "metric", self.metric, METRICS)
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
        sides = (cases.clean, cases.corrupted)
        base, source = sides if self.direction == "noising" else sides[::-1]
        scores = edges.scores(base, source, read, self.steps)
        unit = METRICS[self.metric]
        return Scores(
            {"score": scores},
            (Axis("edge", edges.names),),
            {"score": unit},
            figure="ranked",
            caption=f"Effect of each edge on the {self.metric.replace('_', ' ')} by "
            f"{self.direction}, estimated; mean over {len(cases)} cases.",
            also={"faithfulness": self._curve(cases, scores, edges, read)},
        )

    def _curve(
        self, cases: Cases, scores: Float[Tensor, "case edge"], edges: Any, read: Callable[..., Any]
    ) -> Scores:
        """What circuits of the best and of random edges recover."""
        n = scores.shape[1]
        sizes = _sizes(n, self.points)
        order = scores.mean(0).abs().argsort(descending=True, stable=True).cpu()
        rank = torch.Generator().manual_seed(self.seed)
        orders = [order, *(torch.randperm(n, generator=rank) for _ in range(self.draws))]
        circuits = [_first(order, size) for order in orders for size in sizes]
        ends = [torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)]
        found = edges.kept(cases.clean, cases.corrupted, torch.stack([*ends, *circuits]), read)
        whole, empty = found[0], found[1]
        # per case over the mean gap, so that the mean over cases is the ratio of means
        share = lambda m: (m - empty) / (whole - empty).mean()  # noqa: E731
        metric = found[2:].T.unflatten(1, (len(orders), len(sizes)))
        values = {"faithfulness": share(found[2:]).T.unflatten(1, (len(orders), len(sizes)))}
        names = ("best edges", *(f"random {i + 1}" for i in range(self.draws)))
        return Scores(
            values | {"metric": metric},
            (Axis("circuit", names), Axis("edges", sizes)),
            {"faithfulness": "share of the model's effect", "metric": METRICS[self.metric]},
            figure="curve",
            caption=f"What circuits of k of {n} edges recover, mean over {len(cases)} cases.",
            reference={"whole model": share(whole), "no edge": share(empty)},
        )


def _sizes(n: int, points: int) -> tuple[int, ...]:
    """Whole numbers from 1 to n, evenly in their logarithm."""
    exact = torch.logspace(0, torch.tensor(float(n)).log10().item(), points, dtype=torch.float64)
    return tuple(sorted({min(n, max(1, round(float(x)))) for x in exact} | {n}))


def _first(order: Tensor, size: int) -> Bool[Tensor, " edge"]:
    keep = torch.zeros(len(order), dtype=torch.bool)
    keep[order[:size]] = True
    return keep
