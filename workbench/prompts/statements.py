"""Statements that are true or false, as the Geometry of Truth publishes them: CSV, one a line.

statement,label[,other columns]
The city of Paris is in France.,1,Paris
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import FileRefused, PromptError
from workbench.prompts.duplicates import contradicting, normalised, repeated
from workbench.records import Prompt, Prompts

_TRUTH = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}


def read_statements(
    path: str | Path,
    *,
    statement: str = "statement",
    label: str = "label",
    group: str | None = None,
) -> Prompts:
    """Statements labelled True or False; other columns go to `meta`.

    Statements that say the same up to case, spaces and final punctuation share `meta["group"]`, which
    `probes.evaluate` keeps on one side of a split, unless a column of that name says otherwise.

    Args:
        statement, label: names of the columns; labels are 0, 1, true or false.
        group: a column whose equal cells belong together, such as the city that statements are about.

    Source: Marks and Tegmark (2023), The Geometry of Truth, https://arxiv.org/abs/2310.06824: the form
        of its data sets.

    Raises:
        FileRefused: no such file, not a CSV, or not UTF-8.
        PromptError: a column is missing, there are no statements, or a row has another number of cells,
            no statement, or a label that is neither true nor false; the message says which row.

    Warns:
        UserWarning: statements repeat, and may do so with another label.
    """
    path = Path(path)
    if path.suffix != ".csv" or not path.is_file():
        raise _refused(path, "an existing .csv file", path.suffix if path.exists() else "no file")
    try:
        rows = list(_rows(path, statement, label, group))
    except csv.Error as reason:
        raise _refused(path, "cells in closed quotes", str(reason)) from None
    except UnicodeDecodeError as reason:
        raise _refused(path, "UTF-8 text", f"byte {reason.object[reason.start]:#x}") from None
    if not rows:
        raise PromptError(
            f"{path}", "holds no statements", expected="at least one", got="0", do="add some"
        )
    _warn(path, [row[statement] for row in rows], [row[label] for row in rows])
    copies = Counter(normalised(row[statement]) for row in rows)
    return Prompts(_prompt(row, statement, label, group, copies, path) for row in rows)


def _rows(path: Path, statement: str, label: str, group: str | None) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        named = list(reader.fieldnames or ())
        for column in (statement, label, *([group] if group else [])):
            if column not in named:
                raise PromptError(
                    f"{path}, line 1",
                    f"has no column {column!r}",
                    expected=f"a header with {column!r}",
                    got=named[:8],
                    do="name the columns with statement=, label= and group=",
                )
        for row in reader:
            yield _checked(path, reader.line_num, row, statement, label)


def _checked(path: Path, line: int, row: dict, statement: str, label: str) -> dict[str, str]:
    where = f"{path}, line {line}"
    if None in row or None in row.values():
        raise PromptError(
            where,
            "has another number of cells than the header",
            expected="a cell per column",
            got=str(list(row.values()))[:80],
            do="put statements with commas in quotes",
        )
    if not row[statement].strip():
        raise PromptError(where, "has no statement", expected="text", got="''", do="add one")
    if row[label].strip().lower() not in _TRUTH:
        raise PromptError(
            where,
            "has a label that is neither true nor false",
            expected="0, 1, true or false",
            got=repr(row[label])[:40],
            do="correct it",
        )
    return row


def _prompt(
    row: dict[str, str],
    statement: str,
    label: str,
    group: str | None,
    copies: Counter[str],
    path: Path,
) -> Prompt:
    text = row[statement].strip()
    meta = {k: v for k, v in row.items() if k not in (statement, label)}
    if group:
        meta["group"] = row[group]
    elif copies[normalised(text)] > 1:
        meta.setdefault("group", normalised(text))
    truth = _TRUTH[row[label].strip().lower()]
    return Prompt(text=text, label=truth, source=path.stem, meta=meta)


def _warn(path: Path, texts: list[str], labels: list[str]) -> None:
    exact, near = repeated(texts)
    if not exact + near:
        return
    truths = [_TRUTH[label.strip().lower()] for label in labels]
    warnings.warn(
        f"{path}: {exact} statements repeat another and {near} do so but for case, spaces or final "
        f"punctuation, {contradicting(texts, truths)} of them with both labels; expected "
        f"statements that differ; got {len(texts)}; copies on both sides of a split let a probe be "
        "tested on what it learnt: probes.evaluate keeps them together, or drop them",
        UserWarning,
        stacklevel=3,
    )


def _refused(path: Path, expected: str, got: str) -> FileRefused:
    return FileRefused(
        f"prompts.read_statements({str(path)!r})",
        "is no file of statements",
        expected=expected,
        got=got,
        do="check the path, or save it as CSV in UTF-8",
    )
