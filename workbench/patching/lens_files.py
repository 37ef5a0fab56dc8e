"""Tuned lenses as files: safetensors whose header says which model the maps were trained on.

A lens of another model, or of the same one after fine-tuning, gives numbers all the same, so a file is
read for the model whose weights it names and for no other.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_bytes

from workbench.errors import FileRefused
from workbench.files import refuse_pickle, write_atomically
from workbench.locate.tuned_lens import Lens, fitting
from workbench.model.model import Model

FORMAT = "workbench.tuned_lens"
VERSION = 1
_KEY = "workbench"


def save_lens(lens: Lens, path: str | Path, model: Model) -> Path:
    """Write a lens of `model` to `path`, whole or not at all.

    Raises:
        FileRefused: a name that ends as a pickle's does.
        WorkbenchError: the lens is of a model of other sizes.
    """
    path = Path(path)
    refuse_pickle(path)
    fitting(lens, model.dims)
    held = {"weight": lens.weight, "bias": lens.bias, "mean": lens.mean}
    tensors = {name: t.cpu().contiguous() for name, t in held.items() if t is not None}
    header = {"format": FORMAT, "version": VERSION, "model": asdict(model.fingerprint)}
    write_atomically(
        path, save_bytes(tensors, {_KEY: json.dumps(header | {"losses": lens.losses})})
    )
    return path


def load_lens(path: str | Path, model: Model) -> Lens:
    """Read a lens that was trained on `model`.

    Raises:
        FileRefused: no such file, a pickle, a corrupt file, one of another kind or of another model.
    """
    path = Path(path)
    refuse_pickle(path)
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            weight, bias = (file.get_tensor(name) for name in ("weight", "bias"))
            names = file.keys()
            mean = file.get_tensor("mean") if "mean" in names else None
    except (OSError, SafetensorError, json.JSONDecodeError) as reason:
        raise _refused(path, "cannot be read as a tuned lens", reason) from None
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise _refused(path, "is no tuned lens of this version", header.get("format"))
    # the name is how a model was asked for, and may be another folder here
    here, there = asdict(model.fingerprint) | {"name": ""}, header["model"] | {"name": ""}
    if here != there:
        raise _refused(path, "was trained on another model", header["model"]["name"])
    return Lens(weight, bias, mean, tuple(header["losses"]))


def _refused(path: Path, wrong: str, got: object) -> FileRefused:
    return FileRefused(
        f"load_lens({str(path)!r})",
        wrong,
        expected="what save_lens wrote for this model",
        got=got,
        do="train one with locate.find('tuned_lens', ...) and save_lens(found.scores.lens, ...)",
    )
