"""The palettes of js/palette.js for pictures made in Python; tests/unit/test_palettes.py compares them."""

from __future__ import annotations

import math
from collections.abc import Sequence

CIVIDIS = [
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
]
PUOR = [
    "#7f3b08",
    "#b35806",
    "#e08214",
    "#fdb863",
    "#fee0b6",
    "#f7f7f7",
    "#d8daeb",
    "#b2abd2",
    "#8073ac",
    "#542788",
    "#2d004b",
]
OKABE_ITO = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000"]


def colour(value: float, lo: float, hi: float, diverging: bool) -> str:
    """`#rrggbb` of a value between `lo` and `hi`; a diverging scale has its middle at 0."""
    if diverging:
        most = max(abs(lo), abs(hi)) or 1.0
        return _between(PUOR, (value / most + 1) / 2)
    return _between(CIVIDIS, (value - lo) / ((hi - lo) or 1.0))


def ink_on(background: str) -> str:
    """Black or white, whichever reads better: a WCAG contrast of at least 4.5."""
    light = sum(
        w * _linear(c) for w, c in zip((0.2126, 0.7152, 0.0722), _rgb(background), strict=True)
    )
    return "#000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#fff"


def _between(stops: Sequence[str], t: float) -> str:
    place = max(0.0, min(1.0, t)) * (len(stops) - 1)
    i = min(len(stops) - 2, math.floor(place))
    low, high = _rgb(stops[i]), _rgb(stops[i + 1])
    mixed = (math.floor(a + (b - a) * (place - i) + 0.5) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _rgb(text: str) -> list[int]:
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def _linear(part: int) -> float:
    c = part / 255
    return c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
