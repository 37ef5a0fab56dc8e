"""Forecast which domains fine-tuning on a domain will move, and hold it against what it did move.

    found = sae.forecast(dictionary, model, {"add": sae.Domain(queries, demonstrations), ...})
    found.against(measured).report()       # r with interval, permutation p, random-dimension band
    found.figure("add"); found.mix("add")

The forecast is of the size of a change, never of its sign, and is held against absolute changes. Pairs of
a domain with itself are left out by default: that training on a domain moves this domain is no
transfer, and few such pairs can make an r.

Shapes: scores `[source, target]`, random ones `[draw, source, target]`.
Units: of scores see `unit`; changes are fractions of accuracy.
Source: Zhang et al. (2026), SAE as a Crystal Ball, https://arxiv.org/abs/2603.02908.
Differs from the paper: it has one source at a time and reports r alone; here with intervals, tests, and the r
    of random, of least shifted, of most active and of all features, of those ever active on the domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.comparison.correlation import correlate_within, r_of_draws, relabelled_p, specific
from workbench.comparison.table import Figure
from workbench.errors import WorkbenchError, unknown
from workbench.sae.transfer import files
from workbench.sae.transfer.measured import RowsTable
from workbench.sae.transfer.shifts import Shift

POOLED = "all sources"
LOWEST, ACTIVE, ALL = "least shifted", "most active", "all features"
CAVEAT = (
    "Shares are proportional to scores: a domain that training would move gets more of the data. Whether "
    "that helps is not measured here, and a score does not say in which direction a domain moves."
)


@dataclass(frozen=True, repr=False)
class Forecast:
    """Scores of targets for sources, with what is measured where that is known.

    Attributes:
        sources, targets: names of the rows and columns.
        scores, low, high: `[source, target]`, with 95 % bootstrap intervals over prompts.
        random: `[draw, source, target]`, of as many random features.
        controls: `[source, target]` by name, of other features.
        shifts: by source.
        unit: what scores are counted in.
        measured, measured_low, measured_high: change of accuracy, `[source, target]`, as a fraction; NaN
            where not measured; None before `against`.
        provenance: what made it.
        terms: by source, what each of its shift's features adds to a target's score, `[target, N]`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    scores: np.ndarray
    low: np.ndarray
    high: np.ndarray
    random: np.ndarray
    controls: Mapping[str, np.ndarray]
    shifts: Mapping[str, Shift]
    unit: str
    measured: np.ndarray | None = None
    measured_low: np.ndarray | None = None
    measured_high: np.ndarray | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, np.ndarray] = field(default_factory=dict)

    def against(self, measured: Any) -> Forecast:
        """The same with measured changes of accuracy.

        Args:
            measured: what `sae.fine_tune_domains` gives, or another record with `sources`, `targets` and
                `change` (and `low`, `high`); `{source: {target: change}}`; or `[source, target]`.

        Raises:
            WorkbenchError: another shape, or nothing in common.
        """
        return replace(self, **_aligned(self, measured))

    def report(self, *, own: bool = False, absolute: bool = True) -> TransferTable:
        """How well scores go with measured changes: a row per source, and one for all of them.

        Pearson's r, its 95 % interval (Fisher), its permutation p-value, Spearman's; the 95 % band of r that
        random features give and the share of them that do as well (`random_p`); r of the controls: of the
        least shifted features, of those most active on the source, which need no demonstrations, and of all
        features, which know nothing of the source: what they reach is how easily a target moves at all.
        Pooled, scores and changes are standardised within each source and permuted within it;
        `relabelled_p` permutes targets in all sources alike, which counts shared targets once.
        `specific_r`, pooled only, is r without each source's and each target's mean of both sides: does
        the score know which source moves which target? `specific_p` permutes targets too.

        Args:
            own: with pairs of a domain with itself.
            absolute: against the size of the change, as scores forecast it; False keeps its sign.

        Raises:
            WorkbenchError: nothing is measured yet.
        """
        names = [*self.sources, POOLED] if len(self.sources) > 1 else self.sources
        rows = [{"source": name, **self._row(name, own, absolute)} for name in names]
        columns = {k: [row[k] for row in rows] for k in rows[0]}
        about = {**self.provenance, "own": own, "absolute": absolute}
        return TransferTable(columns, {"r": "Pearson"}, about)

    def frame(self) -> Any:
        """A row per source and target, as a pandas DataFrame."""
        import pandas as pd

        ends = np.quantile(self.random, [0.025, 0.975], axis=0)
        held = {k: getattr(self, k) for k in ("measured", "measured_low", "measured_high")}
        none = np.full(self.scores.shape, np.nan)
        values = {
            "score": self.scores,
            "low": self.low,
            "high": self.high,
            "random_low": ends[0],
            "random_high": ends[1],
            **self.controls,
            **{k: none if v is None else v for k, v in held.items()},
        }
        columns = {
            "source": [s for s in self.sources for _ in self.targets],
            "target": [t for _ in self.sources for t in self.targets],
        }
        return pd.DataFrame(columns | {name: v.reshape(-1) for name, v in values.items()})

    def figure(self, source: str | None = None, *, own: bool = False) -> Figure:
        """Measured changes over scores, with the line of r, its interval, and the random band.

        Args:
            source: one of them; by default all, standardised within each.
            own: with pairs of a domain with itself.

        Raises:
            UnknownName: no such source.
            WorkbenchError: nothing is measured yet.
        """
        if source is not None and source not in self.sources:
            raise unknown("Forecast.figure", "source", source, self.sources)
        one = source or self._whole
        row = {k: _plain(v) for k, v in self._row(one, own).items()}
        return Figure(
            self._points(one, own),
            {"kind": "transfer", "source": one, "unit": self.unit, **row},
            _caption(one, row),
        )

    def contributions(self, source: str, target: str) -> TransferTable:
        """Which of a source's shifted features carry the score of a target: a row each, largest first.

        Raises:
            UnknownName: no such source or target.
            WorkbenchError: a forecast without `terms`.
        """
        for axis, name, known in (
            ("source", source, self.sources),
            ("target", target, self.targets),
        ):
            if name not in known:
                raise unknown("Forecast.contributions", axis, name, known)
        if source not in self.terms:
            raise WorkbenchError(
                "Forecast.contributions",
                "does not know what each feature adds",
                expected="terms, which sae.forecast fills",
                got=f"none of {source!r}",
                do="make the forecast again",
            )
        terms = self.terms[source][self.targets.index(target)]
        dims, delta = np.array(self.shifts[source].dims), self.shifts[source].delta
        order = np.argsort(-terms, kind="stable")
        whole = terms.sum()
        columns = {
            "feature": dims[order].tolist(),
            "adds": terms[order].tolist(),
            "share": (terms[order] / whole if whole else terms[order] * np.nan).tolist(),
            "delta": [float(delta[j]) for j in dims[order]],
        }
        return TransferTable(columns, {"adds": self.unit}, self.provenance)

    def mix(self, source: str | None = None) -> TransferTable:
        """Shares of training data in proportion to scores, the paper's proposal for mixing.

        Args:
            source: whose shifted dimensions; by default the mean over all sources' shares.

        Raises:
            UnknownName: no such source.
            WorkbenchError: scores below 0, or all 0.
        """
        if source is not None and source not in self.sources:
            raise unknown("Forecast.mix", "source", source, self.sources)
        rows = [self.sources.index(source)] if source else list(range(len(self.sources)))
        scores = self.scores[rows]
        if (scores < 0).any() or (scores.sum(1) <= 0).any():
            raise WorkbenchError(
                "Forecast.mix",
                "shares of negative scores, or of nothing, mean nothing",
                expected="scores of at least 0, not all 0",
                got=f"{scores.min():.3g} to {scores.max():.3g}",
                do="take power=2",
            )
        shares = (scores / scores.sum(1, keepdims=True)).mean(0)
        about = {**self.provenance, "notes": [CAVEAT]}
        columns = {"target": list(self.targets), "share": shares.tolist()}
        return TransferTable(columns, {"share": "fraction of the data"}, about)

    def save(self, path: str | Path) -> Path:
        """Write everything as one safetensors file; `Forecast.load` gives it back."""
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Forecast:
        """Read a forecast back.

        Raises:
            FileRefused: a file that is no forecast, or half of one.
        """
        return cls(**files.load(path))

    @property
    def _whole(self) -> str:
        """The report's last row."""
        return (*self.sources, POOLED)[-1 if len(self.sources) > 1 else 0]

    def _row(self, name: str, own: bool = False, absolute: bool = True) -> dict[str, Any]:
        """The numbers of one row of the report."""
        which = range(len(self.sources)) if name == POOLED else [self.sources.index(name)]

        def counted(values: np.ndarray) -> np.ndarray:
            return self._counted(values, own)[..., list(which), :]

        x, y = counted(self.scores), counted(self._changes(absolute))
        controls: dict[str, Any] = {
            k: r_of_draws(counted(v)[None], y) for k, v in self.controls.items()
        }
        row = _correlated(x, y, counted(self.random))
        row |= {f"r {k}": float(v[0]) for k, v in controls.items()}
        row |= {"relabelled_p": row["p"], "specific_r": np.nan, "specific_p": np.nan}
        if len(which) > 1:
            row["relabelled_p"] = relabelled_p(x, y)
            row["specific_r"], row["specific_p"] = specific(x, y)
        return row

    def _points(self, source: str, own: bool) -> TransferTable:
        """The pairs that a figure shows, with the sizes of changes; an interval around 0 starts at 0."""
        frame = self.frame()
        keep = own | (frame["source"] != frame["target"])
        if source != POOLED:
            keep &= frame["source"] == source
        frame = frame[keep & frame["measured"].notna()].copy()
        low, high = frame["measured_low"], frame["measured_high"]
        frame["size"] = frame["measured"].abs()
        frame["size_low"] = np.where(low * high <= 0, 0.0, np.minimum(low.abs(), high.abs()))
        frame["size_low"] = frame["size_low"].where(low.notna())
        frame["size_high"] = np.maximum(low.abs(), high.abs())
        return TransferTable({k: frame[k].tolist() for k in frame}, {}, self.provenance)

    def _counted(self, values: np.ndarray, own: bool) -> np.ndarray:
        """Values with NaN where a pair does not count."""
        same = np.array([[s == t for t in self.targets] for s in self.sources])
        return values if own else np.where(same, np.nan, values)

    def _changes(self, absolute: bool) -> np.ndarray:
        if self.measured is None:
            raise WorkbenchError(
                "Forecast.report",
                "nothing is measured yet",
                expected="forecast.against(measured)",
                got="a forecast alone",
                do="fine-tune and measure, e.g. with sae.fine_tune_domains",
            )
        return np.abs(self.measured) if absolute else self.measured

    def __repr__(self) -> str:
        held = "not held against anything yet"
        if self.measured is not None:
            row = self._row(self._whole)
            held = (
                f"r = {row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}], p = {row['p']:.2g}, "
                f"random {row['random_low']:.2f} to {row['random_high']:.2f}, n = {row['n']}"
            )
        return (
            f"Forecast({len(self.sources)} sources, {len(self.targets)} targets, {self.unit} over "
            f"{sorted({len(s.dims) for s in self.shifts.values()})} features: {held})"
        )


