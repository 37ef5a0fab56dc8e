"""What a Forecast says, as arrays and words that a browser can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dictionary import Dictionary
from workbench.sae.transfer.forecasts import POOLED, Forecast
from workbench_widgets.feature_browser.about import cut_number, expect, same_name
from workbench_widgets.stills.words import number

MIX_WORDS = (
    "Data mix in proportion to the forecast of {source}: what moves gets more; nothing says that this helps",
    "Data mix in proportion to the mean forecast of all sources: what moves gets more; nothing says that "
    "this helps",
)
BAND = (0.025, 0.975)


def check(forecast: Forecast, dashboard: Dashboard | None, dictionary: Dictionary | None) -> None:
    """Refuse what is no forecast, and a dashboard or dictionary of other features than the forecast's.

    Raises:
        WorkbenchError: it is one of these.
    """
    name, width = _of(expect("TransferMap(forecast)", forecast, Forecast))
    site = None
    if dictionary is not None:
        found, site = expect("TransferMap(dictionary=)", dictionary, Dictionary), dictionary.site
        if not same_name(found.name, name) or found.n_features != width:
            got = f"{found.name}, {found.n_features} features"
            raise _misfit("got another dictionary", f"{name}, {width} features", got)
    if dashboard is not None:
        board = expect("TransferMap(dashboard=)", dashboard, Dashboard)
        if not same_name(board.dictionary_name, name) or site not in (None, board.site):
            got = f"{board.dictionary_name} at {board.site}"
            raise _misfit("got a dashboard of another dictionary", f"{name} at {site}", got)


def _of(forecast: Forecast) -> tuple[str, int]:
    """Name and number of features of the dictionary."""
    shift = next(iter(forecast.shifts.values()))
    return shift.dictionary, len(shift.delta)


def _misfit(wrong: str, expected: str, got: str) -> WorkbenchError:
    do = "pass what was made with the forecast's dictionary"
    return WorkbenchError("TransferMap", wrong, expected=expected, got=got, do=do)


def unit(forecast: Forecast) -> str:
    """What scores are counted in, as people write it."""
    return forecast.unit.replace("^2", "²")


def caption(forecast: Forecast) -> str:
    """What the scores are, in words."""
    about = forecast.provenance
    name, width = _of(forecast)
    dims = _range([len(shift.dims) for shift in forecast.shifts.values()])
    said = f"STS_{about['kind']}: " if "kind" in about else ""
    said += f"{unit(forecast)} over the {dims} most shifted of {width} features of {name or 'a dictionary'}"
    prompts = about.get("n_prompts")
    if prompts:
        said += f"; 95 % intervals over {_range(list(prompts.values()))} prompts of each target"
    return f"{said}. The forecast is of the size of a change, not of its sign."


def _range(numbers: Sequence[int]) -> str:
    lo, hi = min(numbers), max(numbers)
    return str(lo) if lo == hi else f"{lo} to {hi}"


# --- arrays ------------------------------------------------------------------------------------


def arrays(forecast: Forecast) -> dict[str, Any]:
    """Scores, changes and ranks `[source, target]`, `mix` `[source + 1, target]`, and `stats` in words.

    The last row of `mix` and the last of `stats` are those of all sources together.
    """
    none = np.full(forecast.scores.shape, np.nan)
    ends = np.quantile(forecast.random, BAND, axis=0) if len(forecast.random) else (none, none)
    sides = (forecast.measured, forecast.measured_low, forecast.measured_high)
    change, low, high = (none if side is None else side for side in sides)
    return {
        "score": forecast.scores,
        "score_low": forecast.low,
        "score_high": forecast.high,
        "random_low": ends[0],
        "random_high": ends[1],
        "change": change,
        "change_low": low,
        "change_high": high,
        "ranks": ranks(forecast),
        "mix": np.stack([_mix(forecast, name) for name in (*forecast.sources, None)]),
        "stats": statistics(forecast),
    }


def ranks(forecast: Forecast) -> np.ndarray:
    """Ranks that the forecast puts a target above its measured place, among a source's targets.

    NaN where nothing is measured, and for a source as its own target: as in `Forecast.report`.
    """
    from scipy.stats import rankdata

    found = np.full(forecast.scores.shape, np.nan)
    if forecast.measured is None:
        return found
    for i, source in enumerate(forecast.sources):
        known = np.isfinite(forecast.measured[i]) & np.isfinite(forecast.scores[i])
        known &= np.array([target != source for target in forecast.targets])
        size = np.abs(forecast.measured[i, known])
        found[i, known] = rankdata(forecast.scores[i, known]) - rankdata(size)
    return found


def _mix(forecast: Forecast, source: str | None) -> np.ndarray:
    try:
        return np.array(forecast.mix(source).columns["share"], float)
    except WorkbenchError:  # scores of both signs have no shares
        return np.full(len(forecast.targets), np.nan)


def best(forecast: Forecast, most: int) -> list[tuple[int, int]]:
    """All pairs, row by row; where there are more than `most`, those of the highest scores."""
    n = forecast.scores.size
    flat = np.arange(n)
    if n > most:
        flat = np.argsort(-np.nan_to_num(forecast.scores), axis=None, kind="stable")[:most]
    return [(int(i) // len(forecast.targets), int(i) % len(forecast.targets)) for i in flat]


# --- statistics in words -----------------------------------------------------------------------


def statistics(forecast: Forecast) -> list[dict[str, Any] | None]:
    """A report's row for each source and for all of them, with the words that go with it."""
    n = len(forecast.sources)
    if forecast.measured is None:
        return [None] * (n + 1)
    rows = forecast.report().frame().to_dict("records")
    found = {row["source"]: row for row in rows}
    # one source alone is all of them
    names = [*forecast.sources, POOLED if POOLED in found else forecast.sources[0]]
    return [{"r": _plain(found[name]["r"]), "words": in_words(found[name])} for name in names]


