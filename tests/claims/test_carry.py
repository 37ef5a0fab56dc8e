"""The carry of column addition, chosen by steering: the causal table of the method specifications.

The reasoner writes `add 47 58?\\n7+8+0=15\\n4+5+1=10...`. Steered is the one position before the first
carry; measured is the probability that the carry written next is 1. Prompts are held out from fitting.
The difference is nearly as long as the activation itself (86 against 103 at block 1), so that one random
direction of that length in twenty does flip carries at block 1; the control is therefore the mean of ten.
"""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from workbench import steering
from workbench.interventions import random_control
from workbench.tensors import Intervention

LAYERS = (1, 2, 3, 4, 5)
"""Block 0 does not hold the carry at this position yet: there the difference moves 7 % of prompts."""


class Carry:
    """The reasoner, the rows before the first carry, and held-out prompts of both classes."""

    def __init__(self) -> None:
        self.model = wb.load("reasoner")
        acts = self.model.record(wb.tasks.carries(256, seed=0), "L*.resid_post", progress=False)
        self.contrasts = [acts.at(f"L{i}.resid_post").contrast() for i in range(6)]
        held_out = wb.tasks.carries(200, seed=1)
        self.zero, self.one = (
            wb.Prompts(p for p in held_out if p.label is carry) for carry in (False, True)
        )
        self.digits = [self.model.tokenizer.convert_tokens_to_ids(digit) for digit in "01"]

    def fitted(self, method: steering.SteeringMethod, layer: int) -> Intervention:
        return method.fit(self.contrasts[layer]).within("last_prompt")

    def digit(self, prompts: wb.Prompts, *edits: Intervention) -> torch.Tensor:
        """Mean probabilities of writing 0 and of writing 1."""
        logits = self.model.run(prompts, edits=edits, logits="last").logits[:, -1]
        return logits.float().softmax(-1)[:, self.digits].mean(0)

    def writes_one(self, prompts: wb.Prompts, *edits: Intervention) -> float:
        return float(self.digit(prompts, *edits)[1])


@pytest.fixture(scope="module")
def carry() -> Carry:
    return Carry()


def test_without_an_edit_the_model_knows_the_carry(carry: Carry) -> None:
    assert carry.writes_one(carry.zero) < 0.01
    assert carry.writes_one(carry.one) > 0.99


@pytest.mark.parametrize("layer", LAYERS)
def test_the_class_difference_flips_it_and_a_random_direction_does_not(
    carry: Carry, layer: int
) -> None:
    edit = carry.fitted(steering.MeanDifference(), layer)
    assert carry.writes_one(carry.zero, edit.at(1.0)) > 0.95
    assert carry.writes_one(carry.one, edit.at(-1.0)) < 0.05
    up, down = [], []
    for seed in range(10):
        control = random_control(edit, seed)
        assert control is not None
        up.append(carry.writes_one(carry.zero, control.at(1.0)))
        down.append(carry.writes_one(carry.one, control.at(-1.0)))
    assert sum(up) / len(up) < 0.15
    assert sum(down) / len(down) > 0.85


@pytest.mark.parametrize("layer", LAYERS)
def test_even_twice_the_difference_leaves_a_digit(carry: Carry, layer: int) -> None:
    edit = carry.fitted(steering.MeanDifference(), layer)
    assert float(carry.digit(carry.zero, edit.at(2.0)).sum()) > 0.97


@pytest.mark.parametrize("layer", LAYERS)
def test_a_quarter_of_the_difference_is_not_enough(carry: Carry, layer: int) -> None:
    """What the table cannot see at full strength, a vector added more than once, shows here."""
    edit = carry.fitted(steering.MeanDifference(), layer)
    assert carry.writes_one(carry.zero, edit.at(0.25)) < 0.1
    assert carry.writes_one(carry.zero, *[edit.at(0.25)] * 4) > 0.95


@pytest.mark.parametrize("layer", LAYERS)
def test_ablation_erases_the_carry_where_ace_chooses_it(carry: Carry, layer: int) -> None:
    erased = carry.fitted(steering.DirectionalAblation(), layer)
    gap = abs(carry.writes_one(carry.one, erased) - carry.writes_one(carry.zero, erased))
    assert gap < 0.2, "both classes must come out alike"
    both = carry.zero + carry.one
    assert carry.writes_one(both, carry.fitted(steering.Ace(alpha=0.0), layer)) < 0.05
    assert carry.writes_one(both, carry.fitted(steering.Ace(alpha=1.0), layer)) > 0.95


def test_one_position_early_or_turned_around_nothing_flips(carry: Carry) -> None:
    edit = carry.fitted(steering.MeanDifference(), 2)
    assert carry.writes_one(carry.zero, edit.at(-1.0)) < 0.05
    before = Intervention(
        "custom", "affine", {"L2.resid_post[pos=-2]": edit.tensors[edit.sites[0]]}
    )
    assert carry.writes_one(carry.zero, before) < 0.05