class TransferTable(RowsTable):
    """Rows of a forecast with the notes that go with them."""

    def __repr__(self) -> str:
        notes = "\n".join(self.provenance.get("notes", ()))
        rows = self.frame().to_string(index=False, float_format="%.3g")
        return f"{rows}\n{notes}" if notes else rows

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<p>{escape(note)}</p>" for note in self.provenance.get("notes", ()))
        table = self.frame().to_html(index=False, float_format=lambda x: f"{x:.3g}")
        return f"<div>{table}{notes}</div>"


def _correlated(x: np.ndarray, y: np.ndarray, random: np.ndarray) -> dict[str, Any]:
    """r with its interval and tests, and r of random features."""
    found = correlate_within(x, y)
    by_chance = r_of_draws(random, y)
    by_chance = by_chance[np.isfinite(by_chance)]
    ends = (np.nan, np.nan)
    as_good = float("nan")
    if len(by_chance) and np.isfinite(found.r):
        ends = tuple(np.quantile(by_chance, [0.025, 0.975]))
        as_good = float(((by_chance >= found.r).sum() + 1) / (len(by_chance) + 1))
    return {
        "n": found.n,
        "r": found.r,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "exact": found.exact,
        "spearman": found.spearman,
        "random_low": float(ends[0]),
        "random_high": float(ends[1]),
        "random_p": as_good,
    }


