"""What fine-tuning transferred to: accuracy on every domain after training on each, beside its controls.

    change[s, t] = mean_i right(model tuned on s, x_i) - right(model before, x_i),    x_i held out of t

A change says little alone. Beside it stand the *seed twin*, the same training under the next seed:
what differs between the two is luck, and no forecast can know it; the same training on *shuffled*
completions (or rewards), which ties nothing to its prompt; and one on all domains *mixed*.

Shapes: base `[target]`, change, low and high `[source, target]`. Units: fractions of prompts right.
Source: the measurement that the SAE-based Transferability Score is judged by,
    https://arxiv.org/abs/2603.02908.
Differs from the paper: every domain is a source once, each change has its interval over prompts, and
    there are twins and controls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from workbench.comparison.stats import mean_intervals, paired_difference
from workbench.comparison.table import Figure, Table
from workbench.errors import FileRefused, unknown
from workbench.files import refuse_pickle, write_atomically

FORMAT = "workbench.measured"
VERSION = 1
UNIT = "fraction of prompts right"
Kind = Literal["source", "twin", "shuffled", "mixed"]


class RowsTable(Table):
    """A Table that a figure reads as it is."""

    @property
    def _shown(self) -> Any:  # what a Figure calls its numbers
        return self.frame()


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: of the run; that of its domain for a plain one.
        source: domain that it was trained on; None where all are mixed.
        kind: "source", "twin" (the same under another seed), "shuffled" or "mixed".
        seed: of the training.
        right: what each held-out prompt earned afterwards, 0 or 1 of a task.
        curve: mean reward of each step.
        seconds: wall clock of training and test.
    """

    name: str
    source: str | None
    kind: Kind
    seed: int
    right: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Run:
        """From `vars` that went through JSON."""
        wanted = {f.name for f in fields(cls)}
        if set(plain) != wanted:
            raise ValueError(f"a run has {sorted(wanted)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})


@dataclass(frozen=True)
class Measured:
    """Accuracy of every target domain before and after training on every source domain.

    Attributes:
        sources, targets: names of the domains.
        owners: target of each held-out prompt, as an index.
        before: what each held-out prompt earned of the untrained model.
        runs: every training, sources first.
        overlap: prompts of each source left out of training since they are held out.
        provenance: model, trainer, steps, seed.
        models: trained models by the name of their run, where they were kept.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    owners: tuple[int, ...]
    before: tuple[float, ...]
    runs: tuple[Run, ...]
    overlap: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        own = [self.change[i, self.targets.index(s)] for i, s in enumerate(self.sources)
               if s in self.targets]  # fmt: skip
        gain = f"; own domain {np.mean(own):+.0%} on average" if own else ""
        return (
            f"Measured({len(self.sources)} sources x {len(self.targets)} targets, "
            f"{len(self.runs)} trainings{gain})"
        )

    @property
    def base(self) -> np.ndarray:
        """Accuracy before `[target]`."""
        return self._means(self.before)

    @property
    def change(self) -> np.ndarray:
        """Accuracy after minus before `[source, target]`."""
        return self.changes("source")

    @property
    def low(self) -> np.ndarray:
        """Lower end of the 95 % interval of `change` over held-out prompts."""
        return self._ends[0]

    @property
    def high(self) -> np.ndarray:
        """Upper end of it."""
        return self._ends[1]

    def changes(self, kind: str) -> np.ndarray:
        """Change `[source, target]` of the runs of that kind; NaN where a source has none.

        A "mixed" run has no source: every row is its own change.

        Raises:
            UnknownName: no such kind.
        """
        if kind not in get_args(Kind):
            raise unknown("Measured.changes", "kind", kind, get_args(Kind))
        found = np.full((len(self.sources), len(self.targets)), np.nan)
        for run in self.runs:
            if run.kind == kind:
                rows = self.sources.index(run.source) if run.source else slice(None)
                found[rows] = self._means(run.right) - self.base
        return found

    def twin_spread(self) -> float:
        """Standard deviation of a change over seeds alone, from the sources that have a twin: the
        root mean square difference of twins over sqrt 2. NaN without twins.
        """
        apart = (self.changes("twin") - self.change).ravel()
        apart = apart[np.isfinite(apart)]
        return float(np.sqrt((apart**2).mean() / 2)) if len(apart) else float("nan")

    def frame(self) -> Any:
        """A DataFrame with a row per run and target: change, its interval over prompts, and n."""
        import pandas as pd

        rows, base, (low, high) = [], self.base, self._intervals(self.runs)
        for r, run in enumerate(self.runs):
            change = self._means(run.right) - base
            rows += [
                {
                    "run": run.name,
                    "kind": run.kind,
                    "source": run.source,
                    "target": target,
                    "before": base[t],
                    "after": base[t] + change[t],
                    "change": change[t],
                    "low": low[r, t],
                    "high": high[r, t],
                    "n": self.owners.count(t),
                }
                for t, target in enumerate(self.targets)
            ]
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """The change of every target after training on every source, as colours."""
        frame = self.frame()
        frame = frame[frame["kind"] == "source"].rename(columns={"change": "mean"})
        spread = self.twin_spread()
        luck = f" Seeds alone: {spread:.1%}." if spread == spread else ""
        caption = (
            f"Change of accuracy after training, {len(self.sources)} sources by {len(self.targets)} "
            f"targets; hover for the 95 % interval over held-out prompts.{luck}"
        )
        axes = [
            {"name": name, "labels": list(labels), "shown": ()}
            for name, labels in (("trained on", self.sources), ("tested on", self.targets))
        ]
        spec = {"kind": "heat", "measure": "change", "unit": UNIT, "axes": axes}
        columns = {k: frame[k].tolist() for k in frame} | {"measure": ["change"] * len(frame)}
        return Figure(RowsTable(columns, {"mean": UNIT}, self.provenance), spec, caption)

    def save(self, path: str | Path) -> Path:
        """Write everything but the models as one JSON file; `Measured.load` gives it back."""
        refuse_pickle(Path(path))
        plain = {
            "format": FORMAT,
            "version": VERSION,
            "runs": [vars(run) for run in self.runs],
            **{k: v for k, v in vars(self).items() if k not in ("runs", "models")},
        }
        write_atomically(Path(path), json.dumps(plain, allow_nan=False).encode())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Measured:
        """Read it back.

        Raises:
            FileRefused: a pickle, or a file that is none of these.
        """
        refuse_pickle(Path(path))
        try:
            plain = json.loads(Path(path).read_text("utf-8"))
            if (plain.pop("format"), plain.pop("version")) != (FORMAT, VERSION):
                raise ValueError("another format")
            runs = tuple(Run.of(values) for values in plain.pop("runs"))
            lists = {k: tuple(v) for k, v in plain.items() if isinstance(v, list)}
            return cls(**{**plain, **lists, "runs": runs})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
            raise FileRefused(
                f"Measured.load({str(path)!r})",
                f"is no saved measurement ({reason})",
                expected=f"a file of format {FORMAT} {VERSION}",
                got=Path(path).suffix or "no suffix",
                do="save it again with Measured.save",
            ) from None

    @property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return self._intervals([run for run in self.runs if run.kind == "source"])

    def _intervals(self, runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
        """Paired bootstrap ends `[run, target]`."""
        low, high = np.empty((2, len(runs), len(self.targets)))
        owners, before = np.array(self.owners), np.array(self.before)
        apart = np.array([run.right for run in runs]) - before
        for t in range(len(self.targets)):
            mine = apart[:, owners == t]
            _, low[:, t], high[:, t], _ = mean_intervals(mine.T)
            for r in np.flatnonzero(np.ptp(mine, axis=1) == 0):  # no spread seen is not none
                found = paired_difference(mine[r], np.zeros(mine.shape[1]), proportion=True)
                low[r, t], high[r, t] = found.low, found.high
        return low, high

    def _means(self, right: Sequence[float]) -> np.ndarray:
        n = len(self.targets)
        owners = np.array(self.owners)
        return np.bincount(owners, np.array(right), n) / np.bincount(owners, minlength=n)
