"""A board as a static picture: a table of arms and measures, each with its interval."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from workbench_widgets.stills.intervals import bar, words
from workbench_widgets.stills.words import cut

ROWS = 24
NAME = 40
"""Characters of a name."""
BUDGET = 17_000
"""Bytes of all tables."""


def still(frame: Mapping[str, Any], meta: Mapping[str, Any], said: str) -> str:
    """HTML without script, below 20 kB; every text is escaped."""
    tables, left = [], BUDGET
    parts = [part for about in meta["metrics"] if (part := _metric(frame, about))]
    for part in parts:
        left -= len(part.encode())
        if left < 0:
            break
        tables.append(part)
    more = len(parts) - len(tables)
    rest = f"<p>… {more} more measures</p>" if more else ""
    return f"<div>{''.join(tables)}{rest}<p>{html.escape(said)}</p></div>"


def _metric(frame: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    lines = [line for line in frame.get("lines", []) if line["metric"] == about["name"]]
    known = [v for line in lines for v in (line["low"], line["high"]) if v is not None]
    lo, hi = (min(known), max(known)) if known else (0.0, 0.0)
    most = max(2, ROWS // max(1, len(frame.get("measures", [1]))))
    rows = "".join(_row(line, lo, hi) for line in lines[:most])
    more = len(lines) - most
    left = f"<tr><td>… {more} more arms</td></tr>" if more > 0 else ""
    title = html.escape(f"{cut(about['name'], NAME)} ({cut(about['unit'], NAME)})")
    head = (
        f"<th>{title}</th><th>mean, 95 % interval</th><th></th><th>difference to the baseline</th>"
    )
    return f"<table><tr>{head}</tr>{rows}{left}</table>" if lines else ""


def _row(line: Mapping[str, Any], lo: float, hi: float) -> str:
    gap = words(line["difference"], line["difference_low"], line["difference_high"])
    mark = " *" if line["differs"] else ""
    own = words(line["mean"], line["low"], line["high"])
    return (
        f"<tr><td>{html.escape(cut(line['arm'], NAME))}</td><td>{own}</td>"
        f"<td>{bar(line['low'], line['high'], lo, hi)}</td><td>{gap}{mark}</td></tr>"
    )
