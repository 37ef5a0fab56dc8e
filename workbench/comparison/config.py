"""A comparison written down: model, prompts, arms and metrics as one TOML file.

    model = "reasoner"
    metrics = ["accuracy", "length", "kl_nats"]
    seeds = [0]

    [prompts]
    task = "add"            # or: file = "questions.jsonl"
    n = 64
    seed = 0

    [[arms]]
    name = "steered"
    edits = ["truth.safetensors", { file = "calm.safetensors", strength = 2.0, scope = "prompt" }]
    decoder = { name = "sample", temperature = 0.7 }

Paths are relative to the file. What `wb.load`, `wb.tasks.make` and `wb.compare` take besides is
given by its own name: at the top for the model and the comparison, in `[prompts]` for the task.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench import prompts, registry, tasks
from workbench.comparison.run import compare
from workbench.comparison.table import Table
from workbench.errors import FileRefused, WorkbenchError, nearest
from workbench.interventions.store import load as load_edit
from workbench.model.load import load as load_model
from workbench.records import Prompts
from workbench.tensors import Arm, Intervention

MODEL = ("backend", "device", "dtype")
COMPARISON = (
    "metrics",
    "seeds",
    "max_new_tokens",
    "control",
    "control_seed",
    "stop",
    "batch_size",
)
TOP = ("model", "prompts", "arms", "decoder", *MODEL, *COMPARISON)
ARM = ("name", "edits", "decoder", "model", "prefix")
EDIT = ("file", "strength", "scope")


def compare_file(path: str | Path, *, progress: bool = True) -> Table:
    """Run the comparison that a TOML file describes.

    Raises:
        FileRefused: no such file, or not TOML.
        WorkbenchError: an entry that is missing or unknown, with the nearest known name.
    """
    path = Path(path)
    config = _read(path)
    _only(path, "the file", config, TOP)
    # Everything that can be wrong in the file is read before a model is loaded.
    asked = _prompts(path, _needed(path, config, "prompts"))
    arms = [_arm(path, arm) for arm in config.get("arms", [])]
    model_options = {key: config[key] for key in MODEL if key in config}
    options = {key: config[key] for key in COMPARISON if key in config}
    model = load_model(_local(path, _needed(path, config, "model")), **model_options)
    return compare(
        [_with_model(path, arm, model_options) for arm in arms],
        model,
        asked,
        decoder=_decoder(path, config.get("decoder")),
        progress=progress,
        **options,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileRefused(
            f"compare {path.name}",
            "cannot be read",
            expected="a TOML file",
            got=reason,
            do="check the path and the line",
        ) from None


def _only(path: Path, where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise WorkbenchError(
                f"compare {path.name}",
                f"unknown entry in {where}",
                expected=f"one of {', '.join(known)}; nearest: {nearest(key, known)}",
                got=key,
                do="check the spelling",
            )


def _needed(path: Path, given: Mapping[str, Any], key: str) -> Any:
    if key not in given:
        raise WorkbenchError(
            f"compare {path.name}",
            f"an entry is missing: {key}",
            expected=key,
            got=", ".join(given) or "nothing",
            do="add it",
        )
    return given[key]


def _prompts(path: Path, given: Mapping[str, Any]) -> Prompts:
    rest = {k: v for k, v in given.items() if k not in ("task", "file", "n", "seed")}
    if "file" in given:
        _only(path, "[prompts] with a file", given, ("file",))
        return prompts.read(path.parent / given["file"])
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()}
    return tasks.make(
        _needed(path, given, "task"), given.get("n", 64), given.get("seed", 0), **lists
    )


def _arm(path: Path, given: Mapping[str, Any]) -> Arm:
    _only(path, "[[arms]]", given, ARM)
    return Arm(
        _needed(path, given, "name"),
        edits=[_edit(path, edit) for edit in given.get("edits", [])],
        decoder=_decoder(path, given.get("decoder")),
        model=given.get("model"),
        prefix=given.get("prefix", ""),
    )


def _with_model(path: Path, arm: Arm, options: Mapping[str, Any]) -> Arm:
    if arm.model is None:
        return arm
    model = load_model(_local(path, arm.model), **options)
    return Arm(arm.name, arm.edits, arm.decoder, model, arm.prefix)


def _local(path: Path, name: str) -> str:
    """A folder beside the file, else the name as it is: shipped, or of the hub."""
    folder = path.parent / name
    return str(folder) if (folder / "config.json").is_file() else name


def _edit(path: Path, given: str | Mapping[str, Any]) -> Intervention:
    given = {"file": given} if isinstance(given, str) else given
    _only(path, "an edit", given, EDIT)
    edit = load_edit(path.parent / _needed(path, given, "file"))
    edit = edit.at(float(given["strength"])) if "strength" in given else edit
    return edit.within(given["scope"]) if "scope" in given else edit


def _decoder(path: Path, given: str | Mapping[str, Any] | None) -> Any:
    if given is None:
        return None
    given = {"name": given} if isinstance(given, str) else given
    options = {key: value for key, value in given.items() if key != "name"}
    decoder = registry.get("decoding", _needed(path, given, "name"))
    _only(path, "a decoder", options, tuple(decoder.__dataclass_fields__))
    return decoder(**options)
