"""Steering methods: two classes of activations in, one intervention out. One file, one method.

    edit = steering.MeanDifference().fit(activations.contrast())

Every class found in this folder is a name here; `workbench methods steering` lists them.
"""

from __future__ import annotations

from typing import Any

from workbench import registry
from workbench.steering.base import SteeringMethod

__all__ = ["SteeringMethod"]


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for entry in registry.entries("steering"):
            if entry.cls.__name__ == name:
                return entry.cls
    raise AttributeError(f"workbench.steering has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [*__all__, *(entry.cls.__name__ for entry in registry.entries("steering"))]
