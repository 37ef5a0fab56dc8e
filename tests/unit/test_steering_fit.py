"""`steering.fit`: what it reads, what it hands to a method, and what it says of bad data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import steering
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.interventions.fit import warn_of_swapped_labels
from workbench.records import Prompt, Prompts
from workbench.steering.base import SteeringMethod
from workbench.tensors import Contrast, Intervention

SITE = "L1.resid_post"


@pytest.fixture(scope="module")
def reasoner() -> wb.Model:
    return wb.load("reasoner")


@pytest.fixture(scope="module")
def carries() -> Prompts:
    return wb.tasks.carries(80, seed=3)


def few() -> Prompts:
    return wb.prompts.pairs(positive=["sum 1+2=", "sum 3+4="], negative=["say 1+2=", "say 3+4="])


@dataclass(frozen=True)
class Spy(SteeringMethod):
    """Keeps what it was handed."""

    needs: ClassVar[tuple[Any, ...]] = ("dims", "run", "rows", "generate", "encode", "parameters")
    sites: ClassVar[str] = SITE

    def fit(self, contrast: Contrast, **handed: Any) -> Intervention:
        seen.update(handed, contrast=contrast)
        shift = {"shift": torch.ones(32)}
        return Intervention("custom", "affine", {SITE: shift}, model=contrast.model)


seen: dict[str, Any] = {}


def test_it_is_record_and_fit_in_one() -> None:
    model = tiny.model()
    by_hand = steering.MeanDifference().fit(model.record(few(), SITE, progress=False).contrast())
    found = steering.fit("mean_difference", model, few(), SITE, progress=False)
    assert torch.equal(found.tensors[SITE]["shift"], by_hand.tensors[SITE]["shift"])
    options = steering.Ace(alpha=0.0)
    assert steering.fit(options, model, few(), SITE, progress=False).params["alpha"] == 0.0


def test_other_labels_and_prompts_without_one() -> None:
    prompts = [Prompt("a1", label="x"), Prompt("b2", label="y"), Prompt("c3", label="z")]
    found = steering.fit(
        "mean_difference",
        tiny.model(),
        prompts,
        SITE,
        positive="x",
        negative="y",
        progress=False,
    )
    acts = tiny.model().record(["a1", "b2"], SITE, progress=False)[SITE]
    torch.testing.assert_close(found.tensors[SITE]["shift"], acts[0] - acts[1])


def test_completions_are_read_behind_their_prompts() -> None:
    asked = ["2+2=", "3+3="]
    sides = wb.prompts.completions(asked, positive=["4", "6"], negative=["5", "7"])
    whole = wb.prompts.pairs(positive=["2+2=4", "3+3=6"], negative=["2+2=5", "3+3=7"])
    a, b = (
        steering.fit("mean_difference", tiny.model(), p, SITE, progress=False)
        for p in (sides, whole)
    )
    torch.testing.assert_close(a.tensors[SITE]["shift"], b.tensors[SITE]["shift"])


def test_completions_must_match_their_prompts() -> None:
    with pytest.raises(PromptError, match="2 prompts, 1 positive and 2 negative"):
        wb.prompts.completions(["a", "b"], positive=["1"], negative=["2", "3"])


def test_a_method_gets_what_it_needs_by_name() -> None:
    model = tiny.model()
    steering.fit(Spy(), model, few(), progress=False)
    assert seen["dims"] == model.dims
    assert seen["encode"]("12") == model.tokenizer("12", add_special_tokens=False)["input_ids"]
    assert set(seen["parameters"]) == {name for name, _ in model.hf.named_parameters()}
    plus, minus = seen["contrast"].prompts
    assert [p.label for p in plus + minus] == [True, True, False, False]
    edit = steering.fit("mean_difference", model, few(), SITE, progress=False)
    moved = seen["rows"](plus, [SITE], [edit])[SITE] - seen["contrast"].positive[SITE]
    torch.testing.assert_close(moved, edit.tensors[SITE]["shift"].expand_as(moved))
    assert seen["run"](plus, [SITE]).logits.shape[1] == 0


def test_a_need_that_no_model_has_must_be_passed() -> None:
    @dataclass(frozen=True)
    class Needy(Spy):
        needs: ClassVar[tuple[Any, ...]] = ("dictionary",)

    with pytest.raises(WorkbenchError, match="needs dictionary.*pass dictionary="):
        steering.fit(Needy(), tiny.model(), few(), progress=False)
    steering.fit(Needy(), tiny.model(), few(), progress=False, dictionary="given")
    assert seen["dictionary"] == "given"


# --- bad data -------------------------------------------------------------------------------------


def test_labels_that_hold_raise_no_warning(reasoner: wb.Model, carries: Prompts) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steering.fit("mean_difference", reasoner, carries, "L3.resid_post", progress=False)


def test_labels_that_say_nothing_are_warned_of(reasoner: wb.Model, carries: Prompts) -> None:
    noise = Prompts(
        Prompt(p.text, label=bool(int(torch.randint(2, (1,), generator=dice)))) for p in carries
    )
    with pytest.warns(UserWarning, match="sorts the other half by chance"):
        steering.fit("mean_difference", reasoner, noise, "L3.resid_post", progress=False)


dice = torch.Generator().manual_seed(0)


def test_labels_swapped_in_one_half_are_warned_of(reasoner: wb.Model, carries: Prompts) -> None:
    """Every other row of a class is its label's opposite: what one half teaches, the other denies."""
    half = [i // 2 % 2 == 0 for i in range(len(carries))]
    mixed = Prompts(
        Prompt(p.text, label=p.label if keep else not p.label)
        for p, keep in zip(carries, half, strict=True)
    )
    mixed = Prompts(sorted(mixed, key=lambda p: not p.label))
    with pytest.warns(UserWarning, match="the wrong way round"):
        steering.fit("mean_difference", reasoner, mixed, "L3.resid_post", progress=False)


def test_one_class_is_empty() -> None:
    with pytest.raises(WorkbenchError, match="negative class is empty"):
        steering.fit("mean_difference", tiny.model(), few()[:2], SITE, progress=False)


def test_identical_pairs_have_no_direction() -> None:
    pairs = wb.prompts.pairs(positive=["1+1="] * 3, negative=["1+1="] * 3)
    with pytest.raises(WorkbenchError, match="no direction"):
        steering.fit("mean_difference", tiny.model(), pairs, SITE, progress=False)


def test_more_layers_than_the_model_has() -> None:
    with pytest.raises(WorkbenchError, match="layer"):
        steering.fit("mean_difference", tiny.model(), few(), "L7.resid_post", progress=False)


def test_a_misspelt_method_lists_the_nearest() -> None:
    with pytest.raises(UnknownName, match="mean_difference"):
        steering.fit("mean_diference", tiny.model(), few(), SITE, progress=False)


def test_nan_activations_are_refused() -> None:
    hf = tiny.module("llama")
    hf.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    broken = wb.load(hf, tiny.tokenizer(), proof=False)
    with pytest.raises(WorkbenchError, match="NaN or infinite"):
        steering.fit("mean_difference", broken, few(), SITE, progress=False)


def test_nan_in_one_class_is_not_taken_for_swapped_labels(reasoner: wb.Model) -> None:
    prompts = [Prompt(f"{i}+1=", label=side) for side in (True, False) for i in range(30)]
    contrast = reasoner.record(prompts, SITE, progress=False).contrast()
    contrast.negative[SITE][3] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_swapped_labels(steering.MeanDifference(), contrast)


def test_recording_to_a_folder_takes_prompts_alone(tmp_path) -> None:
    with pytest.raises(WorkbenchError, match="cannot stream completions"):
        tiny.model().record(["1"], SITE, completions=[[5]], path=tmp_path / "acts")
