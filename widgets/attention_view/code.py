"""An AttentionView as a cell of Python that gives the same patterns without the widget."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.model.model import Model
from workbench.tensors import Intervention, Tokens
from workbench_widgets.cells import setup


def cell(
    model: Model, tokens: Tokens, edits: Sequence[Intervention], layer: int | None, head: int | None
) -> str:
    """The text of the cell: the statistics of every head, and the chosen head's pattern."""
    lines = [
        "import workbench as wb",
        "from workbench_widgets.attention_view.heads import statistics",
        "",
        *setup(model, tokens, edits),
        "trace = model.run(prompt, record='L*.pattern', edits=edits, logits='none')",
        "heads = statistics(trace.stack('pattern')[:, 0])  # [statistic, layer, head]",
    ]
    if layer is not None and head is not None:
        lines.append(f"pattern = trace['L{layer}.pattern'][0, {head}]  # [query, key]")
    return "\n".join([*lines, "heads", ""])
