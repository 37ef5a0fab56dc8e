r"""Markdown cells as HTML: TeX becomes MathML, local images move into the page.

Nothing is left to a script or to the network: MathML is drawn by the browser itself.
"""

from __future__ import annotations

import base64
import html
import mimetypes
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from workbench.reporting.clean import clean

_DOLLARS = re.compile(r"^\s*(\$\$|\$|\\\[|\\\()(.*?)(\$\$|\$|\\\]|\\\))\s*$", re.DOTALL)


def tex(source: str, *, display: bool) -> str:
    """TeX as MathML; what the converter cannot read is shown as its source."""
    try:
        return convert(source.strip(), display="block" if display else "inline")
    except Exception:  # the converter has no common error class, and no formula may cost the page
        return f"<code>{html.escape(source)}</code>"


def tex_output(source: str) -> str:
    """A `text/latex` output, its dollar signs removed."""
    match = _DOLLARS.match(source)
    return tex(match[2] if match else source, display=True)


def markdown(source: str, folder: Path, attachments: dict[str, Any] | None = None) -> str:
    """Markdown as safe HTML; relative images are read from `folder`."""
    renderer = _Renderer(folder, attachments or {})
    return clean(MarkdownWithMath(renderer=renderer).render(source))


class _Renderer(IPythonRenderer):
    def __init__(self, folder: Path, attachments: dict[str, Any]):
        super().__init__(escape=False, attachments=attachments, exclude_anchor_links=True)
        self.folder = folder

    def inline_math(self, body: str) -> str:
        return tex(body, display=False)

    def block_math(self, body: str) -> str:
        return tex(body, display=True)

    def multiline_math(self, text: str) -> str:
        return tex_output(text)

    def latex_environment(self, name: str, body: str) -> str:
        return tex(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        file = self.folder / url
        if "://" in url or url.startswith(("data:", "attachment:")) or not file.is_file():
            return super().image(text, url, title)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        data = base64.b64encode(file.read_bytes()).decode()
        return super().image(text, f"data:{kind};base64,{data}", title)
