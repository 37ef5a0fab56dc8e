"""Steer with a feature: what the slider says of each mode, and the edit that it makes.

One slider for each mode: `add` adds so many of the feature's largest activations; `clamp` sets the
feature to so many of them, 0 is off; `scale` adds so many times its own activation, -1 is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench import sae
from workbench.errors import WorkbenchError, unknown
from workbench.tensors import Intervention

MODES: dict[str, dict[str, Any]] = {
    "add": {"words": "add", "unit": "largest activations", "range": [-4.0, 4.0], "start": 1.0},
    "clamp": {"words": "clamp to", "unit": "largest activations; 0 is off", "range": [0.0, 4.0],
              "start": 1.0},
    "scale": {"words": "scale: add", "unit": "times its own activation; −1 is off",
              "range": [-1.0, 4.0], "start": -1.0},
}  # fmt: skip
ALONE = ("relu", "jumprelu")
STEP = 0.05


def modes_of(dictionary: Any) -> list[str]:
    """Modes that a dictionary allows: where features depend on one another none can be read alone, and
    where what they write depends on the row's length none can be written."""
    if dictionary is None or dictionary.rescales:
        return []
    alone = dictionary.activation in ALONE and dictionary.target == dictionary.site
    return list(MODES) if alone else ["add"]


def checked(dictionary: Any, mode: Any, strength: Any) -> tuple[str, float]:
    """A mode that the dictionary allows, and a finite strength.

    Raises:
        WorkbenchError: no dictionary, a mode that it does not allow, or no number.
        UnknownName: no such mode.
    """
    if dictionary is None:
        raise WorkbenchError(
            "FeatureBrowser",
            "has no dictionary to steer with",
            expected="dictionary=",
            got="None",
            do="give the browser the dictionary that the dashboard is of",
        )
    if mode not in MODES:
        raise unknown("FeatureBrowser", "mode", mode, MODES)
    if mode not in modes_of(dictionary):
        raise WorkbenchError(
            "FeatureBrowser",
            "one feature of this dictionary cannot be steered in this way",
            expected=f"a mode of {modes_of(dictionary)}",
            got=f"{mode!r}, {dictionary.architecture}",
            do="see sae.steer for what each mode needs",
        )
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        strength = float("nan")
    if not np.isfinite(strength):
        raise WorkbenchError(
            "FeatureBrowser", "needs a strength", expected="a finite number", got=strength,
            do="choose one",
        )  # fmt: skip
    return mode, float(strength)


def edit_of(
    dictionary: Any, feature: int, mode: str, strength: float, largest: float
) -> Intervention:
    """The edit of a slider's setting.

    Args:
        largest: the feature's largest activation on the dashboard's corpus.

    Raises:
        WorkbenchError: the feature is never active, so that nothing says what much of it is.
    """
    counted = mode == "add" or (mode == "clamp" and strength != 0)
    if counted and largest <= 0:
        raise WorkbenchError(
            f"FeatureBrowser, feature {feature}",
            "is never active on the dashboard's texts, so its size is not known",
            expected="a feature with a largest activation",
            got="0",
            do="use sae.steer(dictionary, feature, largest=...) with a number of your own",
        )
    level = strength if mode == "clamp" else 1.0
    edit = sae.steer(dictionary, feature, mode=mode, level=level, largest=largest or None)
    return edit.at(1.0 if mode == "clamp" else strength)
