"""Steer with a feature: what the slider says of each mode, the edit that it makes, the edit as a cell.

One slider for each mode: `add` adds so many of the feature's largest activations; `clamp` sets the
feature to so many of them, 0 is off; `scale` adds so many times its own activation, -1 is off.
"""

from __future__ import annotations

from math import isfinite
from numbers import Real
from typing import Any

from workbench import sae
from workbench.errors import WorkbenchError, unknown
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.steering.sae_feature import ACTIVATIONS
from workbench.tensors import Intervention
from workbench_widgets.cells import FOLDER, edit_code, model_line, prompt_code

MODES: dict[str, dict[str, Any]] = {
    "add": {"words": "add", "unit": "largest activations", "range": [-4.0, 4.0], "start": 1.0},
    "clamp": {"words": "clamp to", "unit": "largest activations; 0 is off", "range": [0.0, 4.0],
              "start": 1.0},
    "scale": {"words": "scale: add", "unit": "times its own activation; −1 is off",
              "range": [-1.0, 4.0], "start": -1.0},
}  # fmt: skip
STEP = 0.05


def modes_of(dictionary: Any) -> list[str]:
    """Modes that a dictionary allows: where features depend on one another none can be read alone, and
    where what they write depends on the row's length none can be written."""
    if dictionary is None or dictionary.rescales:
        return []
    alone = dictionary.activation in ACTIVATIONS and dictionary.target == dictionary.site
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
    return mode, strength_of("FeatureBrowser", strength)


def strength_of(where: str, value: Any) -> float:
    """A finite number.

    Raises:
        WorkbenchError: it is none.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    raise WorkbenchError(
        where, "needs a strength", expected="a finite number", got=repr(value), do="choose one"
    )


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


def cell(
    model: Model | None,
    prompt: Prompt | None,
    edit: Intervention,
    words: str,
    folder: str = FOLDER,
) -> str:
    """A cell that steers with the edit, which is written to `folder` and loaded from there.

    Args:
        words: what the edit is, as a comment.
    """
    lines = ["import workbench as wb", ""]
    lines += [model_line(model)] if model is not None else []
    lines += [f"edit = {edit_code(edit, folder)}  # {' '.join(words.split())}"]
    if model is not None and prompt is not None:
        lines += [
            f"prompt = {prompt_code(prompt)}",
            "(text,) = model.generate([prompt], edits=edit)",
            "text.text",
        ]
    return "\n".join([*lines, ""])
