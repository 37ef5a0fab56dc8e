"""The figure of a comparison: a panel per metric, a point with its interval per arm."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from workbench.comparison.layout import interval
from workbench.figures.paper import BASE, CLEAR, COLOURS, GRID, INK


def draw(summary: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A plotly figure of what `Table.summary` gives; transparent, to fit light and dark pages.

    Arms stand on the vertical axis, where their names are read without turning the head.
    """
    from plotly.subplots import make_subplots

    arms, metrics = summary["arm"].nunique(), spec["metrics"]
    plot = make_subplots(rows=1, cols=len(metrics), shared_yaxes=True, horizontal_spacing=0.04)
    for column, metric in enumerate(metrics, start=1):
        _panel(plot, summary[summary["metric"] == metric], column)
    plot.update_yaxes(autorange="reversed", gridcolor=GRID, automargin=True, title=None)
    plot.update_yaxes(title="arm", col=1)
    plot.update_layout(
        title={"text": caption, "font": {"size": 12}, "x": 0, "xanchor": "left"},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK},
        showlegend=False,
        height=150 + 34 * arms,
        width=max(480, 200 + 220 * len(metrics)),
        margin={"l": 20, "r": 20, "t": 40, "b": 60},
        modebar={"bgcolor": CLEAR, "color": INK},
    )
    return plot


def _panel(plot: Any, rows: Any, column: int) -> None:
    import plotly.graph_objects as go

    plot.add_trace(
        go.Scatter(
            x=rows["mean"].tolist(),
            y=[escape(str(arm), quote=False) for arm in rows["arm"]],
            mode="markers",
            marker={"size": 9, "color": _colours(rows)},
            error_x={
                "type": "data",
                "array": (rows["high"] - rows["mean"]).tolist(),
                "arrayminus": (rows["mean"] - rows["low"]).tolist(),
                "color": INK,
                "thickness": 1.5,
            },
            customdata=[
                [interval(low, high, int(n)), int(n)]
                for low, high, n in zip(rows["low"], rows["high"], rows["n"], strict=True)
            ],
            hovertemplate="%{y}<br>%{x:.4g} %{customdata[0]}"
            "<br>%{customdata[1]} prompts<extra></extra>",
        ),
        row=1,
        col=column,
    )
    title = f"{rows['metric'].iloc[0]} ({rows['unit'].iloc[0]})"
    plot.update_xaxes(title=title, gridcolor=GRID, linecolor=INK, zeroline=False, row=1, col=column)


def _colours(rows: Any) -> list[str]:
    """Grey for the baseline; the others in their order, so an arm has one colour everywhere."""
    others = [arm for arm in rows["arm"] if arm != rows["against"].iloc[0]]
    return [
        BASE if a not in others else COLOURS[others.index(a) % len(COLOURS)] for a in rows["arm"]
    ]
