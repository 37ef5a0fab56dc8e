"""Means as colour over two axes of places; a panel per label of a third, a row of cells for one axis."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from workbench.figures.paper import INK, dressed, shown

CELL = 26
"""Height of a cell in pixels."""


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A heat map: the last axis across, the one before it down, any before that as panels.

    Values on both sides of 0 are drawn from orange over white to purple (PuOr), others in cividis.
    Hovering gives mean, interval and number of cases.
    """
    from plotly.subplots import make_subplots

    axes, rows = spec["axes"], frame[frame["measure"] == spec["measure"]]
    cells = {k: _grid(rows[k].to_numpy(), axes) for k in ("mean", "low", "high", "n")}
    panels = cells["mean"].shape[0]
    titles = _titles(axes[:-2])
    plot = make_subplots(
        rows=1,
        cols=panels,
        shared_yaxes=True,
        horizontal_spacing=min(0.03, 0.3 / panels),  # gaps of many panels must leave them room
        subplot_titles=titles,
    )
    colours = _colours(cells["mean"])
    for i in range(panels):
        plot.add_trace(_heat({k: v[i] for k, v in cells.items()}, axes, spec), 1, i + 1)
    down = cells["mean"].shape[1]
    slanted = axes[-1]["shown"] or max(len(str(label)) for label in axes[-1]["labels"]) > 3
    plot.update_xaxes(title=axes[-1]["name"], tickangle=-60 if slanted else 0)
    plot.update_yaxes(type="category")
    if len(axes) > 1:
        plot.update_yaxes(title=axes[-2]["name"], col=1)
    plot.update_xaxes(type="category")
    plot.update_layout(
        coloraxis=colours | {"colorbar": {"title": escape(spec["unit"]), "thickness": 12}}
    )
    across = cells["mean"].shape[2] * panels
    size = {"height": 150 + CELL * down, "width": min(1200, max(480, 200 + CELL * across))}
    return dressed(plot, caption, **size)


def _grid(column: np.ndarray, axes: Any) -> np.ndarray:
    """`[panel, down, across]`."""
    sizes = [len(axis["labels"]) for axis in axes]
    across, down = sizes[-1], sizes[-2] if len(sizes) > 1 else 1
    return np.asarray(column, float).reshape(-1, down, across)


def _titles(axes: Any) -> list[str]:
    titles = [""]
    for axis in axes:
        titles = [f"{t} {axis['name']} {label}".strip() for t in titles for label in shown(axis)]
    return [escape(title, quote=False) for title in titles]


def _colours(means: np.ndarray) -> dict[str, Any]:
    known = means[np.isfinite(means)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if low < 0 < high:
        most = max(-low, high)
        return {"colorscale": "PuOr", "cmin": -most, "cmax": most}
    return {"colorscale": "Cividis", "cmin": low, "cmax": high}


def _heat(cells: Mapping[str, np.ndarray], axes: Any, spec: Any) -> Any:
    import plotly.graph_objects as go

    across = shown(axes[-1])
    down = shown(axes[-2]) if len(axes) > 1 else [""]
    return go.Heatmap(
        z=np.round(cells["mean"], 6).tolist(),
        x=[escape(text, quote=False) for text in across],
        y=[escape(text, quote=False) for text in down],
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        customdata=np.stack([cells["low"], cells["high"], cells["n"]], -1).round(4).tolist(),
        hovertemplate="%{x}<br>%{y}<br>%{z:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
        + f" {escape(spec['unit'])}<br>%{{customdata[2]}} cases<extra></extra>",
        hoverlabel={"font": {"color": INK}},
        showscale=False,
    )
