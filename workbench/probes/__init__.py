"""Probes: what can be read off activations. One file, one probe.

    acts = model.record(prompts, "L*.resid_post")
    table = probes.evaluate("logistic", acts)          # cross-validated, with controls and intervals
    probe = probes.fit("logistic", acts)["L3.resid_post"]
    probe.score(rows); probe.edit(); probe.readout

Every class found in this folder is a name here; `workbench methods probes` lists them. `fit` and
`evaluate` live on a higher floor and load when used.
"""

from __future__ import annotations

import importlib
from typing import Any

from workbench import registry
from workbench.probes.base import FittedProbe, Probe

_VERBS = {"fit": "workbench.probing.fit", "evaluate": "workbench.probing.evaluate"}

__all__ = ["FittedProbe", "Probe", "evaluate", "fit"]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    if name[:1].isupper():  # not the files of this folder, which are imported by their names
        for entry in registry.entries("probes"):
            if entry.cls.__name__ == name:
                return entry.cls
    raise AttributeError(f"workbench.probes has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [*__all__, *(entry.cls.__name__ for entry in registry.entries("probes"))]
