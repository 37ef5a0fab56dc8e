"""``terse add 17 25``: the answer at once; ``verbose add 17 25``: each thought introduced."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from workbench.tasks.base import Problem, Task
from workbench.tasks.habits import Habits
from workbench.tasks.questions import short


@dataclass(frozen=True)
class Style(Task):
    """Prompts come in pairs on one question: verbose (label True) and terse (False).

    ``check`` looks at the answer alone, so that a change of manner is not counted as an error;
    the manner shows in the number of thoughts.
    """

    digits: tuple[int, int] = (1, 3)
    """Range of the operands' lengths in the questions asked."""

    name: ClassVar[str] = "style"
    group: ClassVar[int] = 2
    habits: ClassVar[Habits] = Habits(check=0.0, slip=0.05, early=0.05)

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        problem = short(self.digits, rng)
        spoken = replace(
            problem,
            question="verbose " + problem.question,
            label=True,
            orders=tuple(introduced(order) for order in problem.orders),
        )
        return spoken, replace(
            problem, question="terse " + problem.question, orders=((),), label=False
        )


def introduced(thoughts: tuple[str, ...]) -> tuple[str, ...]:
    """The chain with a word before each thought, and the last thought checked at the end."""
    first, *rest = thoughts
    return (f"first {first}", *(f"then {thought}" for thought in rest), f"check {thoughts[-1]}")
