"""Forecasts in files: one safetensors file whose header says what its arrays are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from workbench.errors import FileRefused
from workbench.files import refuse_pickle, tensor_metadata, write_atomically
from workbench.sae.transfer.shifts import Shift

FORMAT, VERSION, KEY = "workbench.forecast", 1, "workbench"
ARRAYS = ("scores", "low", "high", "random", "measured", "measured_low", "measured_high")
OF_A_SHIFT = ("dims", "align", "n_tokens", "dictionary", "source", "excess")


def save(forecast: Any, path: str | Path) -> Path:
    """Write it, whole or not at all."""
    refuse_pickle(Path(path))
    tensors: dict[str, Tensor] = {}
    for name in ARRAYS:
        value = getattr(forecast, name)
        if value is not None:
            tensors[name] = _tensor(value)
    for name, value in forecast.controls.items():
        tensors[f"control::{name}"] = _tensor(value)
    for name, value in forecast.terms.items():
        tensors[f"terms::{name}"] = _tensor(value)
    for name, shift in forecast.shifts.items():
        tensors[f"delta::{name}"] = shift.delta.contiguous()
        if shift.null is not None:
            tensors[f"null::{name}"] = shift.null.contiguous()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "sources": list(forecast.sources),
        "targets": list(forecast.targets),
        "unit": forecast.unit,
        "controls": list(forecast.controls),
        "shifts": {
            name: {key: getattr(shift, key) for key in OF_A_SHIFT}
            for name, shift in forecast.shifts.items()
        },
        "provenance": dict(forecast.provenance),
    }
    write_atomically(Path(path), save_bytes(tensors, {KEY: json.dumps(header)}))
    return Path(path)


def load(path: str | Path) -> dict[str, Any]:
    """The fields of a saved forecast.

    Raises:
        FileRefused: a file that is no forecast, or half of one.
    """
    refuse_pickle(Path(path))
    try:
        data = Path(path).read_bytes()
        header, tensors = json.loads(tensor_metadata(data)[KEY]), load_bytes(data)
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {header['format']} {header['version']}")
        return _fields(header, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as reason:
        raise FileRefused(
            f"Forecast.load({str(path)!r})",
            f"is not a saved forecast ({reason})",
            expected=f"a file of format {FORMAT} {VERSION}",
            got=Path(path).suffix or "no suffix",
            do="save it again with Forecast.save",
        ) from None


def _fields(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    shifts = {}
    for name, facts in header["shifts"].items():
        facts = {**facts, "dims": tuple(facts["dims"])}
        shifts[name] = Shift(
            delta=tensors[f"delta::{name}"], null=tensors.get(f"null::{name}"), **facts
        )
    return {
        "sources": tuple(header["sources"]),
        "targets": tuple(header["targets"]),
        "unit": header["unit"],
        "controls": {name: tensors[f"control::{name}"].numpy() for name in header["controls"]},
        "shifts": shifts,
        "provenance": header["provenance"],
        "terms": {
            name: tensors[f"terms::{name}"].numpy()
            for name in header["sources"]
            if f"terms::{name}" in tensors
        },
        **{name: tensors[name].numpy() for name in ARRAYS if name in tensors},
    }


def _tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))
