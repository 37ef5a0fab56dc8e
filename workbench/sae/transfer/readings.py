"""Read every domain once, with and without its demonstrations, and forecast from that at no cost.

    readings = sae.read_domains(dictionary, model, domains)
    readings.forecast(kind="act", n=50)        # any N, kind, power and shifts; no model runs

Every domain is read twice, whatever the number of sources.

Shapes: scores `[source, target]`, random ones `[draw, source, target]`; effects `[prompt, feature]`.
Units: of scores see `Forecast.unit`.
Source: Zhang et al. (2026), SAE as a Crystal Ball, https://arxiv.org/abs/2603.02908.
Differs from the paper: it has one source at a time; controls stand beside, see `forecasts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import torch

from workbench.comparison.provenance import versions
from workbench.comparison.stats import mean_intervals
from workbench.errors import WorkbenchError, unknown
from workbench.sae.dictionary import Dictionary
from workbench.sae.transfer.demonstrations import Domain
from workbench.sae.transfer.forecasts import ACTIVE, ALL, LOWEST, Forecast
from workbench.sae.transfer.paired import Effects, Setting, effects_of, scores_of
from workbench.sae.transfer.shifts import (
    KINDS,
    Shift,
    checked,
    checked_dims,
    shift_of,
    unit_of,
    warn_of_leaks,
)

DRAWS = 1000


@dataclass(frozen=True)
class Readings:
    """What every domain's prompts do to features: all that forecasts of any N, kind and power need.

    Attributes:
        effects: by domain.
        dictionary: its name.
        setting: how domains were read.
        provenance: model, dictionary, versions.
    """

    effects: Mapping[str, Effects]
    dictionary: str
    setting: Setting
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """Of the dictionary."""
        return next(iter(self.effects.values())).active[1].shape[1]

    def alive(self, among: Sequence[str] | None = None) -> tuple[int, ...]:
        """Features that are active on any domain's queries."""
        used = sum(self.effects[name].mean("active", 2) for name in among or self.effects)
        return tuple(torch.nonzero(torch.as_tensor(used) > 0)[:, 0].tolist())

    def most_active(self, source: str, n: int) -> tuple[int, ...]:
        """The features that are most active on a domain's queries, or on all where it is none of them.

        What is very active also moves far, in squares: they are what shift dimensions have to beat.
        """
        among = [source] if source in self.effects else list(self.effects)
        mean = torch.stack([self.effects[name].mean("active", 2) for name in among]).mean(0)
        return tuple(torch.argsort(mean, descending=True, stable=True)[:n].tolist())

    def shift(self, source: str, n: int | None = None, *, excess: bool = True) -> Shift:
        """What the demonstrations of a domain move.

        Raises:
            UnknownName: no such domain.
            WorkbenchError: it has no demonstrations.
        """
        if source not in self.effects:
            raise unknown("Readings.shift", "domain", source, self.effects)
        found, align = self.effects[source], self.setting.align
        return shift_of(found, self.dictionary, source, align, n=n, excess=excess)

    def forecast(
        self,
        *,
        kind: str = "act",
        n: int | None = None,
        power: int | None = None,
        reduce: str = "sum",
        excess: bool = True,
        shifts: Mapping[str, Shift | Sequence[int]] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> Forecast:
        """Scores of every target for every source, see `sae.forecast`."""
        power = checked(kind, power, reduce)
        if shifts is not None and not shifts:
            raise _no_source("shifts={}")
        sources = list(shifts) if shifts is not None else _with_demonstrations(self.effects)
        found = {
            name: _as_shift(shifts[name], name, self)
            if shifts is not None
            else self.shift(name, n, excess=excess)
            for name in sources
        }
        dims = {
            name: checked_dims(shift, self.n_features, self.dictionary)
            for name, shift in found.items()
        }
        what = KINDS[kind]
        means = torch.stack([e.mean(what, power) for e in self.effects.values()]).double().numpy()
        alive = self.alive()
        mean, low, high = _scores(self.effects, dims, kind, power, reduce)
        others = {
            LOWEST: [shift.lowest(alive) for shift in found.values()],
            ACTIVE: [self.most_active(name, len(dims[name])) for name in sources],
            ALL: [alive] * len(sources),
        }
        random = np.stack(
            [_random(means, len(dims[s]), alive, reduce, draws, seed, s) for s in sources], 1
        )
        about = {"kind": kind, "power": power, "reduce": reduce, "seed": seed}
        return Forecast(
            tuple(sources),
            tuple(self.effects),
            mean,
            low,
            high,
            random,
            {k: np.stack([_terms(means, d, reduce).sum(1) for d in v]) for k, v in others.items()},
            found,
            unit_of(kind, power, reduce),
            provenance={**self.provenance, **about},
            terms={s: _terms(means, d, reduce) for s, d in dims.items()},
        )


def read_domains(
    dictionary: Dictionary,
    model: Any,
    domains: Mapping[str, Domain],
    *,
    align: str = "query_tokens",
    null: str = "base",
    counted: str = "prompt",
    separator: str = "\n",
    join: str = "text",
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Readings:
    """Read every domain's queries with and without its demonstrations, once.

    Args and errors: as in `sae.shift_dims`; a domain without demonstrations is a target only.
    """
    if not domains:
        raise WorkbenchError(
            "sae.read_domains",
            "there are no domains",
            expected="{name: sae.Domain(queries, demonstrations)}",
            got="{}",
            do="pass two or more",
        )
    setting = Setting(align, null, counted, separator, join, seed)
    effects = {}
    for name, domain in domains.items():
        warn_of_leaks(name, domain)
        effects[name] = effects_of(
            dictionary,
            model,
            domain,
            setting,
            where=f"domain {name!r}",
            force=force,
            progress=progress,
        )
    about = {
        "model": model.name,
        "dictionary": dictionary.name,
        "site": dictionary.site,
        "align": align,
        "null": null,
        "counted": counted,
        "n_prompts": {name: len(found.tokens) for name, found in effects.items()},
        "versions": versions(),
    }
    return Readings(effects, dictionary.name, setting, about)


def forecast(
    dictionary: Dictionary,
    model: Any,
    domains: Mapping[str, Domain],
    *,
    kind: str = "act",
    n: int | None = None,
    power: int | None = None,
    reduce: str = "sum",
    excess: bool = True,
    shifts: Mapping[str, Shift | Sequence[int]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    **reading: Any,
) -> Forecast:
    """Scores of every domain as a target, for every domain with demonstrations as a source.

    Args:
        dictionary, model: whose features of what; the model untuned.
        domains: by name.
        kind, power, reduce: of the score, see `sae.sts`.
        n, excess: of the shift dimensions, see `sae.shift_dims`.
        shifts: by source, in place of those of demonstrations; such as what really shifted
            (`sae.actual_shift`), which is what training by reward needs.
        draws: of random features, for the control.
        seed: of the draws and of a shuffled null.
        reading: align, null, counted, separator, join, force, progress, see `read_domains`.

    Raises:
        WorkbenchError: as `sae.shift_dims` and `sae.sts`.
    """
    checked(kind, power, reduce)
    if kind == "act" and shifts is not None:
        domains = {name: Domain(domain.queries) for name, domain in domains.items()}
    return read_domains(dictionary, model, domains, seed=seed, **reading).forecast(
        kind=kind,
        n=n,
        power=power,
        reduce=reduce,
        excess=excess,
        shifts=shifts,
        draws=draws,
        seed=seed,
    )


def _with_demonstrations(effects: Mapping[str, Effects]) -> list[str]:
    found = [name for name, one in effects.items() if one.moved is not None]
    if not found:
        raise _no_source("queries only")
    return found


def _no_source(got: str) -> WorkbenchError:
    return WorkbenchError(
        "sae.forecast",
        "no domain has demonstrations, so none is a source",
        expected="Domain(queries, demonstrations), or shifts={source: ...}",
        got=got,
        do="give at least one of them demonstrations",
    )


def _as_shift(given: Shift | Sequence[int], source: str, readings: Readings) -> Shift:
    """Features alone as a shift: each moved by 1, nothing is known about how far."""
    if isinstance(given, Shift):
        return given
    dims = checked_dims(given, readings.n_features, readings.dictionary)
    delta = torch.zeros(readings.n_features)
    delta[list(dims)] = 1.0
    return Shift(dims, delta, None, "given", 0, readings.dictionary, source)


def _scores(
    effects: Mapping[str, Effects],
    dims: Mapping[str, Sequence[int]],
    kind: str,
    power: int,
    reduce: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over prompts and both ends of their intervals, `[source, target]` each."""
    columns = []
    for found in effects.values():
        stat = found.stat(KINDS[kind])[power]
        each = [found.shares(scores_of(stat, d, reduce)) for d in dims.values()]
        columns.append(mean_intervals(np.stack(each, 1))[:3])
    mean, low, high = (np.stack(side, 1) for side in zip(*columns, strict=True))
    return mean, low, high


def _terms(means: np.ndarray, dims: Sequence[int] | np.ndarray, reduce: str) -> np.ndarray:
    """What each feature adds to the score of each target, `[target, N]`."""
    return means[:, list(dims)] / (len(dims) if reduce == "mean" else 1)


def _random(
    means: np.ndarray,
    size: int,
    alive: Sequence[int],
    reduce: str,
    draws: int,
    seed: int,
    source: str,
) -> np.ndarray:
    """Scores `[draw, target]` of random features; the draws of a source do not hang on its place."""
    rng = np.random.default_rng([seed, crc32(source.encode())])
    pool, size = np.asarray(alive), min(size, len(alive))
    drawn = (rng.choice(pool, size, replace=False) for _ in range(draws))
    return np.array([_terms(means, chosen, reduce).sum(1) for chosen in drawn])
