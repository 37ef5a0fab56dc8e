"""``max 347 58 912``: the running maximum against the next number, written ``larger>smaller``."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task, near_numbers, number


@dataclass(frozen=True)
class Max(Task):
    """``count`` is the range of how many numbers, ``digits`` of their lengths.

    Two orders are legal: through the numbers from the left, or from the right.
    """

    count: tuple[int, int] = (3, 5)
    digits: tuple[int, int] = (1, 3)

    name: ClassVar[str] = "max"
    has_choices: ClassVar[bool] = True

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        wanted, numbers = rng.randint(*self.count), []
        while len(numbers) < wanted:
            if (x := number(self.digits, rng)) not in numbers:
                numbers.append(x)
        others = tuple(str(x) for x in numbers if x != max(numbers))
        wrong = tuple(dict.fromkeys(others + near_numbers(max(numbers), rng)))[:4]
        orders = (scan(numbers), scan(reversed(numbers)))
        return (Problem("max " + " ".join(map(str, numbers)), orders, str(max(numbers)), wrong),)


def scan(numbers: Iterable[int]) -> tuple[str, ...]:
    """One comparison for each number after the first."""
    first, *rest = numbers
    steps = []
    for x in rest:
        steps.append(f"{max(first, x)}>{min(first, x)}")
        first = max(first, x)
    return tuple(steps)
