"""What every steering method keeps on a model, fitted through `steering.fit` at its own defaults.

A new method gets its tests by existing. One that cannot be fitted without being told something more
(a span, a dictionary) has a row in `GIVEN`; experts need a model that has some.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.contract.fakes import fake_dictionary
from workbench import registry, steering
from workbench.errors import EditError, WorkbenchError
from workbench.interventions import store
from workbench.model.model import Model
from workbench.records import Prompts
from workbench.tensors import Intervention

PROMPTS = ["12+34=", "a longer prompt, 7*8=?", "bcd"]
N_TOKENS = 6
SITE = "L1.resid_post"

GIVEN: dict[str, Callable[[Model], tuple[Any, dict[str, Any]]]] = {
    "ata": lambda _: (steering.Ata(spans=((1, 3), (3, 5))), {}),
    # random weights end no lines: these are the ids that they write most
    "rebalance": lambda _: (steering.Rebalance(boundary=(21, 25, 42, 65, 88)), {}),
    "sae_feature": lambda m: ("sae_feature", {"dictionary": fake_dictionary(m.d_model, SITE)}),
}
"""Per method that needs it: the method with its options, and what `steering.fit` is handed."""

ENTRIES = registry.entries("steering")
every_method = pytest.mark.parametrize("name", [e.name for e in ENTRIES])


def pairs() -> Prompts:
    """Pairs that differ in one word, each with a completion of its own."""
    asked = [f"{a}+{b}=" for a in (1, 23, 4) for b in (5, 66, 78)]
    sides = wb.prompts.pairs(
        positive=[f"sum {p}" for p in asked], negative=[f"say {p}" for p in asked]
    )
    texts = [f"{i}9." if p.label else f"no {i}" for i, p in enumerate(sides)]
    return Prompts(
        wb.Prompt(p.text, label=p.label, pair=p.pair, meta={"completion": text})
        for p, text in zip(sides, texts, strict=True)
    )


def model_of(name: str) -> Model:
    routed = "router" in str(registry.get("steering", name).sites)
    return tiny.model("mixtral" if routed else "llama")


@cache
def fitted(name: str) -> Intervention:
    return fit(name)


def fit(name: str) -> Intervention:
    model = model_of(name)
    given = GIVEN.get(name, lambda _: (name, {}))
    method, handed = given(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return steering.fit(method, model, pairs(), progress=False, **handed)


def strong(edit: Intervention) -> Intervention:
    """At a strength whose effect random weights show."""
    return edit.at(20.0) if edit.operation == "rotate" else edit


def written(model: Model, *edits: Intervention, **options: Any) -> list[tuple[list[int], Any]]:
    """Ids and log-probabilities of greedy continuations."""
    texts = model.generate(PROMPTS, edits, max_new_tokens=N_TOKENS, **options)
    return [(list(t.ids), torch.tensor(t.logprobs)) for t in texts]


def same(a: list[tuple[list[int], Any]], b: list[tuple[list[int], Any]], atol: float) -> bool:
    return all(
        ids == others and torch.allclose(logs, more, atol=atol)
        for (ids, logs), (others, more) in zip(a, b, strict=True)
    )


def stepwise(edit: Intervention) -> bool:
    """Whether it decides anew at every step, which needs a cache and `generate`."""
    return "stepwise" in edit.params


@every_method
def test_it_changes_what_is_written_or_how_surely(name: str) -> None:
    model, edit = model_of(name), strong(fitted(name))
    if edit.conditional or edit.scope.conditional:
        written(model, edit)
        return
    assert not same(written(model), written(model, edit), 1e-4)


@every_method
def test_it_says_where_it_comes_from_and_what_its_strength_is(name: str) -> None:
    edit = fitted(name)
    assert edit.method == name
    assert edit.unit and edit.model and edit.model.d_model == 32
    assert edit.strength == 1.0


@every_method
def test_fitting_twice_gives_the_same_bits(name: str) -> None:
    first, second = fitted(name), fit(name)
    assert store.describe(first) == store.describe(second)
    for site, tensors in first.tensors.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors[site][key]), (site, key)


@every_method
def test_fitting_leaves_the_model_as_it_was(name: str) -> None:
    model = model_of(name)
    before = {key: p.clone() for key, p in model.hf.named_parameters()}
    fit(name)
    assert all(torch.equal(p, before[key]) for key, p in model.hf.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@every_method
def test_strength_zero_is_no_edit_bit_for_bit(name: str) -> None:
    model = model_of(name)
    assert same(written(model), written(model, fitted(name).at(0.0)), 0.0)


@every_method
def test_nothing_is_left_behind_even_after_an_exception(name: str) -> None:
    model, edit = model_of(name), strong(fitted(name))
    before = written(model)
    written(model, edit)
    assert same(before, written(model), 0.0)

    def planted(step: int, rows: list[int], ids: list[int]) -> None:
        if step == 2:
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        written(model, edit, on_token=planted)
    assert same(before, written(model), 0.0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@every_method
def test_with_and_without_cache_agree(name: str) -> None:
    model, edit = model_of(name), strong(fitted(name))
    if stepwise(edit):
        with pytest.raises(WorkbenchError, match="cache"):
            written(model, edit, use_cache=False)
        return
    assert same(written(model, edit), written(model, edit, use_cache=False), 1e-4)


@every_method
def test_a_padded_batch_equals_its_rows(name: str) -> None:
    model, edit = model_of(name), strong(fitted(name))
    together = written(model, edit)
    for prompt, row in zip(PROMPTS, together, strict=True):
        (alone,) = model.generate([prompt], edit, max_new_tokens=N_TOKENS)
        assert same([row], [(list(alone.ids), torch.tensor(alone.logprobs))], 1e-4)


@every_method
def test_saved_and_loaded_it_does_the_same(name: str, tmp_path) -> None:
    model, edit = model_of(name), strong(fitted(name))
    back = wb.load_edit(wb.save_edit(edit, tmp_path / "edit.safetensors"))
    assert same(written(model, edit), written(model, back), 0.0)


@every_method
def test_another_model_refuses_it(name: str) -> None:
    other = wb.load(tiny.module("llama", num_hidden_layers=2), tiny.tokenizer())
    with pytest.raises(EditError, match="width or depth"):
        other.generate("12", fitted(name), max_new_tokens=1)


@every_method
def test_it_reaches_a_divergence_or_says_why_not(name: str) -> None:
    """Random weights make some divergences jump; what may not happen is silence or a wrong number."""
    model, edit = model_of(name), strong(fitted(name))
    try:
        found = wb.calibrate(edit, model, PROMPTS, 0.05, n_tokens=4, tolerance=0.2, progress=False)
    except EditError as error:
        assert "calibrate" in str(error) or "changed nothing" in str(error)
        return
    assert found.params["calibration"]["mean_kl_nats"] == pytest.approx(0.05, rel=0.2)


@every_method
def test_an_empty_class_is_an_error(name: str) -> None:
    if not registry.get("steering", name).sites:
        return
    model = model_of(name)
    method, handed = GIVEN.get(name, lambda _: (name, {}))(model)
    with pytest.raises(WorkbenchError, match="empty|at least|holds none"):
        steering.fit(method, model, [p for p in pairs() if p.label], progress=False, **handed)
