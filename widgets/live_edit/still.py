"""LiveEdit as a static picture: both continuations and the next token's probabilities."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

BAR_PX = 160
TEXT_MOST = 6000
"""Characters of a continuation, escaped."""
ROWS_MOST = 30


def still(frame: Mapping[str, Any], spec: Mapping[str, Any], words: str) -> str:
    """HTML without script; every text is escaped."""
    return f"<div>{_rows(spec)}{_texts(frame)}{_next(frame)}<p><small>{words}</small></p></div>"


def _rows(spec: Mapping[str, Any]) -> str:
    said = "".join(f"<li>{_row(row)}</li>" for row in spec["rows"][:ROWS_MOST])
    return f"<ul>{said}</ul>" if said else ""


def _row(row: Mapping[str, Any]) -> str:
    named = f"{row.get('label') or row.get('id')} at {row.get('site', '')}"
    off = "" if row["on"] else " (off)"
    return html.escape(f"{named}: strength {row['strength']:g}, scope {row.get('scope')}{off}")


def _texts(frame: Mapping[str, Any]) -> str:
    cells = []
    for side in ("base", "edited"):
        found = frame.get(side)
        if found:
            text = _cut("".join(found["tokens"]))
            verdict = {True: " (right)", False: " (wrong)"}.get(found.get("right"), "")
            cells.append(
                f"<td style='vertical-align:top'><b>{side}</b>{verdict}<pre>{text}</pre></td>"
            )
    return f"<table><tr>{''.join(cells)}</tr></table>"


def _cut(text: str) -> str:
    """Escaped, and cut where that makes it too long."""
    out, length = [], 0
    for character in map(html.escape, text):
        length += len(character)
        if length > TEXT_MOST:
            return "".join([*out, "…"])
        out.append(character)
    return "".join(out)


def _next(frame: Mapping[str, Any]) -> str:
    if "next" not in frame:
        return ""
    near = frame["next"]
    rows = "".join(
        f"<tr><td><code>{html.escape(repr(token))}</code></td>"
        f"{_bar(base, '#777')}{_bar(edited, '#0072b2')}</tr>"
        for token, base, edited in zip(near["tokens"], near["base"], near["edited"], strict=True)
    )
    head = "<tr><th>next token</th><th>base</th><th>edited</th></tr>"
    return f"<table>{head}{rows}</table>"


def _bar(p: float, colour: str) -> str:
    width = round(p * BAR_PX)
    block = (
        f"<span style='display:inline-block;height:9px;width:{width}px;background:{colour}'></span>"
    )
    return f"<td>{block} {p:.3f}</td>"
