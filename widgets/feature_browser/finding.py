"""Which features a list shows: those whose texts hold the words asked for, filtered and in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError, unknown
from workbench_widgets.feature_browser.about import Described, cut_number

DENSE = 0.1
"""Share of tokens above which an active feature counts as dense."""
ORDERS = {
    "label": "F1 of the label",
    "largest": "largest activation",
    "density": "density",
    "number": "number",
}
NUMBERS = ("score", "low", "high", "p")
SHOWN = {
    "alive": "active ones",
    "sparse": f"sparse: on at most {DENSE:.0%} of tokens",
    "dense": f"dense: on more than {DENSE:.0%} of tokens",
    "dead": "dead: never active",
    "all": "all",
}


@dataclass(frozen=True)
class Ranking:
    """Scores of features, best first.

    Attributes:
        scores: score, low, high and p by feature; NaN where there is none.
        rank: place of each feature, from 1. What is best the ranking knows: a score far below chance
            may be.
        unit: of the score.
    """

    scores: Mapping[int, tuple[float, ...]]
    rank: Mapping[int, int]
    unit: str

    def of(self, feature: int) -> dict[str, Any] | None:
        """A feature's score in words that a browser can draw; None where it has none."""
        if feature not in self.scores:
            return None
        own = dict(zip(NUMBERS, map(cut_number, self.scores[feature]), strict=True))
        return {**own, "rank": self.rank[feature], "of": len(self.rank), "unit": self.unit}


def rankings_of(given: Mapping[str, Any] | None, described: Described) -> dict[str, Ranking]:
    """Rankings by name, as `sae.search` returns them.

    Raises:
        WorkbenchError: no mapping, a name that an order has already, no columns `feature` and
            `score`, or no feature that the dashboard describes.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _misfit("rankings", "is no mapping", "{name: ranking}", type(given).__name__)
    return {str(name): _ranking(str(name), one, described) for name, one in given.items()}


def _ranking(name: str, given: Any, described: Described) -> Ranking:
    where = f"rankings[{name!r}]"
    if name in ORDERS:
        raise _misfit(where, "is the name of an order already", f"none of {[*ORDERS]}", name)
    frame = given.frame() if hasattr(given, "frame") else given
    columns = list(getattr(frame, "columns", ()))
    if not {"feature", "score"} <= set(columns):
        wrong = columns or type(given).__name__
        raise _misfit(where, "is no ranking of features", "columns 'feature' and 'score'", wrong)
    parts = [frame[c] if c in columns else [np.nan] * len(frame) for c in NUMBERS]
    try:
        rows = zip(*(np.asarray(part, np.float64).tolist() for part in parts), strict=True)
        all_ = {int(f): row for f, row in zip(frame["feature"], rows, strict=True)}
    except (TypeError, ValueError) as reason:
        raise _misfit(where, "is no ranking of features", "numbers", str(reason)) from None
    scores = {f: row for f, row in all_.items() if np.isfinite(row[0])}
    if not set(scores) & set(described.place):
        raise _misfit(where, "ranks no feature of the dashboard", "its features", [*all_][:8])
    unit = str(frame["unit"].iloc[0]) if "unit" in columns else ""
    return Ranking(scores, {f: i + 1 for i, f in enumerate(scores)}, unit)


def find(
    described: Described,
    rankings: Mapping[str, Ranking],
    *,
    query: str = "",
    sort: str = "label",
    reverse: bool = False,
    show: str = "alive",
) -> list[int]:
    """Features whose texts hold every word of `query`, in order; "#12" is that feature alone.

    Raises:
        UnknownName: no such order or filter.
    """
    if show not in SHOWN:
        raise unknown("FeatureBrowser", "filter", show, list(SHOWN))
    words = query.lower().split()
    order = _ordered(described, rankings, sort, reverse)
    numbers = [w[1:] for w in words if w.startswith("#") and w[1:].isdigit()]
    if numbers:
        return [f for f in order if str(f) in numbers]
    keep = _kept(described, show)
    texts = described.texts() if words else []
    found = (f for f in order if keep[described.place[f]])
    return [f for f in found if all(w in texts[described.place[f]] for w in words)]


def _kept(described: Described, show: str) -> np.ndarray:
    density = described.density
    return {
        "alive": density > 0,
        "sparse": (density > 0) & (density <= DENSE),
        "dense": density > DENSE,
        "dead": density == 0,
        "all": np.ones(len(density), bool),
    }[show]


def _ordered(
    described: Described, rankings: Mapping[str, Ranking], sort: str, reverse: bool
) -> list[int]:
    """Largest or best first, features by number; those without a score last, either way."""
    if sort not in (*ORDERS, *rankings):
        raise unknown("FeatureBrowser", "order", sort, [*ORDERS, *rankings])
    if sort == "number":
        return sorted(described.features, reverse=reverse)
    if sort in rankings:
        rank = rankings[sort].rank
        keys = {f: -float(rank[f]) for f in described.features if f in rank}
    else:
        values = {
            "density": described.density,
            "largest": described.largest,
            "label": described.label_scores,
        }[sort]
        keys = {f: float(values[i]) for f, i in described.place.items()}
    known = sorted(keys, key=lambda f: (keys[f] if reverse else -keys[f], f))
    return known + sorted(set(described.features) - set(keys))


def _misfit(where: str, wrong: str, expected: str, got: Any) -> WorkbenchError:
    do = "pass what sae.search returns, by a name of your own"
    return WorkbenchError(
        f"FeatureBrowser, {where}", wrong, expected=expected, got=repr(got)[:80], do=do
    )
