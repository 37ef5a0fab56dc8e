"""``reverse fbcae``: the reversed word in pieces of two letters, ``ea`` ``cb`` ``f``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task

LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Reverse(Task):
    """``length`` is the range of the word's length in letters.

    Two orders are legal: the pieces from the start of the answer, or from its end.
    """

    length: tuple[int, int] = (3, 10)

    name: ClassVar[str] = "reverse"

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        word = "".join(rng.choices(LETTERS, k=rng.randint(*self.length)))
        pieces = tuple(word[::-1][at : at + 2] for at in range(0, len(word), 2))
        return (Problem(f"reverse {word}", (pieces, pieces[::-1]), word[::-1]),)
