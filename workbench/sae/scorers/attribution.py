"""Attribution: what each feature contributes to a metric of the next token, to first order.

    score_j = mean over cases of  sum over positions of  f_j (dm / dh . d_j)
    steps = n: the slope is averaged over n midpoints of the way from all features at 0 to their values,
    h - (1 - t) sum_j f_j d_j; the scores of all features then add up to what they do together

Above 0 the feature raises the metric; switching it off lowers the metric by about its score.

Shapes: `values` `[case, feature]`.
Units: the metric's.
Source: Marks et al. (2024), Sparse Feature Circuits, https://arxiv.org/abs/2403.19647, section 3.1; steps:
    Sundararajan, Taly and Yan (2017), Axiomatic Attribution for Deep Networks,
    https://arxiv.org/abs/1703.01365.
Differs from the paper: the sign is that of the contribution, theirs of the change by ablation. The
    baseline is 0 and not a corrupted prompt's activation; the error is held and gets no score of its own.
    Steps are midpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from workbench.registry import Citation, register
from workbench.sae.scorers.base import (
    Block,
    FeatureScores,
    MetricScorer,
    Need,
    metric_name,
    metric_unit,
)
from workbench.sae.scorers.cases import flipped, totals
from workbench.shapes import Float, Tensor


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
class Attribution(MetricScorer):
    """What each feature contributes to a logit difference, from one gradient.

    Attributes:
        metric: "logit_difference", "logprob", "probability", or a function
            `metric(logits [case, vocab], cases [case])` to `[case]` of the logits behind each prompt.
        steps: 0 for the gradient as it stands; else it is averaged over this many points.
    """

    needs: ClassVar[tuple[Need, ...]] = ("n_cases", "slopes")

    def score(self, *, n_cases: int, slopes: Callable[..., Iterable[Block]]) -> FeatureScores:
        """Contributions of all features at the chosen positions."""
        own = self._contributions(slopes, n_cases, "asked")
        control = own[0] * float("nan")
        if isinstance(self.metric, str):
            control = self._contributions(slopes, n_cases, "random").mean(0)
        _, largest, scale = flipped(own, self.draws, self.seed)
        return FeatureScores(
            own,
            control,
            largest,
            f"attribution of the {metric_name(self.metric)}",
            metric_unit(self.metric),
            "the same for two tokens drawn at random",
            scale=scale,
            caption=f"What features contribute to the {metric_name(self.metric)} to first order, "
            f"mean over {n_cases} prompts.",
        )

    def _contributions(
        self, slopes: Callable[..., Iterable[Block]], n_cases: int, tokens: str
    ) -> Float[Tensor, "case feature"]:
        found = slopes(self.metric, self.steps, tokens)
        return totals(((b.codes * b.slopes, b.cases) for b in found), n_cases)