def in_words(row: Mapping[str, Any]) -> list[str]:
    """A report's row as sentences: r, both tests, ranks, and what random features give."""
    pooled = row["source"] == POOLED
    n, pairs = int(row["n"]), "pairs" if pooled else "targets"
    left = "each source standardised; " if pooled else ""
    if not np.isfinite(row["r"]):
        return [
            f"No correlation over {n} {pairs}: there are fewer than three, or one side is the same."
        ]
    said = f"r = {_r(row['r'])}"
    if np.isfinite(row["low"]):
        said += f" [{_r(row['low'])}, {_r(row['high'])}]"
    out = [
        f"{said} over {n} {pairs} ({left}Pearson, Fisher's 95 % interval; no domain with itself)"
    ]
    how = "exact" if row["exact"] else "Monte-Carlo"
    p = f"permutation p {_p(row['p'])} ({how})"
    if pooled:
        p += f"; p {_p(row['relabelled_p'])} where targets change names in all sources alike"
    out += [p, f"Spearman {_r(row['spearman'])}"]
    out += [_band(row)] if np.isfinite(row["random_low"]) else []
    others = [f"{k[2:]} {_r(v)}" for k, v in row.items() if k.startswith("r ") and np.isfinite(v)]
    out += [f"r of other features: {', '.join(others)}"] if others else []
    return out


def _band(row: Mapping[str, Any]) -> str:
    """Whether the shifted features do better than as many random ones."""
    r, low, high = row["r"], row["random_low"], row["random_high"]
    where = "above" if r > high else "below" if r < low else "inside"
    return (
        f"random features, as many: r from {_r(low)} to {_r(high)} in 95 % of draws, as high in "
        f"{number(100 * row['random_p'])} % of them; the forecast's r is {where} this band"
    )


def _r(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


# --- a pair ------------------------------------------------------------------------------------


def contributions(
    forecast: Forecast, source: int, target: int, top: int
) -> tuple[list[dict[str, Any]], str]:
    """The `top` shifted features that add most to a pair's score, and why there are no amounts.

    Without amounts the features come in the order of their shift.
    """
    name, shift = forecast.sources[source], forecast.shifts[forecast.sources[source]]
    if name not in forecast.terms:
        rows = [
            {"feature": j, "value": None, "share": None, "shift": float(shift.delta[j])}
            for j in shift.dims[:top]
        ]
        return rows, "This forecast does not say what each feature adds: features by their shift."
    table = forecast.contributions(name, forecast.targets[target]).columns
    found = zip(table["feature"], table["adds"], table["share"], table["delta"], strict=True)
    keys = ("feature", "value", "share", "shift")
    # four digits: a page holds thousands of these
    rows = [(j, *map(cut_number, numbers)) for j, *numbers in [*found][:top]]
    return [dict(zip(keys, row, strict=True)) for row in rows], ""


def rest(forecast: Forecast, source: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the features that are not listed add, in words."""
    n = len(forecast.shifts[forecast.sources[source]].dims)
    shares = [row["share"] for row in rows]
    if len(rows) == n:
        return f"All {n} shifted features of the source."
    if None in shares:
        return f"{len(rows)} of the {n} shifted features of the source."
    return (
        f"{len(rows)} of the {n} shifted features of the source; the others add "
        f"{number(100 * (1 - sum(shares)))} % of the score."
    )


def numbers(forecast: Forecast, source: int, target: int) -> dict[str, float]:
    """Score and change of a pair, with their intervals; NaN where there is none."""
    sides = {
        "score": forecast.scores,
        "low": forecast.low,
        "high": forecast.high,
        "change": forecast.measured,
        "change_low": forecast.measured_low,
        "change_high": forecast.measured_high,
    }
    nan = float("nan")
    return {k: nan if v is None else float(v[source, target]) for k, v in sides.items()}
