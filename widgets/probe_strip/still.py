"""ProbeStrip as a static picture: both texts coloured by the score, and where it ends."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from workbench_widgets.stills.strip import still_strip
from workbench_widgets.stills.words import cut, number

STRIP_BYTES = 8_000


def still(
    frame: Mapping[str, Any], spec: Mapping[str, Any], meta: Mapping[str, Any], words: str
) -> str:
    """HTML without script, every text escaped.

    Args:
        words: escaped already.
    """
    foot = f"<p><small>{words}</small></p>"
    if "base" not in frame:
        return f"<div>{foot}</div>"
    which = [probe["name"] for probe in meta["probes"]].index(frame["of"]["probe"])
    about, threshold = meta["probes"][which], float(spec["threshold"])
    sides = [(name, frame[name]) for name in ("base", "edited") if frame.get(name)]
    offset = 0.0 if about["number"] else threshold
    scale = _scale([_shown(side, which) for _, side in sides], about["number"], offset)
    parts = [_side(name, side, which, about, offset, scale) for name, side in sides]
    unit = "predicted number" if about["number"] else f"score, threshold {number(threshold)}"
    head = f"<b>{html.escape(cut(about['name'], 80))}</b> ({unit})"
    return f"<div>{head}{''.join(parts)}{foot}</div>"


def ended(side: Mapping[str, Any], which: int) -> float | None:
    """The score so far at the last token; of a numeric probe the smoothed number."""
    lines = side["scores"][which]
    return (lines.get("running") or lines.get("smooth") or lines["score"])[-1]


def passed(side: Mapping[str, Any], which: int, threshold: float) -> int | None:
    """The first token at which the score so far is at or above the threshold."""
    lines = side["scores"][which]
    found = lines.get("running") or lines["score"]
    return next((i for i, v in enumerate(found) if v is not None and v >= threshold), None)


def _side(
    name: str,
    side: Mapping[str, Any],
    which: int,
    about: Mapping[str, Any],
    offset: float,
    scale: Mapping[str, Any],
) -> str:
    values = side["scores"][which]["score"]
    tokens = [
        {"text": text, "value": None if v is None else v - offset}
        for text, v in zip(side["tokens"], values, strict=True)
    ]
    said = f"{name}: ends at {number(ended(side, which))}"
    if not about["number"]:
        at = passed(side, which, offset)
        said += ", never passes" if at is None else f", passes at token {at}"
    return f"<div>{said}</div>{still_strip(tokens, scale, STRIP_BYTES)}"


def _shown(side: Mapping[str, Any], which: int) -> list[float]:
    values = side["scores"][which]["score"][side["skip"] :]
    return [v for v in values if v is not None]


def _scale(lines: Sequence[Sequence[float]], sequential: bool, offset: float) -> dict[str, Any]:
    every = [v - offset for values in lines for v in values] or [0.0]
    if sequential:
        return {"kind": "sequential", "lo": min(every), "hi": max(every)}
    most = max(map(abs, every)) or 1.0
    return {"kind": "diverging", "lo": -most, "hi": most}
