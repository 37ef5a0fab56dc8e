"""What made a table's numbers: enough to run it again, in plain JSON values."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from workbench.interventions.store import describe
from workbench.prompts.plain import to_plain
from workbench.records import Prompt
from workbench.tensors import Arm

PACKAGES = ("interp-workbench", "torch", "transformers", "numpy", "scipy")


def provenance(
    arms: list[Arm],
    model: Any,
    prompts: list[Prompt],
    seeds: Sequence[int],
    decoder: Any,
    **more: Any,
) -> dict[str, Any]:
    """Model fingerprint, arms with their edits, decoder, seeds, prompts, versions and date."""
    stop = more.pop("stop", ())
    return {
        "model": asdict(model.fingerprint),
        "arms": {arm.name: _arm(arm) for arm in arms},
        "decoder": _decoder(decoder),
        "seeds": list(seeds),
        "n_prompts": len(prompts),
        "prompts_hash": _hash(prompts),
        "stop": [stop] if isinstance(stop, str) else list(stop),
        "versions": versions(),
        "device": f"{model.device}",
        "dtype": str(model.dtype),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "edits": [describe(edit) for edit in arm.edits],
        "decoder": _decoder(arm.decoder) if arm.decoder else None,
        "model": asdict(arm.model.fingerprint) if arm.model else None,
        "prefix": arm.prefix,
    }


def _decoder(decoder: Any) -> str:
    return repr(decoder) if decoder else "Greedy()"


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a source checkout that was never installed
    return found


def _hash(prompts: list[Prompt]) -> str:
    text = json.dumps([to_plain(p) for p in prompts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
