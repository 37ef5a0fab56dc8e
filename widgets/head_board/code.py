"""A HeadBoard's chosen head as a cell of Python: its pattern, its ablation, and what that does."""

from __future__ import annotations

from workbench.model.model import Model
from workbench.records import Prompt
from workbench.tensors import Intervention
from workbench_widgets.cells import edit_code, model_line, prompt_code


def cell(model: Model, prompt: Prompt, edit: Intervention, layer: int, head: int) -> str:
    """The text of the cell. The edit is written to the folder `edits` and loaded from there."""
    lines = [
        "import workbench as wb",
        "",
        model_line(model),
        f"prompt = {prompt_code(prompt)}",
        f"edit = {edit_code(edit)}  # without layer {layer} head {head}",
        f"pattern = model.run(prompt, record='L{layer}.pattern')['L{layer}.pattern'][0, {head}]",
        "p = model.run(prompt, edits=edit, logits='last').logits[0, -1].softmax(-1)",
        "p.topk(5)",
    ]
    return "\n".join([*lines, ""])
