"""What a metric is: one number about one continuation, with a unit and a direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from workbench.records import Generation, Prompt
from workbench.shapes import Float, Tensor

Need = Literal["arm_logprobs", "base_logprobs", "check"]


@dataclass(frozen=True)
class Evidence:
    """What a metric may ask for beside the continuation; None where it did not name it in `needs`.

    Attributes:
        arm_logprobs: `[generated, vocab]` in nats, the arm's own distribution at every generated
            position, before temperature and truncation.
        base_logprobs: the same continuation read by the base model after the unprefixed prompt.
        check: the judge `(prompt, text) -> right` of the prompt's task.
    """

    arm_logprobs: Float[Tensor, "generated vocab"] | None = None
    base_logprobs: Float[Tensor, "generated vocab"] | None = None
    check: Callable[[Prompt, str], bool] | None = None


@dataclass(frozen=True)
class Metric(ABC):
    """A pure function of a continuation and its evidence. NaN: there is nothing to measure."""

    unit: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"] | None] = None
    needs: ClassVar[tuple[Need, ...]] = ()

    def accept(self, prompt: Prompt) -> None:  # noqa: B027
        """Raise where nothing could be measured on the prompt; asked before anything is generated."""

    @abstractmethod
    def measure(self, generation: Generation, evidence: Evidence) -> float:
        """The number for one continuation."""
