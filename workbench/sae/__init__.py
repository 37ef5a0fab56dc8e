"""Sparse autoencoders: dictionaries of features, trained and loaded through SAELens.

    dictionary = sae.load("reasoner/L3.resid_post-512", model=model)
    sae.evaluate(dictionary, model, prompts)                   # FVU, L0, dead features, with controls
    board = sae.dashboard(dictionary, model, prompts)          # what each feature is for
    found = sae.search("attribution", dictionary, model, prompts)
    shift = sae.shift_dims(dictionary, model, queries, demonstrations)     # what fine-tuning will move

Scorers of features are the family `scorers`, one file each in `workbench.sae.scorers`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Dictionary": "workbench.sae.dictionary",
    "load": "workbench.sae.store",
    "shipped": "workbench.sae.store",
    "train": "workbench.sae.training",
    "stream": "workbench.sae.reading",
    "Dashboard": "workbench.sae.dashboards.board",
    "dashboard": "workbench.sae.dashboards.board",
    "FeatureRanking": "workbench.sae.ranking",
    "search": "workbench.sae.ranking",
    "steer": "workbench.sae.edits",
    "Domain": "workbench.sae.transfer.demonstrations",
    "with_demonstrations": "workbench.sae.transfer.demonstrations",
    "Shift": "workbench.sae.transfer.shifts",
    "shift_dims": "workbench.sae.transfer.shifts",
    "actual_shift": "workbench.sae.transfer.shifts",
    "sts": "workbench.sae.transfer.shifts",
    "coordinates": "workbench.sae.transfer.raw",
    "Forecast": "workbench.sae.transfer.forecasts",
    "Readings": "workbench.sae.transfer.readings",
    "read_domains": "workbench.sae.transfer.readings",
    "forecast": "workbench.sae.transfer.readings",
    "Measured": "workbench.sae.transfer.measured",
    "fine_tune_domains": "workbench.sae.transfer.measuring",
    "ConceptTargets": "workbench.sae.concepts",
    "concept_targets": "workbench.sae.concepts",
    "Drift": "workbench.sae.diffing",
    "drift": "workbench.sae.diffing",
    "QualityTable": "workbench.sae.quality",
    "evaluate": "workbench.sae.quality",
}

__all__ = [*_HOMES, "save"]


def save(dictionary: Any, folder: Any, *, half: bool = False) -> Any:
    """Write a dictionary in SAELens' format, see `workbench.sae.store.save`."""
    # a name of the module's own, not one found late: nnsight, once imported, gives every object a `save`
    from workbench.sae import store

    return store.save(dictionary, folder, half=half)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"workbench.sae has no {name!r}; it has {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
