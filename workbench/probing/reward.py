"""A fitted probe as a score of completions: a reward for training, a concept for `steering.evaluate`.

score = probing.reward.scorer(probe, model)
score(prompts, completions)                       # `[row]`
trainer.train(model, prompts, 100, check=scorer(probe, model, squash=True))

A policy that is trained on a probe learns to move the activations that it reads, and need not do what
it stands for: score the trained policy by a probe that the training did not see, and by its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from workbench import registry
from workbench.activations.record import record
from workbench.errors import WorkbenchError
from workbench.probes.base import FittedProbe, check_model
from workbench.probes.places import JOIN
from workbench.records import Prompt
from workbench.shapes import Float, Tensor

Completion = str | Sequence[int]


@dataclass(frozen=True)
class Scorer:
    """Calls a probe on completions, read behind their prompts as the probe's pool says.

    Attributes:
        probe: what scores.
        model: what reads; its weights must be those that the probe was fitted on.
        squash: give the probability of class 1 in place of the score.
    """

    probe: FittedProbe
    model: Any
    squash: bool = False

    @overload
    def __call__(self, prompts: str | Prompt, completions: Completion) -> float: ...
    @overload
    def __call__(
        self, prompts: Sequence[str | Prompt], completions: Sequence[Completion]
    ) -> Float[Tensor, " row"]: ...
    def __call__(self, prompts: Any, completions: Any) -> Any:
        """The score of one completion, or `[row]` of many.

        Args:
            prompts: one, or one per completion.
            completions: texts or token ids; an empty one leaves the prompt's own last position.

        Raises:
            WorkbenchError: not one completion per prompt.
        """
        if isinstance(prompts, str | Prompt):
            return float(self([prompts], [completions])[0])
        many = [self._ids(completion) for completion in completions]
        if len(many) != len(prompts):
            raise WorkbenchError(
                "probing.reward",
                "completions are not one per prompt",
                expected=len(prompts),
                got=len(many),
                do="pass one completion per prompt",
            )
        sites = self.probe.site.split(JOIN)
        pool = self.probe.pool
        acts = record(self.model, prompts, sites, pool, completions=many, progress=False)
        return self.probe.probability(acts) if self.squash else self.probe.score(acts)

    def _ids(self, completion: Completion) -> list[int]:
        if not isinstance(completion, str):
            return [int(token) for token in completion]
        if not completion:
            return []
        return list(self.model.tokenizer(completion, add_special_tokens=False)["input_ids"])


def scorer(probe: FittedProbe, model: Any, *, squash: bool = False) -> Scorer:
    """A callable `(prompts, completions) -> scores`, and `(prompt, completion) -> float` of one.

    Args:
        probe: fitted on this model.
        squash: probabilities from 0 to 1 in place of scores, which have no bounds.

    Raises:
        WorkbenchError: the probe was fitted on another model, predicts numbers and is squashed, or reads
            what gives no one score of a completion: single tokens, or the first of the prompt.
    """
    check_model(probe, model.fingerprint)
    _check_pool(probe)
    if squash and not probe.classes:
        raise WorkbenchError(
            "probing.reward",
            "a probe of numbers has no probability",
            expected="a probe of classes, or squash=False",
            got=probe.method,
            do="leave squash out",
        )
    return Scorer(probe, model, squash)


def _check_pool(probe: FittedProbe) -> None:
    reads = registry.get("probes", probe.method).reads
    if probe.pool == "first" or (probe.pool == "all" and reads != "tokens"):
        raise WorkbenchError(
            "probing.reward",
            "the probe does not read a completion as one",
            expected="a probe of rows of pool 'last' or 'mean', or one that reads all tokens together",
            got=f"{probe.method} on rows of pool {probe.pool!r}",
            do="fit it on activations that are recorded with pool='last' or 'mean'",
        )
