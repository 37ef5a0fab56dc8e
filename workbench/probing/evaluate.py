"""Judge a probe: cross-validated by groups, beside what it has to beat, with intervals.

table = probes.evaluate("logistic", model.record(prompts, "L*.resid_post"))
table                              # accuracy, AUROC and calibration per site; controls and baselines
table.figure(); table.reliability("L3.resid_post"); table.best(nested=True)

    selectivity = accuracy - accuracy of the same probe on the control

Source: Hewitt and Liang (2019), Designing and Interpreting Probes with Control Tasks,
    https://arxiv.org/abs/1909.03368.
Differs from the paper: with `types` the control is the paper's. Without, it is the probe fitted on targets
    that are shuffled inside the training part and judged on the true ones: chance, or the share of the
    larger class, unless the fit sees true targets otherwise. It cannot show copies of examples on both
    sides of a split; that is what groups are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from workbench.comparison.provenance import versions
from workbench.comparison.stats import Interval
from workbench.errors import WorkbenchError
from workbench.probes.base import Data, Probe
from workbench.probes.examples import owners
from workbench.probes.places import placed
from workbench.probing import baselines
from workbench.probing.fit import data_of, name_of, plain, probe_of, prompts_of
from workbench.probing.folds import Split, groups_of, split, warn_of_leaks
from workbench.probing.measures import (
    MEASURES,
    OF_CLASSES,
    OF_NUMBERS,
    Bootstrap,
    Held,
    difference,
    judged,
    over_fits,
    over_tasks,
)
from workbench.probing.numbers import last_number, mean_number
from workbench.probing.table import PROBE, ProbeTable
from workbench.prompts.duplicates import said
from workbench.tensors import Activations

SHUFFLED, TASK = "shuffled labels", "control task"
BAG, MAJORITY, MEAN = "bag of tokens", "majority class", "training mean"
IN_TEXT = {"last number of the text": last_number, "mean number of the text": mean_number}
_PLAIN = (str, int, float, bool, tuple, list, type(None))


def evaluate(
    method: str | Probe,
    acts: Activations,
    targets: Any = None,
    groups: Any = None,
    *,
    sites: str | Iterable[str] | None = None,
    join: bool = False,
    heads: int | None = None,
    folds: int = 5,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    types: Any = None,
    controls: bool = True,
    shuffles: int = 3,
) -> ProbeTable:
    """How well `method` reads the targets off every site, on examples it was not fitted on.

    Args:
        method, acts, targets, sites, join, heads: as in `probes.fit`.
        groups: one per example; examples of one group are never on both sides of a split. Rows of one
            prompt, prompts of one `pair` or `meta["group"]`, and texts that say the same stay together
            anyway.
        folds: of the cross-validation, stratified by class.
        seed: of the folds, the shuffles and the bootstrap.
        texts: what the bag of tokens reads, one per example; the prompts' words by default.
        types: one per example, such as its token: the control is then a random target per type.
        controls: also fit controls and baselines; False is `1 + shuffles` times faster.
        shuffles: how many controls are averaged, 0 for none. The interval of shuffled ones is over their
            `shuffles * folds` fits; that of control tasks is over groups, the tasks as they were drawn.

    Returns:
        A ProbeTable: a row per site, what was judged, and measure, with 95 % intervals over groups.

    Raises:
        WorkbenchError: what `probes.fit` refuses; too few groups for the folds; groups, texts or types
            that are not one per example; types too few for a control of two classes.

    Warns:
        UserWarning: texts repeat, and would have leaked across a split by rows.
    """
    method = probe_of(method)
    where = placed(acts, sites, join, heads)
    data, classes = data_of(method, where, targets)
    y = next(iter(data.values())).targets.numpy()
    prompts = prompts_of(method, where)
    words = [said(p) for p in prompts]
    told = _each("texts", texts, len(y)) or words
    kinds = _each("types", types, len(y))
    rows = owners(where) if where.pool == "all" else list(range(len(y)))
    own = rows if method.reads == "rows" else list(range(len(y)))
    one_each = dict(zip(own, range(len(y)), strict=True)).values()  # not every token of a prompt
    leaks = warn_of_leaks(
        y[list(one_each)], [prompts[i] for i in one_each], [words[i] for i in one_each], folds, seed
    )
    together = groups_of(prompts, words, own, _each("groups", groups, len(y)))
    job = _Job(method, data, y, split(y, together, folds, seed, bool(classes)), seed)
    report = _Rows(job, Bootstrap(together, seed))
    found = job.held(y)
    report.probe(found)
    if controls:
        report.control(found, kinds, shuffles)
        report.baselines(told)
    about = _provenance(method, where, classes, y, together, folds, seed)
    about |= {"shuffles": shuffles if controls else 0, **leaks}
    return ProbeTable(report.columns, report.units, about, held=found, bootstrap=report.bootstrap)


@dataclass(frozen=True)
class _Job:
    """A probe, its examples at every site, and the folds."""

    method: Probe
    data: Mapping[str, Data]
    targets: np.ndarray
    split: Split
    seed: int

    @property
    def numeric(self) -> bool:
        return self.method.target == "number"

    @property
    def folds(self) -> np.ndarray:
        """`[example]`, in which fold it is held out."""
        found = np.empty(len(self.targets), int)
        for i, (_, test) in enumerate(self.split):
            found[test] = i
        return found

    def held(self, fitted_on: np.ndarray, *, shuffle: int | None = None) -> dict[str, Held]:
        """Out-of-fold scores at every site.

        Args:
            fitted_on: targets of the training parts, and what scores are judged by.
            shuffle: the number of a shuffle of the training parts' targets.
        """
        scores = {site: np.empty((3, len(fitted_on))) for site in self.data}
        levels = {}
        for i, (train, test) in enumerate(self.split):
            asked = fitted_on
            if shuffle is not None:
                asked = baselines.shuffled(
                    fitted_on, train, self.seed, shuffle, i, classes=not self.numeric
                )
            parts = {s: _at(d, train, asked) for s, d in self.data.items()}
            for site, tensors in self.method.fit_many(parts).items():
                levels[site], scores[site][:, test] = self._said(site, tensors, test)
        usual, folds = baselines.usual(fitted_on, self.split), self.folds
        return {
            site: Held(said[0], fitted_on, folds, usual, *said[1:], level=levels[site])
            for site, said in scores.items()
        }

    def controls(self, types: Sequence[Any] | None, n: int) -> Iterator[dict[str, Held]]:
        """The probe on shuffled targets, or on random ones by type."""
        for i in range(n):
            if types is None:
                yield self.held(self.targets, shuffle=i)
            else:
                drawn = baselines.random_by_type(types, self.targets, self.split, self.seed, i)
                yield self.held(drawn)

    def _said(self, site: str, tensors: Any, test: np.ndarray) -> tuple[float, np.ndarray]:
        """The level of the predicted interval (0 without), and score, low and high `[3, example]`."""
        part = self.data[site].at(torch.from_numpy(test))
        args = (tensors, self.method.params, part.rows, part.mask)
        scores = self.method.score(*args).double().numpy()
        if not np.isfinite(scores).all():
            raise WorkbenchError(
                f"probe {name_of(self.method)!r} at {site}",
                "gave scores that are no numbers",
                expected="finite scores",
                got=f"{int((~np.isfinite(scores)).sum())} of {len(scores)} not finite",
                do="scale the rows, or regularise more",
            )
        spread = self.method.spread(*args) if self.numeric else None
        if not spread:
            return 0.0, np.stack([scores, scores, scores])
        low, high = min(spread), max(spread)
        ends = [spread[level].double().numpy() for level in (low, high)]
        return high - low, np.stack([scores, *ends])


def _at(data: Data, train: np.ndarray, targets: np.ndarray) -> Data:
    index = torch.from_numpy(train)
    part = data.at(index)
    return Data(part.rows, torch.from_numpy(targets[train]), part.mask, part.pairs)


class _Rows:
    """Rows of the table as they come."""

    def __init__(self, job: _Job, bootstrap: Bootstrap):
        self.job, self.bootstrap = job, bootstrap
        self.known = OF_NUMBERS if job.numeric else OF_CLASSES
        self.main = next(iter(self.known))
        self.units: dict[str, str] = {}
        names = ("site", "by", "measure", "mean", "low", "high", "n", "unit")
        self.columns: dict[str, list[Any]] = {name: [] for name in names}

    def probe(self, found: Mapping[str, Held]) -> None:
        for site, held in found.items():
            for measure in self.known:
                if measure != "coverage" or held.level:
                    self._add(site, PROBE, measure, held)

    def control(
        self, found: Mapping[str, Held], types: Sequence[Any] | None, shuffles: int
    ) -> None:
        """Rows of the controls, and of the probe less its control."""
        controls = list(self.job.controls(types, shuffles))
        for site, held in found.items() if controls else ():
            many = [control[site] for control in controls]
            for measure in list(self.known)[:2]:
                if types is None:
                    name, chance = SHUFFLED, over_fits(measure, many, self.job.seed)
                else:
                    name, chance = TASK, over_tasks(measure, many, self.bootstrap)
                self._row(site, name, measure, chance, MEASURES[measure][1])
                if measure == self.main:
                    less = difference(judged(measure, held, self.bootstrap), chance)
                    self._row(site, PROBE, "selectivity", less, f"difference of {measure}")

    def baselines(self, texts: Sequence[str]) -> None:
        job, y = self.job, self.job.targets
        usual = baselines.usual(y, job.split)
        bag = baselines.bag_of_tokens(texts, y, job.split, not job.numeric)
        self._baseline(BAG, bag)
        self._baseline(*((MEAN, usual) if job.numeric else (MAJORITY, baselines.logit(usual))))
        for name, read in IN_TEXT.items() if job.numeric else ():
            found = baselines.from_number([read(text) for text in texts], y, job.split)
            if found is not None:
                self._baseline(name, found)

    def _baseline(self, name: str, scores: np.ndarray) -> None:
        usual, folds = baselines.usual(self.job.targets, self.job.split), self.job.folds
        for measure in ("r2", "mae", "spearman") if self.job.numeric else ("accuracy", "auroc"):
            self._add("", name, measure, Held(scores, self.job.targets, folds, usual))

    def _add(self, site: str, by: str, measure: str, held: Held) -> None:
        unit = MEASURES[measure][1]
        if measure == "coverage":
            unit = f"fraction (nominal {held.level:.3g})"
        self._row(site, by, measure, judged(measure, held, self.bootstrap), unit)

    def _row(self, site: str, by: str, measure: str, found: Interval, unit: str) -> None:
        self.units.setdefault(measure, unit)
        row = (site, by, measure, found.mean, found.low, found.high, found.n, unit)
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)


def _each(name: str, given: Any, n: int) -> list[Any] | None:
    """One plain value per example, which compares and hashes by what it says."""
    if given is None:
        return None
    found = [tuple(value) if isinstance(value, list) else value for value in plain(given)]
    if len(found) != n:
        raise WorkbenchError(
            "probes.evaluate",
            f"{name} are not one per example",
            expected=n,
            got=len(found),
            do=f"pass one of {name} per row, or per prompt where the probe reads all tokens of one",
        )
    return found


def _provenance(
    method: Probe,
    acts: Activations,
    classes: tuple[Any, ...],
    targets: np.ndarray,
    groups: np.ndarray,
    folds: int,
    seed: int,
) -> dict[str, Any]:
    return {
        "method": name_of(method),
        "options": {k: v for k, v in asdict(method).items() if isinstance(v, _PLAIN)},
        "model": acts.model.name,
        "fingerprint": asdict(acts.model),
        "pool": acts.pool,
        "classes": [str(c) for c in classes],
        "n_examples": len(targets),
        "n_groups": len(np.unique(groups)),
        "folds": folds,
        "seed": seed,
        "versions": versions(),
    }
