"""Checkpoints of a training: SAELens' own, beside where the data stood; whole or not there at all.

    folder/checkpoint-51200/    sae_weights.safetensors, cfg.json       the weights in training
                                trainer_state.pt, activation_scaler.json    the optimiser's state
                                workbench.json                          settings, batches served, history
    folder/cfg.json, sae_weights.safetensors                            when training has ended

A folder with checkpoints and no cfg.json of its own is unfinished, and does not load.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from workbench.errors import FileRefused
from workbench.files import write_atomically
from workbench.sae.store import CONFIG

OURS = "workbench.json"
_PREFIX = "checkpoint-"


def latest(folder: Path, plan: dict[str, Any]) -> Path | None:
    """The newest checkpoint in a folder; None where it has none.

    Raises:
        FileRefused: the folder holds something else, or the training of another plan.
    """
    if not folder.exists():
        return None
    where = f"sae.train(path={str(folder)!r})"
    if not folder.is_dir():
        raise FileRefused(where, "is a file", expected="a folder", got=folder.name, do="choose one")
    # ours alone: whole, and with a count of tokens
    found = [
        p
        for p in folder.glob(_PREFIX + "*")
        if p.name.removeprefix(_PREFIX).isdecimal() and (p / OURS).is_file()
    ]
    if found:
        newest = max(found, key=lambda p: int(p.name.removeprefix(_PREFIX)))
        _check_plan(where, _kept(newest)["plan"], plan)
        return newest
    held = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if held and CONFIG not in held:
        raise FileRefused(
            where,
            "holds something else",
            expected="a new folder, or one of this training",
            got=sorted(held)[:3],
            do="choose another folder",
        )
    return None


def check_finished(folder: Path, facts: dict[str, Any], plan: dict[str, Any]) -> None:
    """Refuse a finished dictionary of another plan than `plan`."""
    where = f"sae.train(path={str(folder)!r})"
    _check_plan(where, {key: facts.get(key) for key in plan}, plan)


def write(trainer: Any, folder: Path, plan: dict[str, Any], **ours: Any) -> None:
    """A new checkpoint, and then the former ones away.

    Args:
        trainer: SAELens' trainer, between two steps.
        ours: what to keep beside it, as JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{_PREFIX}{trainer.n_training_samples}"
    fresh = folder / f".{name}"
    shutil.rmtree(fresh, ignore_errors=True)
    trainer.save_checkpoint(fresh.name, base_path=folder)
    write_atomically(fresh / OURS, json.dumps({"plan": plan, **ours}).encode())
    shutil.rmtree(folder / name, ignore_errors=True)
    os.replace(fresh, folder / name)
    clear(folder, but=name)


def read(trainer: Any, checkpoint: Path) -> dict[str, Any]:
    """Put a trainer where the checkpoint was made; what was kept beside it.

    Raises:
        FileRefused: a file of it is missing or damaged.
    """
    try:
        trainer.sae.load_weights_from_checkpoint(checkpoint)
        trainer.load_trainer_state(checkpoint)
    except Exception as error:  # whatever torch and safetensors raise
        raise _damaged(checkpoint, error) from error
    return _kept(checkpoint)


def _kept(checkpoint: Path) -> dict[str, Any]:
    try:
        ours = json.loads((checkpoint / OURS).read_text("utf-8"))
        return {key: ours[key] for key in ("plan", "served", "history")}
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, error: Exception) -> FileRefused:
    return FileRefused(
        f"sae.train(path={str(checkpoint.parent)!r})",
        "has a damaged checkpoint",
        expected="a checkpoint as it was written",
        got=f"{type(error).__name__}: {str(error)[:200]}",
        do=f"delete {checkpoint.name} and train anew",
    )


def clear(folder: Path, but: str = "") -> None:
    """Remove the checkpoints of a folder, and what was left of one that was being written."""
    for old in [*folder.glob(_PREFIX + "*"), *folder.glob("." + _PREFIX + "*")]:
        if old.name != but:
            shutil.rmtree(old)


def _check_plan(where: str, held: dict[str, Any], plan: dict[str, Any]) -> None:
    other = [key for key in plan if held.get(key) != plan[key]]
    if other:
        raise FileRefused(
            where,
            "holds a training with other settings",
            expected={key: held.get(key) for key in other},
            got={key: plan[key] for key in other},
            do="choose another folder, or delete this one",
        )
