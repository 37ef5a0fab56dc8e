"""A LiveEdit as a cell of Python that gives the same tokens without the widget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from workbench.interventions.store import describe, save
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.scopes import Scope
from workbench.tensors import Intervention

FOLDER = "edits"


def cell(
    model: Model,
    prompt: Prompt,
    edits: Sequence[Intervention],
    options: Mapping[str, Any],
    prompts: Sequence[Prompt],
    folder: str | Path = FOLDER,
) -> str:
    """The text of the cell. Fitted edits are written to `folder` and loaded from there.

    Args:
        options: seed, max_new_tokens and temperature (0 is greedy).
        prompts: those that a made edit took its mean or norm from.
    """
    made = any("make" in edit.params for edit in edits)
    lines = ["import workbench as wb"]
    lines += ["from workbench_widgets.live_edit.making import make"] if made else []
    lines += ["", f"model = {_model(model)}", f"prompt = {_prompt(prompt)}"]
    lines += [f"prompts = {_list(map(_prompt, prompts))}"] if made else []
    lines += [f"edits = {_list(_edit(edit, Path(folder)) for edit in edits)}"]
    return "\n".join([*lines, _generate(options), "generation.text", ""])


def _model(model: Model) -> str:
    if model.name == "in-memory":
        return "model  # a module of your own: wb.load(module, tokenizer)"
    said = f"wb.load({model.name!r}"
    said += f", backend={model.backend.name!r}" if model.backend.name != "transformers" else ""
    dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    said += f", dtype={dtype!r}" if dtype != "float32" else ""
    return f"{said}, device={device!r})"


def _prompt(prompt: Prompt) -> str:
    kept = {f.name: getattr(prompt, f.name) for f in fields(prompt) if f.name != "meta"}
    said = [f"{k}={v!r}" for k, v in kept.items() if v not in (None, (), "")]
    return f"wb.Prompt({', '.join(said)})"


def _edit(edit: Intervention, folder: Path) -> str:
    if "make" in edit.params:
        m = edit.params["make"]
        token = f", token={m['token']!r}" if m["token"] else ""
        said = f"make(model, {m['operation']!r}, {m['site']!r}, prompts{token})"
    else:
        path = _saved(edit, folder)
        said = f"wb.load_edit({path.as_posix()!r})"
    if edit.scope != Scope.all() or "make" not in edit.params:
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


def _generate(options: Mapping[str, Any]) -> str:
    temperature = float(options["temperature"])
    decoder = f"wb.decoding.Sample(temperature={temperature!r})" if temperature else ""
    said = f"max_new_tokens={int(options['max_new_tokens'])}, seed={int(options['seed'])}"
    said += f", decoder={decoder}" if decoder else ""
    return f"(generation,) = model.generate([prompt], edits=edits, {said})"


def _list(items: Any) -> str:
    inner = ",\n    ".join(items)
    return f"[\n    {inner},\n]" if inner else "[]"
