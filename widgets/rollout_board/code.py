"""A board as a cell of Python: the same comparison through `wb.compare`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.comparison.metrics.base import Metric
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.rl.base import TrainArm
from workbench.tensors import Arm, Intervention
from workbench_widgets.cells import (
    FOLDER,
    edit_code,
    list_code,
    model_code,
    model_line,
    prompt_code,
)


def compare_code(
    model: Model,
    prompts: Sequence[Prompt],
    arms: Sequence[Arm],
    trained: Sequence[TrainArm],
    metrics: Sequence[Metric],
    options: Mapping[str, Any],
    folder: str | Path = FOLDER,
) -> str:
    """The text of the cell. Edits are written to `folder` and loaded from there.

    Args:
        trained: arms that were trained; the cell trains them again.
        options: of `wb.compare`; those that are its defaults are left out.
    """
    lines = ["import workbench as wb"]
    lines += metric_imports(metrics)
    lines += ["from workbench.rl import Reinforce"] if trained else []
    lines += [
        "",
        model_line(model),
        f"prompts = {list_code(map(prompt_code, prompts))}",
    ]
    names = _own_models(model, arms)
    lines += [model_line(arm.model, names[arm.name]) for arm in arms if arm.name in names]
    lines += [f"arms = {list_code(_arm(arm, Path(folder), names) for arm in arms)}"]
    for arm in trained:
        lines += _training(arm, Path(folder))
    said = "".join(f",\n    {k}={v!r}" for k, v in options.items())
    call = f"table = wb.compare(\n    arms,\n    model,\n    prompts,\n    {_metrics(metrics)}{said},\n)"
    return "\n".join([*lines, call, "table", ""])


def metric_imports(metrics: Iterable[Metric]) -> list[str]:
    """Imports of metrics that have options of their own."""
    own = [m for m in metrics if m != type(m)()]
    decoders = "from workbench.decoding import Greedy, Sample"
    return [decoders, *(f"from {type(m).__module__} import {type(m).__name__}" for m in own)]


def _metrics(metrics: Iterable[Metric]) -> str:
    said = [
        repr(type(m).__module__.rpartition(".")[2]) if m == type(m)() else repr(m) for m in metrics
    ]
    return f"metrics=[{', '.join(said)}]"


def edits_code(edits: Iterable[Intervention], folder: Path) -> str:
    """A list of edits, each loaded from its file."""
    return f"[{', '.join(edit_code(edit, folder) for edit in edits)}]"


def _own_models(model: Model, arms: Iterable[Arm]) -> dict[str, str]:
    """A name for the model of each arm whose model cannot be loaded by name: by the arm's name."""
    found: dict[str, str] = {}
    for arm in arms:
        if arm.model is None or arm.model is model or model_code(arm.model):
            continue
        stem = re.sub(r"\W+", "_", arm.name)[:40].strip("_")
        stem = f"{stem}_model" if stem.isidentifier() else f"arm_{stem}_model"
        taken = [name for name in found.values() if name.startswith(stem)]
        found[arm.name] = f"{stem}_{len(taken) + 1}" if taken else stem
    return found


def _arm(arm: Arm, folder: Path, names: Mapping[str, str]) -> str:
    said = [repr(arm.name)]
    said += [edits_code(arm.edits, folder)] if arm.edits else []
    said += [f"decoder={arm.decoder!r}"] if arm.decoder else []
    if arm.model:
        said += [f"model={names.get(arm.name) or model_code(arm.model) or 'model'}"]
    said += [f"prefix={arm.prefix!r}"] if arm.prefix else []
    return f"wb.Arm({', '.join(said)})"


def _training(arm: TrainArm, folder: Path) -> list[str]:
    trainer = repr(arm.trainer) if arm.trainer is not None else "Reinforce()"
    lines = [f"trainer, edits = {trainer}, {edits_code(arm.edits, folder)}"]
    for name, options in arm.runs().items():
        said = "".join(f", {k}={v!r}" for k, v in options.items())
        call = f"trainer.train(model, prompts, {arm.steps}, edits{said})"
        lines.append(f"arms.append(wb.Arm({name!r}, model={call}.model))")
    return lines
