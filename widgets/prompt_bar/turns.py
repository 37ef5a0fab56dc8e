"""Whose turn each token belongs to, told from what the chat template writes around the messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from workbench.prompts import chat
from workbench_widgets.spelling import Spelled

Turn = tuple[int, int, int]
"""`(start, stop, message)`: characters of the rendered text that are this message's content."""
_MARK = re.compile("\ue000(\\d+)\ue001")


def spans(tokenizer: Any, messages: Sequence[Mapping[str, str]], text: str) -> list[Turn]:
    """Where the contents of `messages` stand in `text`, what the template renders of them."""
    if not messages:
        return []
    found = _marked(tokenizer, messages, text)
    return _searched(messages, text) if found is None else found


def of_pieces(found: Sequence[Turn], text: str, pieces: Sequence[Spelled]) -> list[int]:
    """For each token the message that it writes, -1 for what the template adds."""
    out, place = [], 0
    for piece in pieces:
        # spelled without the text, a special token adds none although the template wrote it out
        hidden = piece.special and not piece.text and text.startswith(piece.shown, place)
        end = place + len(piece.shown if hidden else piece.text)
        holds = (k for a, b, k in found if max(a, place) < min(b, max(end, place + 1)))
        out.append(next(holds, -1))
        place = end
    return out


def _marked(tokenizer: Any, messages: Sequence[Mapping[str, str]], text: str) -> list[Turn] | None:
    """By a rendering with marks in place of the contents; None where the marks do not survive."""
    marks = [{**m, "content": f"\ue000{k}\ue001"} for k, m in enumerate(messages)]
    try:
        parts = _MARK.split(chat.render(tokenizer, marks))
    except (TemplateError, TypeError, ValueError):
        return None  # this template asks something of the contents themselves
    at, out = len(parts[0]), []
    if not text.startswith(parts[0]):
        return None
    for told, after in zip(parts[1::2], parts[2::2], strict=True):
        k = int(told)
        forms = _forms(str(messages[k]["content"]))
        content = next((c for c in forms if text.startswith(c + after, at)), None)
        if content is None:
            return None
        out.append((at, at + len(content), k))
        at += len(content) + len(after)
    return out if at == len(text) else None


def _forms(content: str) -> list[str]:
    """A content as templates write it: as it is, or without the spaces at its ends."""
    return [content, content.rstrip(), content.lstrip(), content.strip()]


def _searched(messages: Sequence[Mapping[str, str]], text: str) -> list[Turn]:
    """By looking for each content in turn, which may find the template's own words."""
    out, at = [], 0
    for k, message in enumerate(messages):
        content = str(message["content"]).strip()
        start = text.find(content, at) if content else -1
        if start >= 0:
            at = start + len(content)
            out.append((start, at, k))
    return out
