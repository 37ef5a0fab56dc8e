"""Measured change over forecast: a point per pair of domains, the line of r, and what chance gives."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from workbench.figures.paper import BASE, COLOURS, INK, dressed

SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "pentagon")


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """Points with both intervals; cones of lines through the mean: r with its interval, and in grey the r
    of random features.

    The slope of a line is r times the ratio of the standard deviations. With several sources both sides
    are standardised within each, so that the slope is r itself.
    """
    import plotly.graph_objects as go

    pooled = frame["source"].nunique() > 1
    points = _standardised(frame) if pooled else _as_they_are(frame)
    plot = go.Figure()
    x, y = points["x"].to_numpy(float), points["y"].to_numpy(float)
    if len(x) and spec["r"] is not None and np.isfinite(spec["r"]):
        ends = np.linspace(x.min(), x.max(), 21)
        slope = y.std() / x.std()
        lines = {
            k: y.mean() + spec[k] * slope * (ends - x.mean()) for k in _LINES if _known(spec, k)
        }
        plot.add_traces(_cone(ends, lines, "random_low", "random_high", "random features", BASE))
        plot.add_traces(_cone(ends, lines, "low", "high", "95 % interval of r", COLOURS[0]))
        line = {"color": COLOURS[0], "width": 2}
        found = f"r = {spec['r']:.2f}"
        plot.add_trace(go.Scatter(x=ends, y=lines["r"], mode="lines", name=found, line=line))
    for i, (source, some) in enumerate(points.groupby("source", sort=False)):
        plot.add_trace(_points(some, str(source), i, intervals=not pooled))
    unit = "standard deviations within the source"
    plot.update_xaxes(title=escape(f"forecast, {spec['unit']}" + f" ({unit})" * pooled))
    plot.update_yaxes(title=f"size of the change ({unit if pooled else 'fraction of accuracy'})")
    return dressed(plot, caption, height=480, width=720, showlegend=True)


_LINES = ("r", "low", "high", "random_low", "random_high")


def _known(spec: Mapping[str, Any], name: str) -> bool:
    return spec[name] is not None and bool(np.isfinite(spec[name]))


def _as_they_are(frame: Any) -> Any:
    return frame.assign(x=frame["score"], y=frame["size"])


def _standardised(frame: Any) -> Any:
    """Scores and sizes less the mean of their source, over its standard deviation."""
    scaled = {
        new: frame.groupby("source")[old].transform(lambda v: (v - v.mean()) / (v.std(ddof=0) or 1))
        for new, old in (("x", "score"), ("y", "size"))
    }
    return frame.assign(**scaled)


def _points(some: Any, source: str, i: int, *, intervals: bool) -> Any:
    import plotly.graph_objects as go

    known = ["target", "score", "low", "high", "measured", "measured_low", "measured_high"]
    bars = {}
    if intervals:
        bars = {
            "error_x": _bar(some, "score", "low", "high"),
            "error_y": _bar(some, "size", "size_low", "size_high"),
        }
    return go.Scatter(
        x=some["x"].tolist(),
        y=some["y"].tolist(),
        mode="markers+text" if intervals else "markers",
        text=[escape(str(target)) for target in some["target"]],
        textposition="top right",
        name=escape(source),
        marker={
            "size": 9,
            "color": COLOURS[i % len(COLOURS)],
            "symbol": SYMBOLS[i // len(COLOURS) % len(SYMBOLS)],
        },
        customdata=some[known].to_numpy().tolist(),
        hovertemplate=f"{escape(source)} → %{{customdata[0]}}<br>forecast %{{customdata[1]:.3g}} "
        "[%{customdata[2]:.3g}, %{customdata[3]:.3g}]<br>measured %{customdata[4]:+.3f} "
        "[%{customdata[5]:+.3f}, %{customdata[6]:+.3f}]<extra></extra>",
        hoverlabel={"font": {"color": INK}},
        **bars,
    )


def _bar(some: Any, mean: str, low: str, high: str) -> dict[str, Any]:
    """An interval around a mean; none where it is unknown."""
    up, down = (some[high] - some[mean]).clip(lower=0), (some[mean] - some[low]).clip(lower=0)
    return {
        "type": "data",
        "array": up.fillna(0).tolist(),
        "arrayminus": down.fillna(0).tolist(),
        "color": BASE,
        "thickness": 1,
    }


def _cone(
    ends: np.ndarray, lines: Mapping[str, np.ndarray], low: str, high: str, name: str, colour: str
) -> list[Any]:
    """What lies between two lines through one point."""
    import plotly.graph_objects as go

    if low not in lines or high not in lines:
        return []
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": name}
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    fill = f"rgba({red},{green},{blue},0.2)"
    under, over = np.minimum(lines[low], lines[high]), np.maximum(lines[low], lines[high])
    first = go.Scatter(x=ends, y=under, showlegend=False, **edge)
    return [first, go.Scatter(x=ends, y=over, name=name, fill="tonexty", fillcolor=fill, **edge)]
