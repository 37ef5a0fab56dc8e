"""Probes: what can be read off activations. One file, one probe.

    acts = model.record(prompts, "L*.resid_post")
    table = probes.evaluate("logistic", acts)          # cross-validated, with controls and intervals
    probe = probes.fit("logistic", acts)["L3.resid_post"]
    probe.score(rows); probe.edit(); probe.readout

Every class found in this folder is a name here; `workbench methods probes` lists them. `fit` and
`evaluate` live on a higher floor and load when used.
"""

from __future__ import annotations

from typing import Any

from workbench import registry
from workbench.probes.base import FittedProbe, Probe

_VERBS = {"fit": "workbench.probing.fit", "evaluate": "workbench.probing.evaluate"}

__all__ = ["FittedProbe", "Probe", "evaluate", "fit"]


def __getattr__(name: str) -> Any:
    return registry.attribute("probes", name, _VERBS)


def __dir__() -> list[str]:
    return [*__all__, *registry.classes("probes")]
