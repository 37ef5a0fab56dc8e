"""The numbers of a board: per arm and metric the mean, its interval, and the paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.comparison.pass_at_k import pass_at_k
from workbench.comparison.stats import Interval, holm, mean_interval, paired_difference
from workbench.comparison.summary import summarise
from workbench.comparison.table import COMPARED
from workbench.rl import Step
from workbench_widgets.rollout_board.board import Board

KEPT = ("mean", "low", "high", "difference", "difference_low", "difference_high", "p", "n")
LEVEL = 0.05

Line = dict[str, Any]


class Figures:
    """Lines of the picture. A line is computed when its arm has answered another seed, and then kept."""

    def __init__(self, board: Board, ks: Sequence[int]):
        self.board, self.ks = board, list(ks)
        self._kept: dict[tuple[str, int], list[Line]] = {}

    def lines(self) -> list[Line]:
        """A line for every arm and measure, p-values Holm-corrected over the metrics, and over the
        pass@k, of what is there so far. An arm under way is compared on the seeds that it has.
        """
        found = [line for arm in self.board.arms for line in self._of(arm.name)]
        for family in (False, True):
            mine = [line for line in found if (line["metric"].startswith("pass@")) == family]
            for line, p in zip(mine, holm([line["p"] for line in mine]), strict=True):
                line["p_holm"] = p
                apart = line["difference_low"] > 0 or line["difference_high"] < 0
                inside_seeds = abs(line["difference"]) < line["seed_sd"]
                line["differs"] = bool(apart and p < LEVEL and not inside_seeds)
        return found

    def _of(self, name: str) -> list[Line]:
        seeds = self.board.seeds_of(name)
        if not seeds or not self.board.seeds_of(self.board.base):
            return []
        if (name, len(seeds)) not in self._kept:
            self._kept[name, len(seeds)] = self._metrics(name, seeds) + self._passes(name, seeds)
        return self._kept[name, len(seeds)]

    def _metrics(self, name: str, seeds: list[int]) -> list[Line]:
        import pandas as pd

        names = dict.fromkeys([self.board.base, name])
        frame = pd.DataFrame(self.board.rows(names, seeds), columns=list(COMPARED))
        summary = summarise(frame, self.board.base)
        rows = summary[summary["arm"] == name].to_dict("records")
        return [
            {"arm": name, "metric": r["metric"], "seed_sd": r["seed_sd"]} | {k: r[k] for k in KEPT}
            for r in rows
        ]

    def _passes(self, name: str, seeds: list[int]) -> list[Line]:
        if "accuracy" not in self.board.job.metrics:
            return []
        own, base = self._right(name, seeds), self._right(self.board.base, seeds)
        is_base = name == self.board.base
        return [
            _line(name, k, pass_at_k(own, k), None if is_base else pass_at_k(base, k))
            for k in self.ks
            if k <= len(seeds)
        ]

    def _right(self, name: str, seeds: list[int]) -> np.ndarray:
        """`[prompt, seed]`, 1 where right."""
        rows = [r for r in self.board.rows([name], seeds) if r[3] == "accuracy"]
        order = {seed: i for i, seed in enumerate(seeds)}
        right = np.zeros((len(self.board.prompts), len(seeds)))
        for _, prompt, seed, _, value, _ in rows:
            right[prompt, order[seed]] = value
        return right


def _line(name: str, k: int, own: np.ndarray, base: np.ndarray | None) -> Line:
    mean = mean_interval(own, proportion=True)
    nan = math.nan
    gap = Interval(nan, nan, nan, 0) if base is None else paired_difference(own, base, True)
    return {
        "arm": name,
        "metric": f"pass@{k}",
        "seed_sd": nan,
        "mean": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "difference": gap.mean,
        "difference_low": gap.low,
        "difference_high": gap.high,
        "p": nan if gap.p is None else gap.p,
        "n": mean.n,
    }


def curve(steps: Sequence[Step]) -> dict[str, list[float]]:
    """Mean reward of every step with the 95 % interval over its prompts."""
    found = [mean_interval(step.rewards) for step in steps]
    return {
        "mean": [i.mean for i in found],
        "low": [i.low for i in found],
        "high": [i.high for i in found],
    }
