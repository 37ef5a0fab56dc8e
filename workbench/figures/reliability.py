"""Observed share of class 1 over the probability that a probe gave it; on the diagonal it is honest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.figures.paper import BASE, COLOURS, INK, dressed


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A point per bin with its interval, and the diagonal."""
    import plotly.graph_objects as go

    plot = go.Figure()
    plot.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="as said",
            line={"color": BASE, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    plot.add_trace(
        go.Scatter(
            x=frame["predicted"].tolist(),
            y=frame["observed"].tolist(),
            mode="lines+markers",
            name=spec["site"],
            marker={"size": 9},
            line={"color": COLOURS[0]},
            error_y={
                "type": "data",
                "array": (frame["high"] - frame["observed"]).tolist(),
                "arrayminus": (frame["observed"] - frame["low"]).tolist(),
            },
            customdata=frame[["low", "high", "n"]].to_numpy().tolist(),
            hovertemplate="said %{x:.3g}, was %{y:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]"
            "<br>%{customdata[2]} examples<extra></extra>",
            hoverlabel={"font": {"color": INK}},
        )
    )
    plot.update_xaxes(title="predicted probability of class 1", range=[-0.03, 1.03])
    plot.update_yaxes(title="observed share (fraction)", range=[-0.03, 1.03])
    return dressed(plot, caption, height=480, width=640, showlegend=False)
