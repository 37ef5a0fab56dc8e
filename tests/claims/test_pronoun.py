"""On a real pretrained story model: which pronoun follows, and a direction that causes it.

The claim about the direction is re-obtained by an edit: added at one layer it turns he into she and
back, on prompts it was not fitted on, and a random direction of the same length does not. Layer 4,
the last, is where the class difference alone (strength 1) is enough; from layer 2 on a boy becomes a
she at twice that, and a girl stays one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench import locate
from workbench.interventions import random_control
from workbench.model.model import Model
from workbench.tensors import Intervention

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in ../shared/data")

STORY = "Once upon a time, there was a little {} named {}."
GIRLS = [STORY.format("girl", n) for n in ("Mia", "Sue", "Anna", "Lucy", "Amy")]
BOYS = [STORY.format("boy", n) for n in ("Tom", "Max", "Ben", "Sam", "Jack")]
GIRL, BOY = STORY.format("girl", "Lily"), STORY.format("boy", "Tim")
BACKENDS = ("transformers", "transformer_lens", "nnsight")


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest) -> Model:
    return wb.load(STORIES, backend=request.param)


@pytest.fixture(scope="module")
def direction() -> Intervention:
    acts = wb.load(STORIES).record(
        wb.prompts.pairs(positive=GIRLS, negative=BOYS), sites="L4.resid_post", progress=False
    )
    return wb.steering.MeanDifference().fit(acts.contrast())


def _she_over_he(model: Model, prompt: str, edits: tuple[Intervention, ...] = ()) -> float:
    """Logit of "She" minus logit of "He" for the next word."""
    she, he = (
        model.tokenizer(" " + w, add_special_tokens=False)["input_ids"][-1] for w in ("She", "He")
    )
    last = model.run(prompt, edits=edits, logits="last").logits[0, -1]
    return float(last[she] - last[he])


def test_the_direction_flips_the_pronoun(model: Model, direction: Intervention) -> None:
    assert _she_over_he(model, BOY, (direction.at(1.0),)) > 1
    assert _she_over_he(model, GIRL, (direction.at(-1.0),)) < -1


def test_a_random_direction_of_the_same_length_does_not(direction: Intervention) -> None:
    model = wb.load(STORIES)
    shift = direction.tensors["L4.resid_post"]["shift"]
    for seed in range(20):
        noise = torch.randn(shift.shape, generator=torch.Generator().manual_seed(seed))
        control = Intervention(
            "custom",
            "affine",
            {"L4.resid_post": {"shift": noise * shift.norm() / noise.norm()}},
            1.0,
            scope=direction.scope,
        )
        assert _she_over_he(model, BOY, (control,)) < 0 < _she_over_he(model, GIRL, (control,))


NOUNS = ("There was a happy {}.", "Once there was a small {}.", "In a big house lived a {}.")
NOUNS += ("Once upon a time, there was a little {}.", "One day, a man met a nice {}.")
ELSEWHERE = ("A little {} went to the park.", "The {} was very sad.", "The {} had a red ball.")


def _nouns(lines: tuple[str, ...]) -> wb.Prompts:
    girls, boys = ([line.format(noun) for line in lines] for noun in ("girl", "boy"))
    return wb.prompts.counterfactuals(clean=girls, corrupted=boys, answers=" She", foils=" He")


def test_one_head_carries_the_gender_of_a_noun_and_its_edit_re_obtains_it() -> None:
    """Found by patching heads, confirmed on sentences in which the noun stands elsewhere.

    Not alone: without it a fifth of the difference between girls and boys is left.
    """
    model = wb.load(STORIES)
    heads = locate.find(locate.ActivationPatching(part="z"), model, _nouns(NOUNS), progress=False)
    assert tuple(heads.top(1)[["layer", "head"]].iloc[0]) == (4, 2)
    ablated = locate.find(locate.HeadAblation(), model, _nouns(NOUNS), progress=False)
    girls, boys = (_nouns(ELSEWHERE)[:3], _nouns(ELSEWHERE)[3:])

    def gap(*edits: Intervention) -> float:
        return sum(_she_over_he(model, g.text, edits) for g in girls if g.text) - sum(
            _she_over_he(model, b.text, edits) for b in boys if b.text
        )

    left = [gap(ablated.edit(layer=4, head=h)) / gap() for h in range(8)]
    assert left[2] < 0.35 and min(left[:2] + left[3:]) > 0.7
    turn = heads.edit(layer=4, head=2)

    def moved(edit: Intervention | None) -> float:
        assert edit is not None
        return sum(
            _she_over_he(model, b.text, (edit,)) - _she_over_he(model, b.text)
            for b in boys
            if b.text
        )

    # a head writes eight numbers, so a random direction has something of every other in it
    noise = [abs(moved(random_control(turn, seed))) for seed in range(10)]
    assert moved(turn) > max(noise) and moved(turn) > 2.5 * sum(noise) / len(noise)
