"""Short questions that the tasks about manner (locked, numerals, style) ask in their own way."""

from __future__ import annotations

import random

from workbench.tasks.add import Add
from workbench.tasks.base import Problem
from workbench.tasks.chain import Chain
from workbench.tasks.max import Max
from workbench.tasks.sub import Sub

SHORT = (
    Add(digits=(1, 2)),
    Sub(digits=(1, 2)),
    Chain(steps=(2, 3)),
    Max(count=(2, 3), digits=(1, 2)),
)


def short(rng: random.Random) -> Problem:
    """A problem of add, sub, chain or max with small operands; its answer is a number."""
    return rng.choice(SHORT).draw(rng)[0]
