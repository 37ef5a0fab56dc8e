"""A curve over a counted axis on a logarithmic scale: the first line with its interval, others in grey."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from workbench.figures.paper import BASE, COLOURS, INK, dressed, shown


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """Means over the last axis; a line per label of the one before it.

    The first line is the finding, with its 95 % band; the others are what it is compared with, grey.
    References are dashed lines across. Hovering gives mean, interval and number of cases.
    """
    import plotly.graph_objects as go

    axes, rows = spec["axes"], frame[frame["measure"] == spec["measure"]]
    across = axes[-1]["labels"]
    cells = {
        k: rows[k].to_numpy(float).reshape(-1, len(across)) for k in ("mean", "low", "high", "n")
    }
    names = shown(axes[-2]) if len(axes) > 1 else [axes[-1]["name"]]
    plot = go.Figure()
    for i in reversed(range(len(names))):  # the finding is drawn last, on top
        one = {k: v[i] for k, v in cells.items()}
        plot.add_traces(_line(one, across, names[i], spec["unit"], found=i == 0))
    for name, value in spec["reference"].items():
        plot.add_hline(value, line={"color": BASE, "dash": "dash"}, annotation_text=escape(name))
    plot.update_xaxes(title=axes[-1]["name"], type="log", dtick=1)
    plot.update_yaxes(title=escape(spec["unit"]))
    return dressed(plot, caption, height=380, width=640, showlegend=len(names) > 1)


def _line(
    cells: Mapping[str, np.ndarray], across: Any, name: str, unit: str, *, found: bool
) -> list[Any]:
    import plotly.graph_objects as go

    colour = COLOURS[0] if found else BASE
    mean = go.Scatter(
        x=list(across),
        y=_plain(cells["mean"]),
        name=escape(name),
        mode="lines+markers" if found else "lines",
        line={"color": colour, "width": 2.5 if found else 1},
        customdata=np.stack([cells["low"], cells["high"], cells["n"]], -1).round(4).tolist(),
        hovertemplate=f"{escape(name)}<br>%{{x}}<br>%{{y:.4g}} [%{{customdata[0]:.4g}}, "
        f"%{{customdata[1]:.4g}}] {escape(unit)}<br>%{{customdata[2]}} cases<extra></extra>",
        hoverlabel={"font": {"color": INK}},
    )
    if not found:
        return [mean]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    low = go.Scatter(x=list(across), y=_plain(cells["low"]), **edge)
    faint = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:], 16)},0.2)"
    high = go.Scatter(
        x=list(across), y=_plain(cells["high"]), fill="tonexty", fillcolor=faint, **edge
    )
    return [low, high, mean]


def _plain(values: np.ndarray) -> list[float]:
    return np.round(values, 6).tolist()
