"""data/README.md: where each shipped file comes from, its licence and its checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

HEAD = """# Shipped data

Everything here was made by this project and is licensed under Apache-2.0. No text, weight or label
was taken from elsewhere.

| folder | origin |
| --- | --- |
| `models/` | `python -m workbench.zoo build all`: trained from a seed on generated text |
| `saes/` | `python -m workbench.zoo saes`: sparse autoencoders of `models/`, trained with SAELens |
| `prompts/` | prompt sets written for this project or drawn from `workbench.tasks` |
| `golden/` | reference figures computed by this project's tests |

Some folders may be absent. `python -m workbench.zoo manifest` writes this file; a test compares it.

"""


def manifest(data: Path) -> str:
    """The text of README.md for the folder ``data``: a row for each file below it but itself."""
    rows = ["| file | bytes | sha256 |", "| --- | --- | --- |"]
    rows += [
        f"| `{file.relative_to(data).as_posix()}` | {file.stat().st_size} | `{checksum(file)}` |"
        for file in listed(data)
    ]
    return HEAD + "\n".join(rows) + "\n"


def listed(data: Path) -> list[Path]:
    """The shipped files in order; hidden and compiled ones, and the list itself, are left out."""
    return [
        file
        for file in sorted(data.rglob("*"))
        if file.is_file() and file != data / "README.md" and not skipped(file.relative_to(data))
    ]


def skipped(path: Path) -> bool:
    """Whether a part of the path is hidden or compiled."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def checksum(file: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
