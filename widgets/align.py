"""The shortest edit from one sequence of tokens to another. js/align.js does the same, step for step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CELLS = 36_000_000
"""Table cells above which the middle is paired place by place: 6,000 tokens against as many."""
BOTH, REMOVE, ADD = 0, 1, 2


def align(a: Sequence[int | str], b: Sequence[int | str]) -> np.ndarray:
    """Which place of `a` stands against which of `b`: `[step, 2]` int32, -1 where there is none.

    The fewest pairs that are not equal (Levenshtein distance); both columns count up without a hole.
    """
    start, tail, most = 0, 0, min(len(a), len(b))
    while start < most and a[start] == b[start]:
        start += 1
    while tail < most - start and a[len(a) - 1 - tail] == b[len(b) - 1 - tail]:
        tail += 1
    middle = a[start : len(a) - tail], b[start : len(b) - tail]
    n, m = map(len, middle)
    steps = _placed(n, m) if n * m > CELLS else _shortest(*middle)
    every = np.concatenate([np.full(start, BOTH), steps, np.full(tail, BOTH)]).astype(np.int32)
    in_a, in_b = every != ADD, every != REMOVE
    return np.stack(
        [np.where(side, side.cumsum() - 1, -1) for side in (in_a, in_b)], axis=1
    ).astype(np.int32)


def _shortest(a: Sequence[int | str], b: Sequence[int | str]) -> np.ndarray:
    names = {token: k for k, token in enumerate(dict.fromkeys([*a, *b]))}
    left, right = (np.array([names[t] for t in side], dtype=np.int32) for side in (a, b))
    place = np.arange(len(right) + 1, dtype=np.int32)
    came = np.full((len(left) + 1, len(right) + 1), ADD, dtype=np.uint8)
    above = place.copy()
    for i, token in enumerate(left, start=1):
        both, remove = above[:-1] + (token != right), above[1:] + 1
        row = np.concatenate([[i], np.minimum(both, remove)]).astype(np.int32)
        # what may come from the left: the least of all before, one more for each place between
        row = np.minimum.accumulate(row - place) + place
        came[i, 1:][row[1:] == remove] = REMOVE
        came[i, 1:][row[1:] == both] = BOTH
        came[i, 0] = REMOVE
        above = row
    steps, i, j = [], len(left), len(right)
    while i or j:
        step = int(came[i, j])
        steps.append(step)
        i, j = i - (step != ADD), j - (step != REMOVE)
    return np.array(steps[::-1], dtype=np.int32)


def _placed(n: int, m: int) -> np.ndarray:
    both = min(n, m)
    return np.repeat([BOTH, REMOVE, ADD], [both, n - both, m - both])
