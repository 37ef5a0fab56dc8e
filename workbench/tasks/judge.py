"""``judge 7+5=12``: is the statement true? The answer follows at once, without thoughts.

The truth has to be known at the last character of the prompt, which is where probes read it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task


@dataclass(frozen=True)
class Judge(Task):
    """``highest`` bounds the operands of sums, differences and comparisons (products: 9).

    Prompts come in pairs, a true statement and a false one; label True is a true statement.
    """

    highest: int = 30

    name: ClassVar[str] = "judge"
    group: ClassVar[int] = 2

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        both = compared(self.highest, rng) if rng.random() < 0.3 else computed(self.highest, rng)
        return tuple(
            Problem(f"judge {statement}", ((),), "true" if truth else "false", label=truth)
            for statement, truth in zip(both, (True, False), strict=True)
        )


def computed(highest: int, rng: random.Random) -> tuple[str, str]:
    """An equation and the same one with a result slightly off."""
    bound = highest if rng.random() < 0.5 else 9
    b, a = sorted((rng.randint(0, bound), rng.randint(0, bound)))
    x, y = rng.randint(2, 9), rng.randint(2, 9)
    left, value = rng.choice(((f"{a}+{b}", a + b), (f"{a}-{b}", a - b), (f"{x}*{y}", x * y)))
    off = [value + step for step in (1, -1, 2, -2, 3, -3, 10) if value + step >= 0]
    return f"{left}={value}", f"{left}={rng.choice(off)}"


def compared(highest: int, rng: random.Random) -> tuple[str, str]:
    """A comparison and the same one with its sign turned."""
    a, b = rng.sample(range(3 * highest), 2)
    right, turned = ("<", ">") if a < b else (">", "<")
    return f"{a}{right}{b}", f"{a}{turned}{b}"
