"""Independent seeds from one seed, so that a part can be rerun alone and get the same numbers."""

from __future__ import annotations

import hashlib


def derive(seed: int, *parts: object) -> int:
    """A 63-bit seed for one named part of a run; equal inputs give equal seeds on every machine."""
    text = "/".join(str(p) for p in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
