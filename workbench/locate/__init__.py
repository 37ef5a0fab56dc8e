"""Locating: where in the model something happens. One file, one method.

    cases = wb.prompts.counterfactuals(clean=[...], corrupted=[...], answers=[...], foils=[...])
    found = locate.find("activation_patching", model, cases)      # a Map: a Table with intervals
    found.figure(); found.top(5); found.edit(layer=3, pos=7)

Every class found in this folder is a name here; `workbench methods locate` lists them. `find` runs the
model; it lives on a higher floor and loads when used.
"""

from __future__ import annotations

import importlib
from typing import Any

from workbench import registry
from workbench.locate.base import Axis, Cases, Localiser, Patch, Scores

_VERBS = {"find": "workbench.patching.find", "Map": "workbench.patching.map"}

__all__ = ["Axis", "Cases", "Localiser", "Map", "Patch", "Scores", "find"]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    if name[:1].isupper():  # not the files of this folder, which are imported by their names
        for entry in registry.entries("locate"):
            if entry.cls.__name__ == name:
                return entry.cls
    raise AttributeError(f"workbench.locate has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [*__all__, *(entry.cls.__name__ for entry in registry.entries("locate"))]
