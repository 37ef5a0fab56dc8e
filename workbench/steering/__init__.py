"""Steering methods: two classes of activations in, one intervention out. One file, one method.

    edit = steering.MeanDifference().fit(activations.contrast())
    edit = steering.fit("mean_difference", model, pairs)        # records what the method reads

Every class found in this folder is a name here; `workbench methods steering` lists them. `fit`,
`sweep` and `evaluate` are made of models and prompts; they live on higher floors and load when used.
"""

from __future__ import annotations

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
    return registry.attribute("steering", name, _VERBS)


def __dir__() -> list[str]:
    return [*__all__, *registry.classes("steering")]
