"""The trade-off plot as a static picture: an SVG without script, and the points in numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench_widgets.steering_lab.settings import BASE, CONTROL, METHOD, PROMPTING
from workbench_widgets.stills.colours import OKABE_ITO
from workbench_widgets.stills.intervals import words
from workbench_widgets.stills.words import cut, number

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 40
PLOT_BYTES = 9_000
ROWS = 24
LEGEND = 40
COLOURS = OKABE_ITO[:7]


def still(
    frame: Mapping[str, Any], meta: Mapping[str, Any], spec: Mapping[str, Any], said: str
) -> str:
    """HTML below 20 kB; every text is escaped."""
    said = f"<p>{html.escape(said)}</p>"
    points = frame.get("points", {"kind": []})
    if not points["kind"]:
        return said
    x, y = (min(int(spec[axis]), len(meta["metrics"]) - 1) for axis in ("x", "y"))
    return f"<div>{_plot(frame, meta, x, y)}{_table(frame, meta, x, y)}{said}</div>"


def _plot(frame: Mapping[str, Any], meta: Mapping[str, Any], x: int, y: int) -> str:
    across, up = np.asarray(frame["mean"][x], float), np.asarray(frame["mean"][y], float)
    known = np.isfinite(across) & np.isfinite(up)
    if not known.any():
        return ""
    h = LEFT + _scaled(across, known) * (WIDTH - LEFT - RIGHT)
    v = TOP + (1 - _scaled(up, known)) * (HEIGHT - TOP - BOTTOM)
    parts, size, left_out = [], 0, 0
    for key, places in _lines(frame["points"], known):
        part = _line(key, [(h[i], v[i]) for i in places], meta["methods"])
        size += len(part.encode())
        left_out += size > PLOT_BYTES
        parts += [part] if size <= PLOT_BYTES else []
    said = f"<p>{left_out} more lines are left out</p>" if left_out else ""
    axes = _axes(across[known], up[known], *(_named(meta["metrics"][i]) for i in (x, y)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 '
        f'{WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" fill="none" role="img">'
        f'<rect width="100%" height="100%" fill="#fff"/>{axes}{"".join(parts)}</svg>'
        f"{_legend(frame['points'], meta['methods'])}{said}"
    )


def _legend(points: Mapping[str, Sequence[Any]], methods: Sequence[str]) -> str:
    seen = [i for i, name in enumerate(methods) if name in set(points["method"])]
    marks = (
        f'<span style="color:{_colour(i)}">●</span> {html.escape(cut(methods[i], 40))}'
        for i in seen[:LEGEND]
    )
    more = f" and {len(seen) - LEGEND} more" if len(seen) > LEGEND else ""
    return f"<p>{' &nbsp; '.join(marks)}{more}</p>"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _scaled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    lo, hi = float(values[known].min()), float(values[known].max())
    pad = 0.05 * (hi - lo) or 0.5
    return (values - lo + pad) / (hi - lo + 2 * pad)


def _lines(points: Mapping[str, Sequence[Any]], known: np.ndarray) -> list[tuple[Any, list[int]]]:
    """Places by (kind, method, layer), along strength, methods before their controls."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(zip(points["kind"], points["method"], points["layer"], strict=True)):
        if known[i]:
            found.setdefault(key, []).append(i)
    for places in found.values():
        places.sort(key=lambda i: points["strength"][i])
    order = (BASE, PROMPTING, METHOD, CONTROL)
    return sorted(found.items(), key=lambda item: order.index(item[0][0]))


