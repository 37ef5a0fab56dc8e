"""A dashboard as HTML without scripts: its most telling features, their examples coloured by activation."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

SHOWN = 12
_STYLE = """<style>
.wb-board{border-collapse:collapse;font-size:13px;color:inherit;background:transparent}
.wb-board th,.wb-board td{padding:4px 10px;text-align:left;vertical-align:top;border:none;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.4));color:inherit;
background:transparent}
.wb-board code{white-space:pre;font-size:12px;background:transparent;color:inherit}
</style>"""
_HEAD = ("feature", "label", "density", "largest", "promotes", "strongest example")


def as_html(board: Any) -> str:
    """A row for each of the features with the best labels, `SHOWN` at most."""
    order = np.lexsort((-board.density, -board.label_scores))[:SHOWN]
    rows = "".join(_row(board, int(i)) for i in order)
    head = "".join(f"<th scope='col'>{name}</th>" for name in _HEAD)
    more = f"; the {len(order)} best labelled" if len(board) > len(order) else ""
    return (
        f"{_STYLE}<code>{escape(repr(board))}</code>{more}"
        f"<table class='wb-board'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(board: Any, i: int) -> str:
    feature = board.features[i]
    promoted = " ".join(_visible(text) for text, _ in board.promoted(feature)[:4])
    example = _example(board.example(feature)) if board.n_examples(feature) else "never fires"
    cells = [
        str(feature),
        escape(board.labels[i]),
        f"{board.density[i]:.2%}",
        f"{board.largest[i]:.3g}",
        f"<code>{escape(promoted)}</code>",
        f"<code>{example}</code>",
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _example(example: Any) -> str:
    top = max(example.values) or 1.0
    return "".join(
        f"<span title='{value:.3g}' style='background:rgba(230,159,0,{0.7 * value / top:.2f})'>"
        f"{escape(_visible(piece))}</span>"
        for piece, value in zip(example.pieces, example.values, strict=True)
    )


def _visible(text: str) -> str:
    return text.replace("\n", "\u21b5")
