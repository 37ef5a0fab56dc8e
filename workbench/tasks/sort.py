"""``sort 34 7 91``: take out the smallest again and again, ``7<34 91`` then ``34<91``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task


@dataclass(frozen=True)
class Sort(Task):
    """``count`` is the range of how many distinct numbers, below ``below``.

    Two orders are legal: the smallest first, or the largest first (``91>34 7``).
    """

    count: tuple[int, int] = (3, 6)
    below: int = 100

    name: ClassVar[str] = "sort"

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        numbers = rng.sample(range(self.below), rng.randint(*self.count))
        orders = (select(numbers, min, "<"), select(numbers, max, ">"))
        answer = " ".join(map(str, sorted(numbers)))
        return (Problem("sort " + " ".join(map(str, numbers)), orders, answer),)


def select(numbers: list[int], best: Callable[[list[int]], int], sign: str) -> tuple[str, ...]:
    """One step for each number taken out, until one is left; the others keep their order."""
    rest, steps = list(numbers), []
    while len(rest) > 1:
        taken = best(rest)
        rest.remove(taken)
        steps.append(f"{taken}{sign}" + " ".join(map(str, rest)))
    return tuple(steps)
