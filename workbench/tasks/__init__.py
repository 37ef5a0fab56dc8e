"""Verifiable tasks in one small world of characters, drawn from a seed, each strictly checked.

    prompts = make("add", n=64, seed=0)
    check(prompts[0], "7+5+0=12\\n1+2+1=4\\n#42")

Nothing here needs torch. See ``workbench.tasks.base`` for the grammar.
"""

from __future__ import annotations

from typing import Any

from workbench.errors import WorkbenchError, unknown
from workbench.records import Prompt, Prompts
from workbench.tasks.add import Add, carries
from workbench.tasks.base import CONTEXT, Example, Problem, Task, answer_of
from workbench.tasks.chain import Chain
from workbench.tasks.judge import Judge
from workbench.tasks.locked import Locked
from workbench.tasks.max import Max
from workbench.tasks.mod import Mod
from workbench.tasks.mul import Mul
from workbench.tasks.numerals import Numerals
from workbench.tasks.parity import Parity
from workbench.tasks.reverse import Reverse
from workbench.tasks.sort import Sort
from workbench.tasks.style import Style
from workbench.tasks.sub import Sub

__all__ = [
    "CONTEXT",
    "Example",
    "Problem",
    "Task",
    "answer_of",
    "carries",
    "check",
    "get",
    "gold",
    "make",
    "names",
]

_TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Add,
        Sub,
        Mul,
        Mod,
        Chain,
        Max,
        Sort,
        Reverse,
        Parity,
        Judge,
        Locked,
        Numerals,
        Style,
    )
}


def names() -> tuple[str, ...]:
    """Every task, the arithmetic ones first."""
    return tuple(_TASKS)


def get(name: str, **options: Any) -> Task:
    """The task of that name with these options; WorkbenchError where either is unknown."""
    if name not in _TASKS:
        raise unknown("tasks", "task", name, _TASKS)
    allowed = tuple(_TASKS[name].__dataclass_fields__)
    for option in options:
        if option not in allowed:
            raise unknown(f"tasks.{name}", "option", option, allowed)
    return _TASKS[name](**options)


def make(name: str, n: int, seed: int = 0, **options: Any) -> Prompts:
    """``n`` prompts of a task, each with its answer; the same arguments give the same prompts.

    Options are the fields of the task, such as ``form="choice"`` or ``digits=(1, 6)``.
    """
    return get(name, **options).make(n, seed)


def check(prompt: Prompt, completion: str) -> bool:
    """Whether the completion ends in the prompt's answer; the prompt names its task."""
    return get(prompt.task or "").check(prompt, completion)


def gold(prompt: Prompt) -> Example:
    """The prompt with its gold chain and answer, for a prompt made here."""
    if prompt.text is None or prompt.answer is None or "thoughts" not in prompt.meta:
        raise WorkbenchError(
            "tasks.gold",
            "the prompt carries no gold chain",
            expected="a prompt made by tasks.make",
            got=f"task={prompt.task!r}",
            do="make it with workbench.tasks.make",
        )
    return Example(prompt.text, tuple(prompt.meta["thoughts"]), prompt.answer)
