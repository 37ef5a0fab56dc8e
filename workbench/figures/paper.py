"""What all figures share: transparent paper, so that they fit light and dark pages, and one palette."""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

# Okabe-Ito, which colour-blind readers tell apart, without its black and yellow
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
BASE = "#888888"
INK = "#808080"
GRID = "rgba(128,128,128,0.25)"
CLEAR = "rgba(0,0,0,0)"
CHARACTER = 6.4
"""Mean width in pixels of a letter of the caption."""


def dressed(plot: Any, caption: str, **layout: Any) -> Any:
    """The plot in the house's clothes, its caption in as many lines as it takes."""
    plot.update_layout(**layout)
    lines = textwrap.wrap(caption, max(40, int((plot.layout.width or 700) / CHARACTER)))
    plot.update_xaxes(gridcolor=GRID, linecolor=INK, zeroline=False, automargin=True)
    plot.update_yaxes(gridcolor=GRID, linecolor=INK, zeroline=False, automargin=True)
    plot.update_layout(
        title={
            "text": "<br>".join(escape(line, quote=False) for line in lines),
            "font": {"size": 12},
            "x": 0,
            "xanchor": "left",
        },
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK},
        margin={"l": 20, "r": 20, "t": 25 + 16 * len(lines), "b": 50},
        modebar={"bgcolor": CLEAR, "color": INK},
        height=(plot.layout.height or 450) + 16 * (len(lines) - 1),
    )
    return plot


def shown(axis: Any) -> list[str]:
    """What an axis writes at its ticks."""
    return [str(label) for label in axis["shown"] or axis["labels"]]
