"""The palettes of the widgets, in JavaScript and in Python, against plotly's and against the eye."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import plotly.express as px
import pytest

from workbench_widgets.stills import colours

SOURCE = Path(__file__).parents[2] / "widgets" / "js" / "palette.js"
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
SEEN = {
    "as it is": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def constant(name: str) -> list[str]:
    """A list of colours as palette.js has it."""
    found = re.search(rf"export const {name} = (\[.*?\]);", SOURCE.read_text())
    assert found
    return json.loads(found[1])


def rgb(colour: str) -> tuple[int, ...]:
    if colour.startswith("#"):
        return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return tuple(map(int, re.findall(r"\d+", colour)))


def linear(colour: str) -> np.ndarray:
    c = np.array(rgb(colour)) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB under D65."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    t = to_xyz @ np.clip(light, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    a, b = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (b + 0.05) / (a + 0.05)


def in_node(script: str) -> Any:
    if shutil.which("node") is None:
        pytest.skip("no node (tests/SKIPS.md)")
    code = (
        f"import * as p from {json.dumps(SOURCE.as_uri())};\nconsole.log(JSON.stringify({script}))"
    )
    said = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True
    )
    return json.loads(said.stdout)


def test_cividis_and_puor_are_plotlys():
    assert list(map(rgb, constant("CIVIDIS"))) == list(map(rgb, px.colors.sequential.Cividis))
    assert list(map(rgb, constant("PUOR"))) == list(map(rgb, px.colors.diverging.PuOr))


@pytest.mark.parametrize("name", ["CIVIDIS", "PUOR", "OKABE_ITO"])
def test_pictures_of_python_use_the_same_colours(name):
    assert getattr(colours, name) == constant(name)


@pytest.mark.parametrize("eye", SEEN)
def test_kinds_stay_apart_for_every_eye(eye):
    kinds = constant("OKABE_ITO")
    assert len(set(kinds)) == 8
    places = [lab(np.array(SEEN[eye]) @ linear(c)) for c in kinds]
    least = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2))
    assert least > 10  # ten times what is just noticeable


def test_amounts_grow_lighter_all_along():
    lightness = [lab(linear(colours.colour(t / 100, 0, 1, False)))[0] for t in range(101)]
    assert np.all(np.diff(lightness) > -0.05) and lightness[-1] - lightness[0] > 70


def test_text_reads_on_every_colour():
    every = [colours.colour(t / 200, -1, 1, True) for t in range(-200, 201)]
    every += [colours.colour(t / 200, 0, 1, False) for t in range(201)] + constant("OKABE_ITO")
    assert (
        min(contrast(c, {"#000": "#000000", "#fff": "#ffffff"}[colours.ink_on(c)]) for c in every)
        >= 4.5
    )


def test_browser_and_python_mix_the_same_colours_and_inks():
    steps = [t / 20 for t in range(-20, 21)]
    said = in_node(
        f"{json.dumps(steps)}.flatMap((t) => [[p.sequential(t), p.diverging(t)]])"
        ".map(([a, s]) => [a, p.inkOn(a), s, p.inkOn(s)])"
    )
    for t, (amount, amount_ink, signed, signed_ink) in zip(steps, said, strict=True):
        ours = colours.colour(t, 0, 1, False), colours.colour(t, -1, 1, True)
        assert [list(rgb(c)) for c in ours] == [amount, signed], t
        assert [colours.ink_on(c) for c in ours] == [amount_ink, signed_ink], t
    ends = in_node("[p.sequential(-5), p.sequential(5), p.diverging(0), p.inkOn([0, 34, 78])]")
    assert ends == [[0, 34, 78], [254, 232, 56], [247, 247, 247], "#fff"]
