"""How often features are active: a histogram on a logarithmic scale, features never active apart."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from workbench.figures.paper import BASE, COLOURS, INK, dressed


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A step line per series, the first in colour and others in grey; dots on the left are never active.

    Hovering gives the ends of a bin and its number of features.
    """
    import plotly.graph_objects as go

    plot = go.Figure()
    lowest = float(frame.loc[frame["low"] > 0, "low"].min())
    for i, (by, rows) in enumerate(frame.groupby("by", sort=False)):
        colour = COLOURS[0] if i == 0 else BASE
        never, bins = rows[rows["high"] == 0], rows[rows["high"] > 0]
        style = {
            "name": escape(str(by)),
            "legendgroup": str(by),
            "hoverlabel": {"font": {"color": INK}},
        }
        plot.add_trace(
            go.Scatter(
                x=((bins["low"] * bins["high"]) ** 0.5).tolist(),
                y=bins["share"].tolist(),
                mode="lines",
                line={"shape": "hvh", "color": colour},
                customdata=bins[["low", "high", "features"]].to_numpy().tolist(),
                hovertemplate="active on %{customdata[0]:.2g} to %{customdata[1]:.2g} of tokens"
                "<br>%{customdata[2]} features<extra></extra>",
                **style,
            )
        )
        plot.add_trace(
            go.Scatter(
                x=[lowest / 2] * len(never),
                y=never["share"].tolist(),
                mode="markers",
                marker={"color": colour, "size": 9},
                customdata=never[["features"]].to_numpy().tolist(),
                hovertemplate="never active<br>%{customdata[0]} features<extra></extra>",
                showlegend=False,
                **style,
            )
        )
    plot.update_xaxes(title="share of tokens (dot: none)", type="log")
    plot.update_yaxes(title="fraction of features", rangemode="tozero")
    return dressed(plot, f"{caption}{spec.get('note', '')}", height=360, width=640)
