"""Numbers that stand in a prompt, and how good a predicted distribution of a number is.

A probe of numbers reads a computation only where it does better than a number that stands in the prompt
already: the last one, or the mean of all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from workbench.errors import WorkbenchError
from workbench.shapes import Float, Tensor

# a minus, U+2212 too, is a sign only where no number, letter or bracket stands before it: "5-3" holds 5, 3
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\w)\]])[-−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d+)?"
)


def numbers_in(text: str) -> list[float]:
    """All numbers of a text in their order: digits, thousands in commas, decimals, exponents, signs."""
    return [float(found.replace(",", "").replace("−", "-")) for found in _NUMBER.findall(text)]


def last_number(text: str) -> float | None:
    """The last number of a text; None where there is none."""
    found = numbers_in(text)
    return found[-1] if found else None


def mean_number(text: str) -> float | None:
    """The mean of all numbers of a text; None where there is none."""
    found = numbers_in(text)
    return sum(found) / len(found) if found else None


def crossing_rate(quantiles: Mapping[float, Tensor]) -> float:
    """Share of examples whose quantiles are out of order somewhere.

    Args:
        quantiles: `[example]` by level, as a probe's `spread` gives them.
    """
    rising = torch.stack([quantiles[level] for level in sorted(quantiles)], -1)
    return float((rising.diff(dim=-1) < 0).any(-1).double().mean())


def coverage(
    quantiles: Mapping[float, Tensor], targets: Float[Tensor, " example"]
) -> dict[float, float]:
    """Share of targets inside each central interval, by the probability that the interval promises.

    Raises:
        WorkbenchError: no two levels lie symmetrically around 0.5.
    """
    found = {}
    for low in sorted(level for level in quantiles if level < 0.5):
        high = next((level for level in quantiles if abs(level + low - 1) < 1e-9), None)
        if high is not None:
            inside = (quantiles[low] <= targets) & (targets <= quantiles[high])
            found[round(high - low, 9)] = float(inside.double().mean())
    if not found:
        raise WorkbenchError(
            "coverage",
            "has no central interval",
            expected="levels in pairs such as 0.25 and 0.75",
            got=sorted(quantiles),
            do="fit the probe with such levels",
        )
    return dict(sorted(found.items()))
