"""Means with their 95 % intervals as a static picture: numbers in words, a bar beside them."""

from __future__ import annotations

import math
from typing import Any

from workbench_widgets.stills.words import number

WIDTH_PX = 110
COLOUR = "#0072b2"


def words(mean: Any, low: Any, high: Any) -> str:
    """`0.62 [0.51, 0.72]`; without an interval the mean alone."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return number(mean)
    return f"{number(mean)} [{number(low)}, {number(high)}]"


def bar(low: Any, high: Any, lo: float, hi: float, colour: str = COLOUR) -> str:
    """A bar from `low` to `high` on an axis from `lo` to `hi`; nothing where there is no interval."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)) or hi <= lo:
        return ""
    ends = [WIDTH_PX * min(max((v - lo) / (hi - lo), 0.0), 1.0) for v in (low, high)]
    return (
        f"<span style='display:inline-block;width:{WIDTH_PX}px'><span style='display:inline-block;"
        f"margin-left:{ends[0]:.0f}px;width:{max(2.0, ends[1] - ends[0]):.0f}px;height:6px;"
        f"background:{colour}'></span></span>"
    )
