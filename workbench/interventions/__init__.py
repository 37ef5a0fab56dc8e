"""What is done with interventions: keep in files, exchange, compose, calibrate, gate, control."""

from __future__ import annotations

from workbench.interventions.calibrate import calibrate, kl_nats
from workbench.interventions.compose import compose
from workbench.interventions.control import random_control
from workbench.interventions.exchange import (
    export_gguf,
    export_safetensors,
    from_steering_vectors,
    from_vectors,
    import_vectors,
    to_steering_vectors,
)
from workbench.interventions.gate import gate
from workbench.interventions.store import describe, load, save
from workbench.interventions.weights import orthogonalise

__all__ = [
    "calibrate",
    "compose",
    "describe",
    "export_gguf",
    "export_safetensors",
    "from_steering_vectors",
    "from_vectors",
    "gate",
    "import_vectors",
    "kl_nats",
    "load",
    "orthogonalise",
    "random_control",
    "save",
    "to_steering_vectors",
]
