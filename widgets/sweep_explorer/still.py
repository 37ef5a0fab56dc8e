"""A sweep as a static picture: the grid of the chosen metric, and the chosen layer's curve in numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench_widgets.stills.grid import grid
from workbench_widgets.stills.intervals import bar, words
from workbench_widgets.stills.words import cut, number

LONGEST = 24


def still(
    frame: Mapping[str, Any], meta: Mapping[str, Any], spec: Mapping[str, Any], said: str
) -> str:
    """HTML without script; every text is escaped."""
    said = f"<p>{html.escape(said)}</p>"
    if "mean" not in frame:
        return said
    m = min(int(spec["metric"]), len(meta["metrics"]) - 1)
    return f"<div>{_grid(frame, meta, m)}{_curve(frame, meta, spec, m)}{said}</div>"


def _grid(frame: Mapping[str, Any], meta: Mapping[str, Any], m: int) -> str:
    values = np.asarray(frame["mean"][m])[::-1]
    lo, hi = span(values)
    about = meta["metrics"][m]
    return grid(
        [f"L{y}" for y in reversed(meta["layers"])],
        [f"{s:g}" for s in meta["strengths"]],
        values,
        lambda r, c: number(float(values[r, c])),
        lo=lo,
        hi=hi,
        caption=f"{cut(about['name'], 40)} ({cut(about['unit'], 40)})",
        row_name="layer",
        col_name="strength",
    )


def _curve(
    frame: Mapping[str, Any], meta: Mapping[str, Any], spec: Mapping[str, Any], m: int
) -> str:
    y = min(int(spec["layer"]), len(meta["layers"]) - 1)
    parts = ("mean", "low", "high")
    edit = [frame[name][m][y] for name in parts]
    control = [frame[f"control_{name}"][m][y] for name in parts]
    lo, hi = span(np.stack([*edit, *control, np.repeat(frame["base"][m][:1], len(edit[0]))]))
    rows = []
    for j, strength in enumerate(meta["strengths"][:LONGEST]):
        own, other = ([float(v[j]) for v in series] for series in (edit, control))
        cells = f"<td>{words(*own)}</td><td>{bar(*own[1:], lo, hi)}</td><td>{words(*other)}</td>"
        rows.append(f"<tr><td>{strength:g}</td>{cells}</tr>")
    head = "<th>strength</th><th>edit</th><th></th><th>random direction</th>"
    base = words(*map(float, frame["base"][m]))
    return (
        f"<table><tr>{head}</tr>{''.join(rows)}</table>"
        f"<p>layer {meta['layers'][y]}; baseline {base}; mean and 95 % interval over prompts</p>"
    )


def span(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest number; 0 and 1 where there is none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
