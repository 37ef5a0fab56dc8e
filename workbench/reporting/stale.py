"""A widget whose last picture is not that of its last setting must not be shared."""

from __future__ import annotations

from collections.abc import Mapping

from nbformat import NotebookNode

from workbench.reporting.execute import NotebookFailed, first_line, number_code_cells
from workbench.reporting.saved import Saved, shown


class WidgetStale(NotebookFailed):
    """A widget of the notebook was still at work, or shows an older setting, when the run ended."""


def refuse_stale(notebook: NotebookNode, name: str) -> None:
    """Do nothing where every widget among the outputs shows its last setting.

    Raises:
        WidgetStale: one does not; the message names the cell and the widget.
    """
    saved, numbers = Saved.of(notebook), number_code_cells(notebook)
    for index, top in shown(notebook):
        for model_id in saved.reach(top):
            reason = _reason(saved.status(model_id), saved.state(model_id))
            if reason is None:
                continue
            cell = notebook.cells[index]
            raise WidgetStale(
                f"report {name}",
                f"the widget {saved.label(model_id)} of code cell {numbers.get(index, 0)} of "
                f"{len(numbers)} (`{first_line(cell.source)}`) is stale",
                expected="every widget idle, showing its last setting",
                got=reason,
                do="let its work end in the cell that starts it, such as by `w.settle()`",
            )


def _reason(status: Mapping[str, object], state: Mapping[str, object]) -> str | None:
    """Why it is stale, in words; None for a widget that is not, or has no such status."""
    if status.get("state") in ("queued", "running"):
        return f"state {status['state']!r}"
    asked, shows = status.get("requested_seq"), state.get("seq")
    # An error is the last setting's own result, and the page shows it.
    if status.get("state") == "error" or asked is None or asked == shows:
        return None
    return f"frame {shows} where frame {asked} was asked for (state {status.get('state')!r})"
