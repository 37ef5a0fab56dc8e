"""One edit at several strengths, all of them in one batch: what it writes, and every metric of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from workbench.comparison.run import Comparison
from workbench.errors import EditError
from workbench.records import Generation
from workbench.tensors import Arm, Intervention


@dataclass(frozen=True)
class Cell:
    """What one setting gave.

    Attributes:
        values: per metric, one number per prompt.
        generations: one per prompt.
        error: why there are none, in words.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    generations: tuple[Generation, ...] = ()
    error: str = ""


def undosed(job: Comparison, arm: Arm, seed: int) -> Cell:
    """The arm as it is, on every prompt of the job; an EditError is told in the result."""
    try:
        texts = job.generate(arm, seed)
        return Cell(_by_metric(job, arm, seed, texts), tuple(texts))
    except EditError as error:
        return Cell(error=str(error))


def doses(
    job: Comparison, edit: Intervention, strengths: Sequence[float], seed: int, names: Sequence[str]
) -> list[Cell]:
    """The edit at every strength; `names[i]` is what the generations of strength i call their arm.

    Rows are prompts times strengths. Where the batch fails, halves of it tell which strength it was,
    so one that makes the model overflow costs the others nothing. A decoder that draws runs strength
    by strength: a prompt then has the same draws under every one.
    """
    if len(strengths) == 1 or getattr(job.decoder, "random", False):
        return [
            undosed(job, Arm(name, [edit.at(float(s))]), seed)
            for s, name in zip(strengths, names, strict=True)
        ]
    try:
        return _batch(job, edit, strengths, seed, names)
    except EditError:
        half = len(strengths) // 2
        low = doses(job, edit, strengths[:half], seed, names[:half])
        return low + doses(job, edit, strengths[half:], seed, names[half:])


def _batch(
    job: Comparison, edit: Intervention, strengths: Sequence[float], seed: int, names: Sequence[str]
) -> list[Cell]:
    n = len(job.prompts)
    wide = replace(job, prompts=job.prompts * len(strengths))
    per_row = torch.tensor([float(s) for s in strengths]).repeat_interleave(n)
    arm = Arm(edit.label, [edit.at(per_row)])
    texts = wide.generate(arm, seed)
    values = _by_metric(wide, arm, seed, texts)
    return [
        Cell(
            {metric: numbers[i * n : i * n + n] for metric, numbers in values.items()},
            tuple(replace(text, arm=name) for text in texts[i * n : i * n + n]),
        )
        for i, name in enumerate(names)
    ]


def _by_metric(
    job: Comparison, arm: Arm, seed: int, texts: list[Generation]
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in job.metrics}
    for rows in job.judge(arm, seed, texts):
        for _, _, _, name, value, _ in rows:
            values[name].append(value)
    return values
