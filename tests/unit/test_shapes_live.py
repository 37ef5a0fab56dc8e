"""Shapes and types are checked in this very test run; else annotations would be comments."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from workbench import linalg


def test_a_wrong_rank_raises() -> None:
    with pytest.raises(TypeCheckError):
        linalg.unit(torch.zeros(2, 3))


def test_axes_of_one_name_must_agree() -> None:
    with pytest.raises(TypeCheckError):
        linalg.mean_difference(torch.zeros(4, 8), torch.zeros(4, 9))


def test_a_wrong_plain_type_raises() -> None:
    with pytest.raises(TypeCheckError):
        linalg.random_unit(8, seed="zero")  # type: ignore[arg-type]


def test_right_shapes_pass() -> None:
    assert linalg.mean_difference(torch.ones(4, 8), torch.zeros(4, 8)).shape == (8,)
