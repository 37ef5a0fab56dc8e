"""Splits for cross-validation in which what belongs together stays on one side.

Examples belong together when they are rows of one prompt, share `pair` or `meta["group"]`, say the same
up to case, spaces and final punctuation, or are in one group that the caller names; chains of these too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from workbench.errors import WorkbenchError
from workbench.prompts.duplicates import normalised, repeated
from workbench.records import Prompt

Split = list[tuple[np.ndarray, np.ndarray]]
"""Indices of the training and of the test examples, per fold."""


def groups_of(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    owners: Sequence[int],
    groups: Sequence[Any] | None = None,
) -> np.ndarray:
    """`[example]`, a number for what belongs together.

    Args:
        prompts, texts, owners: of each example: its prompt, what it says, the number of its prompt.
        groups: further groups, one per example; None and NaN belong to none.
    """
    keys = [
        [("prompt", owner), ("text", normalised(text)), ("pair", prompt.pair)]
        + [("group", prompt.meta.get("group")), ("asked", None if groups is None else groups[i])]
        for i, (prompt, text, owner) in enumerate(zip(prompts, texts, owners, strict=True))
    ]
    return _united([[key for key in many if _names(key[1])] for many in keys])


def _names(value: Any) -> bool:
    """Whether a value names a group; NaN, which a table has where a cell is empty, does not."""
    return value not in (None, "") and value == value


def _united(keys: Sequence[Iterable[Any]]) -> np.ndarray:
    """Connected components of examples that share a key."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Any, int] = {}
    for i, many in enumerate(keys):
        for key in many:
            parent[root(i)] = root(first.setdefault(key, i))
    roots = [root(i) for i in range(len(keys))]
    return np.unique(roots, return_inverse=True)[1]


def split(targets: np.ndarray, groups: np.ndarray, folds: int, seed: int, classes: bool) -> Split:
    """Folds with whole groups, classes spread evenly over them.

    Raises:
        WorkbenchError: fewer groups than folds, or a training part with one class only.
    """
    n_groups = len(np.unique(groups))
    if not 2 <= folds <= n_groups:
        raise _too_few(f"{folds} folds and {n_groups} groups", "2 folds or more, a group each")
    kind = StratifiedGroupKFold if classes else GroupKFold
    folder = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class smaller than the folds is checked below
        warnings.simplefilter("ignore", UserWarning)
        found = list(folder.split(np.zeros(len(targets)), targets, groups))
    for train, test in found:
        if not len(test) or len(np.unique(targets[train])) < 2:
            raise _too_few(
                "a fold whose training part has one class only, or that is empty",
                "both classes in several groups",
            )
    return found


def _too_few(got: str, expected: str) -> WorkbenchError:
    return WorkbenchError(
        "probes.evaluate",
        "has too few groups to cross-validate",
        expected=expected,
        got=got,
        do="record more prompts, or lower folds=; rows of one group are never split",
    )


def warn_of_leaks(
    targets: np.ndarray, prompts: Sequence[Prompt], texts: Sequence[str], folds: int, seed: int
) -> dict[str, int]:
    """Count what a split that knows no groups would have had on both sides; say so where texts repeat.

    Returns:
        Numbers of texts: that repeat another exactly, nearly, and that would have been tested with a
        copy in training; and of examples tested apart from their pair.
    """
    exact, near = repeated(texts)
    naive = _naive(targets, folds, seed)
    counted = {
        "duplicates": exact,
        "near_duplicates": near,
        "leaked_texts": _torn([normalised(text) for text in texts], naive),
        "torn_pairs": _torn([p.pair for p in prompts], naive),
    }
    if exact or near:
        warnings.warn(
            f"probes.evaluate: {exact} texts repeat another and {near} do so but for case, spaces or "
            f"final punctuation; a split by rows would have tested {counted['leaked_texts']} of "
            f"{len(texts)} with a copy in training, and parted {counted['torn_pairs']} from their "
            "pair; expected texts that differ; they are kept on one side here; drop the copies",
            UserWarning,
            stacklevel=3,
        )
    return counted


def _naive(targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each example in a split that knows no groups."""
    folds = min(folds, len(targets))
    known = np.unique(targets, return_counts=True)[1]
    kind = StratifiedKFold if len(known) == 2 and known.min() >= folds else KFold
    found = np.empty(len(targets), int)
    for i, (_, test) in enumerate(
        kind(folds, shuffle=True, random_state=seed).split(targets, targets)
    ):
        found[test] = i
    return found


def _torn(keys: Sequence[Any], folds: np.ndarray) -> int:
    """Examples with a like one in another fold."""
    where: dict[Any, set[int]] = {}
    for key, fold in zip(keys, folds.tolist(), strict=True):
        where.setdefault(key, set()).add(fold)
    return sum(key is not None and len(where[key]) > 1 for key in keys)
