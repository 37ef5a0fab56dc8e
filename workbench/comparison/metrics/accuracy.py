"""Whether the continuation answers rightly, by the checker of the prompt's task; its mean is
accuracy.

Shapes: one number per continuation.
Units: fraction right, 0 or 1 for one continuation.
Source: Cobbe et al. (2021), Training Verifiers to Solve Math Word Problems,
    https://arxiv.org/abs/2110.14168: a final answer checked exactly.
Differs from the paper: every task brings its own checker; no answer counts as wrong, never as
    missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.comparison.metrics.base import Evidence, Metric
from workbench.errors import WorkbenchError
from workbench.records import Generation, Prompt
from workbench.registry import Citation, register


@register(
    "metrics",
    Citation(
        "Cobbe, Kosaraju, Bavarian, Chen, Jun, Kaiser, et al.",
        "Training Verifiers to Solve Math Word Problems",
        2021,
        "https://arxiv.org/abs/2110.14168",
    ),
)
@dataclass(frozen=True)
class Accuracy(Metric):
    """Fraction of continuations that the task's checker calls right."""

    unit = "fraction"
    better = "higher"
    needs = ("check",)

    def accept(self, prompt: Prompt) -> None:
        """Refuse a prompt that names no task.

        Raises:
            WorkbenchError: the prompt names no task, so nothing can judge its answer.
        """
        if prompt.task is None:
            raise WorkbenchError(
                "metric 'accuracy'",
                "the prompt has no task whose checker could judge it",
                expected="prompts made by workbench.tasks.make, or with a task",
                got=f"prompt {str(prompt.text or prompt.messages)[:40]!r}",
                do="use prompts.with_task(name), or leave accuracy out of the metrics",
            )

    def measure(self, generation: Generation, evidence: Evidence) -> float:
        """1.0 where right, else 0.0."""
        self.accept(generation.prompt)
        assert evidence.check is not None
        return float(evidence.check(generation.prompt, generation.text))
