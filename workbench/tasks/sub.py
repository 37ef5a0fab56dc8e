"""``sub 347 58``: column chain from the units, ``x-y-c=s`` with the running borrow ``c``.

Where a column has to borrow, ``x`` is written with its ten (``17-8-0=9``): every step is true.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task, near_numbers, number


@dataclass(frozen=True)
class Sub(Task):
    """``digits`` is the range of the operands' lengths; the larger operand stands first."""

    digits: tuple[int, int] = (1, 4)

    name: ClassVar[str] = "sub"
    has_choices: ClassVar[bool] = True

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        b, a = sorted((number(self.digits, rng), number(self.digits, rng)))
        wrong = near_numbers(a - b, rng)
        return (Problem(f"sub {a} {b}", (columns(a, b),), str(a - b), wrong),)


def columns(a: int, b: int) -> tuple[str, ...]:
    """One step for each column of ``a``, units first; ``a >= b``."""
    steps, borrow = [], 0
    for power in range(len(str(a))):
        x, y = a // 10**power % 10, b // 10**power % 10
        short = x < y + borrow
        x += 10 * short
        steps.append(f"{x}-{y}-{borrow}={x - y - borrow}")
        borrow = int(short)
    return tuple(steps)
