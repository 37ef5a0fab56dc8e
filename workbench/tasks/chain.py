"""``chain 3+4*2-5``: evaluated from left to right without precedence, ``running op x=next``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task, near_numbers
from workbench.tasks.habits import Habits

HIGHEST = 99
"""The running value stays within 0..99, so that each step is one known fact."""


@dataclass(frozen=True)
class Chain(Task):
    """``steps`` is the range of the number of operations."""

    steps: tuple[int, int] = (2, 6)

    name: ClassVar[str] = "chain"
    has_choices: ClassVar[bool] = True
    habits: ClassVar[Habits] = Habits(check=0.3)

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        value = rng.randint(0, 9)
        question, steps = f"chain {value}", []
        for _ in range(rng.randint(*self.steps)):
            sign, x, result = rng.choice(legal(value))
            question += f"{sign}{x}"
            steps.append(f"{value}{sign}{x}={result}")
            value = result
        return (Problem(question, (tuple(steps),), str(value), near_numbers(value, rng)),)


def legal(value: int) -> list[tuple[str, int, int]]:
    """Every (sign, digit, result) whose result stays within 0..99; never empty."""
    found = [("+", x, value + x) for x in range(1, 10)]
    found += [("-", x, value - x) for x in range(1, 10)]
    found += [("*", x, value * x) for x in range(2, 10) if value < 10]
    return [step for step in found if 0 <= step[2] <= HIGHEST]
