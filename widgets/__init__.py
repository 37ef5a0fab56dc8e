"""The widgets: live views of a model that share one spec, one worker and one look.

Each works live in JupyterLab, from precomputed frames in a page without a kernel, and as a static
picture where nothing runs.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "LiveEdit": "live_edit",
    "RolloutBoard": "rollout_board",
    "SweepExplorer": "sweep_explorer",
    "SteeringLab": "steering_lab",
    "LensGrid": "lens_grid",
    "PatchGrid": "patch_grid",
    "HeadBoard": "head_board",
    "TransferMap": "transfer_map",
    "ProbeStrip": "probe_strip",
    "FeatureBrowser": "feature_browser",
    "TokenStrip": "token_strip",
    "AttentionView": "attention_view",
    "PromptBar": "prompt_bar",
    "RunPanel": "run_panel",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"workbench_widgets.{_HOMES[name]}.widget"), name)
    raise AttributeError(f"module 'workbench_widgets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
