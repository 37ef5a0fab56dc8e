"""Interventions as files: safetensors whose header says everything the tensors do not.

A vector file without its operation, site and layer base is ambiguous: the same tensor is added by
one tool and projected out by another, one layer apart. So nothing is left to the reader: the header
key `workbench` holds JSON with the operation, sites, layer base, scope, unit, strength, parameters
and the fingerprint of the model; tensor names are `<site>::<name>`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from workbench.errors import EditError, FileRefused, WorkbenchError
from workbench.files import refuse_pickle, tensor_metadata, write_atomically
from workbench.operations import operation
from workbench.scopes import Scope
from workbench.tensors import Fingerprint, Intervention

FORMAT = "workbench.intervention"
VERSION = 1
_KEY = "workbench"


def describe(edit: Intervention) -> dict[str, Any]:
    """Everything about an edit but its tensors, as plain JSON values.

    Raises:
        EditError: strengths per row, or parameters that JSON cannot hold.
    """
    if isinstance(edit.strength, Tensor):
        raise EditError(
            f"edit {edit.label!r}",
            "has one strength per row, which belongs to a run, not to the edit",
            expected="one number",
            got=tuple(edit.strength.shape),
            do="choose one with edit.at(strength)",
        )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "method": edit.method,
        "operation": edit.operation,
        "sites": list(edit.tensors),
        "layer_index_base": 0,
        "strength": float(edit.strength),
        "unit": edit.unit,
        "scope": str(edit.scope),
        "params": dict(edit.params),
        "model": asdict(edit.model) if edit.model else None,
        "name": edit.name,
        "conditional": edit.conditional,
    }
    try:
        return json.loads(json.dumps(header, allow_nan=False))
    except (TypeError, ValueError) as reason:
        raise EditError(
            f"edit {edit.label!r}",
            f"has parameters that a file cannot hold ({reason})",
            expected="numbers, texts, lists and dicts",
            got=dict(edit.params),
            do="keep tensors in edit.tensors",
        ) from None


def save(edit: Intervention, path: str | Path) -> Path:
    """Write an edit to `path`, whole or not at all.

    Raises:
        EditError: strengths per row, parameters that JSON cannot hold, or NaN, which `load` refuses.
        FileRefused: a name that ends as a pickle's does.
    """
    path = Path(path)
    refuse_pickle(path)
    header = describe(edit)
    tensors = {
        f"{site}::{name}": tensor.detach().cpu().contiguous().clone()
        for site, group in edit.tensors.items()
        for name, tensor in group.items()
    }
    spoilt = [key for key, tensor in tensors.items() if bool(torch.isnan(tensor).any())]
    if spoilt:
        raise EditError(
            f"edit {edit.label!r}",
            "holds NaN, which no file of an edit may",
            expected="numbers",
            got=spoilt,
            do="fit it again, in float32 or bfloat16",
        )
    write_atomically(path, save_bytes(tensors, {_KEY: json.dumps(header)}))
    return path


def load(path: str | Path) -> Intervention:
    """Read an edit from `path`.

    Raises:
        FileRefused: no such file, a pickle, a corrupt or half-written file, a file without its
            operation, one of a newer version, or one that holds NaN.
    """
    path = Path(path)
    refuse_pickle(path)
    data = _read(path)
    header = _header(path, data)
    try:
        loaded = load_bytes(data)
    except SafetensorError as reason:
        raise _corrupt(path, reason) from None
    tensors: dict[str, dict[str, Tensor]] = {site: {} for site in header["sites"]}
    for key, tensor in loaded.items():
        site, _, name = key.rpartition("::")
        if site not in tensors or bool(torch.isnan(tensor).any()):
            raise _corrupt(path, f"tensor {key!r} holds NaN or belongs to no site")
        tensors[site][name] = tensor
    return _edit(path, header, tensors)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as reason:
        raise FileRefused(
            f"load({str(path)!r})",
            "cannot be read",
            expected="a file",
            got=reason.strerror,
            do="check the path",
        ) from None


def _header(path: Path, data: bytes) -> dict[str, Any]:
    try:
        metadata = tensor_metadata(data)
        header = json.loads(metadata.get(_KEY, "null"))
    except (ValueError, TypeError) as reason:
        raise _corrupt(path, reason) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FileRefused(
            f"load({str(path)!r})",
            "is a file without its operation: the same tensors are added by one tool and projected "
            "out by another",
            expected=f"a header of format {FORMAT!r}",
            got=f"metadata {sorted(metadata)}",
            do="make an Intervention of its tensors, with operation, site and scope; save that",
        )
    if header.get("version") != VERSION:
        raise FileRefused(
            f"load({str(path)!r})",
            "was written by another version of the format",
            expected=f"version {VERSION}",
            got=header.get("version"),
            do="update interp-workbench",
        )
    return header


def _edit(
    path: Path, header: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
) -> Intervention:
    try:
        operation(header["operation"])
        return Intervention(
            method=header["method"],
            operation=header["operation"],
            tensors=tensors,
            strength=header["strength"],
            unit=header["unit"],
            scope=Scope.parse(header["scope"]),
            params=header["params"],
            model=Fingerprint(**header["model"]) if header["model"] else None,
            name=header["name"],
            conditional=header["conditional"],
        )
    except (KeyError, TypeError, WorkbenchError) as reason:
        raise _corrupt(path, reason) from None


def _corrupt(path: Path, reason: object) -> FileRefused:
    return FileRefused(
        f"load({str(path)!r})",
        f"is corrupt or half-written ({reason})",
        expected="a whole safetensors file that workbench saved",
        got=f"{path.stat().st_size} bytes",
        do="save it again",
    )
