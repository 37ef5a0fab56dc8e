"""What a widget draws, as bytes: a JSON header, then the arrays it names, each where a browser can read it.

Shape of the bytes: header length (uint32), header (UTF-8 JSON), zeros up to a multiple of 8, then the
arrays, each starting at a multiple of 8. Everything is little-endian. A JSON list of a million
numbers takes seconds to cross; these bytes take milliseconds.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

DTYPES = ("<f4", "<f2", "<i4", "<u2", "<u1", "|u1")


def pack(values: Mapping[str, Any]) -> bytes:
    """Numpy arrays as bytes, everything else as JSON; float64 and int64 become 32 bits wide.

    Raises:
        TypeError: a value that JSON does not know.
    """
    plain, arrays, blocks, offset = {}, {}, [], 0
    for name, value in values.items():
        if not isinstance(value, np.ndarray):
            plain[name] = _without_nan(value)
            continue
        array = np.ascontiguousarray(_narrowed(value))
        arrays[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        blocks.append(array.tobytes() + bytes(-array.nbytes % 8))
        offset += len(blocks[-1])
    header = json.dumps({"json": plain, "arrays": arrays}, allow_nan=False).encode()
    start = struct.pack("<I", len(header)) + header
    return b"".join([start, bytes(-len(start) % 8), *blocks])


def unpack(data: bytes) -> dict[str, Any]:
    """What `pack` was given, arrays in the width they crossed with; {} from no bytes."""
    if not data:
        return {}
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    start = 4 + length + -(4 + length) % 8
    found = dict(header["json"])
    for name, about in header["arrays"].items():
        count = math.prod(about["shape"])
        flat = np.frombuffer(data, about["dtype"], count, start + about["offset"])
        found[name] = flat.reshape(about["shape"])
    return found


def _narrowed(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.float64:
        array = array.astype("<f4")
    elif array.dtype in (np.int64, np.bool_):
        array = array.astype("<i4" if array.dtype == np.int64 else "u1")
    if array.dtype.str not in DTYPES:
        raise TypeError(f"frame: no dtype {array.dtype}; one of {DTYPES}")
    return array


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: they cross as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, np.generic):
        return _without_nan(value.item())
    return value
