"""``parity 1011``: count the ones, ``count+bit=count``, then say ``odd`` or ``even``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from workbench.tasks.base import Problem, Task


@dataclass(frozen=True)
class Parity(Task):
    """``length`` is the range of the number of bits.

    Two orders are legal: through the bits from the left, or from the right.
    """

    length: tuple[int, int] = (3, 10)

    name: ClassVar[str] = "parity"

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        bits = "".join(rng.choices("01", k=rng.randint(*self.length)))
        answer = "odd" if bits.count("1") % 2 else "even"
        return (Problem(f"parity {bits}", (count(bits), count(bits[::-1])), answer),)


def count(bits: str) -> tuple[str, ...]:
    """One step for each bit."""
    steps, ones = [], 0
    for bit in bits:
        steps.append(f"{ones}+{bit}={ones + int(bit)}")
        ones += int(bit)
    return tuple(steps)
