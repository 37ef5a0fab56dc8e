"""What judging a probe hands back: rows with intervals, out-of-fold scores, figures, the best site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workbench import sites as site_names
from workbench.comparison.layout import interval
from workbench.comparison.stats import wilson
from workbench.comparison.table import Figure, Table
from workbench.errors import WorkbenchError, unknown
from workbench.probes.places import JOIN
from workbench.probing.measures import (
    MEASURES,
    SMALLER_IS_BETTER,
    Bootstrap,
    Held,
    bin_of,
)

PROBE = "probe"


@dataclass(frozen=True)
class Best:
    """The best of several sites.

    Attributes:
        site: its name.
        measure: what it is best in.
        mean, low, high, n: that measure, its 95 % interval over `n` groups.
        nested: whether the choice of the site is counted in.
        note: what the number does not say.
    """

    site: str
    measure: str
    mean: float
    low: float
    high: float
    n: int
    nested: bool
    note: str


@dataclass(frozen=True, repr=False)
class ProbeTable(Table):
    """A Table with a row per site, what was judged (`by`) and measure.

    Attributes:
        held: out-of-fold scores of the probe per site, with targets and folds.
        bootstrap: groups of the examples, and the draws that intervals come from.
    """

    held: Mapping[str, Held] = field(default_factory=dict)
    bootstrap: Bootstrap | None = None

    @property
    def sites(self) -> list[str]:
        """Where the probe was fitted."""
        return list(self.held)

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Out-of-fold scores `[example]` per site: logits of class 1, or numbers."""
        return {site: held.scores for site, held in self.held.items()}

    @property
    def main(self) -> str:
        """The measure that is meant where none is named: accuracy, or r2 of numbers."""
        return self.columns["measure"][0]

    def at(self, site: str, by: str = PROBE) -> Any:
        """Rows of a site, as a DataFrame indexed by measure."""
        frame = self.frame()
        for name, value in (("site", site), ("by", by)):
            if value not in set(frame[name]):
                raise unknown("ProbeTable.at", name, value, dict.fromkeys(frame[name]))
        return frame[(frame["site"] == site) & (frame["by"] == by)].set_index("measure")

    def best(self, measure: str | None = None, *, nested: bool = False) -> Best:
        """The site whose probe is best.

        The largest of several noisy numbers is too large. With `nested` the choice is made on a
        bootstrap sample of the groups and judged on the groups that it left out, and the mean over
        draws is given: what choosing a site so is worth on examples that did not choose it. Each draw
        judges on about a third of the groups, so that the interval is wide.

        Source: Tsamardinos, Greasidou and Borboudakis (2018), Bootstrapping the Out-of-sample
            Predictions for Efficient and Accurate Cross-validation,
            https://doi.org/10.1007/s10994-018-5714-4.

        Raises:
            UnknownName: no such measure.
            WorkbenchError: coverage, which is right at its nominal value; with `nested`, a measure that
                is not of scores, or the calibration error, which grows as examples get fewer.
        """
        name = self._measure(measure)
        if name == "coverage":
            raise WorkbenchError(
                "ProbeTable.best",
                "coverage has no best end",
                expected="a measure that is better the larger or the smaller it is",
                got=name,
                do="compare at(site).loc['coverage'] with its nominal value",
            )
        frame = self.frame()
        rows = frame[(frame["by"] == PROBE) & (frame["measure"] == name)].reset_index(drop=True)
        sign = -1 if name in SMALLER_IS_BETTER else 1
        row = rows.loc[(sign * rows["mean"]).idxmax()]
        if not nested:
            note = "" if len(rows) == 1 else f"chosen among {len(rows)} sites: optimistic"
            ends = (float(row["mean"]), float(row["low"]), float(row["high"]))
            return Best(row["site"], name, *ends, int(row["n"]), False, note)
        drawn = self._out_of_bag(name, sign)
        low, high = np.quantile(drawn, [0.025, 0.975])
        if low == high:  # a bootstrap of equal values knows no spread
            low, high = row["low"], row["high"]
        note = "of the choice among sites, on groups that did not choose"
        return Best(
            row["site"],
            name,
            float(drawn.mean()),
            float(low),
            float(high),
            int(row["n"]),
            True,
            note,
        )

    def _out_of_bag(self, name: str, sign: int) -> np.ndarray:
        """`[draw]`: the measure of the chosen site on the groups that its choice did not see."""
        if self.bootstrap is None or name not in MEASURES or name == "ece":
            raise WorkbenchError(
                "ProbeTable.best(nested=True)",
                "has no out-of-fold scores to choose by",
                expected="a table of probes.evaluate and a measure of scores other than ece",
                got=f"{name!r}, {len(self.held)} sites with scores",
                do="evaluate again; a table that was loaded has rows alone",
            )
        measured, found = MEASURES[name][0], []
        for weights in self.bootstrap.weights():
            chosen = np.stack([sign * measured(held, weights) for held in self.held.values()])
            left = (weights == 0).astype(float)
            judged = np.stack([measured(held, left) for held in self.held.values()])
            which = np.nan_to_num(chosen, nan=-np.inf).argmax(0)
            found.append(judged[which, np.arange(len(weights))])
        drawn = np.concatenate(found)
        return drawn[np.isfinite(drawn)]

    def figure(self, measure: str | None = None) -> Figure:
        """A measure per layer with its interval, beside controls and baselines; heads as a map."""
        name = self._measure(measure)
        n = self.provenance.get("n_groups")
        about = f"{self.provenance.get('method')} of {self.provenance.get('model')}"
        caption = f"{name} of {about}, out of fold; 95 % interval over {n} groups."
        spec = {"kind": "probe_curve", "measure": name, "unit": self.units[name]}
        if axes := _by_head(self.sites):
            kept = self._only(name)
            return Figure(kept, spec | {"kind": "heat", "axes": axes}, caption)
        return Figure(self, spec | {"places": _places(self.sites)}, caption)

    def reliability(self, site: str | None = None) -> Figure:
        """How often class 1 was right where the probe said so with some probability.

        Ten bins of equal width; 95 % Wilson intervals of as many trials as the bin has groups.

        Raises:
            WorkbenchError: a probe of numbers, or a table without scores.
            UnknownName: no such site.
        """
        if "ece" not in self.units or not self.held or self.bootstrap is None:
            raise WorkbenchError(
                "ProbeTable.reliability",
                "has no probabilities",
                expected="a table of probes.evaluate, of a probe of classes",
                got=self.provenance.get("method"),
                do="see coverage for a probe of numbers",
            )
        site = site or self.best().site
        if site not in self.held:
            raise unknown("ProbeTable.reliability", "site", site, self.held)
        calibration = float(self.at(site).loc["ece", "mean"])
        caption = (
            f"Reliability of {self.provenance.get('method')} at {site}; "
            f"calibration error {calibration:.3f}."
        )
        rows = _reliability(self.held[site], self.bootstrap.groups)
        table = _Bins(rows, {"observed": "fraction"}, self.provenance)
        return Figure(table, {"kind": "reliability", "site": site}, caption)

    def _only(self, measure: str) -> ProbeTable:
        frame = self.frame()
        kept = frame[(frame["by"] == PROBE) & (frame["measure"] == measure)]
        order = sorted(kept.index, key=lambda i: _layer_and_head(kept["site"][i]) or (0, 0))
        return replace(self, columns={k: kept.loc[order, k].tolist() for k in kept})

    def _measure(self, measure: str | None) -> str:
        if measure is not None and measure not in self.units:
            raise unknown("ProbeTable", "measure", measure, self.units)
        return measure or self.main

    @property
    def _shown(self) -> Any:  # what a Figure calls its numbers
        return self.frame()

    def _head(self) -> Any:
        frame = self.frame()
        rows = frame[frame["measure"] == self.main].copy()
        order = rows["mean"].sort_values(ascending=False, kind="stable").index
        best = [i for i in order if rows["by"][i] == PROBE][:8]
        same = {rows["site"][best[0]], ""} if best else {""}
        others = [i for i in order if rows["by"][i] != PROBE and rows["site"][i] in same]
        rows = rows.loc[[*best, *others]]
        ends = zip(rows["low"], rows["high"], rows["n"], strict=True)
        rows["95 %"] = [interval(low, high, int(n)) for low, high, n in ends]
        return rows[["site", "by", "measure", "mean", "95 %", "n", "unit"]]

    def __repr__(self) -> str:
        about = self.provenance
        title = (
            f"ProbeTable({about.get('method')} of {about.get('model')}: {len(self.sites)} sites, "
            f"{about.get('n_examples')} examples in {about.get('n_groups')} groups, "
            f"{about.get('folds')} folds)"
        )
        return title + "\n" + self._head().to_string(index=False, float_format="%.4g")

    def _repr_html_(self) -> str:
        from html import escape

        title = escape(repr(self).split("\n")[0])
        table = self._head().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        return f"<div><code>{title}</code>, best first, then controls{table}</div>"


