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
        other = [k for k in wanted if found.get(k) != wanted[k]]
        if other:
            raise self._refused(
                "holds a sweep of other settings",
                {k: wanted[k] for k in other},
                {k: found.get(k) for k in other},
                "choose another folder, or the settings of this one",
            )

    def read(self, name: str) -> Any:
        """The plain values kept under a name; None where there are none."""
        path = self.path / f"{name}.json"
        return self._json(path) if path.exists() else None

    def write(self, name: str, values: Any) -> None:
        """Keep plain values, in one step."""
        write_atomically(self.path / f"{name}.json", json.dumps(values).encode())

    def cells(self, name: str, prompts: Sequence[Prompt], arms: Sequence[str]) -> list[Cell] | None:
        """The cells kept under a name, their prompts and arms put back."""
        plain = self.read(name)
        if plain is None:
            return None
        try:
            return [_cell(one, prompts, arm) for one, arm in zip(plain, arms, strict=True)]
        except (KeyError, TypeError, ValueError) as reason:
            raise self._refused(
                f"has a damaged file {name}.json", "cells of a sweep", reason, "delete that file"
            ) from None

    def write_cells(self, name: str, cells: Sequence[Cell]) -> None:
        """Keep cells, in one step."""
        self.write(name, [_plain(cell) for cell in cells])

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as reason:
            raise self._refused(
                f"has a damaged file {path.name}", "JSON", reason, "delete that file"
            ) from None

    def _refuse_strangers(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise self._refused(
                "is no sweep", "a new or empty folder", "other files", "choose another folder"
            )

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
    return Cell(dict(plain["values"]), texts, plain["error"])
