"""Fitted probes as files: safetensors whose header says what the tensors do not.

The header key `workbench` holds JSON: method, site, pool, parameters, classes and the fingerprint of the
model. A probe that is read back scores as before, without its training data, and refuses other models.
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

from workbench import registry
from workbench.errors import FileRefused, WorkbenchError
from workbench.files import refuse_pickle, tensor_metadata, write_atomically
from workbench.probes.base import FittedProbe
from workbench.tensors import Fingerprint

FORMAT = "workbench.probe"
VERSION = 1
_KEY = "workbench"


def save(probe: FittedProbe, path: str | Path) -> Path:
    """Write a probe to `path`, whole or not at all.

    Raises:
        WorkbenchError: parameters or classes that JSON cannot hold, or NaN, which `load` refuses.
        FileRefused: a name that ends as a pickle's does.
    """
    path = Path(path)
    refuse_pickle(path)
    header = _described(probe)
    tensors = {k: t.detach().cpu().contiguous().clone() for k, t in probe.tensors.items()}
    spoilt = [name for name, tensor in tensors.items() if bool(torch.isnan(tensor).any())]
    if spoilt:
        raise WorkbenchError(
            f"probe {probe.method!r} at {probe.site}",
            "holds NaN, which no file of a probe may",
            expected="numbers",
            got=spoilt,
            do="fit it again",
        )
    write_atomically(path, save_bytes(tensors, {_KEY: header}))
    return path


def load(path: str | Path) -> FittedProbe:
    """Read a probe from `path`.

    Raises:
        FileRefused: no such file, a pickle, a corrupt or half-written file, one that holds no probe or
            a probe of a newer version, or NaN.
        UnknownName: its method is not known here.
    """
    path = Path(path)
    refuse_pickle(path)
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise _refused(path, "cannot be read", "a file", reason.strerror) from None
    header = _header(path, data)
    try:
        tensors = load_bytes(data)
    except SafetensorError as reason:
        raise _corrupt(path, reason) from None
    if any(bool(torch.isnan(tensor).any()) for tensor in tensors.values()):
        raise _corrupt(path, "a tensor holds NaN")
    probe = _probe(path, header, tensors)
    registry.get("probes", probe.method)
    return probe


def _described(probe: FittedProbe) -> str:
    header = {
        "format": FORMAT,
        "version": VERSION,
        "method": probe.method,
        "site": probe.site,
        "pool": probe.pool,
        "layer_index_base": 0,
        "params": dict(probe.params),
        "classes": list(probe.classes),
        "model": asdict(probe.model) if probe.model else None,
    }
    try:
        return json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as reason:
        raise WorkbenchError(
            f"probe {probe.method!r} at {probe.site}",
            f"has parameters or classes that a file cannot hold ({reason})",
            expected="numbers, texts, lists and dicts",
            got=f"{dict(probe.params)} and {probe.classes}",
            do="keep tensors in its tensors, and use plain labels",
        ) from None


def _header(path: Path, data: bytes) -> dict[str, Any]:
    try:
        metadata = tensor_metadata(data)
        header = json.loads(metadata.get(_KEY, "null"))
    except (ValueError, TypeError) as reason:
        raise _corrupt(path, reason) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else sorted(metadata)
        raise _refused(path, "holds no probe", f"a header of format {FORMAT!r}", got)
    if header.get("version") != VERSION:
        wrong = "was written by another version of the format"
        raise _refused(path, wrong, f"version {VERSION}", header.get("version"))
    return header


def _probe(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> FittedProbe:
    try:
        return FittedProbe(
            header["method"],
            header["site"],
            header["pool"],
            tensors,
            header["params"],
            tuple(header["classes"]),
            Fingerprint(**header["model"]) if header["model"] else None,
        )
    except (KeyError, TypeError) as reason:
        raise _corrupt(path, reason) from None


def _corrupt(path: Path, reason: object) -> FileRefused:
    wrong = f"is corrupt or half-written ({reason})"
    return _refused(
        path, wrong, "a whole file that workbench saved", f"{path.stat().st_size} bytes"
    )


def _refused(path: Path, wrong: str, expected: object, got: object) -> FileRefused:
    return FileRefused(
        f"load_probe({str(path)!r})",
        wrong,
        expected=expected,
        got=got,
        do="check the path, save it again with wb.save_probe, or update interp-workbench",
    )
