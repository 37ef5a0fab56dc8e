"""A chosen cell as Python: the baseline, the edit at that strength, and its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.comparison.metrics.base import Metric
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.tensors import Arm, Intervention
from workbench_widgets.cells import FOLDER
from workbench_widgets.rollout_board.code import compare_code


def cell_code(
    model: Model,
    prompts: Sequence[Prompt],
    edit: Intervention,
    metrics: Sequence[Metric],
    asked: Mapping[str, Any],
    folder: str | Path = FOLDER,
) -> str:
    """The text of a cell that compares `edit` with the baseline as the sweep did."""
    options = {k: v for k, v in asked.items() if k != "seed"}
    return compare_code(
        model,
        prompts,
        [Arm(edit.label, [edit])],
        [],
        metrics,
        {"seeds": [asked["seed"]], **options},
        folder,
    )
