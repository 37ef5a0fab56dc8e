"""An IPython extension of the kernel that runs a report: which models the notebook used, which seeds.

`execute` loads it into its kernels. After each cell it looks at the models that are alive and writes
what it has seen so far, as JSON, to the file that the environment names.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

FILE = "WORKBENCH_LEDGER"
_weights: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
"""Of each model: what its parameters' versions were, and the hash then."""
_SEED = re.compile(r"(^|_)seeds?$")


def load_ipython_extension(shell: Any) -> None:
    """Begin the ledger; nothing where the environment names no file."""
    target = os.environ.get(FILE)
    if not target:
        return
    models: dict[str, dict[str, Any]] = {}

    def note(*_: Any) -> None:
        models.update(_models())
        kept = {"models": list(models.values()), "seeds": _seeds(shell.user_ns)}
        Path(target).write_text(json.dumps(kept), "utf-8")

    shell.events.register("post_run_cell", note)


def read(file: Path) -> dict[str, Any]:
    """What a kernel wrote: `models`, each with name, family and weights, and `seeds` by name."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {"models": [], "seeds": {}}


def _models() -> dict[str, dict[str, Any]]:
    # Only a kernel that has loaded the module can hold a model; importing it here would load torch.
    kind = getattr(sys.modules.get("workbench.model.model"), "Model", None)
    if kind is None:
        return {}
    found = {}
    for model in (o for o in gc.get_referrers(kind) if isinstance(o, kind)):
        known = _known(model)
        found[json.dumps(known)] = known
    return found


def _known(model: Any) -> dict[str, Any]:
    # A path is the user's own affair; the last folder is enough to tell models apart.
    name = os.path.basename(model.name.rstrip("/")) if os.path.isabs(model.name) else model.name
    try:
        return {
            "name": name,
            "family": model.hf.config.model_type,
            "weights": _hash(model),
        }
    except Exception:  # half-loaded, or freed by the user: its name still counts
        return {"name": name, "family": "unknown", "weights": "unknown"}


def _hash(model: Any) -> str:
    """The hash of its weights; reading gigabytes after every cell is for those that changed."""
    from workbench.model.changes import counted, versions

    now = id(model.hf), versions(counted(model.hf.parameters()))
    if _weights.get(model, (None, ""))[0] != now:
        _weights[model] = now, model.fingerprint.weights
    return _weights[model][1]


def _seeds(names: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in names.items():
        listed = list(value) if isinstance(value, list | tuple | range) else [value]
        if _SEED.search(name) and listed and all(type(v) is int for v in listed):
            found[name] = value if isinstance(value, int) else listed
    return found
