"""A FeatureBrowser as a static picture: one feature in words, its tokens, its strongest examples."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from workbench_widgets.stills.intervals import words
from workbench_widgets.stills.words import cut, number, visible

MOST = 18_000
"""Bytes of the whole picture, of the 20 kB that a still may have."""
TOKENS = 8
RELATED = 5
HISTOGRAM_PX = 40


def still(title: str, one: Mapping[str, Any] | None, listed: Mapping[str, Any] | None) -> str:
    """HTML without script, every text escaped."""
    head = f"<b>{html.escape(cut(title, 120))}</b>"
    if one is None:
        return f"<div>{head}</div>"
    parts = [_numbers(one), _histogram(one["histogram"])]
    parts += [_tokens("promotes", one["promoted"]), _tokens("suppresses", one["suppressed"])]
    parts += [_related("correlated", one["correlated"]), _related("decoder", one["neighbours"])]
    foot = _list(listed)
    left = MOST - sum(len(part.encode()) for part in (head, *parts, foot))
    return f"<div>{head}{''.join(parts)}{_examples(one, left)}{foot}</div>"


def _numbers(one: Mapping[str, Any]) -> str:
    said = f"feature {one['feature']}: {visible_label(one['label'])}"
    density = f"active on {number(100 * (one['density'] or 0))} % of tokens"
    said += f"; {density}, largest {number(one['largest'])}, mean when active {number(one['mean'])}"
    for score in one["scores"][:4]:
        value = words(score["score"], score["low"], score["high"])
        said += f"; {cut(score['name'], 40)} {value}, rank {score['rank']} of {score['of']}"
    return f"<p>{html.escape(said)}</p>"


def visible_label(label: str) -> str:
    """A label, cut."""
    return cut(label, 120)


def _histogram(counts: Sequence[int]) -> str:
    most = max(counts, default=0)
    if not most:
        return ""
    bars = "".join(
        f'<span style="display:inline-block;width:7px;margin-right:1px;background:#888;'
        f'height:{max(HISTOGRAM_PX * n / most, 1.0 if n else 0.0):.0f}px"></span>'
        for n in counts[:40]
    )
    return f"<div>{bars}<br><small>tokens by activation, 0 to the largest</small></div>"


def _tokens(name: str, tokens: Sequence[Mapping[str, Any]]) -> str:
    said = ", ".join(f"{visible(cut(t['text'], 24))} {number(t['value'])}" for t in tokens[:TOKENS])
    return f"<p>{name}: {html.escape(said)}</p>" if said else ""


def _related(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    said = ", ".join(f"{one['feature']} ({number(one['value'])})" for one in found[:RELATED])
    return f"<p>{name} neighbours: {said}</p>" if said else ""


def _examples(one: Mapping[str, Any], left: int) -> str:
    rows, size = [], 0
    for example in one["examples"]:
        row = f"<li>{_line(example, one['largest'] or 1.0)}</li>"
        size += len(row.encode())
        if size > left:
            break
        rows.append(row)
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _line(example: Mapping[str, Any], largest: float) -> str:
    peak = number(example["values"][example["peak"]])
    tokens = zip(example["pieces"], example["values"], strict=True)
    return f"{peak} " + "".join(_token(text, value or 0.0, largest) for text, value in tokens)


def _token(text: str, value: float, largest: float) -> str:
    said = html.escape(visible(cut(text, 40)))
    share = min(max(value / largest, 0.0), 1.0)
    return f'<span style="background:rgba(240,160,0,{share:.2f})">{said}</span>' if share else said


def _list(listed: Mapping[str, Any] | None) -> str:
    if not listed or not listed["rows"]:
        return ""
    rows = "".join(
        f"<li>{row['feature']}: {html.escape(cut(row['label'], 60))}</li>"
        for row in listed["rows"][:TOKENS]
    )
    return f"<p>first of {listed['matched']:,} in the list</p><ul>{rows}</ul>"
