"""An executed notebook with static pictures only, for GitHub, nbviewer and JupyterLab without trust.

No times of the run, no widget ids, no ids of cells made up on the way: what differs between two runs is
what the cells themselves print.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import nbformat
from nbformat import NotebookNode

from workbench.reporting import stills
from workbench.reporting.outputs import PLOTLY, is_progress_bar
from workbench.reporting.saved import VIEW

INTERACTIVE = (
    "<em>An interactive figure, without a static picture here: open the notebook in JupyterLab, or "
    "make its page with <code>workbench report</code>.</em>"
)
RUN_ONLY = ("execution", "papermill", "collapsed", "ExecuteTime")
"""Metadata that runs leave in a cell."""


def notebook_bytes(done: NotebookNode, page_html: str) -> bytes:
    """The file of an executed notebook to share; `page_html` is its page, with its widgets."""
    return nbformat.writes(static(done, page_html)).encode()


def static(done: NotebookNode, page_html: str = "") -> NotebookNode:
    """A copy of an executed notebook in which every output is a picture, markup or text.

    A widget becomes a PNG of itself. Plotly figures stay, for JupyterLab, each beside a PNG of it.
    Without a Chromium to draw them a widget's own static markup and a sentence stand there.
    """
    notebook = deepcopy(done)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for name in ("widgets", "papermill"):
        notebook.metadata.pop(name, None)
    # The kernel's patch version is no change of the notebook.
    notebook.metadata.get("language_info", {}).pop("version", None)
    for index, cell in enumerate(notebook.cells):
        _tidy(cell, index)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not is_progress_bar(o.get("data", {}))]
    views = [
        n for cell in notebook.cells for n in cell.get("outputs", ()) if VIEW in n.get("data", {})
    ]
    pictures = stills.of_widgets(
        page_html, [n.data[VIEW]["model_id"] for n in views] if page_html else []
    )
    for node in views:
        _without_view(node, pictures.get(node.data[VIEW]["model_id"]))
    _with_stills([n for cell in notebook.cells for n in cell.get("outputs", ())])
    return notebook


def _tidy(cell: NotebookNode, index: int) -> None:
    for name in RUN_ONLY:
        cell.metadata.pop(name, None)
    tags = cell.metadata.get("tags")
    if tags is not None and not tags:
        del cell.metadata["tags"]
    if "injected-parameters" in (tags or ()):
        cell["id"] = "injected-parameters"
    elif not cell.get("id"):
        cell["id"] = f"cell-{index:02d}"


def _without_view(node: NotebookNode, picture: str | None) -> None:
    data: dict[str, Any] = node.data
    del data[VIEW]
    if picture is not None:
        # markup would be shown in its place, without its colours where a host strips styles
        data.pop("text/html", None)
        data["image/png"] = picture
    if not data:
        data["text/plain"] = "a widget, which needs a running kernel"


def _with_stills(nodes: list[NotebookNode]) -> None:
    bare = [n for n in nodes if PLOTLY in n.get("data", {}) and "image/png" not in n.data]
    for node, picture in zip(bare, stills.of_figures([n.data[PLOTLY] for n in bare]), strict=True):
        if picture is not None:
            node.data["image/png"] = picture
        else:
            node.data.setdefault("text/html", INTERACTIVE)
