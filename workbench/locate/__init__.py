"""Locating: where in the model something happens. One file, one method.

    cases = wb.prompts.counterfactuals(clean=[...], corrupted=[...], answers=[...], foils=[...])
    found = locate.find("activation_patching", model, cases)      # a Map: a Table with intervals
    found.figure(); found.top(5); found.edit(layer=3, pos=7)

Every class found in this folder is a name here; `workbench methods locate` lists them. `find` runs the
model; it lives on a higher floor and loads when used.
"""

from __future__ import annotations

from typing import Any

from workbench import registry
from workbench.locate.base import Axis, Cases, Localiser, Patch, Scores

_VERBS = {"find": "workbench.patching.find", "Map": "workbench.patching.map"}

__all__ = ["Axis", "Cases", "Localiser", "Map", "Patch", "Scores", "find"]


def __getattr__(name: str) -> Any:
    return registry.attribute("locate", name, _VERBS)


def __dir__() -> list[str]:
    return [*__all__, *registry.classes("locate")]
