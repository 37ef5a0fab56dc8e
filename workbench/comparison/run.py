"""Run a comparison: arms x seeds x prompts, every one judged by the same metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

from tqdm.auto import tqdm

from workbench import registry, tasks
from workbench.comparison.arms import complete, prefixed, refuse_mixed_units, refuse_other_words
from workbench.comparison.metrics.base import Evidence, Metric
from workbench.comparison.provenance import provenance
from workbench.comparison.table import COMPARED, Table
from workbench.errors import WorkbenchError
from workbench.interventions.rollout import continuation_logprobs
from workbench.model.tokens import as_prompts
from workbench.records import Generation, Prompt
from workbench.tensors import Arm

Row = tuple[str, int, int, str, float, str]
DEFAULT_METRICS = ("accuracy", "length", "kl_nats")


def compare(
    arms: Iterable[Arm],
    model: Any,
    prompts: str | Prompt | Sequence[str | Prompt],
    metrics: Sequence[str | Metric] = DEFAULT_METRICS,
    seeds: Sequence[int] = (0,),
    *,
    max_new_tokens: int = 64,
    decoder: Any = None,
    control: bool = True,
    control_seed: int = 0,
    stop: str | Iterable[str] = (),
    batch_size: int | None = None,
    progress: bool = True,
) -> Table:
    """Every arm on every prompt under every seed, as one table.

    An arm without edits, prefix or model of its own is the baseline; where none is given, `base` is
    added. Every arm with edits gets a control: the same edits in random directions of the same
    norm, at the same sites, scope and strength, unless `control` is False.

    Args:
        arms: what is compared; all share prompts and seeds, so that differences are paired.
        metrics: names of the family `metrics`, or metrics with options.
        seeds: one pass each; with greedy decoding one is enough.
        max_new_tokens: longest continuation.
        decoder: for arms without one of their own; greedy by default.
        control_seed: draws the controls' directions; it is in their parameters.
        stop: texts that end a continuation.

    Raises:
        UnknownName: no such metric.
        WorkbenchError: two arms of one name, no prompts, no seeds, strengths in several units that
            are not calibrated, or a prompt that a metric cannot judge.
        EditError: an edit with one strength per row.
    """
    everyone, base, notes = complete(list(arms), control, control_seed)
    options = {"max_new_tokens": max_new_tokens, "stop": stop, "batch_size": batch_size}
    job = Comparison(model, as_prompts(prompts), checked_metrics(metrics), decoder, options)
    # all that can be refused is refused here: arms may run for hours
    job.refuse(seeds)
    refuse_other_words(everyone, model)
    made = provenance(
        everyone, model, job.prompts, seeds, decoder, base=base, notes=notes, **options
    )
    refuse_mixed_units(everyone)
    rows, kept = _run(job, everyone, seeds, progress)
    columns = dict(zip(COMPARED, zip(*rows, strict=True), strict=True))
    units = {name: metric.unit for name, metric in job.metrics.items()}
    return Table(columns, units, made, tuple(kept))


def _run(
    job: Comparison, everyone: list[Arm], seeds: Sequence[int], progress: bool
) -> tuple[list[Row], list[Generation]]:
    rows: list[Row] = []
    kept: list[Generation] = []
    total = len(everyone) * len(seeds) * len(job.prompts)
    with tqdm(total=total, unit="text", desc="compare", disable=not progress) as bar:
        for arm in everyone:
            for seed in seeds:
                bar.set_postfix_str(f"{arm.name}, seed {seed}")
                texts = job.generate(arm, seed)
                for row in job.judge(arm, seed, texts):
                    rows += row
                    bar.update()
                kept += texts
    return rows, kept


@dataclass(frozen=True)
class Comparison:
    """What all arms of one comparison share."""

    model: Any
    prompts: list[Prompt]
    metrics: dict[str, Metric]
    decoder: Any
    options: dict[str, Any]

    def refuse(self, seeds: Sequence[int]) -> None:
        """WorkbenchError where there are no seeds, or a metric cannot judge a prompt."""
        if not len(seeds):
            raise WorkbenchError(
                "compare", "has no seeds", expected="at least one", got="0", do="pass seeds=[0]"
            )
        for metric in self.metrics.values():
            for prompt in self.prompts:
                metric.accept(prompt)

    def generate(self, arm: Arm, seed: int) -> list[Generation]:
        """The arm's continuations, each with its prompt as given, without the arm's prefix."""
        texts = (arm.model or self.model).generate(
            [prefixed(p, arm.prefix) for p in self.prompts],
            edits=arm.edits,
            decoder=arm.decoder or self.decoder,
            seed=seed,
            arm=arm.name,
            **self.options,
        )
        return [replace(text, prompt=p) for text, p in zip(texts, self.prompts, strict=True)]

    def judge(self, arm: Arm, seed: int, texts: list[Generation]) -> Iterator[list[Row]]:
        """Per text, a row for each metric."""
        for i, (text, evidence) in enumerate(zip(texts, self._evidence(arm, texts), strict=True)):
            yield [
                (arm.name, i, seed, name, metric.measure(text, evidence), metric.unit)
                for name, metric in self.metrics.items()
            ]

    def _evidence(self, arm: Arm, texts: list[Generation]) -> Iterator[Evidence]:
        """What the metrics need, text by text; only one batch of log-probabilities is held."""
        needs = {need for metric in self.metrics.values() for need in metric.needs}
        ids, size = [text.ids for text in texts], self.options["batch_size"]
        own, base = repeat(None), repeat(None)
        if "arm_logprobs" in needs:
            asked = [prefixed(p, arm.prefix) for p in self.prompts]
            own = continuation_logprobs(arm.model or self.model, asked, ids, arm.edits, size)
        if "base_logprobs" in needs:
            base = continuation_logprobs(self.model, self.prompts, ids, (), size)
        check = tasks.check if "check" in needs else None
        for _, from_arm, from_base in zip(texts, own, base, strict=False):
            yield Evidence(from_arm, from_base, check)


def checked_metrics(asked: Sequence[str | Metric]) -> dict[str, Metric]:
    """Metrics by name, in the order asked."""
    found = {}
    for one in [asked] if isinstance(asked, str | Metric) else asked:
        metric = registry.get("metrics", one)() if isinstance(one, str) else one
        found[type(metric).__module__.rpartition(".")[2]] = metric
    if not found:
        raise WorkbenchError(
            "compare", "has no metrics", expected="at least one", got="0", do="name some"
        )
    return found
