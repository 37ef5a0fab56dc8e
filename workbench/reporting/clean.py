"""HTML that can run nothing and fetch nothing, whoever wrote it.

A prompt or a model's text may reach the page inside a table that some library failed to escape.
The page's content policy already forbids such a script to run; this keeps the page free of errors.
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup
from bs4.element import Tag

_BANNED = ["script", "iframe", "object", "embed", "base", "meta", "link", "form", "template"]
_LOADED = ("src", "srcset", "poster", "data", "background")
_LINKS = ("href", "xlink:href")
_HELD = ("data:image/", "#")
_FOLLOWED = ("http", "https", "mailto")
_STYLE_FETCH = re.compile(r"url\(\s*['\"]?(?!#|data:image/)|@import", re.IGNORECASE)


def clean(markup: str) -> str:
    """The markup without scripts, handlers, frames and addresses that a browser loads unasked."""
    soup = BeautifulSoup(markup, "html.parser")
    for tag in soup.find_all(_BANNED):
        tag.decompose()
    for tag in soup.find_all(True):
        _disarm(tag)
    return str(soup)


def _disarm(tag: Tag) -> None:
    if tag.name == "style" and _STYLE_FETCH.search(tag.get_text()):
        tag.decompose()
        return
    for name, value in list(tag.attrs.items()):
        text = " ".join(value) if isinstance(value, list) else str(value)
        loads = name in _LOADED or (name in _LINKS and tag.name != "a")
        if loads and not text.startswith(_HELD):
            tag.insert_after(f" [not shown: {text}] ")
            del tag[name]
        elif _runs(name, text) or _shadows(tag.name, name):
            del tag[name]


def _runs(name: str, text: str) -> bool:
    if name in _LINKS:
        # Browsers skip white space and control characters inside a scheme.
        scheme = re.match(r"([a-z][a-z0-9+.-]*):", re.sub(r"[\x00-\x20]", "", text).lower())
        return scheme is not None and scheme[1] not in _FOLLOWED
    if name == "style":
        return _STYLE_FETCH.search(text) is not None
    return name.startswith("on") or name in ("srcdoc", "formaction", "action")


def _shadows(tag: str, name: str) -> bool:
    """Whether the page's own scripts could take the element for something of theirs."""
    # An image of the name x becomes document.x.
    return name == "data-afm" or (name == "name" and tag == "img")
