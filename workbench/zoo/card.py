"""The model card: what the model is, how it was made, and what it gets right, as measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from workbench.zoo.measure import Accuracy
from workbench.zoo.train import Plan, Progress

LIBRARIES = ("interp-workbench", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Facts:
    """What a card reports; all of it measured or decided during the build."""

    name: str
    plans: tuple[Plan, ...]
    progress: Progress
    threads: int
    measured: tuple[Accuracy, ...]
    parameters: int


def card(facts: Facts) -> str:
    """The text of README.md beside the weights."""
    return HEAD.format(name=facts.name, kind=KINDS.get(facts.name, "Llama")) + "\n".join(
        (how_made(facts), accuracies(facts.measured), LIMITS)
    )


def how_made(facts: Facts) -> str:
    """Size, seed, steps, time and versions."""
    plan, progress = facts.plans[0], facts.progress
    loss = sum(progress.losses[-100:]) / len(progress.losses[-100:])
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    command = f"python -m workbench.zoo build {facts.name} --steps {plan.steps} --seed {plan.seed}"
    training = f"{plan.steps} steps of at most {plan.tokens} tokens, AdamW, peak rate {plan.rate:g}"
    if facts.name == "reasoner-moe":
        training = f"upcycled from the reasoner, then {training}"
    for finish in facts.plans[1:]:
        training += f"; then {finish.steps} at {finish.rate:g} with more judgements and choices"
    stored = "float16 on disk, float32 in use" if facts.name == "reasoner-moe" else "float32"
    minutes = f"{progress.seconds / 60:.0f} min on a shared machine"
    return f"""## How it was made

`{command}`

| | |
| --- | --- |
| parameters | {facts.parameters:,}, {stored} |
| training | {training}; cosine |
| seed | {plan.seed} |
| loss over the last 100 steps | {loss:.3f} nats per token of thoughts and answer |
| training time | {minutes}, torch threads {facts.threads}, {platform.machine()} CPU |
| versions | Python {platform.python_version()}, {versions} |
| training data | drawn from `workbench.tasks` by the seed; no other text |
| licence | Apache-2.0, weights and data |
"""


def accuracies(measured: Sequence[Accuracy]) -> str:
    """The table of greedy accuracy with its mean over the tasks in their free form."""
    free = [a.share for a in measured if "(" not in a.name]
    rows = "\n".join(
        f"| {a.name} | {a.share:.1%} | {a.interval[0]:.1%} to {a.interval[1]:.1%} | {a.n} |"
        for a in measured
    )
    return f"""## Greedy accuracy

Default difficulty, prompts held out by their seed (operands may be small enough to recur), answers
compared exactly; Clopper-Pearson intervals.
Mean over the {len(free)} tasks in free form: **{sum(free) / len(free):.1%}**.

| task | accuracy | 95 % interval | n |
| --- | --- | --- | --- |
{rows}
"""


def version(library: str) -> str:
    """The installed version, or a word where the package runs from its sources."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "from source"


KINDS = {"reasoner": "Llama", "reasoner-moe": "Mixtral mixture-of-experts (4 experts, 2 per token)"}

HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A small {kind} model for interpretability work: it reasons in a tiny verifiable world of characters,
so that locating, steering, probing and training have something real to act on and exact answers to
be judged by.

```
<domain> <operands>[\\nA).. B).. C).. D)..]?
thoughts, one per line
#answer
```

Characters are the tokens; the context is 256 tokens. The training text holds step-by-step chains,
two legal orders of steps in some tasks, a redundant `check`, slips taken back by `wait`, early
answers, a refusal (`#no`) of questions behind the word `locked`, judgements of statements, and
answers in words, terse or verbose.

"""

LIMITS = """## Limits

It knows nothing outside this world and is left imperfect in it on purpose.
A four-choice row whose interval holds 25 % is no better than guessing.
"""
