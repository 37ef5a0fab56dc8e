"""Two stages: a probe scores everything, a dearer classifier only what passes the probe's threshold.

    cascade = Cascade(classify, threshold=0.0, costs=(0.01, 1.0))
    found = cascade.run(probe.score(acts), prompts)
    found.cost, found.rate, found.flagged

    cost = c_1 + P(escalate) c_2          final = 0.55 z_probe + 0.45 z_classifier, where escalated

What is not escalated is never flagged. So threshold -inf decides as stage 2 alone does on every item,
+inf flags nothing, and recall can only fall as the threshold rises.

Source: Cunningham et al. (2026), Constitutional Classifiers++: Efficient Production-Grade Defenses
    against Universal Jailbreaks, https://arxiv.org/abs/2601.04603 (weights of the sum, and about 5.5 % of
    traffic escalated, by second-hand summaries).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.comparison.stats import Interval, mean_interval
from workbench.comparison.table import Table
from workbench.errors import WorkbenchError
from workbench.probes.base import FittedProbe
from workbench.shapes import Bool, Float, Tensor

Numbers = Sequence[float | int] | Tensor
Classify = Callable[[list[Any]], Numbers]
"""From the escalated items to their logits, in their order; called once, not at all without items."""

MIX = (0.55, 0.45)


@dataclass(frozen=True)
class Outcome:
    """What a cascade did.

    Attributes:
        first: the probe's scores, `[item]`.
        escalated: which items the classifier saw.
        final: the mixed score where escalated, -inf elsewhere.
        flagged: escalated, and `final` at or above the decision.
        cost: mean per item, in the unit of the costs.
    """

    first: Float[Tensor, " item"]
    escalated: Bool[Tensor, " item"]
    final: Float[Tensor, " item"]
    flagged: Bool[Tensor, " item"]
    cost: float

    @property
    def rate(self) -> Interval:
        """Share of items that were escalated, with its 95 % interval."""
        return mean_interval(self.escalated.double().numpy(), proportion=True)

    def recall(self, targets: Numbers) -> Interval:
        """Share of the items of class 1 that were flagged, with its 95 % interval."""
        return self._flagged(targets, 1)

    def false_alarms(self, targets: Numbers) -> Interval:
        """Share of the items of class 0 that were flagged, with its 95 % interval."""
        return self._flagged(targets, 0)

    def _flagged(self, targets: Numbers, kind: int) -> Interval:
        chosen = _targets(targets, len(self.first)) == kind
        return mean_interval(self.flagged[chosen].double().numpy(), proportion=True)


@dataclass(frozen=True)
class Cascade:
    """A threshold on a probe, and what is asked above it.

    Attributes:
        classify: the second stage.
        threshold: escalate at scores at or above it, in the probe's units.
        decision: flag at final scores at or above it.
        costs: of the probe and of the classifier per item, in any one unit.
        mix: weights of the probe's and of the classifier's logit.
    """

    classify: Classify
    threshold: float | int = 0.0
    decision: float | int = 0.0
    costs: tuple[float | int, float | int] = (0.0, 1.0)
    mix: tuple[float | int, float | int] = MIX

    def run(self, scores: Float[Tensor, " item"], items: Iterable[Any]) -> Outcome:
        """Escalate what passes, ask the classifier, decide.

        Args:
            scores: the probe's, such as `probe.score(acts)`, on whichever device.
            items: what the classifier reads, one per score.

        Raises:
            WorkbenchError: NaN scores, items or logits that are not one each, negative costs.
        """
        items, scores = list(items), scores.detach().double().cpu()
        self._check(scores, items)
        escalated = scores >= self.threshold
        final = torch.full_like(scores, -torch.inf)
        chosen = escalated.nonzero()[:, 0].tolist()
        if chosen:
            second = _logits(self.classify([items[i] for i in chosen]), len(chosen))
            final[escalated] = self.mix[0] * scores[escalated] + self.mix[1] * second
        cost = self.costs[0] + len(chosen) / len(items) * self.costs[1]
        flagged = escalated & (final >= self.decision)
        return Outcome(scores, escalated, final, flagged, float(cost))

    def _check(self, scores: Tensor, items: list[Any]) -> None:
        bad = [c for c in self.costs if not 0 <= c < math.inf]
        if len(items) != len(scores) or not items or bool(scores.isnan().any()) or bad:
            raise WorkbenchError(
                "Cascade.run",
                "cannot run on these scores",
                expected="one item per score, scores without NaN, costs of 0 or more",
                got=f"{len(scores)} scores, {len(items)} items, costs {self.costs}",
                do="pass probe.score(...) of the same items",
            )
        if math.isnan(self.threshold) or math.isnan(self.decision):
            raise WorkbenchError(
                "Cascade",
                "a threshold is NaN",
                expected="numbers; -inf and inf are allowed",
                got=f"threshold={self.threshold}, decision={self.decision}",
                do="correct it",
            )


def threshold_for(scores: Float[Tensor, " item"], rate: float) -> float:
    """The threshold that escalates at most this share of the scores, as many as it can.

    Raises:
        WorkbenchError: a rate outside 0 to 1, no scores, or NaN among them.
    """
    if not 0 <= rate <= 1 or not len(scores) or bool(scores.isnan().any()):
        raise WorkbenchError(
            "threshold_for",
            "no such share",
            expected="scores without NaN and a rate from 0 to 1",
            got=f"{len(scores)} scores, {int(scores.isnan().sum())} NaN, rate {rate}",
            do="0.055 is the rate of the source",
        )
    falling = scores.double().sort(descending=True).values
    allowed = int(rate * len(falling) + 1e-9)
    if allowed == 0:
        return math.inf
    # ties at the edge must not let more through than asked
    within = falling[:allowed]
    if allowed < len(falling) and falling[allowed] == falling[allowed - 1]:
        within = within[within > falling[allowed]]
    return float(within[-1]) if len(within) else math.inf


def cascade_curve(
    first: Float[Tensor, " item"],
    second: Float[Tensor, " item"],
    targets: Numbers,
    thresholds: Iterable[float | int],
    **options: Any,
) -> Table:
    """What each threshold costs and finds, where the classifier's logit of every item is known.

    Args:
        first, second: logits of the probe and of the classifier.
        targets: 1 for items that should be flagged, 0 for others.
        thresholds: of the probe; -inf is stage 2 alone, the baseline of cost and recall.
        options: of `Cascade`: decision, costs, mix.

    Returns:
        A row per threshold and measure ("escalated", "recall", "false alarms", "cost") with mean, 95 %
        interval and number of items.
    """
    known = _logits(second, len(first))
    columns: dict[str, list[Any]] = {
        k: [] for k in ("threshold", "measure", "mean", "low", "high", "n", "unit")
    }
    for threshold in thresholds:
        cascade = Cascade(lambda chosen: known[chosen], float(threshold), **options)
        found = cascade.run(first, range(len(first)))
        rate, c = found.rate, cascade.costs
        cost = Interval(found.cost, *(c[0] + c[1] * end for end in (rate.low, rate.high)), rate.n)
        shares = (rate, found.recall(targets), found.false_alarms(targets))
        rows = zip(("escalated", "recall", "false alarms", "cost"), (*shares, cost), strict=True)
        for measure, at in rows:
            unit = "unit of the costs" if measure == "cost" else "fraction"
            row = (float(threshold), measure, at.mean, at.low, at.high, at.n, unit)
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
    return Table(columns, {"mean": "as in column unit"})


class Stream:
    """A cascade probe's score while tokens arrive: one row in, the score so far out.

    Holds the last M logits only. After each token the score is what the probe gives on the rows so far.
    """

    def __init__(self, probe: FittedProbe):
        """Start before the first token.

        Raises:
            WorkbenchError: the probe is no cascade.
        """
        if probe.method != "cascade":
            raise WorkbenchError(
                "Stream",
                "this probe has no running score",
                expected="a probe fitted with 'cascade'",
                got=probe.method,
                do="fit one with probes.fit('cascade', acts)",
            )
        self.probe, self.score = probe, -math.inf
        self._last: deque[float] = deque(maxlen=int(probe.params["window"]))
        self._average, self._seen = math.nan, 0

    def push(self, row: Float[Tensor, " d"]) -> float:
        """The score after one more token.

        Raises:
            WorkbenchError: a row of another width than the probe's, or not finite.
        """
        readout = self.probe.tensors["weight"]
        if row.shape != readout.shape or not bool(row.isfinite().all()):
            raise WorkbenchError(
                "Stream.push",
                "the row has another width, or is not finite",
                expected=f"finite numbers, {list(readout.shape)}",
                got=f"{list(row.shape)}, {int((~row.isfinite()).sum())} not finite",
                do=f"pass the token's row of {self.probe.site}",
            )
        logit = float(row.detach().float().cpu() @ readout + self.probe.tensors["bias"])
        now, self._seen = self._smooth(logit), self._seen + 1
        full = self._seen > int(self.probe.params["window"])
        self.score = max(self.score, now) if full else now
        return self.score

    def _smooth(self, logit: float) -> float:
        new = 2 / (int(self.probe.params["window"]) + 1)
        began = not math.isnan(self._average)
        self._average = (1 - new) * self._average + new * logit if began else logit
        self._last.append(logit)
        if self.probe.params["smooth"] == "ema":
            return self._average
        return sum(self._last) / len(self._last)


def _logits(found: Numbers, n: int) -> Tensor:
    logits = torch.as_tensor(found).detach().double().cpu()
    if logits.shape != (n,) or bool(logits.isnan().any()):
        raise WorkbenchError(
            "Cascade.run",
            "the classifier gave no logit for some items",
            expected=f"{n} numbers",
            got=f"shape {list(logits.shape)}, {int(logits.isnan().sum())} NaN",
            do="return one logit per item, in the items' order",
        )
    return logits


def _targets(targets: Numbers, n: int) -> Tensor:
    found = torch.as_tensor(targets).cpu()
    if found.shape != (n,):
        raise WorkbenchError(
            "Outcome",
            "targets are not one per item",
            expected=n,
            got=list(found.shape),
            do="pass one target per item",
        )
    return found
