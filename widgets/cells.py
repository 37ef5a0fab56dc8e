"""Records written as Python: what every widget's `to_code` is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from workbench.interventions.store import describe, save
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.scopes import Scope
from workbench.tensors import Intervention, Tokens

FOLDER = "edits"
"""Where fitted edits are written, beside the notebook."""


def model_code(model: Model) -> str | None:
    """The expression that loads the model again; None where only its maker can."""
    if model.source is None:
        return None
    said = f"wb.load({model.source!r}"
    said += f", backend={model.backend.name!r}" if model.backend.name != "transformers" else ""
    dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    said += f", dtype={dtype!r}" if dtype != "float32" else ""
    return f"{said}, device={device!r})"


def model_line(model: Model, name: str = "model") -> str:
    """The line that makes `name`, or a comment that says who has to."""
    said = model_code(model)
    return (
        f"{name} = {said}"
        if said
        else f"# {name} = wb.load(module, tokenizer): a module of your own"
    )


def prompt_code(prompt: Prompt) -> str:
    """The prompt, without its `meta`."""
    kept = {f.name: getattr(prompt, f.name) for f in fields(prompt) if f.name != "meta"}
    said = [f"{k}={v!r}" for k, v in kept.items() if v not in (None, (), "")]
    return f"wb.Prompt({', '.join(said)})"


def edit_code(edit: Intervention, folder: str | Path = FOLDER, recipe: bool = False) -> str:
    """The edit, loaded from a file that is written now.

    `recipe` says that the cell knows `make` and `prompts`: a row made on the spot is made again.
    """
    recipe = recipe and "make" in edit.params
    if recipe:
        m = edit.params["make"]
        token = f", token={m['token']!r}" if m["token"] else ""
        said = f"make(model, {m['operation']!r}, {m['site']!r}, prompts{token})"
    else:
        path = _saved(edit, Path(folder))
        said = f"wb.load_edit({path.as_posix()!r})"
    if edit.scope != Scope.all() or not recipe:
        said += f".within({str(edit.scope)!r})"
    return f"{said}.at({float(edit.strength)!r})"


def _saved(edit: Intervention, folder: Path) -> Path:
    """The edit's file, named by what is in it: the same edit is written once."""
    about = {k: v for k, v in describe(edit).items() if k not in ("strength", "scope")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for site, tensors in edit.tensors.items():
        for name, tensor in tensors.items():
            digest.update(f"{site}::{name}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    stem = "".join(c if c.isalnum() else "_" for c in edit.label)[:40]
    path = folder / f"{stem}-{digest.hexdigest()[:8]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save(edit, path)
    return path


def list_code(items: Iterable[str]) -> str:
    """A list, an item a line."""
    inner = ",\n    ".join(items)
    return f"[\n    {inner},\n]" if inner else "[]"


def setup(model: Model, tokens: Tokens, edits: Sequence[Intervention]) -> list[str]:
    """Lines that make `model`, `prompt` and `edits`."""
    return [
        model_line(model),
        f"prompt = {prompt_code(tokens.prompts[0])}",
        f"edits = {list_code(map(edit_code, edits))}",
    ]
