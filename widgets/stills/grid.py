"""A grid as a static picture: a table of coloured texts."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from workbench_widgets.stills.colours import CIVIDIS, PUOR

Kind = Literal["sequential", "diverging"]
_CELLS = 260
_LONGEST_TEXT = 10


def colours(values: np.ndarray, kind: Kind, lo: float, hi: float) -> np.ndarray:
    """`[..., 3]` uint8 of cividis (lo to hi) or PuOr (around 0); white where there is no number."""
    text = "".join(CIVIDIS if kind == "sequential" else PUOR).replace("#", "")
    stops = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3).astype(float)
    values = np.asarray(values, float)
    if kind == "diverging":
        t = (values / (max(abs(lo), abs(hi)) or 1.0) + 1) / 2
    else:
        t = (values - lo) / (hi - lo) if hi > lo else np.zeros_like(values)
    place = np.clip(np.nan_to_num(t), 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    share = (place - low)[..., None]
    mixed = np.rint(stops[low] * (1 - share) + stops[low + 1] * share)
    return np.where(np.isnan(values)[..., None], 255, mixed).astype(np.uint8)


def grid(
    rows: Sequence[str],
    cols: Sequence[str],
    values: np.ndarray,
    texts: Callable[[int, int], str],
    *,
    kind: Kind = "sequential",
    lo: float,
    hi: float,
    caption: str,
    row_name: str = "row",
    col_name: str = "column",
) -> str:
    """HTML below 20 kB, every text escaped.

    Args:
        rows: their labels, drawn from the top.
        values: `[row, col]`.
        texts: the text of a cell.
        caption: what the colours mean, in words.
    """
    paint = colours(values, kind, lo, hi)
    up, across = _shown(len(rows), len(cols))
    head = "".join(f"<th>{_cut(cols[c])}" for c in across)
    body = "".join(
        f"<tr><th>{_cut(rows[r])}"
        + "".join(f"<td style={_style(paint[r, c])}>{_cut(texts(r, c))}" for c in across)
        for r in up
    )
    left = _left_out(rows, cols, up, across, row_name, col_name)
    return (
        f'<table style="font:11px monospace;border-collapse:collapse"><tr><th>{html.escape(row_name)}'
        f"{head}{body}</table><p>{html.escape(caption)}, from {lo:.3g} to {hi:.3g}{left}</p>"
    )


def _shown(n_rows: int, n_cols: int) -> tuple[list[int], list[int]]:
    """Rows spread evenly with both ends, and the last columns: what fits the size of a still."""
    up = sorted({int(i) for i in np.linspace(0, n_rows - 1, min(n_rows, 16)).round()})
    room = max(1, _CELLS // max(1, len(up)))
    return up, list(range(max(0, n_cols - room), n_cols))


def _left_out(
    rows: Sequence[str],
    cols: Sequence[str],
    up: list[int],
    across: list[int],
    row_name: str,
    col_name: str,
) -> str:
    if len(up) == len(rows) and len(across) == len(cols):
        return ""
    return html.escape(
        f"; {len(up)} of {len(rows)} {row_name}s and the last {len(across)} of {len(cols)} {col_name}s"
    )


def _cut(text: str) -> str:
    return html.escape(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…")


def _style(rgb: np.ndarray) -> str:
    # three digits a colour: hundreds of cells have to fit
    code = "".join(f"{round(int(part) / 17):x}" for part in rgb)
    light = rgb.astype(float) @ (0.299, 0.587, 0.114) > 128
    return f'"background:#{code};color:#{"000" if light else "fff"}"'