def _aligned(forecast: Forecast, measured: Any) -> dict[str, np.ndarray]:
    """Changes in the order of the forecast; NaN where there is none."""
    shape = forecast.scores.shape
    if isinstance(measured, np.ndarray | list | tuple):
        array = np.asarray(measured, float)
        if array.shape != shape:
            raise WorkbenchError(
                "Forecast.against",
                "measured changes have another shape",
                expected=f"[source, target] = {list(shape)}",
                got=list(array.shape),
                do="pass {source: {target: change}}",
            )
        return {"measured": array, "measured_low": array * np.nan, "measured_high": array * np.nan}
    known = _by_name(measured)
    found = {}
    for name, values in known.items():
        array = np.full(shape, np.nan)
        for i, source in enumerate(forecast.sources):
            for j, target in enumerate(forecast.targets):
                array[i, j] = values.get(source, {}).get(target, np.nan)
        found[name] = array
    if not np.isfinite(found["measured"]).any():
        raise WorkbenchError(
            "Forecast.against",
            "forecast and measurement have no pair of domains in common",
            expected=f"sources of {list(forecast.sources)}, targets of {list(forecast.targets)}",
            got=f"sources {list(known['measured'])}",
            do="name domains alike in both",
        )
    return found


def _by_name(measured: Any) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """`{source: {target: number}}` of the change and both ends of its interval."""
    if isinstance(measured, Mapping):
        return {"measured": measured, "measured_low": {}, "measured_high": {}}
    if not all(hasattr(measured, name) for name in ("sources", "targets", "change")):
        raise WorkbenchError(
            "Forecast.against",
            "gets something that holds no changes",
            expected="a record with sources, targets and change; {source: {target: change}}; an array",
            got=type(measured).__name__,
            do="pass what sae.fine_tune_domains gives",
        )
    sides = {"measured": "change", "measured_low": "low", "measured_high": "high"}
    return {
        ours: {
            source: dict(zip(measured.targets, map(float, row), strict=True))
            for source, row in zip(measured.sources, getattr(measured, theirs), strict=True)
        }
        if hasattr(measured, theirs)
        else {}
        for ours, theirs in sides.items()
    }


def _caption(source: str, row: Mapping[str, Any]) -> str:
    of = "all sources, each standardised" if source == POOLED else f"fine-tuning on {source}"
    if row["r"] is None or row["r"] != row["r"]:
        return f"{of}: no correlation, one side does not vary or there are fewer than three pairs."
    exact = "exact" if row["exact"] else "Monte-Carlo"
    return (
        f"Size of the measured change over the forecast, {of}. r = {row['r']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}], {exact} permutation p = {row['p']:.2g}, Spearman "
        f"{row['spearman']:.2f}, n = {row['n']}.{_which(row)} Grey: r of random features, "
        f"{row['random_low']:.2f} to {row['random_high']:.2f}."
    )


def _which(row: Mapping[str, Any]) -> str:
    """The specific r in words, where there is one."""
    r, p = row["specific_r"], row["specific_p"]
    return f" Which source moves which target: r = {r:.2f}, p = {p:.2g}." if r == r else ""


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value
