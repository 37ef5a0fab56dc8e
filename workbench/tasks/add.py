"""``add 347 58``: column chain from the units, ``x+y+c=s`` with the running carry ``c``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.records import Prompt, Prompts
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


def carries(n: int, seed: int = 0, digits: tuple[int, int] = (2, 3)) -> Prompts:
    """Sums cut just before the first carry is written: ``add 47 58?\\n7+8+0=15\\n4+5+``.

    The next token is the carry of the units, 0 or 1, which is also the label (True: 1); classes are
    of equal size for an even ``n`` and alternate. The same arguments give the same prompts.
    """
    rng = random.Random(f"carries/{seed}")
    found: list[Prompt] = []
    while len(found) < n:
        a, b = number(digits, rng), number(digits, rng)
        carry = a % 10 + b % 10 >= 10
        if carry is bool(len(found) % 2):
            continue
        units, tens = columns(a, b)[:2]
        cut = tens.rpartition("=")[0].rpartition("+")[0] + "+"
        text = f"add {a} {b}?\n{units}\n{cut}"
        found.append(
            Prompt(text=text, answer=str(int(carry)), label=carry, source="workbench.tasks")
        )
    return Prompts(found)
