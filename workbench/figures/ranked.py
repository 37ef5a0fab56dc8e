"""The places of the largest means, one below the other with their intervals: for an axis of very many."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from workbench.figures.paper import COLOURS, INK, dressed

MANY = 30
"""How many places are drawn."""


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """Points with 95 % bars, the largest absolute mean on top. Hovering gives the number of cases."""
    import plotly.graph_objects as go

    rows = frame[frame["measure"] == spec["measure"]].dropna(subset=["mean"])
    order = rows["mean"].abs().sort_values(ascending=False, kind="stable").index
    best = rows.loc[order[:MANY]]
    names = [axis["name"] for axis in spec["axes"]]
    labels = [escape(" ".join(map(str, row))) for row in best[names].itertuples(index=False)]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": (best["high"] - best["mean"]).round(6).tolist(),
        "arrayminus": (best["mean"] - best["low"]).round(6).tolist(),
        "thickness": 1,
    }
    plot = go.Figure(
        go.Scatter(
            x=best["mean"].round(6).tolist(),
            y=labels,
            mode="markers",
            marker={"color": COLOURS[0], "size": 8},
            error_x=bars | {"color": COLOURS[0]},
            customdata=best[["low", "high", "n"]].round(4).to_numpy().tolist(),
            hovertemplate="%{y}<br>%{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}] "
            + f"{escape(spec['unit'])}<br>%{{customdata[2]}} cases<extra></extra>",
            hoverlabel={"font": {"color": INK}},
        )
    )
    plot.add_vline(0, line={"color": INK, "width": 1})
    plot.update_xaxes(title=escape(spec["unit"]))
    plot.update_yaxes(type="category", autorange="reversed")
    said = (
        caption if len(best) == len(rows) else f"{caption} The {len(best)} of {len(rows)} largest."
    )
    return dressed(plot, said, height=140 + 20 * len(best), width=640)
