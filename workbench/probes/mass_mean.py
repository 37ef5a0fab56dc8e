"""Mass-mean probe: the difference of the class means as the weight, whitened or not.

    theta = mean(h1) - mean(h0)
    score = theta . (h - m)                      m = (mean(h1) + mean(h0)) / 2
    score = theta . S^-1 (h - m)                 with iid=True; S is the within-class covariance

Shapes: rows `[row, d]`, targets `[row]`; weight `[d]`, bias `[]`.
Units: squared activations; with iid=True the log odds in nats of two Gaussians of one covariance and
    equal priors.
Source: Marks and Tegmark (2023), The Geometry of Truth: Emergent Linear Structure in Large Language
    Model Representations of True/False Datasets, https://arxiv.org/abs/2310.06824, section 5.1.
Differs from the paper: the paper's score has no bias, because its activations are centred beforehand;
    here the boundary lies halfway between the class means, so that rows need no centring. The paper
    does not say what to do where S cannot be inverted; here that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.probes.base import Data, two_classes
from workbench.probes.linear import (
    LinearProbe,
    by_class,
    halfway,
    line_tensors,
    pooled_covariance,
    whitened,
)
from workbench.registry import Citation, register
from workbench.shapes import Tensor


@register(
    "probes",
    Citation(
        "Marks, Tegmark",
        "The Geometry of Truth: Emergent Linear Structure in Large Language Model Representations "
        "of True/False Datasets",
        2023,
        "https://arxiv.org/abs/2310.06824",
    ),
)
@dataclass(frozen=True)
class MassMean(LinearProbe):
    """The difference of the class means, whitened or not; nothing is trained.

    Attributes:
        iid: whiten by the within-class covariance: for rows like those it was fitted on. The plain
            difference is the better direction to steer with.
    """

    iid: bool = False

    def fit(self, data: Data) -> dict[str, Tensor]:
        """The weight, and the bias halfway between the means.

        Raises:
            WorkbenchError: not two classes, or with `iid` a covariance that cannot be inverted.
        """
        positive, negative = by_class(two_classes("MassMean.fit", data))
        means = positive.mean(0), negative.mean(0)
        weight = means[0] - means[1]
        if self.iid:
            covariance = pooled_covariance(positive, negative)
            weight = whitened("MassMean(iid=True).fit", covariance, weight, len(data))
        return line_tensors(weight, halfway(weight, *means))
