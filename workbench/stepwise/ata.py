"""Which sub-task is being worked on, read from attention, and what is shut out meanwhile.

    score(T, t) = 1/|T| sum_{k in T} 1/(t - k) sum_{q=k..t} A(q, k)         A: mean over heads and layers
    active span = argmax, accepted where the entropy of the normalised scores is below gamma log m

"chain" and "parallel" only go on to the next span; "branch" keeps the first span accepted. A decision is
made from the attention of all tokens so far and holds for the next one.

Shapes: per row; column sums of attention `[batch, column]`.
Units: scores are attention mass per position of distance.
Source: Lv, Qin, Hong, Liang, Wu, Li, Sun and Zhang (2026), Attend to the Active: Structure-Aware
    Dynamic Attention in LLMs for Compositional Instruction Following, known here from a note alone,
    https://openreview.net/forum?id=wwA0X3UfAn.
Differs from the paper: the index ranges of the score are our reading of the note, and so is that a
    sequence moves by one span at a time and begins with its first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.stepwise.base import Step

NONE = -1


@register(
    "stepwise",
    Citation(
        "Lv, Qin, Hong, Liang, Wu, Li, Sun, Zhang",
        "Attend to the Active: Structure-Aware Dynamic Attention in LLMs for Compositional "
        "Instruction Following",
        2026,
        "https://openreview.net/forum?id=wwA0X3UfAn",
    ),
)
class Ata:
    """Follow the active span and shut out those that exclude it."""

    on_prompt: ClassVar[bool] = True
    greedy: ClassVar[bool] = False

    def __init__(self, params: Mapping[str, Any], n_rows: int):
        self.spans = [tuple(span) for span in params["spans"]]
        self.structure, self.gamma = params["structure"], float(params["gamma"])
        self.active = torch.full((n_rows,), NONE)
        self.mass: Tensor | None = None

    @staticmethod
    def record(layers: Sequence[int]) -> tuple[str, ...]:
        """The attention of the edited layers."""
        return tuple(f"L{layer}.pattern" for layer in layers)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.active = self.active[rows]
        self.mass = None if self.mass is None else self.mass[rows]

    def step(self, step: Step) -> Float[Tensor, "batch vocab"]:
        """One forward under the decision so far, then the next decision."""
        logits = step.forward(1.0, told={"active": self.active})
        positions = step.positions
        self._add([step.values[site] for site in self.record(step.layers)], positions)
        scores = self.scores(positions)
        for row, line in enumerate(scores.tolist()):
            self.active[row] = advanced(int(self.active[row]), line, self.structure, self.gamma)
        return logits

    def scores(self, positions: Tensor) -> Float[Tensor, "batch span"]:
        """Recency-weighted attention mass per position of every span."""
        assert self.mass is not None
        now = positions[:, -1:]
        weighted = self.mass / (now - positions).clamp(min=1)
        inside = [(positions >= a) & (positions < b) for a, b in self.spans]
        return torch.stack([(weighted * i).sum(-1) / i.sum(-1).clamp(min=1) for i in inside], -1)

    def _add(self, patterns: Sequence[Tensor], positions: Tensor) -> None:
        """Add what this forward's tokens attend to, patterns `[batch, head, query, key]` per layer.

        Queries and keys are the last columns: a sliding cache holds no others. Padding attends to
        everything alike and does not count.
        """
        total = torch.zeros(positions.shape, dtype=torch.float64)
        if self.mass is not None:
            total[:, : self.mass.shape[1]] = self.mass
        for pattern in patterns:
            _, _, queries, keys = pattern.shape
            padding = (positions[:, -queries:, None] < 0).to(pattern.device)
            seen = pattern.mean(1, dtype=torch.float64).masked_fill(padding, 0.0).sum(1)
            total[:, -keys:] += seen.cpu() / len(patterns)
        self.mass = total


def advanced(active: int, scores: Sequence[float], structure: str, gamma: float) -> int:
    """The active span after these scores; -1 is none."""
    best = max(range(len(scores)), key=lambda i: scores[i])
    total = sum(scores)
    if total <= 0 or (structure == "branch" and active != NONE):
        return active
    shares = [s / total for s in scores]
    entropy = -sum(p * math.log(p) for p in shares if p > 0)
    if not entropy < gamma * math.log(len(scores)):
        return active
    return best if structure == "branch" or best == active + 1 else active
