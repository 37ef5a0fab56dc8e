"""PatchGrid in a browser: the numbers on the screen, a cell opened, the edit's slider, no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_lens_grid import HOSTILE, hostile_tokenizer
from tests.unit.test_widget_patch_grid import Patching, handmade
from workbench.locate.base import Axis, layer_axis
from workbench.patching.find import find
from workbench.patching.map import Map
from workbench_widgets import PatchGrid

pytestmark = pytest.mark.browser
CLEAN = ["add 12+34\n", "add 15+31\n", "add 21+13\n"]
CORRUPTED = ["add 17+34\n", "add 18+31\n", "add 24+13\n"]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    size = {"width": 1100, "height": 760}
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=size) as found:
        yield found


def cases() -> Any:
    return wb.prompts.counterfactuals(
        clean=CLEAN, corrupted=CORRUPTED, answers=["2", "5", "1"], foils=["7", "8", "4"]
    )


@cache
def found() -> Map:
    return find(Patching(), wb.load("reasoner"), cases(), progress=False)


def grid() -> PatchGrid:
    return PatchGrid.of(found(), wb.load("reasoner"), cases())


def drawn(mounted: Mounted) -> np.ndarray:
    """The painted values, first layer first."""
    about = mounted.debug()["drawn"]
    return np.array(about["values"], float).reshape(about["shape"])[::-1]


def open_cell(mounted: Mounted, layer: int, pos: int) -> dict[str, Any]:
    click(mounted, layer, pos)
    return mounted.until(lambda: mounted.debug()["opened"])


def click(mounted: Mounted, layer: int, pos: int) -> None:
    plan, n = mounted.debug()["plan"], len(mounted.widget.meta["axes"][-2]["labels"])
    x = plan["gutter"] + (pos + 0.5) * plan["cellWidth"]
    y = plan["header"] + (n - 1 - layer + 0.5) * plan["cellHeight"]
    mounted.page.locator("canvas").click(position={"x": x, "y": y})


def test_cells_hold_the_maps_means(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    mounted = Mounted(page, grid())
    mounted.settled()
    assert np.allclose(drawn(mounted), found().grid(), atol=1e-5)
    page.get_by_label("measure").select_option("1")
    assert np.allclose(drawn(mounted), found().grid("logit_difference"), atol=1e-5)
    page.get_by_label("cases").select_option("2")
    one = found().scores.values["logit_difference"][1]
    mounted.until(lambda: np.allclose(drawn(mounted), one, atol=1e-4))
    assert seen.errors == [] and seen.external == []


def test_a_clicked_cell_shows_its_runs(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    widget = grid()
    mounted = Mounted(page, widget)
    mounted.settled()
    opened = open_cell(mounted, layer=1, pos=6)
    mounted.until(lambda: widget.selection.get("layer") == 1)
    assert widget.place == {"layer": 1, "pos": 6}
    text = mounted.root.inner_text()
    assert "the clean run's value put into the corrupted run" in text
    assert "L1.resid_pre:" in text and "over 3 cases" in text
    table = page.get_by_label("next token's probabilities of every run")
    head = table.locator("thead th").all_inner_texts()
    assert head == ["next token", "corrupted (base)", "clean (source)", "patched", "edited × 1.00"]
    shown = [float(t) for t in table.locator("tbody tr").first.locator("td").all_inner_texts()]
    assert np.allclose(shown, opened["tokens"][0]["p"], atol=6e-4)
    before = opened["kl"][3]
    slider = page.get_by_label("strength of the edit")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    mounted.until(lambda: widget.spec["strength"] == 1.5)
    mounted.settled()
    mounted.until(lambda: mounted.debug()["opened"]["kl"][3] != before)
    fresh = grid().choose(layer=1, pos=6, strength=1.5)
    fresh.settle()
    assert mounted.debug()["opened"] == fresh.frame["opened"]
    assert widget.to_record().strength == 1.5
    assert "edited × 1.50" in table.inner_text()
    assert seen.errors == []


def test_keys_open_a_cell_and_close_it(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    widget = grid()
    mounted = Mounted(page, widget)
    mounted.settled()
    page.locator("canvas").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    top = found().scores.axes[0].labels[-1]
    mounted.until(lambda: widget.place == {"layer": top - 1, "pos": 2})
    said = page.locator("[aria-live=polite].wb-sr").first.inner_text()
    assert said.startswith(f"layer {top - 1}, pos 2 ") and "recovered" in said
    page.keyboard.press("Enter")
    mounted.until(lambda: widget.place is None)


def test_without_a_kernel_kept_places_open_and_the_slider_snaps(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = grid().choose(layer=1, pos=6)
    widget.precompute([0.0, 1.0, 2.0], places=4)
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    assert mounted.debug()["opened"] == widget.frame["opened"]
    slider = page.get_by_label("strength of the edit")
    slider.focus()
    page.keyboard.press("ArrowRight")
    fresh = grid().choose(layer=1, pos=6, strength=2)
    assert mounted.debug()["opened"] == fresh.frame["opened"]
    place = widget.found.top(1).iloc[0]
    opened = open_cell(mounted, int(place["layer"]), int(place["pos"]))
    assert opened["labels"] == {"layer": place["layer"], "pos": place["pos"]}
    worst = np.unravel_index(np.abs(found().grid()).argmin(), found().grid().shape)
    click(mounted, int(worst[0]), int(worst[1]))
    mounted.until(lambda: "not computed ahead" in mounted.root.inner_text())
    assert mounted.debug()["opened"] is None
    page.get_by_label("cases").select_option("3")
    assert np.allclose(drawn(mounted), found().scores.values["recovered"][2], atol=1e-4)
    bare = Mounted(page, grid(), connected=False)
    bare.until(lambda: "needs a running kernel" in bare.root.inner_text())
    assert page.get_by_label("cases").is_disabled()
    assert seen.errors == []


def test_hostile_texts_are_only_text(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    from transformers import PreTrainedTokenizerFast

    model = wb.load(tiny.module("gpt2"), hostile_tokenizer(PreTrainedTokenizerFast))
    prompts = [wb.Prompt(HOSTILE, meta={"answer": 4, "foil": 6})]
    axes = (
        Axis("<b>x</b>", (HOSTILE,)),
        layer_axis(3),
        Axis("pos", (0, 1), (HOSTILE, "1 '</script>'")),
    )
    mounted = Mounted(page, PatchGrid.of(handmade(model, prompts, None, axes), model, prompts))
    mounted.settled()
    mounted.widget.choose(**{"<b>x</b>": HOSTILE, "layer": 0, "pos": 1})
    mounted.until(lambda: mounted.debug()["opened"])
    page.locator("canvas").hover(position={"x": 110, "y": 60})
    page.get_by_role("button", name="show as table").click()
    assert page.evaluate("window.hit === undefined && !document.querySelector('.wb img, .wb b')")
    assert "<img" in mounted.root.inner_text()
    assert seen.external == [] and seen.errors == []


def test_files_hold_the_grid_and_the_runs(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = grid().choose(layer=1, pos=6)
    mounted = Mounted(page, widget)
    mounted.settled()
    files = {}
    for kind in ("SVG", "CSV", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = Path(download.value.path()).read_bytes()
    lines = files["CSV"].decode().splitlines()
    assert sum(line.startswith("layer by pos") for line in lines) == found().grid().size
    first = widget.frame["opened"]["tokens"][0]["p"]
    kept = [float(line.split(",")[4]) for line in lines if line.startswith("next token by run")][:4]
    assert np.allclose(kept, first, atol=1e-6)
    assert b"corrupted (base)" in files["SVG"] and files["PNG"].startswith(b"\x89PNG")
    assert seen.errors == []


def test_what_people_see(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    for dark in (False, True):
        widget = grid().choose(layer=1, pos=6)
        mounted = Mounted(page, widget, dark=dark)
        mounted.settled()
        page.locator("canvas").hover(position={"x": 300, "y": 80})
        path = mounted.shot(f"patch-grid-{'dark' if dark else 'light'}")
        assert path.stat().st_size > 10_000


def test_the_whole_map_is_in_sight_where_there_is_little_room(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    mounted = Mounted(page, grid())
    mounted.settled()
    wide = mounted.until(lambda: mounted.debug()["plan"])
    try:
        page.set_viewport_size({"width": 380, "height": 760})
        mounted.until(lambda: mounted.debug()["plan"]["cellWidth"] < wide["cellWidth"])
        plan = mounted.debug()["plan"]
        assert plan["fullWidth"] <= mounted.root.evaluate("e => e.clientWidth")
        last = len(mounted.widget.meta["axes"][-1]["labels"]) - 1
        click(mounted, 0, last)
        mounted.until(lambda: mounted.widget.spec["place"] == [0, last])
    finally:
        page.set_viewport_size({"width": 1100, "height": 760})
    mounted.until(lambda: mounted.debug()["plan"]["cellWidth"] == wide["cellWidth"])
    assert seen.errors == []
