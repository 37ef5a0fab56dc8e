"""Inject the vector at the end of each thinking step, as strongly as that step's confidence asks.

A step ends with a boundary token; when the model reads that token, the vector is added there with the
coefficient of `workbench.stepwise.control_law` for the step just finished. Its confidence is the arithmetic
mean, over its tokens (the boundary too), of the largest probability at temperature 1.

Shapes: per row.
Units: confidences are probabilities.
Source: Li, Tu, Ding, Wang, Zhen, Chen, Li and Tian (2026), Efficient Reasoning with Balanced
    Thinking, https://arxiv.org/abs/2603.12372.
Differs from the paper: one released file steers every token of every row when no row is at a boundary;
    here rows at a boundary alone, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.stepwise.base import Step
from workbench.stepwise.control_law import ControlLaw, variance


@register(
    "stepwise",
    Citation(
        "Li, Tu, Ding, Wang, Zhen, Chen, Li, Tian",
        "Efficient Reasoning with Balanced Thinking",
        2026,
        "https://arxiv.org/abs/2603.12372",
    ),
)
class Rebalance:
    """Add the vector at step boundaries, by the confidence of the step just finished."""

    on_prompt: ClassVar[bool] = False
    greedy: ClassVar[bool] = False

    def __init__(self, params: Mapping[str, Any], n_rows: int):
        self.law = ControlLaw(**params["law"])
        self.boundary = frozenset(params["boundary"])
        self.start, self.end = params["think_start"], params["think_end"]
        self.thinking = [self.start is None] * n_rows
        self.begun = [0] * n_rows
        self.before: list[float | None] = [None] * n_rows

    @staticmethod
    def record(_: Sequence[int]) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.thinking = [self.thinking[row] for row in rows]
        self.begun = [self.begun[row] for row in rows]
        self.before = [self.before[row] for row in rows]

    def step(self, step: Step) -> Float[Tensor, "batch vocab"]:
        """One forward, with the vector in the rows that read a boundary token."""
        factors = [self._coefficient(row, step) for row in range(len(step.ids))]
        return step.forward(torch.tensor(factors))

    def _coefficient(self, row: int, step: Step) -> float:
        ids = step.ids[row]
        if not ids:
            self.thinking[row] = self.thinking[row] or self.start in step.prompts[row]
            return 0.0
        if ids[-1] in (self.start, self.end):
            self.thinking[row] = ids[-1] == self.start
            self.begun[row], self.before[row] = len(ids), None
            return 0.0
        if not self.thinking[row] or ids[-1] not in self.boundary:
            return 0.0
        sure = step.confidences[row][self.begun[row] :]
        c = sum(sure) / len(sure)
        alpha = self.law.alpha(c, variance(c, self.before[row]))
        self.begun[row], self.before[row] = len(ids), c
        return alpha
