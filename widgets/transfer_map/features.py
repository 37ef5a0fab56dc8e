"""What a feature of the dictionary seems to read, from a Dashboard: label, numbers, top examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.sae.dashboards.board import Dashboard
from workbench_widgets.stills.words import cut, number

BEFORE, AFTER = 24, 10
"""Tokens shown around the peak of an example."""
PROMOTED = 6
LABEL = 80
NOTHING = {"label": "", "numbers": "", "largest": 0.0, "examples": [], "promoted": []}
NOT_THERE = "it is not on the dashboard"


class Features:
    """Descriptions of features, each made once.

    Args:
        dashboard: None where there is none; every feature then says so.
        examples: how many of each feature.
    """

    def __init__(self, dashboard: Dashboard | None, examples: int):
        self.dashboard, self.examples = dashboard, examples
        known = () if dashboard is None else dashboard.features
        self._row = {int(feature): row for row, feature in enumerate(known)}
        self._kept: dict[int, dict[str, Any]] = {}

    def label(self, feature: int) -> str:
        """The automatic label; "" where there is none."""
        row = self._row.get(feature)
        if row is None or self.dashboard is None:
            return ""
        return cut(str(self.dashboard.labels[row]), LABEL)

    def about(self, feature: int) -> dict[str, Any]:
        """Label, numbers in words, promoted tokens and examples, as JSON."""
        if feature not in self._kept:
            self._kept[feature] = self._made(feature)
        return self._kept[feature]

    def _made(self, feature: int) -> dict[str, Any]:
        row = self._row.get(feature)
        if self.dashboard is None or row is None:
            given = self.dashboard is not None
            return {**NOTHING, "why": NOT_THERE if given else "no dashboard was given"}
        board = self.dashboard
        density, largest, mean = (float(v[row]) for v in (board.density, board.largest, board.mean))
        ranks = range(min(self.examples, board.n_examples(feature)))
        examples = [self._example(feature, rank) for rank in ranks]
        return {
            "label": self.label(feature),
            "numbers": f"active on {number(100 * density)} % of {board.n_tokens:,} tokens, "
            f"mean {number(mean)} when active, at most {number(largest)}",
            "largest": largest,
            "examples": examples,
            "promoted": [text for text, _ in board.promoted(feature)[:PROMOTED]],
            "why": "" if examples else "it is active on no token of the dashboard's corpus",
        }

    def _example(self, feature: int, rank: int) -> dict[str, Any]:
        assert self.dashboard is not None
        one = self.dashboard.example(feature, rank, before=BEFORE, after=AFTER)
        return {
            "pieces": one.pieces,
            "values": [round(value, 4) for value in one.values],
            "peak": one.peak,
            "first": one.position - one.peak,
        }


def examples_in_words(about: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The examples' tokens as `stills.strip` draws them."""
    return [
        [
            {"text": text, "value": value, "changed": i == one["peak"]}
            for i, (text, value) in enumerate(zip(one["pieces"], one["values"], strict=True))
        ]
        for one in about["examples"]
    ]
