"""What a scorer of features is: options, and `score` from cases to one number per feature.

A scorer knows no model. What it needs it names in `needs`, and is handed by keyword:

    n_cases       how many cases there are; a case is a prompt
    codes         `codes()`: Blocks of activations at the chosen positions, in bounded memory
    labels        Labels: the class of each case
    spelled       the text of each case and the place of every token in it
    slopes        `slopes(metric, steps, tokens)`: Blocks whose `slopes` are d metric / d activation
    switched_off  `switched_off(metric, features, along)`: `[case, f]`, the metric less what it is with a
                  feature taken out, everything else in the activation kept; with `along` the same amount
                  is taken out along other features' decoder rows
    toward        `toward(token, tokens)`: `[case, d]`, the direction along which a write raises the
                  logit difference, the final norm's scale frozen
    decoder       `[feature, d]`, what each feature writes per unit of activation

`tokens` says which tokens a metric compares: "asked" for those of the cases, "random" for two that are
drawn from the vocabulary, which is a control.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.locate.base import METRICS
from workbench.shapes import Codes, Float, Int, Tensor

Need = Literal[
    "n_cases", "codes", "labels", "spelled", "slopes", "switched_off", "toward", "decoder"
]
Reads = Literal["label", "answer"]
Metric = str | Callable[..., Tensor]
"""A name of `workbench.locate.base.METRICS`, or `metric(logits [case, vocab], cases [case])` to `[case]`,
where a case's number depends on its own row alone."""


@dataclass(frozen=True)
class Block:
    """Some tokens of some cases.

    Attributes:
        codes: activation of every feature, `[row, feature]`.
        cases: which case each row is of.
        positions: absolute position of each row in its case.
        slopes: what a unit of each feature's activation does to a metric there; None where not asked.
    """

    codes: Codes
    cases: Int[Tensor, " row"]
    positions: Int[Tensor, " row"]
    slopes: Codes | None = None


@dataclass(frozen=True)
class Labels:
    """Two classes of cases.

    Attributes:
        classes: 1 for the positive class, 0 for the negative one, NaN for cases of neither.
        pairs: `[2, pair]`, the positive and the negative case of each pair; None where cases are not
            paired one to one.
    """

    classes: Float[Tensor, " case"]
    pairs: Int[Tensor, "two pair"] | None = None


@dataclass(frozen=True)
class Spelled:
    """A case as text.

    Attributes:
        text: what the model reads.
        spans: start and stop in `text` of the token at each position; equal for special tokens.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FeatureScores:
    """What a scorer found.

    Attributes:
        values: `[case, f]`; their mean over cases is the score, their spread is its sampling error. Where
            a score is no mean itself they are its linearisation. NaN where a case says nothing.
        control: `[f]`, the same score where there is nothing to find.
        largest: `[draw]`, the largest distance from `neutral` of any feature, where there is nothing to
            find, in units of `scale`; a feature further off than nearly all of these was not found by
            looking at many.
        measure, unit: what a score is, and in what it is counted.
        said: what `control` is, in words.
        neutral: the score of a feature that has nothing to do with it.
        scale: `[f]`, what distances are divided by before features are compared in `largest`, so that a
            steady small feature is not lost beside a large one; 1 by default.
        features: `[f]`, which features the columns are; all of them by default.
        also: other numbers per feature `[f]`, by column name.
        caption: one sentence under the figure.
    """

    values: Float[Tensor, "case f"]
    control: Float[Tensor, " f"]
    largest: Float[Tensor, " draw"]
    measure: str
    unit: str
    said: str
    neutral: float = 0.0
    scale: Float[Tensor, " f"] | None = None
    features: Int[Tensor, " f"] | None = None
    also: Mapping[str, Float[Tensor, " f"]] = field(default_factory=dict)
    caption: str = ""

    @property
    def scores(self) -> Float[Tensor, " f"]:
        """Mean over cases, float64."""
        return self.values.double().nanmean(0)

    @property
    def p(self) -> Float[Tensor, " f"]:
        """Share of draws in which any feature at all is as far off; the score itself counts as a draw.

        Source: Westfall and Young (1993), Resampling-Based Multiple Testing, for the largest of many;
            Phipson and Smyth (2010), https://arxiv.org/abs/1603.05766, for counting the score itself.
        """
        off = (self.scores - self.neutral).abs()
        if self.scale is not None:
            off = torch.where(self.scale > 0, off / self.scale, 0.0)
        beyond = (self.largest.double()[:, None] >= off.cpu()).sum(0)
        return (1 + beyond).double() / (1 + len(self.largest))


@dataclass(frozen=True)
class Scorer(ABC):
    """Options of a scorer. `score` is deterministic and leaves its data as it was.

    Attributes:
        needs: what it must be handed, by keyword.
        reads: what its prompts must have; a property where options decide it.
        draws: how often chance is drawn, for `FeatureScores.largest`.
        seed: of these draws.
    """

    needs: ClassVar[tuple[Need, ...]] = ("n_cases", "codes")
    reads: ClassVar[tuple[Reads, ...]] = ()
    draws: int = field(default=200, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    @abstractmethod
    def score(self, *args: Any, **handed: Any) -> FeatureScores:
        """One number per feature, from values per case."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise WorkbenchError(
                f"{type(self).__name__}(draws=...)",
                "is no number of draws",
                expected="1 or more",
                got=self.draws,
                do="say draws=200",
            )


POOLS = ("mean", "max")


@dataclass(frozen=True)
class LabelScorer(Scorer):
    """Compares activations of two classes of cases.

    Attributes:
        pool: how the positions of a prompt become one number: "mean" or "max".
    """

    needs: ClassVar[tuple[Need, ...]] = ("n_cases", "codes", "labels")
    reads: ClassVar[tuple[Reads, ...]] = ("label",)
    pool: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise unknown(f"{type(self).__name__}(pool)", "pool", self.pool, POOLS)


@dataclass(frozen=True)
class MetricScorer(Scorer):
    """Asks what features do to a metric of the next token.

    Attributes:
        metric: "logit_difference", "logprob", "probability", or a function
            `metric(logits [case, vocab], cases [case])` to `[case]` of the logits behind each prompt.
        steps: of attributions: 0 for the gradient as it stands; else it is averaged over this many
            points.
    """

    metric: Metric = "logit_difference"
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise unknown(f"{name}(metric)", "metric", self.metric, METRICS)
        if self.steps < 0:
            raise WorkbenchError(
                f"{name}(steps)",
                "is no number of steps",
                expected="0 for the plain gradient, or more",
                got=self.steps,
                do="say steps=8",
            )

    @property
    def reads(self) -> tuple[Reads, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Answers, where the metric is of an answer."""
        return ("answer",) if isinstance(self.metric, str) else ()


def metric_unit(metric: Metric) -> str:
    """What a metric is counted in."""
    return METRICS[metric] if isinstance(metric, str) else "the metric's own"


def metric_name(metric: Metric) -> str:
    """A metric in words."""
    named = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return named.replace("_", " ")
