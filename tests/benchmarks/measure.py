"""Timing by alternating runs, and the one form in which every benchmark reports.

Times are CPU time of this process on one thread: the machine may be busy with other work. A ratio is the
median over rounds of the ratio within a round, so that a slow minute falls on both sides.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

LIBRARIES = ("torch", "transformers", "transformer-lens", "nnsight")


@dataclass(frozen=True)
class Figure:
    """One measured number against its limit."""

    value: float
    limit: float
    better: str
    unit: str
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it holds its limit."""
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit


def alternate(
    runs: Mapping[str, Callable[[], Any]], seconds: float, *, least: int = 3, most: int = 400
) -> dict[str, list[float]]:
    """CPU seconds of each call, by round; the order rotates from round to round.

    As many rounds as fit into `seconds`, after two that only warm up.
    """
    for run in runs.values():
        run()
    start = time.process_time()
    for run in runs.values():
        run()
    one = time.process_time() - start
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for r in range(max(least, min(most, int(seconds / one)))):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                start = time.process_time()
                runs[name]()
                times[name].append(time.process_time() - start)
    finally:
        gc.enable()
    return times


def ratio(times: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Median over rounds of `ours / theirs`."""
    return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def worst(cases: Mapping[str, float], limit: float, better: str = "lower", **detail: Any) -> Figure:
    """A figure whose value is the worst case, the cases in its detail."""
    value = (max if better == "lower" else min)(cases.values())
    rounded = {name: round(v, 4) for name, v in cases.items()}
    return Figure(round(value, 6), limit, better, "ratio", {**rounded, **detail})


def asked(arguments: list[str] | None = None) -> tuple[bool, bool]:
    """`(quick, json)` from the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    return "--quick" in given, "--json" in given


def report(name: str, figures: Mapping[str, Figure]) -> bool:
    """Print the table and, last, the line of JSON; returns whether every limit holds."""
    ok = all(figure.ok for figure in figures.values())
    print(table(name, {k: asdict(f) for k, f in figures.items()}))
    line = {
        "name": name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "versions": versions(),
        "figures": {k: asdict(f) for k, f in figures.items()},
        "ok": ok,
    }
    print(json.dumps(line))
    return ok


def to_stderr(text: str) -> None:
    """A word on how far a long benchmark has come, beside what it prints."""
    print(text, file=sys.stderr, flush=True)


def table(name: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as Markdown, the cases below each other."""
    rows = [f"| {name} | value | limit | holds | cases |", "|---|---|---|---|---|"]
    for key, f in figures.items():
        sign = "<=" if f["better"] == "lower" else ">="
        holds = f["value"] <= f["limit"] if f["better"] == "lower" else f["value"] >= f["limit"]
        cases = "; ".join(f"{k} {v}" for k, v in f["detail"].items())
        rows.append(
            f"| {key} | {f['value']:.3g} | {sign} {f['limit']:g} | {'yes' if holds else 'NO'} | {cases} |"
        )
    return "\n".join(rows)


def versions() -> dict[str, str]:
    """Versions of Python and of what is compared."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
