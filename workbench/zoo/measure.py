"""Greedy accuracy of a model on every task, with exact binomial intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench import tasks
from workbench.records import Prompts

HELD_OUT = 1_000_003
"""Seed of the measured prompts; training draws from other streams."""


@dataclass(frozen=True)
class Accuracy:
    """``right`` of ``n`` prompts answered right."""

    name: str
    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Clopper-Pearson interval of the share."""
        found = binomtest(self.right, self.n).proportion_ci(confidence_level=0.95, method="exact")
        return float(found.low), float(found.high)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    n: int = 200,
    seed: int = HELD_OUT,
) -> list[Accuracy]:
    """Each task in its free form, then in its four-choice form where there is one; ``n`` each."""
    sets = {name: tasks.make(name, n, seed) for name in names}
    for name in names:
        if tasks.get(name).has_choices:
            sets[f"{name} (choice)"] = tasks.make(name, n, seed, form="choice")
    return [Accuracy(name, count_right(model, tokenizer, asked), n) for name, asked in sets.items()]


def count_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> int:
    """How many prompts the model answers right."""
    completions = complete(model, tokenizer, [prompt.text or "" for prompt in prompts])
    return sum(map(tasks.check, prompts, completions))


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch: int = 100
) -> list[str]:
    """The greedy completion of each text, special tokens left out."""
    found: list[str] = []
    for at in range(0, len(texts), batch):
        rows = tokenizer(texts[at : at + batch], return_tensors="pt", padding=True)
        rows.pop("token_type_ids", None)
        ids = model.generate(**rows, do_sample=False, max_new_tokens=128)
        found += tokenizer.batch_decode(
            ids[:, rows["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return found
