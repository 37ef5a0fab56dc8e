"""Strength in one unit for every method: how far an edit moves the model, in nats.

The budget is the mean over generated positions of KL(edited || base) in nats along the edited
model's own greedy rollout, averaged over prompts; the 95th percentile over all positions stands
beside it.

Source: wassname, steering-lite (2026), https://github.com/wassname/steering-lite.
Differs from the source: it calibrates the 95th percentile; a mean has less noise at few prompts.
    The search here brackets first, so that a method whose divergence falls again with strength (an
    ablation past 1, a rotation past 180 degrees) is refused instead of mis-set, and a strength where
    the divergence has stopped growing is not taken: any larger one would do as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.errors import EditDidNothing, EditError
from workbench.interventions.rollout import continuation_logprobs
from workbench.linalg import kl_divergence
from workbench.records import Prompt
from workbench.tensors import Intervention

_GROWTH = 0.9
"""Half a strength must give less than this part of the divergence; a quarter is usual."""
_WAKES = 8
_SMALLEST = 1e-30


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
    target_kl_nats: float | int = 1.0,
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
        max_strength: never go past it, a positive number; None takes the method's own (1 for
            ablations), else no limit.
        max_runs: rollouts to spend before giving up.

    Returns:
        The edit with `params["calibration"]`: the target, the mean and p95 reached, the strength,
        scope and sites they hold for, and the number of tokens and prompts.

    Raises:
        EditError: the target or the limit is not a positive number, or the edit cannot reach the
            target; the message gives the divergences that it does reach.
        EditDidNothing: the edit does nothing at its present strength, nor far above it.
    """
    start = _checked(edit, target_kl_nats)
    limit = _limit(edit, max_strength)
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
        "scope": str(edit.scope),
        "sites": list(edit.sites),
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


def _limit(edit: Intervention, max_strength: float | None) -> float:
    limit = edit.params.get("max_strength") if max_strength is None else max_strength
    if limit is None:
        return math.inf
    if not limit > 0:
        raise EditError(
            "calibrate(max_strength=...)",
            "leaves no strength to choose from",
            expected="a positive number, or None",
            got=limit,
            do="the sign of the edit's own strength is kept, so give the size only",
        )
    return float(limit)


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
    nothing: EditDidNothing | None = None

    def run(self, start: float) -> float:
        """The signed strength found."""
        start = self._wake(math.copysign(min(abs(start), self.limit), start))
        if self.found(start):
            return start
        below, above = self._fall(start) if self.reached(start) else self._rise(start)
        return self._close_in(below, above)

    def kl(self, strength: float) -> float:
        """Mean divergence at a strength; an error where the runs are spent."""
        if strength not in self.seen:
            if len(self.seen) >= self.max_runs:
                raise self._unreachable(f"not found in {self.max_runs} runs")
            try:
                self.seen[strength] = self.measure(strength)
            except EditDidNothing as nothing:
                # too small a change for the dtype; whether it is so at any strength is seen later
                self.nothing, self.seen[strength] = nothing, (0.0, 0.0)
        return self.seen[strength][0]

    def hit(self, strength: float) -> bool:
        """Whether the divergence is the target, within tolerance."""
        return abs(self.kl(strength) - self.target) <= self.tolerance * self.target

    def found(self, strength: float) -> bool:
        """A hit where the divergence still grows: on a plateau every strength would be one."""
        return self.hit(strength) and self._grows(strength / 2, strength)

    def reached(self, strength: float) -> bool:
        """Whether the divergence is the target, within tolerance, or more."""
        return self.kl(strength) >= self.target * (1 - self.tolerance)

    def _grows(self, small: float, large: float) -> bool:
        return self.kl(small) < _GROWTH * self.kl(large)

    def _wake(self, start: float) -> float:
        """The start, or a strength above it whose divergence is no longer lost in rounding."""
        for _ in range(_WAKES):
            if self.kl(start) >= self.target * 1e-4 or abs(start) >= self.limit:
                break
            start = math.copysign(min(abs(start) * 16, self.limit), start)
        if self.kl(start) == 0 and self.nothing:
            raise self.nothing
        return start

    def _rise(self, start: float) -> tuple[float, float]:
        """Grow the strength until the divergence reaches the target."""
        below, falls, highest = start, 0, self.kl(start)
        while abs(below) < self.limit and falls < 4:
            above = math.copysign(min(abs(below) * self._step(below, 1.3, 8.0), self.limit), start)
            if self.reached(above):
                return below, above
            falls = falls + 1 if self.kl(above) <= highest * 1.03 else 0
            highest, below = max(highest, self.kl(above)), above
        return self._below_a_peak(start)

    def _step(self, strength: float, least: float, most: float) -> float:
        """The factor that would reach the target, were the divergence the strength squared."""
        return min(max(math.sqrt(self.target / max(self.kl(strength), 1e-12)), least), most)

    def _below_a_peak(self, start: float) -> tuple[float, float]:
        """The divergence stopped growing: look at smaller strengths, then give up."""
        above = None
        for halvings in range(1, 7):
            strength = start / 2**halvings
            if self.reached(strength):
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
        above, step = start, self._step(start, 0.1, 0.5)
        while abs(above) > _SMALLEST:
            below = above * step
            if not self.reached(below):
                return below, above
            # a plateau may be many decades wide, so steps grow as long as nothing falls
            falls = self._grows(below, above)
            step = self._step(below, 0.1, 0.5) if falls else max(step**2, 1e-4)
            above = below
        raise self._unreachable("its divergence does not go to 0 with its strength")

    def _close_in(self, below: float, above: float) -> float:
        """Secant on log-log axes, kept inside the bracket so that it always shrinks."""
        for turn in count():
            for end in (below, above):
                if self.found(end):
                    return end
            if abs(above / below - 1) < 1e-5:
                break
            middle = below * (above / below) ** self._fraction(below, above, turn)
            if self.reached(middle):
                above = middle
            else:
                below = middle
        jump = f"jumps from {self.kl(below):.3g} to {self.kl(above):.3g} nats at {above:.4g}"
        flat = f"hardly grows at {above:.4g}: {self.kl(above / 2):.3g} nats at half of it"
        raise self._unreachable(f"its divergence {flat if self.hit(above) else jump}")

    def _fraction(self, below: float, above: float, turn: int) -> float:
        low, high = self.kl(below), self.kl(above)
        # every other step halves: rollouts change in jumps, and a secant creeps along a jump
        if low <= 0 or math.isinf(high) or self.hit(above) or turn % 2:
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
