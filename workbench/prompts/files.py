"""Files of prompts: JSON lines or CSV, one prompt a line, its columns the fields of `Prompt`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import FileRefused, PromptError, WorkbenchError
from workbench.prompts.plain import FIELDS, from_plain, to_plain
from workbench.records import Prompt, Prompts


def read(path: str | Path, *, columns: Mapping[str, str] | None = None) -> Prompts:
    """Prompts of a `.jsonl` or `.csv` file in UTF-8.

    Columns named as fields of `Prompt` (text, messages, answer, choices, label, pair, task, source)
    become those; every other column goes to `meta`. In CSV, empty cells are left out, `choices` and
    `messages` are JSON, and a label that reads as true, false or a number becomes one.

    Args:
        path: the file.
        columns: from a field to the file's name of it, such as `{"text": "question"}`.

    Raises:
        FileRefused: no such file, another kind of file, or one that is not UTF-8.
        PromptError: no prompts, or a line that is not one; the message says which.
    """
    path = Path(path)
    rows = {".jsonl": _json_lines, ".csv": _csv_rows}.get(path.suffix)
    if rows is None or not path.is_file():
        raise FileRefused(
            f"prompts.read({str(path)!r})",
            "is no file of prompts",
            expected="an existing .jsonl or .csv file",
            got=path.suffix if path.exists() else "no such file",
            do="check the path, or convert it",
        )
    renamed = {theirs: ours for ours, theirs in (columns or {}).items()}
    try:
        prompts = [_prompt(path, line, row, renamed) for line, row in rows(path)]
    except UnicodeDecodeError as reason:
        raise FileRefused(
            f"prompts.read({str(path)!r})",
            "is not UTF-8",
            expected="UTF-8 text",
            got=f"byte {reason.object[reason.start]:#x} at {reason.start}",
            do="save it as UTF-8",
        ) from None
    if not prompts:
        raise PromptError(
            f"prompts.read({str(path)!r})",
            "holds none",
            expected="at least one",
            got="0",
            do="add some",
        )
    return Prompts(prompts)


def write(prompts: Iterable[Prompt], path: str | Path) -> Path:
    """Write prompts as JSON lines, which `read` gives back."""
    lines = [json.dumps(to_plain(p), ensure_ascii=False) + "\n" for p in prompts]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return Path(path)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as reason:
                raise _bad_line(path, number, f"is not JSON ({reason})", line) from None
            if not isinstance(row, dict):
                raise _bad_line(path, number, "is not an object", line)
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise _bad_line(path, reader.line_num, "has another number of cells", row)
            yield reader.line_num, {k: _cell(k, v) for k, v in row.items() if v != ""}


def _cell(column: str, text: str) -> Any:
    if column not in ("choices", "messages", "label", "pair"):
        return text
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _prompt(path: Path, line: int, row: dict[str, Any], renamed: Mapping[str, str]) -> Prompt:
    named = {renamed.get(k, k): v for k, v in row.items()}
    known = {k: v for k, v in named.items() if k in FIELDS and k != "meta"}
    extra = {k: v for k, v in named.items() if k not in FIELDS}
    if isinstance(known.get("answer"), int | float):
        known["answer"] = str(known["answer"])
    known["meta"] = {**named.get("meta", {}), **extra}
    try:
        return from_plain(known)
    except (TypeError, WorkbenchError) as reason:
        raise _bad_line(path, line, f"is no prompt ({reason})", row) from None


def _bad_line(path: Path, line: int, wrong: str, got: object) -> PromptError:
    return PromptError(
        f"{path}, line {line}",
        wrong,
        expected="one prompt, with text or messages",
        got=str(got).strip()[:80],
        do="correct the line, or name the column with columns={'text': '...'}",
    )
