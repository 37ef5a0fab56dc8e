"""Notebook 01 as a colleague gets it: one small page whose sliders work with no kernel and no network."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

import workbench as wb
from tests.e2e import harness
from workbench.reporting import report

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_live_editing.ipynb"
MODES = {
    "prompt_bar": "kernel",
    "live_edit": "sweep",
    "lens_grid": "sweep",
    "attention_view": "sweep",
    "sweep_explorer": "sweep",
    "rollout_board": "sweep",
    "token_strip": "sweep",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("report")
    page, static = folder / "page.html", folder / "static.ipynb"
    report(NOTEBOOK, page, ipynb=static, progress=False, cell_timeout_s=600)
    return page, static


def test_the_page_is_small_and_says_where_it_comes_from(made: tuple[Path, Path]) -> None:
    assert made[0].stat().st_size <= 2_000_000
    text = made[0].read_text("utf-8")
    assert "Where this page comes from" in text
    assert wb.load("reasoner").fingerprint.weights in text


@pytest.mark.browser
def test_every_widget_is_in_its_mode_and_the_slider_gives_the_models_words(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    harness.require_chromium()
    with harness.browser(tmp_path, offline=True) as (page, seen):
        page.goto(made[0].as_uri())
        page.wait_for_selector(".wb-token_strip[data-mode]")
        modes = page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll('.wb')].map(
            (w) => [w.className.match(/wb-(\\w+)/)[1], w.dataset.mode]))"""
        )
        assert modes == MODES
        live = page.locator(".wb-live_edit")
        live.locator("input[type=range]").first.focus()
        page.keyboard.press("End")
        shown = live.evaluate("(w) => w.__debug()")
    assert seen.requests == [made[0].as_uri()] and seen.errors == []
    assert shown["sliders"] == [2.0]
    assert shown["edited"].removesuffix("<eos>") == unlocked(2.0)


@pytest.mark.browser
def test_the_notebook_to_share_has_a_picture_of_every_widget(made: tuple[Path, Path]) -> None:
    harness.require_chromium()
    cells = nbformat.read(made[1], as_version=4).cells
    pictures = [o for c in cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == len(MODES)
    assert not any("text/html" in o.data for o in pictures), "it would be shown instead"
    assert made[1].stat().st_size <= 500_000


def unlocked(strength: float) -> str:
    """The answer of plain Python at a strength, from what the notebook's first cells say."""
    model = wb.load("reasoner")
    train = wb.tasks.make("locked", n=256, seed=0)
    acts = model.record(train, sites="L4.resid_post", progress=False)
    edit = wb.steering.MeanDifference().fit(acts.contrast()).at(strength)
    prompts = wb.tasks.make("locked", n=48, seed=1)
    question = next(p for p in prompts if p.label and (p.text or "").startswith("locked add"))
    return model.generate([question], [edit], max_new_tokens=32)[0].text
