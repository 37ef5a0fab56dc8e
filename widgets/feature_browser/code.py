"""A FeatureBrowser's chosen feature as a cell of Python: its edit, and what the model says with it."""

from __future__ import annotations

from workbench.model.model import Model
from workbench.records import Prompt
from workbench.tensors import Intervention
from workbench_widgets.cells import FOLDER, edit_code, model_line, prompt_code


def cell(
    model: Model | None,
    prompt: Prompt | None,
    edit: Intervention,
    words: str,
    folder: str = FOLDER,
) -> str:
    """The text of the cell. The edit is written to `folder` and loaded from there.

    Args:
        words: what the edit is, as a comment.
    """
    plain = " ".join(words.split())
    lines = ["import workbench as wb", ""]
    lines += [model_line(model)] if model is not None else []
    lines += [f"edit = {edit_code(edit, folder)}  # {plain}"]
    if model is not None and prompt is not None:
        lines += [
            f"prompt = {prompt_code(prompt)}",
            "(text,) = model.generate([prompt], edits=edit)",
        ]
        lines += ["text.text"]
    return "\n".join([*lines, ""])
