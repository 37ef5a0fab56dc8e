"""Features found by attribution cause what they are said to: the carry of column addition.

The reasoner writes `add 47 58?\\n7+8+0=15\\n4+5+` and then the carry, 0 or 1. Features that attribution
finds on some prompts are switched off, or set, on others. Controls: the same amount along random
directions (the edit's own random control), and along random active features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import sae
from workbench.comparison import stats
from workbench.interventions import random_control
from workbench.records import Prompt
from workbench.sae import scorers
from workbench.sae.ranking import FeatureRanking
from workbench.shapes import Tensor
from workbench.tensors import Intervention

NAME = "reasoner/L3.resid_post-512"
FOUND, CONTROLS = 3, 5


class Carry:
    """The reasoner, its features, and sums whose first carry is 0 or 1."""

    def __init__(self) -> None:
        self.model = wb.load("reasoner")
        self.dictionary = sae.load(NAME, model=self.model)
        self.seen, held_out = self.asked(0), self.asked(1)
        self.zero, self.one = ([p for p in held_out if p.label is carry] for carry in (False, True))
        self.ranking = self.search("attribution", [p for p in self.seen if p.label])
        self.best = self.ranking.top(FOUND, above=0)["feature"].tolist()
        self.digits = [self.model.tokenizer.convert_tokens_to_ids(digit) for digit in "01"]

    @staticmethod
    def asked(seed: int) -> list[Prompt]:
        """64 sums with their carry as the answer and the other one as the foil."""
        return [
            replace(p, meta={"answer": p.answer, "foil": "10"[int(p.answer or 0)]})
            for p in wb.tasks.carries(64, seed=seed)
        ]

    def search(self, scorer: str | scorers.Scorer, prompts: list[Prompt]) -> FeatureRanking:
        return sae.search(
            scorer, self.dictionary, self.model, prompts, positions="last", progress=False
        )

    def off(self, *features: int) -> list[Intervention]:
        """Switched off where the carry is written."""
        edits = sae.steer(self.dictionary, features, mode="scale", scope="last_prompt")
        return [edit.at(-1.0) for edit in edits]

    def logits(self, prompts: list[Prompt], *edits: Intervention) -> Tensor:
        out = self.model.run(prompts, edits=edits, logits="last").logits[:, -1]
        return out.float()

    def leans(self, prompts: list[Prompt], *edits: Intervention) -> np.ndarray:
        """Logit of 1 less that of 0, per prompt."""
        return (self.logits(prompts, *edits)[:, self.digits] @ torch.tensor([-1.0, 1.0])).numpy()

    def writes_one(self, prompts: list[Prompt], *edits: Intervention) -> float:
        return float(self.logits(prompts, *edits).softmax(-1)[:, self.digits[1]].mean())


def controls(edits: list[Intervention]) -> list[list[Intervention]]:
    """Edits that write as much along random directions, several times."""
    found = [[random_control(edit, seed) for edit in edits] for seed in range(CONTROLS)]
    return [[edit for edit in some if edit is not None] for some in found]


@pytest.fixture(scope="module")
def carry() -> Carry:
    return Carry()


def test_the_features_found_are_sure(carry: Carry) -> None:
    rows = carry.ranking.top(FOUND, above=0)
    assert len(rows) == FOUND and bool((rows["low"] > 0).all()) and bool((rows["p"] < 0.05).all())


def test_labels_that_mean_nothing_find_a_feature_no_more_often_than_p_says(carry: Carry) -> None:
    """The best of 512 features under 5 % in at most 4 of 20 draws: more is a chance of 1 in 400."""
    rows = carry.model.record(carry.seen, carry.dictionary.site, progress=False)
    cases = torch.arange(len(carry.seen))
    block = scorers.Block(carry.dictionary.encode(rows[carry.dictionary.site]), cases, 0 * cases)
    smallest = []
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        labels = scorers.Labels((torch.randperm(len(cases), generator=draw) % 2).float())
        scorer = scorers.ActivationDifference(seed=seed)
        found = scorer.score(n_cases=len(cases), codes=lambda: [block], labels=labels)
        smallest.append(float(found.p.min()))
    assert sum(p <= 0.05 for p in smallest) <= 4 and min(smallest) < 0.5, smallest


def test_switched_off_the_carry_is_no_longer_sure_and_a_random_direction_does_nothing(
    carry: Carry,
) -> None:
    before, edits = carry.leans(carry.one), carry.off(*carry.best)
    loss = stats.paired_difference(before, carry.leans(carry.one, *edits))
    assert loss.low > 4 and (loss.p or 0) < 0.01, loss
    for random in controls(edits):
        other = stats.paired_difference(before, carry.leans(carry.one, *random))
        assert abs(other.mean) < 0.25 * loss.mean and other.high < loss.low, other


def test_together_they_flip_it(carry: Carry) -> None:
    assert carry.writes_one(carry.one) > 0.99
    edits = carry.off(*carry.best)
    assert carry.writes_one(carry.one, *edits) < 0.5
    assert min(carry.writes_one(carry.one, *random) for random in controls(edits)) > 0.95


def test_attribution_says_what_each_ablation_does(carry: Carry) -> None:
    """Order and sign; the size is out by up to a factor of three, for the layers above are not linear."""
    tried = tuple(carry.ranking.features[:8])
    exact = carry.search(scorers.Ablation(features=tried), carry.one).frame()
    said = [carry.ranking.at(j)["score"] for j in exact["feature"]]
    assert np.corrcoef(said, exact["score"])[0, 1] > 0.8
    sure = (exact["low"] > 0) | (exact["high"] < 0)
    same = np.sign(said) == np.sign(exact["score"])
    assert int(sure.sum()) >= 5 and bool(same[sure].all())
    assert exact["control"].abs().mean() < 0.5 * exact["score"].abs().mean()


def test_set_where_the_carry_is_0_they_write_1(carry: Carry) -> None:
    edits = sae.steer(
        carry.dictionary, carry.best, mode="clamp", largest=carry.ranking, scope="last_prompt"
    )
    assert carry.writes_one(carry.zero) < 0.01
    assert carry.writes_one(carry.zero, *edits) > 0.3
    for random in controls(edits):
        assert carry.writes_one(carry.zero, *random) < 0.05
