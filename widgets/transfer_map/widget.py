"""TransferMap: the forecast of every source for every target, beside what fine-tuning then changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench import worker
from workbench.errors import WorkbenchError, unknown
from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dictionary import Dictionary
from workbench.sae.transfer.forecasts import Forecast
from workbench.tensors import Intervention
from workbench_widgets.base import Widget
from workbench_widgets.feature_browser.steering import strength_of
from workbench_widgets.frames import pack
from workbench_widgets.stills.words import number
from workbench_widgets.transfer_map import reading
from workbench_widgets.transfer_map.code import cell
from workbench_widgets.transfer_map.features import Features
from workbench_widgets.transfer_map.still import still

STRENGTH = {"min": -1.0, "max": 3.0, "step": 0.1}
PAIRS_KEPT = 400
FEATURES_KEPT = 40
"""Features whose examples go with a page without a kernel; a feature takes about 3 kB."""


@dataclass(frozen=True)
class Pair:
    """What is chosen on a TransferMap.

    Attributes:
        source, target: names of the domains.
        features: the shifted dimensions that add most to the score, the largest part first.
        feature: the one that is looked at; None where the source has none.
        score, low, high: the forecast and its interval over prompts; NaN where there is none.
        change, change_low, change_high: measured change of accuracy, a fraction; NaN likewise.
        edit: scales the feature's own activation, or adds it where the dictionary's features depend on
            one another; None without a dictionary, or where the feature's size is not known.
    """

    source: str
    target: str
    features: tuple[int, ...]
    feature: int | None
    score: float
    low: float
    high: float
    change: float
    change_low: float
    change_high: float
    edit: Intervention | None


class TransferMap(Widget):
    """What fine-tuning on each source domain is forecast to move, and whether it did.

    A grid of sources by targets, coloured by the forecast, by the measured change of accuracy, or by the
    difference of their ranks; beside it the forecast against the size of the measured change, for one
    source or all, with Pearson r, its Fisher interval, the permutation p, Spearman, the band that random
    dimensions give, and r of the forecast's other controls. A cell opens on the shifted features that
    carry its score, and what each of them reads; a slider makes the feature an edit.

    Args:
        forecast: of `sae.forecast`, with measured changes where it has been `.against` them.
        dashboard: of the same dictionary: labels and examples of features.
        dictionary: of the same features: what an edit needs.
        model: names the model in `to_code()`.
        top: features listed of a pair.
        examples: shown of each feature.
        link: widgets of the same text, such as a FeatureBrowser, share their selected feature.

    Example:
        shown = TransferMap(forecast, dashboard, dictionary)
        shown.choose("add", "chain").to_record().edit      # an Intervention

    Raises:
        WorkbenchError: a dashboard or dictionary of other features than the forecast's.
    """

    folder = "transfer_map"

    def __init__(
        self,
        forecast: Forecast,
        dashboard: Dashboard | None = None,
        dictionary: Dictionary | None = None,
        model: Any = None,
        *,
        top: int = 12,
        examples: int = 4,
        link: str = "",
    ):
        reading.check(forecast, dashboard, dictionary)
        self._forecast, self._model = forecast, model
        self._features = Features(dashboard, dictionary, max(1, int(examples)))
        self._top = max(1, int(top))
        self._numbers: dict[str, Any] | None = None
        spec = {"source": 0, "target": None, "feature": None, "strength": -1.0}
        super().__init__(spec=spec, meta=self._about(), link=link)
        self.refresh()

    def _about(self) -> dict[str, Any]:
        return {
            "title": "Transfer",
            "sources": list(self._forecast.sources),
            "targets": list(self._forecast.targets),
            "unit": reading.unit(self._forecast),
            "measured": self._forecast.measured is not None,
            "caption": reading.caption(self._forecast),
            "mix_words": list(reading.MIX_WORDS),
            "edit": self._features.mode,
            "strength": STRENGTH,
            "complete": False,
        }

    # --- what is chosen ------------------------------------------------------------------------

    def choose(
        self,
        source: str,
        target: str | None = None,
        *,
        feature: int | None = None,
        strength: float | int | None = None,
    ) -> TransferMap:
        """Open a pair by the names of its domains. Returns the widget.

        Args:
            target: None shows the source alone.
            feature: of those listed for the pair; the one that adds most by default.
            strength: of the edit: times the feature's own activation, added; -1 switches it off. Where
                features can only be added: times its largest activation.

        Raises:
            UnknownName: no such source or target.
            WorkbenchError: a feature that the pair does not list, or a strength that is no number.
        """
        at = _index("source", source, self._forecast.sources)
        to = None if target is None else _index("target", target, self._forecast.targets)
        now = self.spec["strength"] if strength is None else strength
        one = None if feature is None else self._listed(at, to, feature)
        self.ask(source=at, target=to, feature=one, strength=strength_of("TransferMap", now))
        return self

    def _listed(self, source: int, target: int | None, feature: Any) -> int:
        known = [] if target is None else self._ids(source, target)
        if feature in known:
            return int(feature)
        raise WorkbenchError(
            "TransferMap",
            "does not list this feature for the pair",
            expected=f"one of {known}" if target is not None else "a target as well",
            got=feature,
            do="choose one of these, or make the widget with a larger top",
        )

    def _ids(self, source: int, target: int) -> list[int]:
        rows, _ = reading.contributions(self._forecast, source, target, self._top)
        return [row["feature"] for row in rows]

    # --- frames --------------------------------------------------------------------------------

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        keys = ("source", "target", "go")
        return [old.get(k) for k in keys] != [new.get(k) for k in keys]

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if self._numbers is None:
            job.progress(0, 0, "permutations")
        numbers = self._numbers = self._numbers or reading.arrays(self._forecast)
        if spec.get("target") is None:
            return numbers
        source, target = self._at(spec)
        opened = self._pair(source, target)
        ids = [row["feature"] for row in opened["contributions"]]
        features = {str(j): self._features.about(j) for j in ids}
        return {**numbers, "opened": {**opened, "features": features}}

    def _at(self, spec: Mapping[str, Any]) -> tuple[int, int]:
        return (
            _place("source", spec.get("source"), self._forecast.sources),
            _place("target", spec.get("target"), self._forecast.targets),
        )

    def _pair(self, source: int, target: int) -> dict[str, Any]:
        """The features that carry a pair's score, as JSON."""
        rows, why = reading.contributions(self._forecast, source, target, self._top)
        return {
            "source": source,
            "target": target,
            "contributions": rows,
            "why": why,
            "rest": reading.rest(self._forecast, source, rows),
        }

    # --- as Python -----------------------------------------------------------------------------

    def to_record(self) -> Pair:
        """The chosen pair: its numbers, its features, and the edit of the one that is looked at.

        Raises:
            WorkbenchError: no pair is chosen.
        """
        source, target = self._chosen("to_record")
        ids = self._ids(source, target)
        feature = self.spec["feature"] if self.spec["feature"] in ids else next(iter(ids), None)
        numbers = reading.numbers(self._forecast, source, target)
        return Pair(
            self._forecast.sources[source],
            self._forecast.targets[target],
            tuple(ids),
            feature,
            **numbers,
            edit=None if feature is None else self._edit(feature),
        )

    def _chosen(self, verb: str) -> tuple[int, int]:
        if self.spec["target"] is None:
            raise WorkbenchError(
                f"TransferMap.{verb}",
                "has no pair chosen",
                expected="a clicked cell",
                got="none",
                do="click one, or choose(source, target)",
            )
        return self._at(self.spec)

    def _edit(self, feature: int) -> Intervention | None:
        return self._features.edit(feature, strength_of("TransferMap", self.spec["strength"]))

    def to_code(self) -> str:
        """A cell that loads the forecast, and gives the chosen pair's `score`, `features` and `edit`.

        The forecast and the edit are written to files beside the notebook.
        """
        chosen = self.to_record() if self.spec["target"] is not None else None
        return cell(self._forecast, self._model, chosen)

    def precompute(
        self, grid: Iterable[tuple[str, str]] | None = None, features: int = FEATURES_KEPT
    ) -> TransferMap:
        """Keep pairs, with the features that carry them, for a page without a kernel. Returns the widget.

        Args:
            grid: (source, target) names; by default all, or the 400 with the highest scores.
            features: how many keep their examples, those that add to most pairs first. The chosen
                pair's are always kept.

        Raises:
            UnknownName: no such source or target.
        """
        pairs = self._pairs(grid)
        job = worker.submit(
            lambda job: self._swept(pairs, features, job), label="TransferMap.precompute"
        )
        self.sweep = pack({"grid": [list(pair) for pair in pairs], **job.result()})
        return self

    def _pairs(self, grid: Iterable[tuple[str, str]] | None) -> list[tuple[int, int]]:
        known = self._forecast.sources, self._forecast.targets
        if grid is not None:
            found = [
                (_index("source", s, known[0]), _index("target", t, known[1]))
                for s, t in _named(grid)
            ]
        else:
            found = reading.best(self._forecast, PAIRS_KEPT)
        mine = [self._at(self.spec)] if self.spec["target"] is not None else []
        return list(dict.fromkeys([*mine, *found]))

    def _swept(self, pairs: list[tuple[int, int]], most: int, job: worker.Job) -> dict[str, Any]:
        kept, count = {}, dict[int, int]()
        for done, (source, target) in enumerate(pairs):
            kept[f"{source},{target}"] = opened = self._pair(source, target)
            for row in opened["contributions"]:
                count[row["feature"]] = count.get(row["feature"], 0) + 1
            job.progress(done + 1, len(pairs), "pairs")
        mine = self._ids(*self._at(self.spec)) if self.spec["target"] is not None else []
        often = sorted(count, key=lambda j: -count[j])[:most]
        full = dict.fromkeys([*mine, *often])
        about = {str(j): self._features.about(j) for j in full}
        about |= {str(j): self._brief(j) for j in count if j not in full}
        return {"pairs": kept, "features": about}

    def _brief(self, feature: int) -> dict[str, Any]:
        found = self._features.about(feature)
        why = found["why"] or "its examples are not kept with the page: they need a running kernel"
        return {**found, "examples": [], "promoted": [], "why": why}

    # --- pictures ------------------------------------------------------------------------------

    def _words(self) -> str:
        rows, cols = len(self._forecast.sources), len(self._forecast.targets)
        said = f"{rows} sources x {cols} targets"
        if self._forecast.measured is None or not self.frame:
            return f"{said}, not measured"
        r = self.frame["stats"][-1]["r"]
        return f"{said}, r {number(r)} with the size of the measured change"

    def _still(self) -> str:
        if not self.frame:
            return "<p>Transfer: not computed</p>"
        return still(self.frame, self.meta, self.spec, self.view)


def _index(axis: str, name: Any, known: Any) -> int:
    if name in known:
        return list(known).index(name)
    raise unknown("TransferMap", axis, name, known)


def _named(grid: Any) -> list[Any]:
    pairs = list(grid) if isinstance(grid, Iterable) else []
    if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        return pairs
    raise WorkbenchError(
        "TransferMap.precompute",
        "has no pairs to keep",
        expected="[(source, target), ...] by name",
        got=repr(grid)[:80],
        do="pass some, or nothing for all",
    )


def _place(axis: str, index: Any, known: Any) -> int:
    if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(known):
        return index
    raise WorkbenchError(
        "TransferMap",
        f"has no such {axis}",
        expected=f"an index below {len(known)}",
        got=index,
        do="use choose(source, target) with the domains' names",
    )
