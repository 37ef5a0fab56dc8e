"""workbench: look inside a language model, change it while it thinks, and share what you see.

The public names load when they are first used, so `import workbench` is instant and loads no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "workbench.model.load",
    "shipped": "workbench.model.load",
    "Model": "workbench.model.model",
    "Prompt": "workbench.records",
    "Prompts": "workbench.records",
    "Generation": "workbench.records",
    "Receipt": "workbench.records",
    "Site": "workbench.sites",
    "Scope": "workbench.scopes",
    "Tokens": "workbench.tensors",
    "Trace": "workbench.tensors",
    "Activations": "workbench.tensors",
    "Intervention": "workbench.tensors",
    "Readout": "workbench.tensors",
    "Arm": "workbench.tensors",
    "load_probe": "workbench.probing.store:load",
    "save_probe": "workbench.probing.store:save",
    "load_edit": "workbench.interventions.store:load",
    "save_edit": "workbench.interventions.store:save",
    "compose": "workbench.interventions.compose",
    "import_vectors": "workbench.interventions.exchange",
    "export_gguf": "workbench.interventions.exchange",
    "calibrate": "workbench.interventions.calibrate",
    "orthogonalise": "workbench.interventions.weights",
    "compare": "workbench.comparison.run",
    "Table": "workbench.comparison.table",
    "Figure": "workbench.comparison.table",
    "report": "workbench.reporting.build",
    "Live": "workbench.model.live",
    "score_branches": "workbench.model.branches",
    "BranchScores": "workbench.model.branches",
    "in_background": "workbench.worker",
    "WorkbenchError": "workbench.errors",
}
_PACKAGES = (
    "prompts",
    "tasks",
    "activations",
    "locate",
    "probes",
    "rl",
    "sae",
    "steering",
    "interventions",
    "decoding",
    "comparison",
    "registry",
    "sites",
    "worker",
    "zoo",
)

__all__ = [*_HOMES, *_PACKAGES, "data_path"]


def data_path() -> Path:
    """The folder with the shipped models: beside the package in a wheel, at the root of a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "data"
    return inside if inside.is_dir() else here.parent / "data"


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext workbench` adds the `%wb` magic to an IPython shell."""
    from workbench.lab.magics import WorkbenchMagics

    shell.register_magics(WorkbenchMagics)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"workbench.{name}")
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
