"""Features after a change against before: a point each, those beyond noise in colour."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from workbench.figures.paper import BASE, COLOURS, INK, dressed

MANY = 1000
"""How many points are drawn; those that changed most come first."""


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A scatter around the line of no change. A feature that is never active on one side lies at 0 there.

    Hovering gives the feature, its change with noise, and its state.
    """
    import plotly.graph_objects as go

    names = f"{spec['of']}_before", f"{spec['of']}_after"
    rows = frame.assign(**{name: frame[name].fillna(0) for name in names})
    rows = rows.loc[rows["change"].abs().sort_values(ascending=False, kind="stable").index[:MANY]]
    beyond = rows["change"].abs() > rows["noise"]
    plot = go.Figure()
    for name, colour, part in (
        ("within noise", BASE, rows[~beyond]),
        ("beyond noise", COLOURS[0], rows[beyond]),
    ):
        plot.add_trace(
            go.Scatter(
                x=part[names[0]].round(6).tolist(),
                y=part[names[1]].round(6).tolist(),
                mode="markers",
                name=name,
                marker={"color": colour, "size": 6},
                customdata=part[["feature", "change", "noise", "state"]].to_numpy().tolist(),
                hovertemplate="feature %{customdata[0]}<br>change %{customdata[1]:.3g}, noise "
                "%{customdata[2]:.3g}<br>%{customdata[3]}<extra></extra>",
                hoverlabel={"font": {"color": INK}},
            )
        )
    largest = float(rows[list(names)].max().max())
    line = {"color": INK, "width": 1, "dash": "dash"}
    plot.add_shape(type="line", x0=0, y0=0, x1=largest, y1=largest, line=line)
    unit = escape(spec["unit"])
    plot.update_xaxes(title=f"before ({unit})")
    plot.update_yaxes(title=f"after ({unit})")
    left_out = "" if len(rows) == len(frame) else f" The {MANY} of {len(frame)} that changed most."
    return dressed(plot, caption + left_out, height=460, width=560)
