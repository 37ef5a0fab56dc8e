"""A folder of finished rows of a sweep: written whole or not at all, refused to other settings.

sweep.json                what the rows are of
strengths-00.json         a method's strengths, where they were calibrated
row-00-L2-edit.json       a method in a layer at every strength: its numbers and texts
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import FileRefused
from workbench.files import write_atomically
from workbench.prompts.plain import to_plain
from workbench.records import Generation, Prompt
from workbench.sweep.strength_by_layer import Cell

FORMAT = "workbench.sweep 1"


class Folder:
    """Where a sweep keeps what is finished.

    Raises:
        FileRefused: the folder holds a sweep of other settings, or something else.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        manifest = self.path / "sweep.json"
        wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        if not manifest.exists():
            self._refuse_strangers()
            write_atomically(manifest, json.dumps(wanted, indent=1).encode())
            return
        found = self._json(manifest)
        if not isinstance(found, dict):
            raise self._damaged(manifest.name, "settings of a sweep", found)
        other = [k for k in wanted if found.get(k) != wanted[k]]
        if other:
            raise self._refused(
                "holds a sweep of other settings",
                {k: wanted[k] for k in other},
                {k: found.get(k) for k in other},
                "choose another folder, or the settings of this one",
            )

    def strengths(self, name: str) -> tuple[list[float], list[str]] | None:
        """A method's strengths and notes kept under a name; None where there are none."""
        plain = self._read(name)
        if plain is None:
            return None
        try:
            found = [float(s) for s in plain["strengths"]], [str(n) for n in plain["notes"]]
        except (KeyError, TypeError, ValueError) as reason:
            raise self._damaged(f"{name}.json", "strengths and notes", reason) from None
        return found

    def write_strengths(self, name: str, strengths: list[float], notes: list[str]) -> None:
        """Keep them, in one step."""
        self._write(name, {"strengths": strengths, "notes": notes})

    def cells(self, name: str, prompts: Sequence[Prompt], arms: Sequence[str]) -> list[Cell] | None:
        """The cells kept under a name, their prompts and arms put back."""
        plain = self._read(name)
        if plain is None:
            return None
        try:
            return [_cell(one, prompts, arm) for one, arm in zip(plain, arms, strict=True)]
        except (AttributeError, KeyError, TypeError, ValueError) as reason:
            raise self._damaged(f"{name}.json", "cells of a sweep", reason) from None

    def write_cells(self, name: str, cells: Sequence[Cell]) -> None:
        """Keep cells, in one step."""
        self._write(name, [_plain(cell) for cell in cells])

    def _read(self, name: str) -> Any:
        path = self.path / f"{name}.json"
        return self._json(path) if path.exists() else None

    def _write(self, name: str, values: Any) -> None:
        write_atomically(self.path / f"{name}.json", json.dumps(values).encode())

    def _json(self, path: Path) -> Any:
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as reason:
            raise self._damaged(path.name, "JSON", reason) from None
        if found is None:
            raise self._damaged(path.name, "values", found)
        return found

    def _refuse_strangers(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise self._refused(
                "is no sweep", "a new or empty folder", "other files", "choose another folder"
            )

    def _damaged(self, name: str, expected: str, got: object) -> FileRefused:
        # nothing else says what the rows are of
        lost = name == "sweep.json"
        do = "choose another folder" if lost else "delete that file; the others are kept"
        return self._refused(f"has a damaged file {name}", expected, got, do)

    def _refused(self, wrong: str, expected: object, got: object, do: str) -> FileRefused:
        return FileRefused(
            f"sweep(path={str(self.path)!r})", wrong, expected=expected, got=got, do=do
        )


def hash_of(prompts: Sequence[Prompt]) -> str:
    """A short hash of everything the prompts say."""
    text = json.dumps([to_plain(p) for p in prompts], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(cell: Cell) -> dict[str, Any]:
    texts = [
        {"seed": g.seed, "ids": g.ids, "text": g.text, "logprobs": g.logprobs, "stop": g.stop}
        for g in cell.generations
    ]
    return {"values": cell.values, "error": cell.error, "generations": texts}


def _cell(plain: Mapping[str, Any], prompts: Sequence[Prompt], arm: str) -> Cell:
    texts = tuple(
        Generation(p, arm, g["seed"], tuple(g["ids"]), g["text"], tuple(g["logprobs"]), g["stop"])
        for g, p in zip(plain["generations"], prompts, strict=False)
    )
    if len(texts) != len(plain["generations"]):
        raise ValueError("more texts than prompts")
    values = {name: [float(v) for v in many] for name, many in plain["values"].items()}
    if any(len(many) != len(prompts) for many in values.values()):
        raise ValueError("not one number per prompt")
    return Cell(values, texts, str(plain["error"]))
