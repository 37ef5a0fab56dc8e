"""What a trainer is: from a model and its rewards to a trained copy and the curve on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from workbench.errors import WorkbenchError
from workbench.records import Prompt
from workbench.tensors import Intervention

Check = Callable[[Prompt, str], float]
"""The reward of a completion; a task's checker gives 0 or 1."""


@dataclass(frozen=True)
class Step:
    """One step of training.

    Attributes:
        i, n: step i of n, from 0.
        rewards: mean reward of each prompt of the step, before the step changed the weights.
        loss: what was minimised.
        grad_norm: Euclidean norm of the gradient, before clipping.
    """

    i: int
    n: int
    rewards: tuple[float, ...]
    loss: float
    grad_norm: float


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class TrainedArm:
    """A trained copy of a model, and its training curve."""

    model: Any
    curve: tuple[Step, ...]


@runtime_checkable
class Trainer(Protocol):
    """Trains a copy; the model that it is given keeps its weights."""

    def train(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        steps: int,
        edits: Iterable[Intervention] = (),
        seed: int = 0,
        on_step: OnStep | None = None,
        check: Check | None = None,
        *,
        shuffle_rewards: bool = False,
    ) -> TrainedArm:
        """Train for `steps` steps with `edits` active in the rollouts.

        Args:
            on_step: called after every step.
            check: the reward; the checker of each prompt's task by default.
            shuffle_rewards: give each completion the reward of another, drawn at random: a control
                that trains as long on rewards that say nothing.
        """
        ...


@dataclass(frozen=True)
class TrainArm:
    """An arm yet to be made: train `steps` steps from here with `edits` in the rollouts.

    Attributes:
        name: of the arm.
        steps: of training.
        edits: active while the training's completions are drawn; not when the result is judged.
        seed: of the training; its twin takes the next one.
        trainer: how it is trained; plain REINFORCE where it is None.
    """

    name: str
    steps: int
    edits: tuple[Intervention, ...] = ()
    seed: int = 0
    trainer: Trainer | None = None

    def __init__(
        self,
        name: str,
        steps: int,
        edits: Iterable[Intervention] = (),
        seed: int = 0,
        trainer: Trainer | None = None,
    ):
        if steps < 1:
            raise WorkbenchError(
                f"TrainArm({name!r})",
                "has no steps",
                expected="at least 1",
                got=steps,
                do="raise it",
            )
        for key, value in dict(
            name=name, steps=steps, edits=tuple(edits), seed=seed, trainer=trainer
        ).items():
            object.__setattr__(self, key, value)

    def runs(self) -> dict[str, dict[str, Any]]:
        """Names of the arms that it becomes, each with its options of `train`: the arm, the same
        training under another seed, and one whose rewards are shuffled.
        """
        return {
            self.name: {"seed": self.seed},
            f"{self.name} (seed twin)": {"seed": self.seed + 1},
            f"{self.name} (shuffled rewards)": {"seed": self.seed, "shuffle_rewards": True},
        }