@dataclass(frozen=True, repr=False)
class _Bins(Table):
    """Rows of a reliability curve."""

    @property
    def _shown(self) -> Any:
        return self.frame()


def _reliability(held: Held, groups: np.ndarray) -> dict[str, list[Any]]:
    """A row per bin that is not empty; intervals count each group once."""
    p, y = held.probability, held.targets
    bins = bin_of(p)
    columns: dict[str, list[Any]] = {k: [] for k in ("predicted", "observed", "low", "high", "n")}
    for number in np.unique(bins):
        inside = bins == number
        share, k = float(y[inside].mean()), len(np.unique(groups[inside]))
        ends = wilson(round(share * k), k)
        row = (float(p[inside].mean()), share, ends.low, ends.high, int(inside.sum()))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def _layer_and_head(text: str) -> tuple[int, int] | None:
    if JOIN in text:
        return None
    site = site_names.parse(text, 10**6)[0]
    head = site.selector("head")
    return (site.layer, head) if site.layer is not None and isinstance(head, int) else None


def _by_head(sites: list[str]) -> list[dict[str, Any]] | None:
    """Axes layer x head where the sites are all heads of some layers, of one part."""
    found = [_layer_and_head(site) for site in sites]
    if not found or None in found or len({s.split(".")[1].split("[")[0] for s in sites}) > 1:
        return None
    layers, heads = (sorted({place[i] for place in found if place}) for i in (0, 1))
    if len(found) != len(layers) * len(heads):
        return None
    named = {"layer": layers, "head": heads}
    return [{"name": k, "labels": v, "shown": None} for k, v in named.items()]


def _places(sites: list[str]) -> dict[str, list[Any]]:
    """Series and place of each site: its part and layer, or its name where it has no one layer."""
    parsed = [None if JOIN in s else site_names.parse(s, 10**6)[0] for s in sites]
    if any(site is None or site.layer is None for site in parsed):
        return {site: ["", site] for site in sites}
    return {
        text: [text.partition(".")[2], site.layer]
        for text, site in zip(sites, parsed, strict=True)
        if site is not None
    }