def _line(key: tuple[Any, ...], at: list[tuple[float, float]], methods: Sequence[str]) -> str:
    """Dots joined along strength, the layer at the last; controls thin, landmarks with a word."""
    kind, method, layer = key
    x, y = at[-1]
    end = ' text-anchor="end"' if x > WIDTH - 70 else ""
    beside = x - 8 if end else x + 8
    if kind in (BASE, PROMPTING):
        return (
            f'<path d="M{x:.0f} {y - 6:.0f}l6 6l-6 6l-6-6z" stroke="#222" stroke-width="1.5"/>'
            f'<text x="{beside:.0f}" y="{y - 5:.0f}" fill="#222"{end}>{kind}</text>'
        )
    colour = _colour(methods.index(method))
    path = "M" + "L".join(f"{a:.0f} {b:.0f}" for a, b in at)
    if kind == CONTROL:
        return f'<path d="{path}" stroke="{colour}" stroke-dasharray="1 3"/>'
    dots = "".join(f"M{a:.0f} {b:.0f}h0" for a, b in at)
    name = f'<text x="{beside:.0f}" y="{y + 4:.0f}" fill="#222"{end}>L{layer}</text>'
    return (
        f'<g stroke="{colour}"><path d="{path}"/><path d="{dots}" stroke-width="6" '
        f'stroke-linecap="round"/></g>{name if layer is not None else ""}'
    )


def _axes(across: np.ndarray, up: np.ndarray, x_name: str, y_name: str) -> str:
    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM
    ends = [
        (LEFT, low + 14, "start", number(float(across.min()))),
        (right, low + 14, "end", number(float(across.max()))),
        ((LEFT + right) / 2, low + 30, "middle", html.escape(x_name)),
        (LEFT - 4, low, "end", number(float(up.min()))),
        (LEFT - 4, TOP + 10, "end", number(float(up.max()))),
    ]
    texts = "".join(
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#222">{text}</text>'
        for x, y, anchor, text in ends
    )
    up_name = (
        f'<text transform="translate(12,{(TOP + low) / 2:.0f}) rotate(-90)" text-anchor="middle" '
        f'fill="#222">{html.escape(y_name)}</text>'
    )
    return f'<path d="M{LEFT} {TOP}V{low}H{right}" stroke="#888"/>{texts}{up_name}'


def _table(frame: Mapping[str, Any], meta: Mapping[str, Any], x: int, y: int) -> str:
    """Landmarks, and of each method and layer the strength that moves the upright metric most."""
    points, gap = frame["points"], np.nan_to_num(np.abs(frame["difference"][y]))
    lines = _lines(points, np.ones(len(points["kind"]), bool))
    order = [max(places, key=lambda i: gap[i]) for key, places in lines if key[0] != CONTROL]
    rows = [_row(frame, i, x, y) for i in order[:ROWS]]
    more = f", {len(order) - ROWS} more left out" if len(order) > ROWS else ""
    names = "".join(f"<th>{html.escape(_named(meta['metrics'][i]))}</th>" for i in (y, x))
    head = f"<tr><th>method</th><th>layer</th><th>strength</th>{names}</tr>"
    about = html.escape(cut(meta["metrics"][y]["name"], 40))
    note = (
        f"<p>of each method and layer the strength that moves {about} most{more}; means and 95 % "
        "intervals over prompts; dotted lines: a random direction of the same norm</p>"
    )
    return f"<table>{head}{''.join(rows)}</table>{note}"


def _row(frame: Mapping[str, Any], i: int, x: int, y: int) -> str:
    points = frame["points"]
    plain = points["kind"][i] in (BASE, PROMPTING)
    name = "baseline" if points["kind"][i] == BASE else points["method"][i]
    layer = "" if points["layer"][i] is None else points["layer"][i]
    strength = "" if plain else f"{points['strength'][i]:g}"
    numbers = "".join(
        f"<td>{words(*(float(frame[part][m][i]) for part in ('mean', 'low', 'high')))}</td>"
        for m in (y, x)
    )
    return f"<tr><td>{html.escape(cut(name, 40))}</td><td>{layer}</td><td>{strength}</td>{numbers}</tr>"


def _named(metric: Mapping[str, Any]) -> str:
    return cut(f"{metric['name']} ({metric['unit']})", 60)
