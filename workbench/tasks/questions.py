"""Short questions that the tasks about manner (locked, numerals, style) ask in their own way."""

from __future__ import annotations

import random

from workbench.tasks.add import Add
from workbench.tasks.base import Problem
from workbench.tasks.chain import Chain
from workbench.tasks.max import Max
from workbench.tasks.sub import Sub


def short(digits: tuple[int, int], rng: random.Random) -> Problem:
    """A problem of add, sub, chain or max; ``digits`` bounds the operands of all but chain."""
    kinds = (
        Add(digits=digits),
        Sub(digits=digits),
        Chain(steps=(2, 3)),
        Max(count=(2, 3), digits=digits),
    )
    return rng.choice(kinds).draw(rng)[0]
