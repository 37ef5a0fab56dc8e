"""Any setting of a sweep as plain JSON values that are the same in the next process.

A `repr` may hold an address in memory, which changes from process to process, and may leave out what
counts, such as the numbers in a tensor. Here tensors count by their bytes, objects by their class and
what they hold, functions by their code and what they close over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.tensors import Fingerprint


def told(value: Any) -> Any:
    """`value` in plain JSON values; what differs is told differently.

    Raises:
        WorkbenchError: it holds something whose content cannot be seen, such as a generator.
    """
    return _told(value, ())


def _told(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _numbers(torch.as_tensor(value))
    if isinstance(value, Mapping):
        return {str(key): _told(one, above) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [_told(one, above) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_told(one, above)) for one in value)
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, type | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, FunctionType | MethodType):
        return _function(value, above)
    if isinstance(value, partial):
        return {"partial": _told([value.func, value.args, value.keywords], above)}
    return _object(value, above)


def _numbers(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {_short(raw)}"


def _function(value: FunctionType | MethodType, above: tuple[int, ...]) -> dict[str, Any]:
    plain = value.__func__ if isinstance(value, MethodType) else value
    assert isinstance(plain, FunctionType)
    held = [cell.cell_contents for cell in plain.__closure__ or ()]
    held += [plain.__defaults__, plain.__kwdefaults__, getattr(value, "__self__", None)]
    name = f"{value.__module__}.{value.__qualname__}"
    return {"function": name, "code": _short(_code(plain.__code__)), "holds": _told(held, above)}


def _code(code: CodeType) -> bytes:
    """Instructions, names and constants, those of functions inside it included."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c).encode() for c in code.co_consts]
    return b"|".join([code.co_code, repr(code.co_names).encode(), *constants])


def _object(value: Any, above: tuple[int, ...]) -> dict[str, Any]:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    made_of = getattr(value, "fingerprint", None)
    if isinstance(made_of, Fingerprint):
        return {"class": kind, **asdict(made_of)}
    if isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        held = {"structure": repr(value), "weights": value.state_dict(), "own": own}
        return {"class": kind, **_told(held, above)}
    if not hasattr(value, "__dict__"):
        raise WorkbenchError(
            "sweep(path=...)",
            f"cannot tell whether a {kind} is the same when the sweep goes on",
            expected="plain values, tensors, functions, or objects that hold such",
            got=repr(value)[:80],
            do="leave path= out, or hand over something else",
        )
    return {"class": kind, **_told(vars(value), above)}


def _short(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
