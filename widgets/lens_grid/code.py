"""A LensGrid as a cell of Python that gives the same first choices without the widget."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.model.model import Model
from workbench.tensors import Intervention, Tokens
from workbench_widgets.cells import setup


def cell(model: Model, tokens: Tokens, edits: Sequence[Intervention], layers: Sequence[int]) -> str:
    """The text of the cell."""
    lines = [
        "import workbench as wb",
        "from workbench_widgets.lens_grid.lens import lens_logits",
        "",
        *setup(model, tokens, edits),
        f"record = [f'L{{n}}.resid_post' for n in {list(layers)}]",
        "trace = model.run(prompt, record=record, edits=edits)",
        "logits = lens_logits(model, trace.tokens, trace.stack('resid_post')[:, 0])",
        "first = logits.argmax(-1)  # [layer, pos]",
        "first",
    ]
    return "\n".join([*lines, ""])
