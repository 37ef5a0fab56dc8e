"""Fit a probe at every site of recorded activations.

acts = model.record(prompts, "L*.resid_post")
found = probes.fit("logistic", acts)
found["L3.resid_post"].score(acts)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from workbench import registry
from workbench.errors import WorkbenchError
from workbench.probes.base import Data, FittedProbe, Probe
from workbench.probes.examples import examples, owners
from workbench.probes.places import placed
from workbench.records import Prompt
from workbench.tensors import Activations

SIDES = ("one side", "the other side")
"""What classes are called that were found without any label."""


def fit(
    method: str | Probe,
    acts: Activations,
    sites: str | Iterable[str] | None = None,
    targets: Any = None,
    *,
    join: bool = False,
    heads: int | None = None,
) -> dict[str, FittedProbe]:
    """A fitted probe per site.

    Args:
        method: a registry name of the family `probes`, or a probe with options.
        acts: recorded activations.
        sites: some of them, such as "L2-4.resid_post"; all by default.
        targets: one per example: two classes of any kind, or numbers; by default the labels of the
            prompts. An example is a row, or a prompt where the probe reads all tokens of one. A probe
            of pairs needs few targets, or none; None stands for those it is not given.
        join: one probe on all sites side by side, named "L1.resid_post+L3.resid_post".
        heads: number of heads of per-head sites; one probe per head, named "L3.z[head=2]".

    Raises:
        UnknownName: no such probe.
        WorkbenchError: a site that was not recorded, targets that are not one per example, constant
            targets, more than two classes, or NaN in the rows.
    """
    method = probe_of(method)
    where = placed(acts, sites, join, heads)
    data, classes = data_of(method, where, targets, partial=method.reads == "pairs")
    found = method.fit_many(data)
    return {site: fitted(method, where, site, found[site], classes) for site in data}


def probe_of(method: str | Probe) -> Probe:
    """The probe of a registry name, with its default options."""
    return registry.get("probes", method)() if isinstance(method, str) else method


def name_of(method: Probe) -> str:
    """The registry name of a probe."""
    return type(method).__module__.rpartition(".")[2]


def fitted(
    method: Probe, acts: Activations, site: str, tensors: Any, classes: tuple[Any, ...]
) -> FittedProbe:
    """The record of what was fitted."""
    return FittedProbe(
        name_of(method), site, acts.pool, dict(tensors), method.params, classes, acts.model
    )


def data_of(
    method: Probe, acts: Activations, targets: Any = None, partial: bool = False
) -> tuple[dict[str, Data], tuple[Any, ...]]:
    """The examples of every site, and what class 0 and class 1 are called.

    Args:
        partial: a target may be None, which becomes NaN.
    """
    labels = labels_of(method, acts, targets, partial)
    coded, classes = codes(method, labels)
    return {s: examples(acts, s, method.reads, coded) for s in acts.values}, classes


def prompts_of(method: Probe, acts: Activations) -> list[Prompt]:
    """The prompt of each example."""
    if method.reads != "tokens":
        return list(acts.rows)
    first = dict(zip(reversed(owners(acts)), reversed(acts.rows), strict=True))
    return [first[i] for i in sorted(first)]


def labels_of(method: Probe, acts: Activations, targets: Any, partial: bool = False) -> list[Any]:
    """One target per example, as given or as the prompts are labelled."""
    prompts = prompts_of(method, acts)
    found = [p.label for p in prompts] if targets is None else plain(targets)
    if len(found) != len(prompts):
        raise WorkbenchError(
            "probes",
            "targets are not one per example",
            expected=len(prompts),
            got=len(found),
            do="pass one target per row, or per prompt where the probe reads all tokens of one",
        )
    missing = sum(label is None for label in found)
    if missing and not partial:
        raise WorkbenchError(
            "probes",
            "prompts have no label",
            expected="a label each",
            got=f"{missing} of {len(found)} without one",
            do="pass targets=, or label the prompts",
        )
    return found


def codes(method: Probe, labels: list[Any]) -> tuple[list[float], tuple[Any, ...]]:
    """0 and 1 for the two classes in their order, or the numbers as they are.

    Where no label is known the classes are `SIDES`: which of them is which, nobody said.

    Raises:
        WorkbenchError: one class or more than two; targets that are no finite numbers.
    """
    if method.target == "number":
        return _numbers(labels), ()
    if all(label is None for label in labels):
        return [math.nan] * len(labels), SIDES
    try:
        classes = _ordered(set(labels) - {None})
    except TypeError:  # lists and the like
        classes = labels[:1]
    spoilt = any(isinstance(c, float) and math.isnan(c) for c in classes)
    if len(classes) != 2 or spoilt:
        raise WorkbenchError(
            f"probe {name_of(method)!r}",
            "needs two classes",
            expected="targets of two values; constant ones cannot be told apart",
            got=f"{len(classes)}: {classes[:6]}",
            do="check the labels, or use a probe of numbers such as ridge",
        )
    coded = [math.nan if label is None else float(label == classes[1]) for label in labels]
    return coded, tuple(classes)


def _ordered(classes: set[Any]) -> list[Any]:
    try:
        return sorted(classes)
    except TypeError:
        return sorted(classes, key=repr)


def _numbers(labels: list[Any]) -> list[float]:
    try:
        found = [float(label) for label in labels]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise WorkbenchError(
            "probes",
            "targets are no finite numbers",
            expected="a number per example",
            got=repr(labels[:4]),
            do="pass targets=, or use a probe of classes",
        )
    return found


def plain(targets: Any) -> list[Any]:
    """Tensors and arrays as plain values, which compare and sort."""
    if hasattr(targets, "tolist"):
        return list(targets.tolist())
    return [t.item() if hasattr(t, "item") else t for t in targets]
