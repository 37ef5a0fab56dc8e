"""A feature of the dictionary, from a Dashboard: label, numbers, top examples; and the edit made of it."""

from __future__ import annotations

from typing import Any

from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dictionary import Dictionary
from workbench.sae.transfer.raw import Coordinates
from workbench.tensors import Intervention
from workbench_widgets.feature_browser.about import examples_of
from workbench_widgets.feature_browser.steering import edit_of, modes_of
from workbench_widgets.stills.words import cut, number

BEFORE, AFTER = 24, 10
"""Tokens shown around the peak of an example."""
PROMOTED = 6
LABEL = 80
NOTHING = {"label": "", "numbers": "", "largest": 0.0, "examples": [], "promoted": []}


class Features:
    """Descriptions of features, each made once, and their edits.

    Args:
        dashboard: None where there is none; every feature then says so.
        dictionary: what edits are made with.
        examples: how many of each feature.
    """

    def __init__(self, dashboard: Dashboard | None, dictionary: Dictionary | None, examples: int):
        self.dashboard, self.dictionary, self.examples = dashboard, dictionary, examples
        known = () if dashboard is None else dashboard.features
        self._row = {int(feature): row for row, feature in enumerate(known)}
        self._kept: dict[int, dict[str, Any]] = {}

    def about(self, feature: int) -> dict[str, Any]:
        """Label, numbers in words, promoted tokens and examples, as JSON."""
        if feature not in self._kept:
            self._kept[feature] = self._made(feature)
        return self._kept[feature]

    def _made(self, feature: int) -> dict[str, Any]:
        board, row = self.dashboard, self._row.get(feature)
        if board is None:
            return {**NOTHING, "why": "no dashboard was given"}
        if row is None:
            return {**NOTHING, "why": "it is not on the dashboard"}
        density, largest, mean = (float(v[row]) for v in (board.density, board.largest, board.mean))
        examples = examples_of(board, feature, self.examples, BEFORE, AFTER)
        return {
            "label": cut(str(board.labels[row]), LABEL),
            "numbers": f"active on {number(100 * density)} % of {board.n_tokens:,} tokens, "
            f"mean {number(mean)} when active, at most {number(largest)}",
            "largest": largest,
            "examples": examples,
            "promoted": [text for text, _ in board.promoted(feature)[:PROMOTED]],
            "why": "" if examples else "it is active on no token of the dashboard's corpus",
        }

    @property
    def mode(self) -> str:
        """ "scale" where the dictionary allows it, else "add" where the dashboard knows how large
        features are, else "".
        """
        if isinstance(self.dictionary, Coordinates):
            return ""
        allowed = modes_of(self.dictionary)
        sized = "add" in allowed and self.dashboard is not None
        return "scale" if "scale" in allowed else "add" if sized else ""

    def edit(self, feature: int, strength: float) -> Intervention | None:
        """The edit; None where there is none, or its size is not known."""
        largest = float(self.about(feature)["largest"])
        if not self.mode or (self.mode == "add" and largest <= 0):
            return None
        return edit_of(self.dictionary, feature, self.mode, strength, largest)
