"""What every scorer of features keeps, run on all of them: a new file in sae/scorers is tested by existing.

No model: each scorer is handed what it needs from a world in which feature `PLANTED` is what is asked for.
A scorer that needs something else gets a row in `World.handed`.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import pytest
import torch

from workbench import catalogue, registry
from workbench.errors import WorkbenchError
from workbench.sae import scorers
from workbench.sae.scorers.base import Block, FeatureScores, Labels, Scorer, Spelled
from workbench.shapes import Tensor

NAMES = registry.names("scorers")
CASES, WIDTH, FEATURES, D = 24, 5, 30, 16
PLANTED = 7
CHANCE = 0.05

every = pytest.mark.parametrize("name", NAMES)


@dataclass
class World:
    """Cases of five tokens, of which the third is a digit in half of them.

    Attributes:
        planted: whether feature PLANTED has anything to do with labels, digits and metric.
        order: which feature stands where.
    """

    planted: bool = True
    order: Tensor | None = None

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        noise = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
        order = torch.arange(FEATURES) if self.order is None else self.order
        strength = 1.0 if self.planted else 0.0
        self.classes = (torch.arange(CASES) % 2).float()
        codes = noise(CASES, WIDTH, FEATURES).relu()
        digit = torch.zeros(CASES, WIDTH)
        digit[self.classes == 1, 2] = 1
        if self.planted:
            codes[..., PLANTED] = 4 * digit + 0.01 * codes[..., PLANTED] * digit
        slopes = 0.05 * noise(CASES, WIDTH, FEATURES)
        slopes[..., PLANTED] += strength
        effects = 0.05 * noise(CASES, FEATURES)
        effects[:, PLANTED] += strength * (1 + self.classes)
        self.decoder = torch.nn.functional.normalize(noise(FEATURES, D), dim=1)[order]
        way = torch.nn.functional.normalize(noise(D), dim=0)
        if self.planted:
            way = self.decoder[(order == PLANTED).nonzero()[0, 0]]
        self.ways = {"asked": way + 0.01 * noise(CASES, D), "random": 0.2 * noise(CASES, D)}
        self.codes, self.effects = codes[..., order].flatten(0, 1), effects[:, order]
        random = 0.05 * noise(CASES, WIDTH, FEATURES)
        self.slopes = {
            "asked": slopes[..., order].flatten(0, 1),
            "random": random[..., order].flatten(0, 1),
        }
        self.along = 0.05 * noise(CASES, FEATURES)[:, order]
        self.spelled = tuple(
            Spelled("ab7de" if one else "abcde", tuple((i, i + 1) for i in range(WIDTH)))
            for one in self.classes
        )

    def blocks(self, slopes: Tensor | None = None) -> Any:
        """In two parts that cut no case."""
        cases = torch.arange(CASES).repeat_interleave(WIDTH)
        positions = torch.arange(WIDTH).repeat(CASES)
        for part in (slice(0, 10 * WIDTH), slice(10 * WIDTH, None)):
            own = None if slopes is None else slopes[part]
            yield Block(self.codes[part], cases[part], positions[part], own)

    def handed(self, scorer: Scorer) -> dict[str, Any]:
        """What the scorer needs."""

        def switched_off(metric: Any, features: Any, along: Any = None) -> Tensor:
            return (self.effects if along is None else self.along)[:, list(features)]

        known = {
            "n_cases": CASES,
            "codes": lambda: self.blocks(),
            "labels": Labels(self.classes),
            "spelled": self.spelled,
            "slopes": lambda metric, steps=0, tokens="asked": self.blocks(self.slopes[tokens]),
            "switched_off": switched_off,
            "toward": lambda token=None, tokens="asked": self.ways[tokens],
            "decoder": self.decoder,
        }
        return {need: known[need] for need in scorer.needs}

    def tensors(self) -> list[Tensor]:
        """All that could be changed."""
        return [self.codes, self.effects, self.decoder, *self.slopes.values(), *self.ways.values()]


def scored(name: str, world: World) -> FeatureScores:
    scorer = registry.get("scorers", name)()
    return scorer.score(**world.handed(scorer))


def best(found: FeatureScores) -> tuple[int, int]:
    """Column and feature of the score furthest from neutral."""
    column = int((found.scores - found.neutral).abs().argmax())
    return column, column if found.features is None else int(found.features[column])


def full(found: FeatureScores, numbers: Tensor) -> Tensor:
    """Numbers of all features, NaN for those that were not tried."""
    out = torch.full((FEATURES,), float("nan"), dtype=torch.float64)
    out[torch.arange(FEATURES) if found.features is None else found.features] = numbers.double()
    return out


@every
def test_the_planted_feature_ranks_first_beyond_chance(name: str) -> None:
    found = scored(name, World())
    column, feature = best(found)
    assert feature == PLANTED
    assert float(found.p[column]) <= CHANCE
    assert float(found.values[:, column].double().mean() - found.neutral) > 0


@every
def test_the_control_of_the_planted_feature_is_far_below_it(name: str) -> None:
    found = scored(name, World())
    column, _ = best(found)
    score, control = (float(x[column]) - found.neutral for x in (found.scores, found.control))
    assert abs(control) < 0.5 * abs(score)
    assert found.said


@every
def test_where_nothing_is_planted_nothing_is_beyond_chance(name: str) -> None:
    found = scored(name, World(planted=False))
    assert float(found.p.min()) > CHANCE


@every
def test_permuted_features_give_permuted_scores(name: str) -> None:
    order = torch.randperm(FEATURES, generator=torch.Generator().manual_seed(1))
    one, other = scored(name, World()), scored(name, World(order=order))
    plain, turned = full(one, one.scores), full(other, other.scores)
    torch.testing.assert_close(turned, plain[order], equal_nan=True)
    torch.testing.assert_close(full(other, other.p), full(one, one.p)[order], equal_nan=True)


@every
def test_values_are_finite_and_of_every_case(name: str) -> None:
    found = scored(name, World())
    n = FEATURES if found.features is None else len(found.features)
    assert found.values.shape == (CASES, n) and found.control.shape == (n,)
    assert bool(found.values.isfinite().all()) and bool(found.control.isfinite().all())
    assert bool(found.largest.isfinite().all()) and len(found.largest) >= 100
    assert bool(((found.p > 0) & (found.p <= 1)).all())
    assert found.measure and found.unit and found.caption.endswith(".")
    assert all(column.shape == (n,) for column in found.also.values())


@every
def test_it_is_deterministic_and_leaves_its_data_alone(name: str) -> None:
    world, same = World(), World()
    one, two = scored(name, world), scored(name, world)
    assert torch.equal(one.values, two.values) and torch.equal(one.largest, two.largest)
    assert torch.equal(one.control, two.control)
    assert all(torch.equal(a, b) for a, b in zip(world.tensors(), same.tensors(), strict=True))


@every
def test_its_name_is_that_of_its_file_and_options_are_frozen(name: str) -> None:
    cls = registry.get("scorers", name)
    assert cls.__name__ == registry.camel(name) and getattr(scorers, cls.__name__) is cls
    assert cls.__name__ in dir(scorers)
    options = {field.name for field in fields(cls)}
    assert {"draws", "seed"} <= options and (cls.__doc__ or "").count("\n") > 1
    with pytest.raises(FrozenInstanceError):
        cls().seed = 1
    assert [*inspect.signature(cls.score).parameters][1:] == list(cls().needs)


@every
def test_its_docstring_has_every_section(name: str) -> None:
    doc = sys.modules[registry.get("scorers", name).__module__].__doc__ or ""
    for section in ("Shapes:", "Units:", "Source:", "https://", "Differs from the paper:"):
        assert section in doc, section
    assert "score_j" in doc or "_j =" in doc


@every
def test_the_catalogue_lists_it(name: str) -> None:
    rows = [row for row in catalogue.method_rows("scorers") if row[1] == name]
    assert len(rows) == 1 and rows[0][2].endswith(".") and "https://" in rows[0][3]


@every
def test_a_number_of_draws_below_one_is_refused(name: str) -> None:
    with pytest.raises(WorkbenchError, match="number of draws"):
        registry.get("scorers", name)(draws=0)


def test_no_two_scorers_ask_the_same() -> None:
    found = {name: scored(name, World()) for name in NAMES}
    tables = {name: full(one, one.scores).nan_to_num().tolist() for name, one in found.items()}
    for a in NAMES:
        assert all(a == b or tables[a] != tables[b] for b in NAMES)


def test_candidates_chosen_among_many_are_judged_as_the_best_of_many() -> None:
    """No feature has an effect. The best candidate is under 5 % about as often as p says."""
    draw, small = torch.Generator().manual_seed(0), 0
    cases, where = torch.arange(20), torch.zeros(20, dtype=torch.long)
    for seed in range(40):
        effects = torch.randn(20, 300, generator=draw)
        block = Block(torch.ones(20, 300), cases, where, effects)
        found = scorers.Ablation(candidates=4, draws=100, seed=seed).score(
            n_cases=20,
            slopes=lambda *_, block=block: [block],
            switched_off=lambda _, some, along=None, effects=effects: effects[:, list(some)],
        )
        small += float(found.p.min()) <= 0.05
    assert small <= 6  # 2 expected; of the four alone, most of the 40 would be


def test_the_largest_of_signed_activations_may_be_below_0() -> None:
    from workbench.sae.scorers.cases import pooled

    block = Block(torch.tensor([[-1.0], [-3.0]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    values = pooled([block], 2, "max")
    assert values[0].item() == -1 and bool(values[1].isnan())
