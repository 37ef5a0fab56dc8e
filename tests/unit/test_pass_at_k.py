"""pass@k against enumeration of every choice of k samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from workbench.comparison.pass_at_k import pass_at_k
from workbench.errors import WorkbenchError


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_is_the_share_of_choices_that_hold_a_right_one(k: int) -> None:
    right = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])
    want = [np.mean([row[list(c)].any() for c in combinations(range(5), k)]) for row in right]
    assert pass_at_k(right, k).tolist() == pytest.approx(want)


def test_pass_at_1_is_accuracy() -> None:
    right = np.random.default_rng(0).integers(0, 2, (20, 7))
    assert pass_at_k(right, 1).tolist() == pytest.approx(right.mean(1).tolist())


@pytest.mark.parametrize("k", [0, 4])
def test_it_needs_k_samples(k: int) -> None:
    with pytest.raises(WorkbenchError, match="number of seeds"):
        pass_at_k(np.ones((2, 3)), k)
