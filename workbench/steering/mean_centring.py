"""Mean of the wanted class minus the mean of a generic corpus, added to the activation.

    v = mean(h+) - m          m = mean of the corpus          h' = h + s v

Language models keep a large offset that all their activations share. Subtracting the corpus mean
takes it out of the wanted class's mean. This works on **one side only**: centring both classes by the
same m and then taking their difference, (mean(h+) - m) - (mean(h-) - m), cancels m and is the
difference of means again, whatever the corpus.

Shapes: rows `[row, d]` per class and site, corpus `[any row, d]` per site; v `[d]`.
Units: strength s counts distances from the corpus mean to the wanted class's mean.
Source: Jorgensen, Cope, Schoots and Shanahan (2023), Improving Activation Steering in Language Models
    with Mean-Centring, https://arxiv.org/abs/2312.03813.
Differs from the paper: the paper's corpus is a sample of the model's training text. Without `corpus`
    it is the union of both classes here, each row counted once. For classes of n+ and n- rows that is
    the mean difference times n- / (n+ + n-): the same direction, half as long where they are equally
    many. A corpus of its own is what makes the method more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.shapes import Rows, Tensor, Vector
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Jorgensen, Cope, Schoots, Shanahan",
        "Improving Activation Steering in Language Models with Mean-Centring",
        2023,
        "https://arxiv.org/abs/2312.03813",
    ),
)
@dataclass(frozen=True)
class MeanCentring(SteeringMethod):
    """Add the wanted class's mean minus a generic corpus' mean."""

    def fit(
        self, contrast: Contrast, *, corpus: Mapping[str, Tensor] | None = None
    ) -> Intervention:
        """The addition of `mean(positive) - mean(corpus)` at every recorded site.

        Args:
            corpus: generic rows `[row, d]` by site, such as `activations.values`; the union of both
                classes by default. With it, the negative class is checked and not used.

        Raises:
            UnknownName: the corpus lacks a site.
            WorkbenchError: corpus rows are empty, not finite, of another width, or have the mean of
                the positive class.
        """
        tensors = {}
        for site, positive, negative in sites_of(contrast, "MeanCentring"):
            generic = torch.cat([positive, negative])
            if corpus is not None:
                generic = _corpus_rows(corpus, site, positive)
            tensors[site] = {"shift": _centred(site, positive, generic).float()}
        return Intervention(
            "mean_centring",
            "affine",
            tensors,
            unit="distances from the corpus mean to the class mean",
            params={"corpus": "both classes" if corpus is None else "given"},
            model=contrast.model,
        )


def _corpus_rows(corpus: Mapping[str, Tensor], site: str, positive: Rows) -> Tensor:
    if site not in corpus:
        raise unknown("MeanCentring.fit(corpus)", "site", site, corpus)
    rows = corpus[site].detach().cpu()
    wide = rows.dim() == 2 and rows.shape[1] == positive.shape[1]
    if wide and len(rows) and bool(torch.isfinite(rows).all()):
        return rows
    raise WorkbenchError(
        f"MeanCentring.fit(corpus) at {site}",
        "cannot be averaged",
        expected=f"at least one finite row of width {positive.shape[1]}",
        got=f"shape {tuple(rows.shape)}"
        + (", NaN or infinite values" if wide and len(rows) else ""),
        do="record the corpus at the same sites as the classes",
    )


def _centred(site: str, positive: Rows, generic: Tensor) -> Vector:
    towards = positive.double().mean(0) - generic.double().mean(0)
    if float(towards.norm()) <= 1e-9 * float(positive.double().norm(dim=-1).mean()):
        raise WorkbenchError(
            f"MeanCentring.fit at {site}",
            "the corpus has the mean of the positive class, so there is no direction",
            expected="a corpus that is more than the positive class",
            got="a difference of 0",
            do="give generic text as the corpus",
        )
    return towards
