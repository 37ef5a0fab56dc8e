"""A17: three themes of JupyterLab, contrast of every text, and what axe-core finds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e import harness
from tests.e2e.lab.examples import WIDGETS
from tests.e2e.lab.notebook import Notebook, Shown

pytestmark = pytest.mark.browser

AXE = harness.ROOT / "node_modules" / "axe-core" / "axe.min.js"
THEMES = ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast")
THEME = """async (theme) => {
  await window.jupyterapp.commands.execute('apputils:change-theme', { theme });
  while (document.body.dataset.jpThemeName !== theme) await new Promise(requestAnimationFrame);
}"""
RUN_AXE = """async (el) => {
  const found = await window.axe.run(el, { resultTypes: ['violations'] });
  return found.violations.map((v) => [v.id, v.help, v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160))]);
}"""
# Every text against what lies behind it; colours go through a canvas, which knows every notation.
CONTRAST = """(root) => {
  const context = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
    .getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = '#000'; context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const behind = (el) => {
    const layers = [];
    for (let at = el; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  const poor = [], walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walk.nextNode()) {
    const el = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !el.checkVisibility()) continue;
    if (el.closest('style, svg, datalist, .wb-sr, :disabled, option')) continue;
    if ([...el.querySelectorAll(':scope > :disabled')].length) continue;
    const below = behind(el), ink = over(rgba(getComputedStyle(el).color), below);
    const [high, low] = [light(ink), light(below)].sort((a, b) => b - a), ratio = (high + .05) / (low + .05);
    texts++;
    if (ratio < 4.5) poor.push([text.slice(0, 40), Number(ratio.toFixed(2)), el.className || el.tagName]);
  }
  return { texts, poor };
}"""


@pytest.fixture(scope="module")
def each(notebook: Notebook) -> dict[str, Any]:
    """Every widget in a cell of its own."""
    found = {}
    for name, make in WIDGETS.items():
        shown = notebook.show(f"w_{name} = {make}\nw_{name}")
        shown.settled(f"w_{name}")
        found[name] = shown
    return found


@pytest.fixture(params=THEMES)
def theme(request: pytest.FixtureRequest, notebook: Notebook) -> str:
    notebook.page.evaluate(THEME, request.param)
    notebook.page.wait_for_timeout(150)
    return request.param


def test_a17_texts_are_legible_in_every_theme(
    notebook: Notebook, each: dict[str, Shown], theme: str
) -> None:
    poor = {}
    for name, shown in each.items():
        shown.root.scroll_into_view_if_needed()
        found = shown.root.evaluate(CONTRAST)
        notebook.shot(f"lab-{name}-{theme.split(' ', 1)[1].lower().replace(' ', '-')}", shown.root)
        assert found["texts"] >= 2
        poor |= {name: found["poor"]} if found["poor"] else {}
    assert poor == {}


def test_a17_axe_finds_nothing(notebook: Notebook, each: dict[str, Shown], theme: str) -> None:
    if not AXE.is_file():
        pytest.skip("no node_modules: `make test-js` installs axe-core (tests/SKIPS.md)")
    notebook.page.evaluate(AXE.read_text("utf-8"))
    found = {name: shown.root.evaluate(RUN_AXE) for name, shown in each.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a17_the_theme_changes_what_a_canvas_draws(
    notebook: Notebook, each: dict[str, Shown]
) -> None:
    canvas = each["LensGrid"].root.locator("canvas").first
    pictures = []
    for name in THEMES[:2]:
        notebook.page.evaluate(THEME, name)
        notebook.page.wait_for_timeout(200)
        pictures.append(canvas.evaluate("(el) => el.toDataURL()"))
    assert pictures[0] != pictures[1]
    notebook.page.evaluate(THEME, THEMES[0])
    assert notebook.seen.external == []
    assert notebook.seen.errors == []
