"""A TransferMap as a cell of Python: the forecast from its file, the chosen pair, its features, its edit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from workbench.sae.transfer.forecasts import Forecast
from workbench_widgets.cells import edit_code, model_line

FOLDER = "forecasts"
"""Where forecasts are written, beside the notebook."""


def cell(forecast: Forecast, model: Any, chosen: Any, folder: str | Path = FOLDER) -> str:
    """The text of the cell; `chosen` is a Pair, or None."""
    path = saved(forecast, Path(folder))
    lines = ["import workbench as wb", "from workbench import sae", ""]
    lines += [model_line(model)] if model is not None else []
    lines.append(f"forecast = sae.Forecast.load({path.as_posix()!r})")
    if chosen is None:
        return "\n".join([*lines, "forecast", ""])
    source, target = chosen.source, chosen.target
    lines += [
        f"s, t = forecast.sources.index({source!r}), forecast.targets.index({target!r})",
        "score = forecast.scores[s, t]",
    ]
    if forecast.measured is not None:
        lines.append("change = forecast.measured[s, t]  # fraction of accuracy")
    if source in forecast.terms:
        lines.append(f"carried = forecast.contributions({source!r}, {target!r}).frame()")
    lines.append(f"features = {list(chosen.features)!r}")
    if chosen.edit is not None:
        lines.append(f"edit = {edit_code(chosen.edit)}  # feature {chosen.feature}")
    last = "carried.head()" if source in forecast.terms else "score"
    return "\n".join([*lines, last, ""])


def saved(forecast: Forecast, folder: Path) -> Path:
    """The forecast's file, named by what is in it: the same one is written once."""
    digest = hashlib.sha256(repr((forecast.sources, forecast.targets, forecast.unit)).encode())
    for array in (forecast.scores, forecast.random, forecast.measured, *forecast.terms.values()):
        digest.update(b"-" if array is None else np.ascontiguousarray(array, float).tobytes())
    path = folder / f"forecast-{digest.hexdigest()[:8]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        forecast.save(path)
    return path
