"""A HeadBoard as a static picture: heads by one score, the strongest in words, the most active tokens."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from workbench_widgets.head_board.scores import HeadScore
from workbench_widgets.patch_grid.still import bounds
from workbench_widgets.stills.grid import grid
from workbench_widgets.stills.intervals import words
from workbench_widgets.stills.words import cut, number, visible

EXAMPLES = 5


def still(
    score: HeadScore, examples: Mapping[str, Any] | None, best: Sequence[tuple[int, int]]
) -> str:
    """HTML without script, every text escaped."""
    values = score.values[0][::-1]
    kind, lo, hi = bounds(values)
    picture = grid(
        [str(n) for n in range(len(values))][::-1],
        [str(n) for n in range(values.shape[1])],
        values,
        lambda r, c: number(float(values[r, c])),
        kind=kind,
        lo=lo,
        hi=hi,
        caption=f"{cut(score.name, 80)} ({cut(score.unit, 40)}) of each head",
        row_name="layer",
        col_name="head",
    )
    strongest = "".join(
        f"<li>L{layer} head {head}: {words(*(float(v) for v in score.values[:3, layer, head]))}"
        for layer, head in best
    )
    return f"<div>{picture}<ol>{strongest}</ol>{_active(examples)}</div>"


def _active(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rows = "".join(f"<li>{number(row['value'])}: {_text(row)}" for row in found["rows"][:EXAMPLES])
    return f"<p>most active, {html.escape(cut(found['name'], 60))}</p><ul>{rows}</ul>"


def _text(row: Mapping[str, Any]) -> str:
    texts = [html.escape(cut(visible(piece), 24)) for piece in row["pieces"]]
    texts[row["at"]] = f"<b>{texts[row['at']]}</b>"
    return " ".join(texts)
