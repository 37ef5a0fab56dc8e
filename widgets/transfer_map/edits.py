"""The edit of a feature: what it adds to the stream, scaled; where features cannot be read alone, added."""

from __future__ import annotations

from workbench.errors import WorkbenchError
from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dictionary import Dictionary
from workbench.sae.edits import steer
from workbench.sae.transfer.shifts import Coordinates
from workbench.tensors import Intervention


def mode_of(dictionary: Dictionary | None, dashboard: Dashboard | None) -> str:
    """ "scale" where the dictionary allows it, else "add" where the dashboard knows how large features
    are, else "".
    """
    if dictionary is None or isinstance(dictionary, Coordinates):
        return ""
    if _allowed(dictionary, "scale"):
        return "scale"
    return "add" if dashboard is not None and _allowed(dictionary, "add") else ""


def _allowed(dictionary: Dictionary, mode: str) -> bool:
    try:
        steer(dictionary, 0, mode=mode, largest=1.0)
    except WorkbenchError:
        return False
    return True


def edit_of(
    dictionary: Dictionary, dashboard: Dashboard | None, feature: int, strength: float
) -> Intervention | None:
    """The edit; None where there is none, or its size is not known."""
    mode = mode_of(dictionary, dashboard)
    if not mode:
        return None
    if mode == "scale":
        return steer(dictionary, feature, mode="scale").at(strength)
    try:
        return steer(dictionary, feature, mode="add", largest=dashboard).at(strength)
    except WorkbenchError:  # it is not on the dashboard, or never active there
        return None
