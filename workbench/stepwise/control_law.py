"""ReBalance's coefficient as a function of a step's confidence c and its variance v.

    F1(c) = a + b tanh(k (c - m)),   m = (q25 + q75) / 2,   a = low1 / 2,   b = -low1 / (2 tanh(k IQR / 2))
    F1(q25) = low1,   F1(q75) = 0,   and k solves F1(1) = 0.01
    alpha = F1(c) + (low2 - F1(q25)) w_low + (high2 - F1(1)) w_high,  clamped to
            [min(low1, low2), max(0.01, high2)]

w_low is about 1 where c <= q25 of the confidences and v >= q75 of the variances, w_high where c >= q75 and
v <= q25; both are products of two steep sigmoids over their value at the corner, at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

END = 0.01
"""F1 at confidence 1."""
STEEP = 1200.0
_TINY = 1e-12


@dataclass(frozen=True)
class ControlLaw:
    """The law and the quartiles of confidence (c) and variance (v) it is calibrated on.

    Attributes:
        k: slope; 0 is the straight line through the two quartiles, for the case that no k gives
            F1(1) = 0.01.
    """

    q25_c: float
    q75_c: float
    q25_v: float
    q75_v: float
    low1: float
    low2: float
    high2: float
    k: float

    def f1(self, c: float) -> float:
        """The first part, of the confidence alone."""
        middle, spread = (self.q25_c + self.q75_c) / 2, self.q75_c - self.q25_c
        if not self.k:
            return self.low1 / 2 - self.low1 * (c - middle) / spread
        b = -self.low1 / (2 * math.tanh(self.k * spread / 2))
        return self.low1 / 2 + b * math.tanh(self.k * (c - middle))

    def alpha(self, c: float, v: float) -> float:
        """The coefficient after a step of confidence `c` and variance `v`."""
        low = self._gate(self.q25_c - c, v - self.q75_v) / 0.25
        corner = self._gate(1 - self.q75_c, 0.0)
        high = self._gate(c - self.q75_c, self.q25_v - v) / corner
        total = (
            self.f1(c)
            + (self.low2 - self.f1(self.q25_c)) * min(low, 1.0)
            + (self.high2 - self.f1(1.0)) * min(high, 1.0)
        )
        return min(max(total, min(self.low1, self.low2)), max(END, self.high2))

    def _gate(self, over_c: float, over_v: float) -> float:
        widths = max(self.q75_c - self.q25_c, _TINY), max(self.q75_v - self.q25_v, _TINY)
        return _sigmoid(STEEP * over_c / widths[0]) * _sigmoid(STEEP * over_v / widths[1])


def slope(q25: float, q75: float, low1: float) -> float:
    """The k with F1(1) = 0.01; 0 where there is none, 1 being too close to q75.

    `tanh(k (1 - m)) / tanh(k IQR / 2)` falls with k from `(1 - m) / (IQR / 2)` to 1.
    """
    wanted = 1 + 2 * END / abs(low1)
    end, half = 1 - (q25 + q75) / 2, (q75 - q25) / 2
    if end / half <= wanted:
        return 0.0
    below, above = 0.0, 40.0 / half
    for _ in range(200):
        k = (below + above) / 2
        below, above = (
            (k, above) if math.tanh(k * end) > wanted * math.tanh(k * half) else (below, k)
        )
    return (below + above) / 2


def variance(c: float, before: float | None) -> float:
    """Population variance of two neighbouring confidences; 0 for a first step."""
    return 0.0 if before is None else (c - before) ** 2 / 4


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-min(max(x, -700.0), 700.0)))
