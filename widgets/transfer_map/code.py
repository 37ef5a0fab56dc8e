"""A TransferMap as a cell of Python: the forecast from its file, the chosen pair, its features, its edit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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
    folder.mkdir(parents=True, exist_ok=True)
    fresh = forecast.save(folder / ".writing.safetensors")
    digest = hashlib.sha256(fresh.read_bytes()).hexdigest()
    return fresh.replace(folder / f"forecast-{digest[:8]}.safetensors")
