"""``words add 17 25``: the answer digit by digit, ``#four two``; ``digits`` asks for ``#42``."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from workbench.tasks.base import Problem, Task
from workbench.tasks.questions import short

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Numerals(Task):
    """Prompts come in pairs on one question: in words (label True) and in digits (False)."""

    digits: tuple[int, int] = (1, 3)
    """Range of the operands' lengths in the questions asked."""

    name: ClassVar[str] = "numerals"
    group: ClassVar[int] = 2

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        problem = short(self.digits, rng)
        in_words = replace(
            problem,
            question="words " + problem.question,
            answer=spelled(problem.answer),
            label=True,
        )
        return in_words, replace(problem, question="digits " + problem.question, label=False)


def spelled(digits: str) -> str:
    """``"42"`` as ``"four two"``."""
    return " ".join(WORDS[int(digit)] for digit in digits)
