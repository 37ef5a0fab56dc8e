"""Strength in one unit for every method: how far an edit moves the model, in nats.

The budget is the mean over generated positions of KL(edited || base) in nats along the edited
model's own greedy rollout, averaged over prompts; the 95th percentile over all positions stands
beside it.

Source: wassname, steering-lite (2026), https://github.com/wassname/steering-lite.
Differs from the source: it calibrates the 95th percentile; a mean has less noise at few prompts.
    The search here brackets first, so that a method whose divergence falls again with strength (an
    ablation past 1, a rotation past 180 degrees) is refused instead of mis-set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.errors import EditDidNothing, EditError
from workbench.interventions.rollout import continuation_logprobs
from workbench.linalg import kl_divergence
from workbench.records import Prompt
from workbench.tensors import Intervention


def kl_nats(
    model: Any,
    prompts: str | Prompt | Sequence[str | Prompt],
    edits: Iterable[Intervention],
    n_tokens: int = 20,
    batch_size: int | None = None,
) -> list[np.ndarray]:
    """KL(edited || base) in nats at each position of the edited model's own greedy rollout.

    Returns:
        One array per prompt, as long as its rollout: `n_tokens`, or fewer where it ended by itself.
    """
    edits = list(edits)
    rollouts = model.generate(prompts, edits=edits, max_new_tokens=n_tokens, batch_size=batch_size)
    asked, ids = [g.prompt for g in rollouts], [g.ids for g in rollouts]
    edited = continuation_logprobs(model, asked, ids, edits, batch_size)
    base = continuation_logprobs(model, asked, ids, (), batch_size)
    with torch.no_grad():
        return [kl_divergence(p, q).numpy() for p, q in zip(edited, base, strict=True)]


def calibrate(
    edit: Intervention,
    model: Any,
    prompts: str | Prompt | Sequence[str | Prompt],
    target_kl_nats: float = 1.0,
    n_tokens: int = 20,
    tolerance: float = 0.05,
    *,
    max_strength: float | None = None,
    max_runs: int = 40,
    batch_size: int | None = None,
    progress: bool = True,
) -> Intervention:
    """`edit` at the strength whose mean divergence is `target_kl_nats`, its sign kept.

    Args:
        target_kl_nats: nats per generated position, averaged over positions, then over prompts.
        n_tokens: length of the greedy rollout.
        tolerance: relative; 0.05 accepts 0.95 to 1.05 nats for a target of 1.
        max_strength: never go past it; None takes the method's own (1 for ablations), else no
            limit.
        max_runs: rollouts to spend before giving up.

    Returns:
        The edit with `params["calibration"]`: the target, the mean and p95 reached, the strength
        they hold for, and the number of tokens and prompts.

    Raises:
        EditError: the target is not a positive number, or the edit cannot reach it; the message
            gives the divergences that it does reach.
        EditDidNothing: the edit does nothing at its present strength.
    """
    start = _checked(edit, target_kl_nats)
    limit = max_strength or edit.params.get("max_strength") or math.inf
    with tqdm(desc=f"calibrate {edit.label}", unit="run", disable=not progress) as bar:

        def measure(strength: float) -> tuple[float, float]:
            mean, p95 = _mean_and_p95(model, prompts, edit.at(strength), n_tokens, batch_size)
            bar.update()
            bar.set_postfix_str(f"strength {strength:.4g}, {mean:.3g} nats, p95 {p95:.3g}")
            return mean, p95

        search = _Search(measure, target_kl_nats, tolerance, limit, max_runs, edit.label)
        strength = search.run(start)
    mean, p95 = search.seen[strength]
    record = {
        "target_kl_nats": target_kl_nats,
        "mean_kl_nats": mean,
        "p95_kl_nats": p95,
        "strength": strength,
        "n_tokens": n_tokens,
        "n_prompts": 1 if isinstance(prompts, str | Prompt) else len(prompts),
    }
    return replace(edit, strength=strength, params={**edit.params, "calibration": record})


def _checked(edit: Intervention, target: float) -> float:
    """The strength to start from, after refusing what cannot be calibrated."""
    if not (math.isfinite(target) and target > 0):
        raise EditError(
            "calibrate",
            "the target is not a divergence",
            expected="a positive number of nats",
            got=target,
            do="choose one, such as 1.0",
        )
    if isinstance(edit.strength, torch.Tensor):
        raise EditError(
            "calibrate",
            f"{edit.label!r} has one strength per row",
            expected="one number",
            got=tuple(edit.strength.shape),
            do="choose a start with edit.at(strength)",
        )
    return float(edit.strength) or 1.0


def _mean_and_p95(
    model: Any, prompts: Any, edit: Intervention, n_tokens: int, batch_size: int | None
) -> tuple[float, float]:
    """Mean and 95th percentile in nats; infinite where the edit makes the model overflow."""
    try:
        values = kl_nats(model, prompts, [edit], n_tokens, batch_size)
    except EditDidNothing:
        raise
    except EditError:
        return math.inf, math.inf
    mean = float(np.mean([v.mean() for v in values]))
    if not math.isfinite(mean):
        return math.inf, math.inf
    return mean, float(np.percentile(np.concatenate(values), 95))


@dataclass
class _Search:
    """Find the strength whose divergence is the target: bracket it, then close in on a log scale.

    A small strength s gives a divergence that grows as s squared, which is where the steps come
    from.
    """

    measure: Any
    target: float
    tolerance: float
    limit: float
    max_runs: int
    label: str
    seen: dict[float, tuple[float, float]] = field(default_factory=dict)

    def run(self, start: float) -> float:
        """The signed strength found."""
        start = math.copysign(min(abs(start), self.limit), start)
        kl = self.kl(start)
        if self.hit(kl):
            return start
        below, above = self._fall(start) if kl > self.target else self._rise(start)
        return self._close_in(below, above)

    def kl(self, strength: float) -> float:
        """Mean divergence at a strength; an error where the runs are spent."""
        if strength not in self.seen:
            if len(self.seen) >= self.max_runs:
                raise self._unreachable(f"not found in {self.max_runs} runs")
            self.seen[strength] = self.measure(strength)
        return self.seen[strength][0]

    def hit(self, kl: float) -> bool:
        """Whether a divergence is the target, within tolerance."""
        return abs(kl - self.target) <= self.tolerance * self.target

    def _rise(self, start: float) -> tuple[float, float]:
        """Grow the strength until the divergence passes the target."""
        below, falls, highest = start, 0, self.kl(start)
        while abs(below) < self.limit and falls < 4:
            step = min(max(math.sqrt(self.target / max(self.kl(below), 1e-12)), 1.3), 8.0)
            above = math.copysign(min(abs(below) * step, self.limit), start)
            kl = self.kl(above)
            if kl >= self.target:
                return below, above
            falls = falls + 1 if kl <= highest * 1.03 else 0
            highest, below = max(highest, kl), above
        return self._below_a_peak(start)

    def _below_a_peak(self, start: float) -> tuple[float, float]:
        """The divergence stopped growing: look at smaller strengths, then give up."""
        above = None
        for halvings in range(1, 7):
            strength = start / 2**halvings
            if self.kl(strength) >= self.target:
                above = strength
            elif above is not None:
                return strength, above
        reason = (
            "its divergence stops growing"
            if math.isinf(self.limit)
            else f"strength ends at {self.limit:g}"
        )
        raise self._unreachable(reason)

    def _fall(self, start: float) -> tuple[float, float]:
        """Shrink the strength until the divergence is under the target."""
        above = start
        while abs(above) > abs(start) * 1e-9:
            kl = self.kl(above)
            step = 0.1 if math.isinf(kl) else min(max(math.sqrt(self.target / kl), 0.1), 0.8)
            below = above * step
            if self.kl(below) < self.target:
                return below, above
            above = below
        raise self._unreachable("its divergence does not go to 0 with its strength")

    def _close_in(self, below: float, above: float) -> float:
        """Secant on log-log axes, kept inside the bracket so that it always shrinks."""
        while True:
            for end in (below, above):
                if self.hit(self.kl(end)):
                    return end
            if abs(above / below - 1) < 1e-5:
                jump = (
                    f"jumps from {self.kl(below):.3g} to {self.kl(above):.3g} nats at {above:.4g}"
                )
                raise self._unreachable(f"its divergence {jump}")
            middle = below * (above / below) ** self._fraction(below, above)
            if self.kl(middle) < self.target:
                below = middle
            else:
                above = middle

    def _fraction(self, below: float, above: float) -> float:
        low, high = self.kl(below), self.kl(above)
        # every other step halves: rollouts change in jumps, and a secant creeps along a jump
        if low <= 0 or math.isinf(high) or len(self.seen) % 2:
            return 0.5
        return min(max(math.log(self.target / low) / math.log(high / low), 0.1), 0.9)

    def _unreachable(self, reason: str) -> EditError:
        finite = [kl for kl, _ in self.seen.values() if math.isfinite(kl)]
        strengths = sorted(self.seen)
        reached = (
            f"{min(finite):.3g} to {max(finite):.3g} nats" if finite else "only NaN or infinity"
        )
        return EditError(
            f"calibrate({self.label!r})",
            f"the target is out of reach: {reason}",
            expected=f"{self.target:g} nats within {self.tolerance:.0%}",
            got=f"{reached} over strengths {strengths[0]:.4g} to {strengths[-1]:.4g}",
            do="choose a target in that range, more prompts, a wider tolerance, or other sites",
        )
