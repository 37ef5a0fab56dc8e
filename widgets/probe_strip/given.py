"""What a ProbeStrip was given and what a setting asks for, checked in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.errors import EditError, WorkbenchError
from workbench.model.model import Model
from workbench.probes.base import FittedProbe, check_model
from workbench.tensors import Intervention

WHERE = "ProbeStrip"


def named(probes: Any) -> dict[str, FittedProbe]:
    """Probes by name; those of a list are called by method and site.

    Raises:
        WorkbenchError: none, or something that is no fitted probe.
    """
    many: Any = [probes] if isinstance(probes, FittedProbe) else probes
    if not isinstance(many, Mapping):
        try:
            many = _by_site(list(many))
        except TypeError:
            many = {"": many}
    bad = [v for v in many.values() if not isinstance(v, FittedProbe)]
    if bad or not many:
        raise WorkbenchError(
            f"{WHERE}(probes=)",
            "needs fitted probes",
            expected="a FittedProbe, a list of them, or a dict by name",
            got=repr(bad[0])[:80] if bad else "none",
            do="fit some with probes.fit(method, acts)",
        )
    return {str(name): probe for name, probe in many.items()}


def _by_site(many: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in many:
        name = f"{one.method} at {one.site}" if isinstance(one, FittedProbe) else repr(one)
        again = sum(key == name or key.startswith(f"{name} (") for key in found)
        found[f"{name} ({again + 1})" if again else name] = one
    return found


def fitting(model: Model, probes: Mapping[str, FittedProbe]) -> None:
    """Refuse probes of another model.

    Raises:
        WorkbenchError: one was fitted on other weights, or on a model of another shape.
    """
    own = model.fingerprint
    for probe in probes.values():
        check_model(probe, own)


def movable(edits: Intervention | Iterable[Intervention]) -> list[Intervention]:
    """The edits as given, one strength each.

    Raises:
        EditError: something that no slider can move.
    """
    try:
        many: list[Any] = [edits] if isinstance(edits, Intervention) else list(edits)
    except TypeError:
        many = [edits]
    for edit in many:
        if not isinstance(edit, Intervention) or not isinstance(edit.strength, int | float):
            raise EditError(
                f"{WHERE}(edits=)",
                "holds something that no slider can move",
                expected="interventions with one strength each",
                got=repr(edit)[:80],
                do="pass what a method's fit returns, at one strength",
            )
    return many


def number(name: str, value: Any, low: float, high: float, whole: bool = False) -> float:
    """A finite number within bounds.

    Raises:
        WorkbenchError: it is none.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    good = good and math.isfinite(value) and low <= value <= high
    if not good or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise WorkbenchError(
            f"{WHERE}, {name}",
            "is out of range",
            expected=f"{kind} from {low:g} to {high:g}",
            got=repr(value),
            do="correct it",
        )
    return int(value) if whole else value


def chosen(name: str, value: Any, known: Iterable[Any]) -> Any:
    """One of what there is.

    Raises:
        WorkbenchError: there is no such thing.
    """
    known = list(known)
    if isinstance(value, bool) or value not in known:
        raise WorkbenchError(
            f"{WHERE}, {name}",
            "there is no such thing",
            expected=f"one of {known[:12]}",
            got=repr(value)[:80],
            do="choose another",
        )
    return value
