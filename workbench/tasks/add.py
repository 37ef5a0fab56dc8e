"""``add 347 58``: column chain from the units, ``x+y+c=s`` with the running carry ``c``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task, near_numbers, number


@dataclass(frozen=True)
class Add(Task):
    """``digits`` is the range of the operands' lengths."""

    digits: tuple[int, int] = (1, 4)

    name: ClassVar[str] = "add"
    has_choices: ClassVar[bool] = True

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        a, b = number(self.digits, rng), number(self.digits, rng)
        wrong = near_numbers(a + b, rng)
        return (Problem(f"add {a} {b}", (columns(a, b),), str(a + b), wrong),)


def columns(a: int, b: int) -> tuple[str, ...]:
    """One step for each column, units first; a missing digit counts as 0."""
    steps, carry = [], 0
    for power in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**power % 10, b // 10**power % 10
        steps.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return tuple(steps)
