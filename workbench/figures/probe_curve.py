"""How well a probe reads over layers beside its controls, with bands; baselines as level lines."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from workbench.figures.paper import BASE, COLOURS, INK, dressed

PROBE = "probe"
DASHES = ("dash", "dot", "dashdot")
_HOVER = "%{x}<br>%{y:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]<br>n = %{customdata[2]}"


def draw(frame: Any, spec: Mapping[str, Any], caption: str) -> Any:
    """A line per part of the model with its band; its controls in grey, baselines as level lines.

    `spec["places"]` says of every site which line it is on and where along it.
    """
    import plotly.graph_objects as go

    plot = go.Figure()
    rows = frame[frame["measure"] == spec["measure"]]
    places = spec["places"]
    parts = list(dict.fromkeys(part for part, _ in places.values()))
    for i, part in enumerate(parts):
        sites = [site for site, (own, _) in places.items() if own == part]
        of_part = rows[rows["site"].isin(sites)]
        _curves(plot, of_part, places, part or PROBE, COLOURS[i % len(COLOURS)])
    _levels(plot, rows[rows["site"] == ""], [place for _, place in places.values()])
    numeric = all(isinstance(place, int) for _, place in places.values())
    plot.update_xaxes(title="layer" if numeric else "site", dtick=1 if numeric else None)
    plot.update_yaxes(title=f"{spec['measure']} ({spec['unit']})")
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top"}
    return dressed(plot, caption, height=420, width=720, legend=legend)


def _curves(plot: Any, rows: Any, places: Any, name: str, colour: str) -> None:
    """The probe and its controls with their bands, over the places of one part."""
    for i, by in enumerate(dict.fromkeys(rows["by"])):
        of = rows[rows["by"] == by]
        across = [places[site][1] for site in of["site"]]
        _band(plot, across, of, colour if by == PROBE else BASE)
        line = {"color": colour} if by == PROBE else {"color": BASE, "dash": DASHES[(i - 1) % 3]}
        title = name if by == PROBE else (by if name == PROBE else f"{by}, {name}")
        _line(plot, across, of, title, line)


def _line(plot: Any, across: list[Any], rows: Any, name: str, line: Mapping[str, Any]) -> None:
    import plotly.graph_objects as go

    plot.add_trace(
        go.Scatter(
            x=across,
            y=rows["mean"].tolist(),
            name=escape(name, quote=False),
            mode="lines+markers",
            line=line,
            customdata=rows[["low", "high", "n"]].to_numpy().tolist(),
            hovertemplate=_HOVER + "<extra>%{fullData.name}</extra>",
            hoverlabel={"font": {"color": INK}},
        )
    )


def _band(plot: Any, across: list[Any], rows: Any, colour: str) -> None:
    import plotly.graph_objects as go

    plot.add_trace(
        go.Scatter(
            x=[*across, *reversed(across)],
            y=[*rows["high"].tolist(), *reversed(rows["low"].tolist())],
            fill="toself",
            fillcolor=colour,
            opacity=0.2,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
    )


def _levels(plot: Any, rows: Any, across: list[Any]) -> None:
    """Baselines that know no site, from the first place to the last."""
    import plotly.graph_objects as go

    ends = [across[0], across[-1]] if len(across) > 1 else across
    if all(isinstance(place, int) for place in across):
        ends = [min(across), max(across)]
    for i, (_, row) in enumerate(rows.iterrows()):
        plot.add_trace(
            go.Scatter(
                x=ends,
                y=[row["mean"]] * len(ends),
                name=escape(f"{row['by']} {row['mean']:.3g}", quote=False),
                mode="lines" if len(ends) > 1 else "markers",
                line={"color": COLOURS[3 + i % 2], "dash": DASHES[1 + i % 2]},
                hoverlabel={"font": {"color": INK}},
            )
        )
