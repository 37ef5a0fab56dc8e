"""What is done with interventions: keep in files, calibrate, gate, control."""

from __future__ import annotations

from workbench.interventions.calibrate import calibrate, kl_nats
from workbench.interventions.control import random_control
from workbench.interventions.gate import gate
from workbench.interventions.store import describe, load, save
from workbench.interventions.weights import orthogonalise

__all__ = [
    "calibrate",
    "describe",
    "gate",
    "kl_nats",
    "load",
    "orthogonalise",
    "random_control",
    "save",
]
