"""Texts and numbers as static pictures write them; js/dom.js has the same for the browser."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

_NAMED = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
LONGEST = 200
"""Characters of a name that a picture shows."""


def visible(text: str) -> str:
    """Spaces and hidden characters made visible; "∅" for none."""
    return "".join(map(_visible, text)) or "∅"


def number(value: Any) -> str:
    """Three digits, an en dash where there is no number."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3g}".replace("-", "−")


def cut(text: str, most: int = LONGEST) -> str:
    """The text, or its beginning where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") or character == "\u00a0"
    return f"⟨U+{ord(character):04X}⟩" if hidden else character
