"""TokenStrip as a static picture: the strips, and mean, smallest and largest value of each."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from workbench_widgets.stills.strip import number, still_strip


def still(title: str, row: str, frame: Mapping[str, Any], words: str) -> str:
    """HTML without script; every text is escaped."""
    if not frame:
        return f"<p>{html.escape(words)}</p>"
    place = frame["names"].index(row) if row in frame["names"] else None
    scale = None if place is None else frame["scales"][place]
    strips = "".join(still_strip(tokens, scale) for tokens in rows(frame, place))
    head = f"<b>{html.escape(title)}</b>" if title else ""
    return f"<div>{head}{strips}{_numbers(frame, row, place)}<p><small>{html.escape(words)}</small></p></div>"


def rows(frame: Mapping[str, Any], place: int | None) -> list[list[dict[str, Any] | None]]:
    """The tokens of each side with value and change; gaps where the other side has one more."""
    values = [
        None if place is None or k not in frame else frame[k][place]
        for k in ("values", "other_values")
    ]
    sides = [
        [
            {"text": t, "shown": s, "value": None if v is None else float(v[i])}
            for i, (t, s) in enumerate(zip(side["text"], side["shown"], strict=True))
        ]
        for side, v in zip(frame["sides"], values, strict=False)
    ]
    if "pairs" not in frame:
        return [list(side) for side in sides]
    out: list[list[dict[str, Any] | None]] = [[], []]
    for i, j in frame["pairs"].tolist():
        pair = [sides[0][i] if i >= 0 else None, sides[1][j] if j >= 0 else None]
        texts = [(t["text"], t["shown"]) if t else None for t in pair]
        for line, token in zip(out, pair, strict=True):
            line.append(None if token is None else {**token, "changed": texts[0] != texts[1]})
    return out


def _numbers(frame: Mapping[str, Any], row: str, place: int | None) -> str:
    if place is None:
        return ""
    unit = html.escape(frame["scales"][place]["unit"])
    head = "".join(f"<th>{name}</th>" for name in ("tokens", "mean", "min", "max"))
    body = "".join(
        f"<tr><td>{html.escape(row)} ({unit or 'no unit'})</td><td>{s['n']}</td>"
        + "".join(f"<td>{number(s[key])}</td>" for key in ("mean", "min", "max"))
        + "</tr>"
        for s in frame["summaries"][place]
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"
