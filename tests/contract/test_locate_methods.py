"""What every localiser keeps, run on all of them: a new file in workbench/locate is tested by existing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import locate, registry
from workbench.locate.base import Localiser
from workbench.patching.map import Map

NAMES = registry.names("locate")
CLEAN = ("ab cab cab c", "de fde fde f", "gh igh igh i", "jk ljk ljk l")
CORRUPTED = ("ab cxb cab c", "de fye fde f", "gh izh igh i", "jk lwk ljk l")


class Copied:
    """A continuation that says the end of its prompt again."""

    def __init__(self, prompt: wb.Prompt):
        said = tiny.tokenizer()((prompt.text or "")[-4:], add_special_tokens=False)
        self.ids = tuple(said["input_ids"])


GIVEN: dict[str, dict[str, Any]] = {
    # by default a case is divided by the mean over all cases, and so depends on the others
    "activation_patching": {"options": {"per": "case"}},
    "path_patching": {"options": {"per": "case"}},
    "behaviour_attribution": {
        "handed": {"segments": lambda _: [("copy", 3, 6), ("recall", 8, 11), ("copy", 11, 12)]},
        "padding": False,
        "padding_why": "directions are means over all texts; see test_locate_gradients.py",
    },
    "edge_attribution": {"options": {"steps": 2, "points": 4, "draws": 2}},
    # the tiny model copies nothing by itself, and every letter of these prompts stands more than once
    "token_alignment_heads": {
        "options": {"copies": "any"},
        "handed": {"generate": lambda prompts, **_: [Copied(prompt) for prompt in prompts]},
    },
    "tuned_lens": {
        "options": {"steps": 5},
        "handed": {"train": ["some other text", "and one more"]},
    },
}
"""What a method must be handed, or options that keep it quick, by its name."""

every = pytest.mark.parametrize("name", NAMES)


def cases() -> wb.Prompts:
    return wb.prompts.counterfactuals(
        clean=CLEAN, corrupted=CORRUPTED, answers=["a", "d", "g", "j"], foils=["x", "y", "z", "w"]
    )


def method(name: str) -> Localiser:
    return registry.get("locate", name)(**GIVEN.get(name, {}).get("options", {}))


def found_on(name: str, prompts: Any, family: str = "llama") -> Map:
    handed = GIVEN.get(name, {}).get("handed", {})
    return locate.find(method(name), tiny.model(family), prompts, progress=False, **handed)


@cache
def found(name: str, family: str = "llama") -> Map:
    return found_on(name, cases(), family)


@every
def test_every_place_has_a_mean_an_interval_and_a_unit(name: str) -> None:
    made = found(name)
    rows = made.frame()
    assert len(rows) == len(made.measures) * math.prod(len(a.labels) for a in made.scores.axes)
    known = rows[rows["n"] > 1]
    assert len(known), "no place has a value for two cases"
    assert (known["low"] <= known["mean"] + 1e-9).all()
    assert (known["mean"] <= known["high"] + 1e-9).all()
    assert all(rows["unit"]) and made.provenance["method"] == name
    assert made.scores.caption.endswith(".")
    values = made.scores.values[made.measures[0]].double().numpy()
    np.testing.assert_allclose(made.grid(), np.nanmean(values, 0), rtol=1e-6, atol=1e-9)


@every
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_leaves_the_model_and_the_cases_as_they_were(name: str, family: str) -> None:
    model, prompts = tiny.model(family), cases()
    before = model.run(prompts[0]).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    again = found_on(name, prompts, family)
    assert torch.equal(model.run(prompts[0]).logits, before)
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    assert after == hooks
    assert list(prompts) == list(cases())
    assert all(p.grad is None for p in model.hf.parameters())
    np.testing.assert_array_equal(again.grid(), found(name, family).grid())


@every
def test_the_order_of_cases_does_not_matter(name: str) -> None:
    many = list(cases())
    turned = wb.Prompts([*many[2:4], *many[:2], *many[6:8], *many[4:6]])
    turned = wb.Prompts(replace(p, pair=i % 4) for i, p in enumerate(turned))
    np.testing.assert_allclose(
        found_on(name, turned).grid(), found(name).grid(), rtol=1e-3, atol=1e-5
    )


@every
def test_it_has_a_figure_and_says_what_it_is(name: str) -> None:
    made = found(name)
    for part in (made, *made.also.values()):
        figure = part.figure()
        assert figure.plot().data and figure.caption
        assert "wb" not in repr(part).split("(")[0] and "<table" in part._repr_html_()


@every
def test_a_place_that_is_an_edit_changes_the_model(name: str) -> None:
    made = found(name)
    if made.scores.edit is None:
        with pytest.raises(wb.WorkbenchError, match="changes nothing"):
            made.edit()
        return
    best = made.top(1).iloc[0]
    edit = made.edit(**{axis: best[axis] for axis in made.axes})
    prompts = cases()[:4]
    change = tiny.model().run(prompts, edits=[edit]).logits - tiny.model().run(prompts).logits
    assert float(change.abs().max()) > 0
    with pytest.raises(wb.WorkbenchError, match="unknown"):
        made.edit(**{axis: best[axis] for axis in made.axes[1:]}, **{made.axes[0]: 10**6})


@every
def test_what_it_reads_is_asked_for_in_words(name: str) -> None:
    for need in method(name).reads:
        plain = wb.Prompts(map(wb.Prompt, CLEAN))
        with pytest.raises(wb.WorkbenchError, match="the prompts have no"):
            found_on(name, plain)
        assert need in ("answer", "foil", "corrupted")
        break


@every
def test_cases_of_different_lengths_are_padded_and_agree_with_their_own_runs(name: str) -> None:
    """A long case beside a short one gives the short one's values; places that padding adds are NaN."""
    if not GIVEN.get(name, {}).get("padding", True):
        pytest.skip(GIVEN[name]["padding_why"])
    clean, corrupted = ("ab cab cab c", "zz ab cab cab c"), ("ab cxb cab c", "zz ab cxb cab c")
    answers = dict(answers="a", foils="x")
    both = found_on(name, wb.prompts.counterfactuals(clean=clean, corrupted=corrupted, **answers))
    alone = found_on(
        name, wb.prompts.counterfactuals(clean=clean[:1], corrupted=corrupted[:1], **answers)
    )
    measure = both.measures[0]
    a, b = both.scores.values[measure][0], alone.scores.values[measure][0]
    for dim, axis in enumerate(both.scores.axes):
        if axis.name == "pos":  # the same tokens, counted from the end
            a = a.narrow(dim, a.shape[dim] - b.shape[dim], b.shape[dim])
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-5)
