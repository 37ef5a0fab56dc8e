"""TokenStrip as a static picture: the strips, and mean, smallest and largest value of each."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from workbench_widgets.stills.strip import BYTES, still_strip
from workbench_widgets.stills.words import cut, number

MOST = 19_500
"""Bytes of the whole picture; names take theirs first, the strips share what is left."""
STYLE = 150
"""Bytes around the tokens of one strip."""


def still(title: str, row: str, frame: Mapping[str, Any], words: str) -> str:
    """HTML without script; every text is escaped."""
    words = html.escape(cut(words))
    if not frame:
        return f"<p>{words}</p>"
    place = frame["names"].index(row) if row in frame["names"] else None
    scale = None if place is None else frame["scales"][place]
    head = f"<div><b>{html.escape(cut(title))}</b>" if title else "<div>"
    foot = f"{_numbers(frame, row, place)}<p><small>{words}</small></p></div>"
    texts = rows(frame, place)
    left = MOST - len(f"{head}{foot}".encode()) - STYLE * len(texts)
    strips = [still_strip(tokens, scale, min(BYTES, left // len(texts))) for tokens in texts]
    return f"{head}{''.join(strips)}{foot}"


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
    row, unit = html.escape(cut(row)), html.escape(cut(frame["scales"][place]["unit"]))
    head = "".join(f"<th>{name}</th>" for name in ("tokens", "mean", "min", "max"))
    body = "".join(
        f"<tr><td>{row} ({unit or 'no unit'})</td><td>{s['n']}</td>"
        + "".join(f"<td>{number(s[key])}</td>" for key in ("mean", "min", "max"))
        + "</tr>"
        for s in frame["summaries"][place]
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"
