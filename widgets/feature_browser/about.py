"""What a Dashboard says of one feature, as plain values that a browser can draw.

Numbers are cut to four digits: three are shown, and a page keeps many of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.sae.dashboards.board import Dashboard

DIGITS = 4
BEFORE, AFTER = 12, 8
"""Tokens of an example ahead of its peak and behind it."""


class Described:
    """The features of a dashboard by their own numbers.

    Args:
        dashboard: what `sae.dashboard` returns.
    """

    def __init__(self, dashboard: Dashboard):
        self.dashboard = expect("FeatureBrowser(dashboard)", dashboard, Dashboard)
        self.features = [int(f) for f in dashboard.features]
        self.place = {feature: i for i, feature in enumerate(self.features)}
        self.density = np.asarray(dashboard.density, np.float64)
        self.largest = np.asarray(dashboard.largest, np.float64)
        self.label_scores = np.asarray(dashboard.label_scores, np.float64)
        self._texts: list[str] | None = None

    def row(self, feature: Any) -> int:
        """Where a feature stands in the dashboard.

        Raises:
            WorkbenchError: it is not described there.
        """
        if (
            isinstance(feature, Integral)
            and not isinstance(feature, bool)
            and int(feature) in self.place
        ):
            return self.place[int(feature)]
        raise WorkbenchError(
            "FeatureBrowser",
            "the dashboard describes no such feature",
            expected=_some(self.features),
            got=repr(feature),
            do="choose one of them, or make a dashboard with features=[...]",
        )

    def label(self, feature: int) -> str:
        """A feature's automatic label."""
        return str(self.dashboard.labels[self.place[feature]])

    def about(self, feature: int, rankings: Mapping[str, Any], most: int) -> dict[str, Any]:
        """Everything about one feature, with at most `most` examples."""
        i, board = self.row(feature), self.dashboard
        return {
            "feature": feature,
            "label": self.label(feature),
            "f1": cut_number(self.label_scores[i]),
            "control": cut_number(board.label_controls[i]),
            "density": cut_number(self.density[i]),
            "largest": cut_number(self.largest[i]),
            "mean": cut_number(board.mean[i]),
            "histogram": [int(n) for n in board.histogram[i]],
            "examples": examples_of(board, feature, most, BEFORE, AFTER),
            "promoted": _effects(board.promoted(feature)),
            "suppressed": _effects(board.suppressed(feature)),
            "correlated": self._relatives("correlated", i),
            "neighbours": self._relatives("neighbour", i),
            "scores": [
                {"name": name, **score}
                for name, ranking in rankings.items()
                if (score := ranking.of(feature)) is not None
            ],
        }

    def texts(self) -> list[str]:
        """What a search looks at, a lower-case text per feature: label, promoted tokens, examples."""
        if self._texts is None:
            self._texts = [self._searched(feature) for feature in self.features]
        return self._texts

    def _searched(self, feature: int) -> str:
        board, corpus = self.dashboard, self.dashboard.corpus
        rows = board.example_rows[self.place[feature]]
        # not board.example: it makes the feature's activations dense for each
        windows = (corpus.window(int(row), BEFORE, AFTER) for row in rows if row >= 0)
        examples = ("".join(corpus.pieces[window]) for window in windows)
        return searched(
            self.label(feature), (text for text, _ in board.promoted(feature)), examples
        )

    def _relatives(self, kind: str, row: int) -> list[dict[str, Any]]:
        ids = getattr(self.dashboard, f"{kind}_ids")[row]
        values = getattr(self.dashboard, f"{kind}_values")[row]
        return [
            {
                "feature": int(j),
                "value": cut_number(v),
                "label": self.label(int(j)) if int(j) in self.place else None,
            }
            for j, v in zip(ids, values, strict=True)
            if int(j) >= 0
        ]


def examples_of(
    board: Dashboard, feature: int, most: int, before: int, after: int
) -> list[dict[str, Any]]:
    """The tokens around a feature's strongest ones, at most `most` of these."""
    ranks = range(min(most, board.n_examples(feature)))
    return [
        {
            "pieces": one.pieces,
            "values": [cut_number(v) for v in one.values],
            "peak": one.peak,
            "prompt": one.prompt,
            "position": one.position,
        }
        for one in (board.example(feature, k, before, after) for k in ranks)
    ]


def _effects(tokens: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"text": text, "value": cut_number(value)} for text, value in tokens]


def searched(label: str, tokens: Iterable[str], examples: Iterable[str]) -> str:
    """One lower-case text of everything that words are looked for in; shown.js has the same."""
    return "\n".join([label, " ".join(tokens), *examples]).lower()


def cut_number(value: Any) -> float | None:
    """A number to four digits; None where there is none."""
    value = float(value)
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def expect(where: str, given: Any, kind: type) -> Any:
    """`given`, where it is of this kind.

    Raises:
        WorkbenchError: it is not.
    """
    if isinstance(given, kind):
        return given
    raise WorkbenchError(
        where,
        "takes nothing else",
        expected=f"a {kind.__name__}",
        got=type(given).__name__,
        do="see the docstring for the order of arguments",
    )


def same_name(one: str, other: str) -> bool:
    """Whether two dictionaries may be the same, by their names; the folder that one lies in tells nothing."""
    last = [str(name or "").rstrip("/").rpartition("/")[2] for name in (one, other)]
    return not all(last) or last[0] == last[1]


def _some(features: Sequence[int]) -> str:
    if features == list(range(len(features))):
        return f"0 to {len(features) - 1}"
    said = ", ".join(map(str, features[:8]))
    return said + (f", … ({len(features)} features)" if len(features) > 8 else "")
