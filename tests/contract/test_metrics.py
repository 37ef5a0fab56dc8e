"""What every metric keeps, and known answers of each."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from workbench import registry, tasks
from workbench.comparison.metrics.base import Evidence, Metric, Need
from workbench.errors import WorkbenchError
from workbench.records import Generation, Prompt

VOCAB = 11
IDS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)


def generation(
    ids: tuple[int, ...] = IDS, text: str = "#39", task: str | None = "add"
) -> Generation:
    prompt = Prompt(text="add 7 32?\n", answer="39", task=task)
    return Generation(prompt, "arm", 0, ids, text, (0.0,) * len(ids), "eos")


def evidence(n: int = len(IDS), seed: int = 0) -> Evidence:
    draws = torch.randn(2, n, VOCAB, generator=torch.Generator().manual_seed(seed))
    return Evidence(draws[0].log_softmax(-1), draws[1].log_softmax(-1), tasks.check)


ENTRIES = registry.entries("metrics")
every_metric = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)


def metric(name: str, **options) -> Metric:
    return registry.get("metrics", name)(**options)


def test_the_metrics_of_the_first_comparison_exist() -> None:
    names = registry.names("metrics")
    assert {"accuracy", "length", "kl_nats", "perplexity", "distinct_n"} <= set(names)


@every_metric
def test_it_says_its_unit_direction_and_needs(entry: registry.Entry) -> None:
    assert entry.cls.unit
    assert entry.cls.better in ("higher", "lower", None)
    assert set(entry.cls.needs) <= set(get_args(Need))


@every_metric
def test_it_is_a_pure_function(entry: registry.Entry) -> None:
    given = evidence()
    before = given.arm_logprobs.clone(), given.base_logprobs.clone()
    first = entry.cls().measure(generation(), given)
    assert isinstance(first, float)
    assert first == entry.cls().measure(generation(), given)
    assert torch.equal(before[0], given.arm_logprobs) and torch.equal(
        before[1], given.base_logprobs
    )


@every_metric
def test_an_empty_continuation_gives_a_number_or_nan(entry: registry.Entry) -> None:
    value = entry.cls().measure(generation((), ""), evidence(0))
    assert math.isnan(value) or value == 0


@every_metric
def test_its_needs_are_all_it_uses(entry: registry.Entry) -> None:
    full = evidence()
    only = replace(Evidence(), **{need: getattr(full, need) for need in entry.cls.needs})
    assert entry.cls().measure(generation(), only) == entry.cls().measure(generation(), full)


@every_metric
def test_its_docstring_has_every_section(entry: registry.Entry) -> None:
    said = importlib.import_module(entry.cls.__module__).__doc__ or ""
    for section in ("Shapes:", "Units:", "Source:", "Differs from the paper:"):
        assert f"\n{section}" in said, section
    assert entry.citation.url in said


# --- known answers --------------------------------------------------------------------------------


def test_accuracy_is_the_checkers_word() -> None:
    assert metric("accuracy").measure(generation(text="7+2+0=9\n#39"), evidence()) == 1.0
    assert metric("accuracy").measure(generation(text="7+2+0=9\n#38"), evidence()) == 0.0
    assert metric("accuracy").measure(generation(text="39"), evidence()) == 0.0


def test_accuracy_without_a_task_is_an_error_in_words() -> None:
    with pytest.raises(WorkbenchError, match="no task whose checker could judge.*with_task"):
        metric("accuracy").measure(generation(task=None), evidence())


def test_length_counts_every_token() -> None:
    assert metric("length").measure(generation((5,) * 7), evidence()) == 7.0


def test_kl_is_the_mean_of_each_positions_divergence() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    q = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    want = (0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 2
    found = metric("kl_nats").measure(generation((0, 1)), Evidence(p, q))
    assert found == pytest.approx(want, rel=1e-5)
    assert metric("kl_nats").measure(generation((0, 1)), Evidence(q, q)) == 0


def test_perplexity_of_a_fair_choice_is_the_number_of_choices() -> None:
    uniform = torch.zeros(4, VOCAB).log_softmax(-1)
    found = metric("perplexity").measure(generation((1, 2, 3, 4)), Evidence(None, uniform))
    assert found == pytest.approx(VOCAB, rel=1e-5)
    certain = torch.full((2, 3), -math.inf)
    certain[0, 1] = certain[1, 2] = 0
    assert metric("perplexity").measure(generation((1, 2)), Evidence(None, certain)) == 1


@pytest.mark.parametrize(
    ("ids", "n", "want"),
    [
        ((1, 2, 3, 4), 2, 1.0),
        ((1, 1, 1, 1), 2, 1 / 3),
        ((1, 2, 1, 2, 1), 2, 0.5),
        ((1, 2, 1, 2, 1), 3, 2 / 3),
        ((7,), 2, math.nan),
    ],
)
def test_distinct_n_counts_n_grams(ids, n: int, want: float) -> None:
    found = metric("distinct_n", n=n).measure(generation(ids), evidence())
    assert found == pytest.approx(want, nan_ok=True)
