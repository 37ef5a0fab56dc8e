"""The mixture of tasks that the shipped models learn, in batches of rows of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench import tasks
from workbench.tasks import Example, Task
from workbench.zoo.tokenizer import BOS, EOS, PAD, encode

POOL = 4096
"""Examples that are drawn and sorted by length together."""
JITTER = 16
"""Characters of noise on the length, so that a batch does not hold one task alone."""


@dataclass(frozen=True)
class World:
    """Tasks with their shares of the training text (they need not add up to 1)."""

    shares: tuple[tuple[Task, float], ...]

    def names(self) -> tuple[str, ...]:
        """The names of its tasks."""
        return tuple(dict.fromkeys(task.name for task, _ in self.shares))

    def examples(self, n: int, rng: random.Random) -> list[Example]:
        """``n`` training texts."""
        kinds = [task for task, _ in self.shares]
        weights = [share for _, share in self.shares]
        return [task.example(rng) for task in rng.choices(kinds, weights=weights, k=n)]


SHARES: dict[str, float] = {"judge": 0.8, "locked": 0.5, "numerals": 0.6, "style": 0.7}
SIZES: dict[str, dict[str, Any]] = {
    "add": {"digits": (1, 3)},
    "sub": {"digits": (1, 3)},
    "mul": {"digits": (1, 3)},
    "mod": {"digits": (1, 4)},
    "chain": {"steps": (2, 5)},
    "max": {"count": (2, 4), "digits": (1, 3)},
    "sort": {"count": (2, 5)},
    "reverse": {"length": (2, 8)},
    "parity": {"length": (2, 8)},
    "judge": {"highest": 20},
    "locked": {"digits": (1, 2)},
    "numerals": {"digits": (1, 2)},
    "style": {"digits": (1, 2)},
}
"""Shorter than what the tasks ask by default: their longest questions are never trained on."""


CHOSEN = ("add", "sub", "mul", "mod", "chain", "max")


def whole_world() -> World:
    """Every task, with a part of the questions as choices where that form exists."""
    return World(tuple((learned(name), SHARES.get(name, 1.0)) for name in tasks.names()))


def finishing_world() -> World:
    """The whole world with more of what is learned last: judgements, and the letter of an option."""
    shares = dict(whole_world().shares) | {learned("judge"): 4.0}
    chosen = {tasks.get(n, **SIZES[n], form="choice"): 0.6 for n in tasks.names() if n in CHOSEN}
    return World(tuple((shares | chosen).items()))


def learned(name: str) -> Task:
    """The task at the size that is trained."""
    form = {"form": "mixed"} if tasks.get(name).has_choices else {}
    return tasks.get(name, **SIZES.get(name, {}), **form)


Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, each [row, position]; labels are -100 on the prompt and the padding."""


def batches(world: World, seed: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of at most ``tokens`` tokens, padding included; the seed decides them."""
    pool = 0
    while True:
        rng = random.Random(f"world/{seed}/{pool}")
        rows = sorted(
            world.examples(POOL, rng), key=lambda row: len(row.text) + JITTER * rng.random()
        )
        groups = list(cut(rows, tokens))
        rng.shuffle(groups)
        yield from map(tensors, groups)
        pool += 1


def cut(rows: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """The rows, in order, in groups whose padded size stays within ``tokens``."""
    group: list[Example] = []
    longest = 0
    for row in rows:
        length = len(row.text) + 2
        if group and max(longest, length) * (len(group) + 1) > tokens:
            yield group
            group, longest = [], 0
        group.append(row)
        longest = max(longest, length)
    yield group


def tensors(rows: Sequence[Example]) -> Batch:
    """Rows padded on the right; the loss is on thoughts and answer only."""
    length = max(len(row.text) for row in rows) + 2
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full((len(rows), length), -100)
    for at, row in enumerate(rows):
        coded = torch.tensor([BOS, *encode(row.text), EOS])
        asked = 1 + len(row.prompt)
        ids[at, : len(coded)] = coded
        labels[at, asked : len(coded)] = coded[asked:]
    return ids, labels
