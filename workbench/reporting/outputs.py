"""Cell outputs as safe HTML, by MIME type, the richest that a page without a kernel can show.

A widget's view is drawn by `mount`, around the static picture beside it (`text/html`, else an image,
else `text/plain`); without saved widgets the picture alone is shown.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbconvert.filters.ansi import ansi2html
from nbformat import NotebookNode

from workbench.reporting.clean import clean
from workbench.reporting.prose import markdown, tex_output
from workbench.reporting.saved import VIEW as WIDGET

if TYPE_CHECKING:
    from workbench.reporting.mount import Mounts

PLOTLY = "application/vnd.plotly.v1+json"


def output(node: NotebookNode, folder: Path, mounts: Mounts | None = None) -> str:
    """One output of a code cell as HTML; empty where there is nothing to show."""
    if node.output_type == "stream":
        return f'<pre class="{node.name}">{ansi2html(_screen(node.text))}</pre>'
    if node.output_type == "error":
        return f'<pre class="stderr">{ansi2html(chr(10).join(node.traceback))}</pre>'
    if is_progress_bar(node.data):
        return ""
    still = next((draw(node.data[m], folder) for m, draw in DRAWINGS.items() if m in node.data), "")
    if WIDGET in node.data and mounts is not None:
        return mounts.view(str(node.data[WIDGET].get("model_id", "")), still)
    return still


def is_progress_bar(data: Mapping[str, Any]) -> bool:
    """Whether it is tqdm's widget, whose text stays at the 0 % it began with."""
    return (
        WIDGET in data and re.search(r"\d+%\||\[\d\d:\d\d", data.get("text/plain", "")) is not None
    )


def _screen(text: str) -> str:
    """What a terminal would show in the end: a progress bar rewrites its line."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def has_plotly(page: str) -> bool:
    """Whether a drawn page needs the plotly bundle."""
    return '<script type="application/json" class="plotly-json">' in page


def json_block(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _plotly(figure: Mapping[str, Any], _: Path) -> str:
    kept = {"data": figure.get("data", []), "layout": figure.get("layout", {})}
    kept["frames"] = figure.get("frames", [])
    block = json_block(kept)
    return (
        '<figure class="plotly"><div class="plot"></div>'
        f'<script type="application/json" class="plotly-json">{block}</script></figure>'
    )


def _image(mime: str) -> Callable[[str, Path], str]:
    def draw(data: str, _: Path) -> str:
        joined = "".join(data.split())
        return (
            f'<img alt="output of the cell above" src="data:{mime};base64,{html.escape(joined)}">'
        )

    return draw


DRAWINGS: dict[str, Callable[[Any, Path], str]] = {
    PLOTLY: _plotly,
    "text/html": lambda data, _: clean(data),
    "text/markdown": lambda data, folder: markdown(data, folder),
    "text/latex": lambda data, _: tex_output(data),
    "image/svg+xml": lambda data, _: clean(data),
    "image/png": _image("image/png"),
    "image/jpeg": _image("image/jpeg"),
    "text/plain": lambda data, _: f"<pre>{ansi2html(data)}</pre>",
}
"""Richest first."""
