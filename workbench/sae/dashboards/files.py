"""A dashboard as one safetensors file: arrays as tensors, words in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as save_bytes
from scipy import sparse

from workbench.errors import FileRefused
from workbench.files import refuse_pickle, tensor_metadata, write_atomically
from workbench.sae.dashboards.corpus import Corpus

FORMAT = "workbench.dashboard"
VERSION = 1
_KEY = "workbench"
WORDS = ("dictionary_name", "site", "model_name", "n_tokens", "features", "labels")
ARRAYS = (
    "density", "largest", "mean", "histogram", "example_rows", "example_values",
    "promoted_ids", "promoted_values", "suppressed_ids", "suppressed_values",
    "correlated_ids", "correlated_values", "neighbour_ids", "neighbour_values",
    "label_scores", "label_controls",
)  # fmt: skip
TOKENS = ("ids", "prompts", "positions")
CODES = ("data", "indices", "indptr")


def save(board: Any, path: str | Path) -> Path:
    """Write a dashboard, whole or not at all.

    Raises:
        FileRefused: a name that ends as a pickle's does.
    """
    path = Path(path)
    refuse_pickle(path)
    arrays = {name: getattr(board, name) for name in ARRAYS}
    arrays |= {f"corpus.{name}": getattr(board.corpus, name) for name in TOKENS}
    arrays |= {f"codes.{name}": getattr(board.codes, name) for name in CODES}
    header = {"format": FORMAT, "version": VERSION, "texts": list(board.texts.items())}
    header |= {name: getattr(board, name) for name in WORDS}
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(path, save_bytes(plain, {_KEY: json.dumps(header)}))
    return path


def load(path: str | Path) -> dict[str, Any]:
    """The fields of a saved dashboard.

    Raises:
        FileRefused: no such file, a pickle, half a file, or one that holds something else.
    """
    path = Path(path)
    refuse_pickle(path)
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise _refused(path, "cannot be read", "a file", reason.strerror) from None
    header = _header(path, data)
    try:
        return _fields(header, load_bytes(data))
    except (SafetensorError, KeyError, TypeError, ValueError) as reason:
        raise _corrupt(path, reason) from None


def _fields(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    texts = {int(i): text for i, text in header["texts"]}
    corpus = Corpus(*(arrays[f"corpus.{name}"] for name in TOKENS), texts)
    shape = (len(corpus), len(header["features"]))
    codes = sparse.csc_array(tuple(arrays[f"codes.{name}"] for name in CODES), shape=shape)
    codes.check_format(full_check=True)
    fields = {name: header[name] for name in WORDS} | {name: arrays[name] for name in ARRAYS}
    return fields | {"corpus": corpus, "codes": codes, "texts": texts}


def _header(path: Path, data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(tensor_metadata(data).get(_KEY, "null"))
    except (ValueError, TypeError) as reason:
        raise _corrupt(path, reason) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else "another file"
        raise _refused(path, "holds no dashboard", f"a header of format {FORMAT!r}", got)
    if header.get("version") != VERSION:
        wrong = "was written by another version of the format"
        raise _refused(path, wrong, f"version {VERSION}", header.get("version"))
    return header


def _corrupt(path: Path, reason: object) -> FileRefused:
    wrong = f"is corrupt or half-written ({reason})"
    return _refused(path, wrong, "a whole file that Dashboard.save wrote", path.stat().st_size)


def _refused(path: Path, wrong: str, expected: object, got: object) -> FileRefused:
    return FileRefused(
        f"Dashboard.load({str(path)!r})",
        wrong,
        expected=expected,
        got=got,
        do="check the path, or make the dashboard again",
    )
