"""A map as a static picture: one panel of its main measure, and the opened place in numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench_widgets.stills.grid import Kind, grid
from workbench_widgets.stills.intervals import words
from workbench_widgets.stills.words import cut, number, visible

RUNS_SHOWN = 8


def still(frame: Mapping[str, Any], meta: Mapping[str, Any], measure: int, panel: Any) -> str:
    """HTML without script, every text escaped."""
    axes, about = meta["axes"], meta["measures"][measure]
    values, where = _panel(np.asarray(frame["mean"][measure], float), axes, panel)
    kind, lo, hi = bounds(values)
    down = axes[-2]["shown"] if len(axes) > 1 else [""]
    picture = grid(
        [cut(text, 12) for text in down][::-1],
        [cut(text, 12) for text in axes[-1]["shown"]],
        values[::-1],
        lambda r, c: number(float(values[::-1][r, c])),
        kind=kind,
        lo=lo,
        hi=hi,
        caption=f"{cut(meta['method'], 40)}: {cut(about['name'], 40)} ({cut(about['unit'], 40)}){where}",
        row_name=axes[-2]["name"] if len(axes) > 1 else "",
        col_name=axes[-1]["name"],
    )
    return f"<div>{picture}{opened(frame.get('opened'))}</div>"


def _panel(values: np.ndarray, axes: Any, panel: Any) -> tuple[np.ndarray, str]:
    """The chosen panel `[down, across]`, and which it is in words."""
    where = []
    for i, axis in enumerate(axes[:-2]):
        chosen = panel[i] if isinstance(panel, list) and len(panel) > i else 0
        at = min(max(int(chosen), 0), len(axis["labels"]) - 1)
        values = values[at]
        where.append(f", {axis['name']} {axis['shown'][at]}")
    return np.atleast_2d(values), "".join(where)


def bounds(values: np.ndarray) -> tuple[Kind, float, float]:
    """The scale of a grid: around 0 where values lie on both sides."""
    known = values[np.isfinite(values)]
    lo, hi = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if lo < 0 < hi:
        most = max(-lo, hi)
        return "diverging", -most, most
    return "sequential", lo, hi


def opened(found: Mapping[str, Any] | None) -> str:
    """The runs of an opened place as a table; "" where none is."""
    if not found:
        return ""
    at = ", ".join(f"{k} {v}" for k, v in found["labels"].items())
    head = "".join(f"<th>{html.escape(run)}" for run in found["runs"])
    rows = "".join(
        f"<tr><td>{html.escape(cut(visible(row['text']), 24))} {html.escape(row['mark'])}"
        + "".join(f"<td>{number(p)}" for p in row["p"])
        for row in found["tokens"][:RUNS_SHOWN]
    )
    gaps = found["difference"]
    if gaps and gaps[0]:
        rows += "<tr><td>logit difference" + "".join(f"<td>{words(*gap)}" for gap in gaps)
    title = f"{cut(at, 80)} {cut(found['site'], 60)}: next token's probabilities"
    return f"<p>{html.escape(title)}</p><table><tr><th>next{head}{rows}</table>"
