"""A LiveEdit as a cell of Python that gives the same tokens without the widget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.model.model import Model
from workbench.records import Prompt
from workbench.tensors import Intervention
from workbench_widgets.cells import FOLDER, edit_code, list_code, model_line, prompt_code


def cell(
    model: Model,
    prompt: Prompt,
    edits: Sequence[Intervention],
    options: Mapping[str, Any],
    prompts: Sequence[Prompt],
    folder: str | Path = FOLDER,
) -> str:
    """The text of the cell. Fitted edits are written to `folder` and loaded from there.

    Args:
        options: seed, max_new_tokens and temperature (0 is greedy).
        prompts: those that a made edit took its mean or norm from.
    """
    made = any("make" in edit.params for edit in edits)
    lines = ["import workbench as wb"]
    lines += ["from workbench_widgets.live_edit.making import make"] if made else []
    lines += ["", model_line(model), f"prompt = {prompt_code(prompt)}"]
    lines += [f"prompts = {list_code(map(prompt_code, prompts))}"] if made else []
    lines += [f"edits = {list_code(edit_code(edit, folder, made) for edit in edits)}"]
    return "\n".join([*lines, _generate(options), "generation.text", ""])


def _generate(options: Mapping[str, Any]) -> str:
    temperature = float(options["temperature"])
    decoder = f"wb.decoding.Sample(temperature={temperature!r})" if temperature else ""
    said = f"max_new_tokens={int(options['max_new_tokens'])}, seed={int(options['seed'])}"
    said += f", decoder={decoder}" if decoder else ""
    return f"(generation,) = model.generate([prompt], edits=edits, {said})"
