"""Steering methods: two classes of activations in, one intervention out. One file, one method.

    edit = steering.MeanDifference().fit(activations.contrast())
    edit = steering.fit("mean_difference", model, pairs)        # records what the method reads

Every class found in this folder is a name here; `workbench methods steering` lists them. `fit`,
`sweep` and `evaluate` are made of models and prompts; they live on higher floors and load when used.
"""

from __future__ import annotations

import importlib
from typing import Any

from workbench import registry
from workbench.steering.base import SteeringMethod

_VERBS = {
    "fit": "workbench.interventions.fit",
    "sweep": "workbench.sweep.methods",
    "evaluate": "workbench.comparison.evaluate",
}

__all__ = ["SteeringMethod", "evaluate", "fit", "sweep"]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(_VERBS[name]), name)
    if not name.startswith("_"):
        for entry in registry.entries("steering"):
            if entry.cls.__name__ == name:
                return entry.cls
    raise AttributeError(f"workbench.steering has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [*__all__, *(entry.cls.__name__ for entry in registry.entries("steering"))]
