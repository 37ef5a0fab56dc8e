"""``mod 347 8``: long division from the left, ``(remainder and next digit)%m=remainder``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task, near_numbers, number
from workbench.tasks.habits import Habits


@dataclass(frozen=True)
class Mod(Task):
    """``digits`` is the range of the first operand's length; the modulus is 2 to 9."""

    digits: tuple[int, int] = (1, 5)

    name: ClassVar[str] = "mod"
    has_choices: ClassVar[bool] = True
    habits: ClassVar[Habits] = Habits(check=0.7)

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        a, m = number(self.digits, rng), rng.randint(2, 9)
        wrong = near_numbers(a % m, rng)
        return (Problem(f"mod {a} {m}", (division(a, m),), str(a % m), wrong),)


def division(a: int, m: int) -> tuple[str, ...]:
    """One step for each digit of ``a``, from the left."""
    steps, rest = [], 0
    for digit in str(a):
        value = 10 * rest + int(digit)
        rest = value % m
        steps.append(f"{value}%{m}={rest}")
    return tuple(steps)
