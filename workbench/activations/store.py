"""Activations in a folder: shards of safetensors and a manifest that says what they are.

    manifest.json        format, model, prompts, sites, pool, and which prompts each shard holds
    shard-00000.safetensors ...

A shard appears under its name only when it is whole, so an interrupted recording leaves whole
shards and nothing else; recording the same thing into the folder again fills in the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_bytes

from workbench.errors import FileRefused
from workbench.files import refuse_pickle, write_atomically
from workbench.prompts.plain import from_plain, to_plain
from workbench.records import Prompt
from workbench.shapes import Rows
from workbench.tensors import Activations, Fingerprint

FORMAT = "workbench.activations"
VERSION = 1
_POSITIONS, _OWNERS = "positions", "prompts"


@dataclass(frozen=True)
class Folder:
    """A recording on disk: its manifest, and its shards as ranges of prompts."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def shards(self) -> list[tuple[int, int]]:
        """First and last-plus-one prompt of every shard."""
        return [tuple(pair) for pair in self.manifest["shards"]]

    @property
    def missing(self) -> list[int]:
        """Shards not yet recorded."""
        return [i for i in range(len(self.shards)) if not self.file(i).exists()]

    def file(self, index: int) -> Path:
        """Where a shard is."""
        return self.path / f"shard-{index:05d}.safetensors"

    def has(self, index: int) -> bool:
        """Whether a shard is there and readable; a damaged one counts as missing."""
        try:
            with safe_open(self.file(index), framework="pt") as file:
                return set(file.keys()) == {*self.manifest["sites"], _POSITIONS, _OWNERS}
        except (SafetensorError, OSError):
            return False

    def write(self, index: int, part: Activations) -> None:
        """Store the rows of one shard, whole or not at all."""
        start, stop = self.shards[index]
        owners = _owners(part, start, stop)
        tensors = {site: rows.contiguous() for site, rows in part.values.items()}
        tensors |= {_POSITIONS: torch.tensor(part.positions), _OWNERS: torch.tensor(owners)}
        write_atomically(self.file(index), save_bytes(tensors))

    def read(self, index: int, key: str) -> torch.Tensor:
        """One tensor of one shard; FileRefused where the shard is damaged."""
        try:
            with safe_open(self.file(index), framework="pt") as file:
                return file.get_tensor(key)
        except (SafetensorError, OSError) as reason:
            raise FileRefused(
                f"activations {str(self.file(index))!r}",
                f"is corrupt or half-written ({reason})",
                expected="a whole shard",
                got="a damaged one",
                do="record into the folder again: only damaged and missing shards are computed",
            ) from None


class StoredValues(Mapping[str, Rows]):
    """Rows by site, read from their shards when they are asked for."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def __getitem__(self, site: str) -> Rows:
        if site not in self._folder.manifest["sites"]:
            raise KeyError(site)
        return torch.cat([self._folder.read(i, site) for i in range(len(self._folder.shards))])

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.manifest["sites"])

    def __len__(self) -> int:
        return len(self._folder.manifest["sites"])


def open_folder(
    path: Path,
    model: Fingerprint,
    prompts: Sequence[Prompt],
    sites: list[str],
    pool: str,
    size: int,
) -> Folder:
    """The folder at `path` for this recording, made or found again.

    Raises:
        FileRefused: it holds something else; the message says what differs.
    """
    cuts = [(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(model),
        "sites": sites,
        "pool": pool,
        "n_prompts": len(prompts),
        "prompts_hash": _hash(prompts),
        "shards": cuts,
        "prompts": [to_plain(p) for p in prompts],
    }
    file = path / "manifest.json"
    if file.exists():
        found = _manifest(path)
        _check_same(path, found, manifest)
        return Folder(path, found)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise _refused(
            path, "is not empty and holds no recording", "an empty or new folder", "other files"
        )
    write_atomically(file, json.dumps(manifest).encode())
    return Folder(path, manifest)


def load(path: str | Path) -> Activations:
    """A finished recording. Its values stay on disk and are read when they are used.

    Raises:
        FileRefused: no recording there, one of another version, an unfinished or a damaged one.
    """
    folder = Folder(Path(path), _manifest(Path(path)))
    if folder.missing:
        raise _refused(
            folder.path,
            "is unfinished",
            f"{len(folder.shards)} shards",
            f"{len(folder.shards) - len(folder.missing)}",
            do="record the same prompts into it again: it goes on where it stopped",
        )
    prompts = [from_plain(p) for p in folder.manifest["prompts"]]
    owners = torch.cat([folder.read(i, _OWNERS) for i in range(len(folder.shards))]).tolist()
    positions = torch.cat([folder.read(i, _POSITIONS) for i in range(len(folder.shards))]).tolist()
    return Activations(
        StoredValues(folder),
        tuple(prompts[i] for i in owners),
        tuple(positions),
        folder.manifest["pool"],
        Fingerprint(**folder.manifest["model"]),
    )


def _owners(part: Activations, start: int, stop: int) -> list[int]:
    """Index of the prompt of every row: rows come in prompt order, a new prompt starts at position
    0 where all positions are kept."""
    if part.pool != "all":
        return list(range(start, stop))
    starts = torch.tensor([p == 0 for p in part.positions]).cumsum(0) - 1 + start
    return starts.tolist()


def _manifest(path: Path) -> dict[str, Any]:
    refuse_pickle(path)
    try:
        found = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except OSError:
        raise _refused(path, "holds no recording", "a folder with manifest.json", "none") from None
    except ValueError as reason:
        raise _refused(
            path, f"has a damaged manifest ({reason})", "JSON", "something else"
        ) from None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (
        FORMAT,
        VERSION,
    ):
        got = found.get("version") if isinstance(found, dict) else type(found).__name__
        raise _refused(path, "is of another format or version", f"{FORMAT} {VERSION}", got)
    return found


def _check_same(path: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    for key in ("sites", "pool", "n_prompts", "prompts_hash"):
        if found[key] != asked[key]:
            raise _refused(path, f"holds a recording with other {key}", asked[key], found[key])
    # the name is how the model was asked for; the weights are what it is
    for key in ("family", "d_model", "n_layers", "weights"):
        if found["model"][key] != asked["model"][key]:
            raise _refused(
                path, "holds a recording of another model", asked["model"], found["model"]
            )


def _hash(prompts: Sequence[Prompt]) -> str:
    text = json.dumps([to_plain(p) for p in prompts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _refused(
    path: Path, wrong: str, expected: object, got: object, do: str = "choose another folder"
) -> FileRefused:
    return FileRefused(f"activations {str(path)!r}", wrong, expected=expected, got=got, do=do)
