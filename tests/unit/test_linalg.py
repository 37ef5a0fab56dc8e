"""The linear algebra that methods share: invariants, and known answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.linalg import (
    first_component,
    kl_divergence,
    mean_difference,
    random_rotation_of,
    random_unit,
    unit,
)

seeds = st.integers(0, 2**31)
widths = st.integers(2, 24)
quick = settings(max_examples=25, deadline=None)


def rows(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@quick
@given(seeds, widths)
def test_unit_has_length_one_and_keeps_its_direction(seed: int, d: int) -> None:
    vector = rows(seed, 1, d)[0]
    torch.testing.assert_close(unit(vector).norm(), torch.tensor(1.0))
    assert torch.allclose(unit(vector) * vector.norm(), vector, atol=1e-5)


def test_unit_of_zero_is_zero() -> None:
    assert not unit(torch.zeros(4)).any()


@quick
@given(seeds, widths)
def test_a_mean_difference_changes_sign_with_its_classes(seed: int, d: int) -> None:
    a, b = rows(seed, 5, d), rows(seed + 1, 3, d)
    torch.testing.assert_close(mean_difference(a, b), -mean_difference(b, a))


@quick
@given(seeds, widths, st.booleans())
def test_no_direction_holds_more_than_the_first_component(seed: int, d: int, centred: bool) -> None:
    data = rows(seed, 12, d).double() + 1
    found = first_component(data, centred)
    used = data - data.mean(0) if centred else data
    other = unit(rows(seed + 7, 1, d)[0].double())
    assert (used @ found).square().sum() >= (used @ other).square().sum() - 1e-9


def test_centring_removes_what_all_rows_share() -> None:
    data = 0.01 * rows(0, 30, 6)
    data[:, 0] += 5
    data[:, 3] += 0.5 * rows(1, 30, 1)[:, 0]
    assert abs(first_component(data)[0]) > 0.99
    assert abs(first_component(data, centred=True)[0]) < 0.1
    assert abs(first_component(data, centred=True)[3]) > 0.99


@quick
@given(seeds, st.integers(1, 4), st.integers(8, 32))
def test_a_random_rotation_keeps_every_length_and_angle(seed: int, n: int, d: int) -> None:
    vectors = rows(seed, n, d).double()
    vectors = torch.cat([vectors, -vectors[:1]])  # an ablation's up and down: linearly dependent
    turned = random_rotation_of(vectors, seed)
    torch.testing.assert_close(turned @ turned.mT, vectors @ vectors.mT)
    assert torch.equal(turned, random_rotation_of(vectors, seed))


def test_random_rotations_are_uniform_enough() -> None:
    axis = torch.eye(16)[:1]
    turned = torch.cat([random_rotation_of(axis, seed) for seed in range(600)])
    assert turned.mean(0).abs().max() < 0.05
    assert abs(float(turned.square().mean()) - 1 / 16) < 1e-6


def test_random_units_differ_by_seed() -> None:
    assert torch.equal(random_unit(9, 3), random_unit(9, 3))
    assert not torch.equal(random_unit(9, 3), random_unit(9, 4))


@quick
@given(seeds, st.integers(1, 6), st.integers(2, 12))
def test_kl_agrees_with_torch_and_is_never_negative(seed: int, n: int, v: int) -> None:
    p, q = rows(seed, n, v).log_softmax(-1), rows(seed + 1, n, v).log_softmax(-1)
    want = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), want)
    assert (kl_divergence(p, q) > -1e-6).all()
    assert kl_divergence(p, p).abs().max() < 1e-6


def test_kl_of_known_distributions() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert float(kl_divergence(p, q)) == pytest.approx(0.5 * math.log(2))
    assert float(kl_divergence(q, p)) == math.inf
