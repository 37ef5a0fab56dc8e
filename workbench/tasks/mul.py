"""``mul 347 8``: column chain from the units, ``x*y+c=s`` with the running carry ``c``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task, near_numbers, number


@dataclass(frozen=True)
class Mul(Task):
    """``digits`` is the range of the first operand's length; the second is 2 to 9."""

    digits: tuple[int, int] = (1, 4)

    name: ClassVar[str] = "mul"
    has_choices: ClassVar[bool] = True

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        a, b = number(self.digits, rng), rng.randint(2, 9)
        wrong = near_numbers(a * b, rng)
        return (Problem(f"mul {a} {b}", (columns(a, b),), str(a * b), wrong),)


def columns(a: int, b: int) -> tuple[str, ...]:
    """One step for each digit of ``a``, units first."""
    steps, carry = [], 0
    for digit in reversed(str(a)):
        total = int(digit) * b + carry
        steps.append(f"{digit}*{b}+{carry}={total}")
        carry = total // 10
    return tuple(steps)
