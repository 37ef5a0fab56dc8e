"""A TransferMap as a static picture: the grid, the correlations in words, the opened pair's features."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench_widgets.patch_grid.still import bounds
from workbench_widgets.stills.grid import grid
from workbench_widgets.stills.intervals import words
from workbench_widgets.stills.strip import still_strip
from workbench_widgets.stills.words import cut, number

MOST = 19_500
"""Bytes of the whole picture."""
FEATURES, EXAMPLES, STRIP, NAME = 8, 2, 2_000, 24
COLOURS = (
    ("score", "forecast score"),
    ("change", "measured change of accuracy, points"),
    ("ranks", "ranks that the forecast puts a target above its measured place"),
)


def still(
    frame: Mapping[str, Any],
    meta: Mapping[str, Any],
    spec: Mapping[str, Any],
    view: Mapping[str, Any],
) -> str:
    """HTML without script, every text escaped."""
    head = f"{_grid(frame, meta, view)}{_statistics(frame, meta, spec, view)}"
    left = MOST - len(head.encode()) - 20
    found = _opened(frame, meta, spec)
    return f"<div>{head}{found if len(found.encode()) <= left else ''}</div>"


def _grid(frame: Mapping[str, Any], meta: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    name, said = COLOURS[_colour(meta, view)]
    values = np.asarray(frame[name], float) * (100 if name == "change" else 1)
    kind, lo, hi = bounds(values)
    unit = f" ({meta['unit']})" if name == "score" and meta["unit"] else ""
    about = f"<p>{html.escape(cut(meta['caption'], 300))}</p>"
    return about + grid(
        meta["sources"],
        meta["targets"],
        values,
        lambda r, c: amount(float(values[r, c])),
        kind=kind,
        lo=lo,
        hi=hi,
        caption=f"{said}{cut(unit, 60)}",
        row_name="source",
        col_name="target",
    )


def amount(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.0f}".replace("-", "−") if abs(value) >= 1000 else number(value)


def _colour(meta: Mapping[str, Any], view: Mapping[str, Any]) -> int:
    return min(max(int(view.get("colour") or 0), 0), 2) if meta["measured"] else 0


def _statistics(
    frame: Mapping[str, Any],
    meta: Mapping[str, Any],
    spec: Mapping[str, Any],
    view: Mapping[str, Any],
) -> str:
    at = len(meta["sources"]) if view.get("pooled") else min(spec["source"], len(meta["sources"]))
    found = frame["stats"][at]
    lines = found["words"] if found else ["No measured changes."]
    return f"<ul>{''.join(f'<li>{html.escape(cut(line, 240))}' for line in lines)}</ul>"


def _opened(frame: Mapping[str, Any], meta: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    found = frame.get("opened")
    if not found or found["target"] != spec["target"] or found["source"] != spec["source"]:
        return ""
    s, t = found["source"], found["target"]
    mean, low, high = (float(frame[k][s, t]) for k in ("score", "score_low", "score_high"))
    score = f"{amount(mean)} [{amount(low)}, {amount(high)}]"
    title = f"{cut(meta['sources'][s], NAME)} → {cut(meta['targets'][t], NAME)}: forecast {score}"
    if meta["measured"]:
        change = (100 * float(frame[k][s, t]) for k in ("change", "change_low", "change_high"))
        title += f", measured change {words(*change)} points"
    rows = "".join(
        f"<tr><td>{row['feature']}<td>{_known(row['value'])}<td>{_known(row['shift'])}"
        f"<td>{html.escape(cut(found['features'][str(row['feature'])]['label'], 60))}"
        for row in found["contributions"][:FEATURES]
    )
    head = "<tr><th>feature<th>adds to the score<th>shift<th>seems to read"
    return f"<p>{html.escape(title)}</p><table>{head}{rows}</table>{_examples(found, spec)}"


def _known(value: float | None) -> str:
    return "–" if value is None else amount(value)


def _examples(found: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    ids = [row["feature"] for row in found["contributions"]]
    feature = spec["feature"] if spec["feature"] in ids else next(iter(ids), None)
    if feature is None:
        return ""
    about = found["features"][str(feature)]
    scale = {"kind": "sequential", "lo": 0.0, "hi": about["largest"] or 1.0}
    shown = about["examples"][:EXAMPLES]
    strips = "".join(still_strip(_tokens(one), scale, STRIP) for one in shown)
    return f"<p>feature {feature}: {html.escape(about['numbers'] or about['why'])}</p>{strips}"


def _tokens(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An example's tokens as `stills.strip` draws them."""
    tokens = zip(example["pieces"], example["values"], strict=True)
    return [
        {"text": text, "value": value, "changed": i == example["peak"]}
        for i, (text, value) in enumerate(tokens)
    ]
