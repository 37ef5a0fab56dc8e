"""Files that are written whole or not at all, and files that are never opened."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from workbench.errors import FileRefused

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name beside `path`, then rename: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def refuse_pickle(path: Path) -> None:
    """FileRefused where the name or the first bytes are a pickle's: loading one runs its code."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    if path.suffix in PICKLES or _is_pickle(start):
        raise FileRefused(
            f"file {str(path)!r}",
            "is a pickle, which runs code when loaded",
            expected="a .safetensors file",
            got=path.suffix or "pickle bytes",
            do="convert it with safetensors.torch.save_file where you trust it",
        )


def tensor_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, from its bytes: the library gives it of files on disk only.

    Raises:
        ValueError: the header is cut off, or it is none.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError("the header is cut off")
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("the header is no safetensors header")
    return metadata


def _is_pickle(start: bytes) -> bool:
    # safetensors starts with a length whose bytes can look like either, and then a brace
    if start[8:] == b"{":
        return False
    zipped = start[:4] == b"PK\x03\x04"
    return zipped or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
