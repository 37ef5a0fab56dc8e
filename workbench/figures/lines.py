"""Means with their intervals over one axis of places; a line per label of those before it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import product
from typing import Any

import numpy as np

from workbench.figures.paper import BASE, COLOURS, INK, dressed, shown


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A line with a band where the last axis counts something; points with bars where it names parts.

    References are dashed lines across. Hovering gives mean, interval and number of cases.
    """
    import plotly.graph_objects as go

    axes, rows = spec["axes"], frame[frame["measure"] == spec["measure"]]
    across = axes[-1]
    size = len(across["labels"])
    cells = {k: rows[k].to_numpy(float).reshape(-1, size) for k in ("mean", "low", "high", "n")}
    counted = all(isinstance(label, int) for label in across["labels"])
    ticks = shown(across) if across["shown"] or not counted else across["labels"]
    plot = go.Figure()
    for i, name in enumerate(_names(axes[:-1])):
        one = {k: v[i] for k, v in cells.items()}
        colour = COLOURS[i % len(COLOURS)]
        made = _line(one, ticks, colour) if counted else _points(one, ticks, colour)
        made[-1].update(hovertemplate=_hover(spec["unit"], name))
        plot.add_traces([trace.update(name=escape(name), legendgroup=name) for trace in made])
    for name, value in spec["reference"].items():
        plot.add_hline(value, line={"color": BASE, "dash": "dash"}, annotation_text=escape(name))
    if not counted or across["shown"]:
        plot.update_xaxes(type="category", tickangle=-60)
    plot.update_xaxes(title=across["name"])
    plot.update_yaxes(title=escape(spec["unit"]))
    width = min(1200, max(480, 160 + 26 * size))
    return dressed(plot, caption, height=380, width=width, showlegend=len(axes) > 1)


def _names(axes: Any) -> list[str]:
    labels = [[f"{axis['name']} {label}" for label in shown(axis)] for axis in axes]
    return [" ".join(combination) for combination in product(*labels)]


def _hover(unit: str, name: str) -> str:
    before = f"{escape(name)}<br>" if name else ""
    return (
        before
        + "%{x}<br>%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
        + f" {escape(unit)}<br>%{{customdata[2]}} cases<extra></extra>"
    )


def _line(cells: Mapping[str, np.ndarray], ticks: Any, colour: str) -> list[Any]:
    import plotly.graph_objects as go

    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    low = go.Scatter(x=ticks, y=_plain(cells["low"]), **edge)
    faint = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:], 16)},0.2)"
    high = go.Scatter(x=ticks, y=_plain(cells["high"]), fill="tonexty", fillcolor=faint, **edge)
    mean = _scatter(cells, ticks, mode="lines+markers", line={"color": colour, "width": 2})
    return [low, high, mean]


def _points(cells: Mapping[str, np.ndarray], ticks: Any, colour: str) -> list[Any]:
    bars = {
        "type": "data",
        "symmetric": False,
        "array": _plain(cells["high"] - cells["mean"]),
        "arrayminus": _plain(cells["mean"] - cells["low"]),
        "color": colour,
        "thickness": 1,
    }
    return [
        _scatter(cells, ticks, mode="markers", marker={"color": colour, "size": 8}, error_y=bars)
    ]


def _scatter(cells: Mapping[str, np.ndarray], ticks: Any, **style: Any) -> Any:
    import plotly.graph_objects as go

    about = np.stack([cells["low"], cells["high"], cells["n"]], -1).round(4).tolist()
    return go.Scatter(
        x=[escape(t, quote=False) if isinstance(t, str) else t for t in ticks],
        y=_plain(cells["mean"]),
        customdata=about,
        hoverlabel={"font": {"color": INK}},
        **style,
    )


def _plain(values: np.ndarray) -> list[float]:
    return np.round(values, 6).tolist()
