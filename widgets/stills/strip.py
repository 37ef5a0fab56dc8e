"""A run of tokens as a static picture: HTML without script, every text escaped, the size bounded."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench_widgets.stills.colours import colour, ink_on
from workbench_widgets.stills.words import visible

BYTES = 9_000
"""What one strip may take; two of them and their table stay below the 20 kB of a still."""


def still_strip(
    tokens: Sequence[Mapping[str, Any] | None],
    scale: Mapping[str, Any] | None = None,
    most: int = BYTES,
) -> str:
    """`<pre>` with a span for each token: its value as background, what changed underlined.

    Args:
        tokens: `text`, and where there is one `shown`, `value`, `changed`; None is a gap.
        scale: `kind` ("sequential" or "diverging"), `lo`, `hi`.
        most: bytes that the tokens may take.
    """
    parts, size = [], 0
    for i, token in enumerate(tokens):
        part = _span(token, scale)
        size += len(part.encode())
        if size > most:
            parts.append(f" <i>… {len(tokens) - i:,} more</i>")
            break
        parts.append(part)
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6;margin:4px 0"
    return f'<pre style="{style}">{"".join(parts)}</pre>'


def _span(token: Mapping[str, Any] | None, scale: Mapping[str, Any] | None) -> str:
    if token is None:
        return '<span style="border:1px dashed #999"> </span>'
    text = html.escape(token.get("shown") or visible(token["text"]).replace("⏎", "⏎\n"))
    value, style = token.get("value"), []
    if scale is not None and value is not None and not math.isnan(value):
        background = colour(value, scale["lo"], scale["hi"], scale["kind"] == "diverging")
        style.append(f"background:{background};color:{ink_on(background)}")
    if token.get("changed"):
        style.append("text-decoration:underline;font-weight:700")
    return f'<span style="{";".join(style)}">{text}</span>' if style else f"<span>{text}</span>"
