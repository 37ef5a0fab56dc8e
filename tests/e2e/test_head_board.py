"""HeadBoard in a browser: scores on the screen, a head opened and taken away, neurons, no kernel."""

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
from tests.unit.test_widget_head_board import made
from workbench.locate.base import head_axis, layer_axis
from workbench_widgets import HeadBoard

pytestmark = pytest.mark.browser
PROMPTS = ["add 12+34\n2+4+0=6\n", "add 15+31\n5+1+0=6\n", "add 21+13\n1+3+0=4\n"]
NAMES = ("previous_token_heads", "induction_heads", "head_norms")


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    size = {"width": 1000, "height": 900}
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=size) as found:
        yield found


@cache
def maps() -> list[Any]:
    model = wb.load("reasoner")
    return [wb.locate.find(name, model, PROMPTS, progress=False) for name in NAMES]


def board(**options: Any) -> HeadBoard:
    return HeadBoard(wb.load("reasoner"), PROMPTS, maps(), **options)


def drawn(mounted: Mounted, name: str = "drawn") -> np.ndarray:
    about = mounted.debug()[name]
    return np.array(about["values"], float).reshape(about["shape"])


def click(mounted: Mounted, layer: int, head: int) -> None:
    plan, n = mounted.debug()["plan"], len(mounted.widget.meta["layers"])
    x = plan["gutter"] + (head + 0.5) * plan["cellWidth"]
    y = plan["header"] + (n - 1 - layer + 0.5) * plan["cellHeight"]
    mounted.page.locator("canvas").first.click(position={"x": x, "y": y})


def test_the_board_and_the_list_hold_the_maps_numbers(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = board()
    mounted = Mounted(page, widget)
    mounted.settled()
    assert np.allclose(drawn(mounted)[::-1], maps()[0].grid(), atol=1e-6)
    score = len(maps()[0].measures)
    page.get_by_label("score", exact=True).select_option(str(score))
    assert np.allclose(drawn(mounted)[::-1], maps()[1].grid(), atol=1e-6)
    top = maps()[1].top(3)
    order = mounted.debug()["order"][:3]
    assert order == top[["layer", "head"]].to_numpy().tolist()
    first = page.get_by_label("heads sorted by the score").locator("tbody tr").first
    assert first.locator("th").inner_text() == f"L{order[0][0]} head {order[0][1]}"
    first.locator("th").click()
    mounted.until(lambda: widget.spec["head"] == order[0])
    assert seen.errors == [] and seen.external == []


def test_a_clicked_head_opens_and_can_be_taken_away(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    widget = board()
    mounted = Mounted(page, widget)
    mounted.settled()
    click(mounted, layer=1, head=2)
    opened = mounted.until(lambda: mounted.debug()["opened"])
    found, own = drawn(mounted, "pattern"), widget.pattern(1, 2)
    past = np.tril(np.ones(own.shape, bool))
    assert np.allclose(found[past], own[past], atol=1e-6) and np.isnan(found[~past]).all()
    assert widget.selection == {"layer": 1, "head": 2} and opened["kl"][1] > 0
    scores = page.get_by_label("scores of the head").locator("tbody tr")
    assert scores.count() == len(widget.meta["scores"])
    rank = 1 + int((np.abs(maps()[0].grid()) > abs(maps()[0].grid()[1, 2])).sum())
    assert scores.first.locator("td").last.inner_text() == f"{rank} of {own_heads(widget)}"
    slider = page.get_by_label("strength of the ablation")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    mounted.until(lambda: widget.spec["strength"] == 0.5)
    mounted.settled()
    fresh = board().choose(1, 2, strength=0.5)
    fresh.settle()
    mounted.until(lambda: mounted.debug()["opened"] == fresh.frame["opened"])
    page.get_by_label("prompt", exact=True).select_option("1")
    mounted.until(lambda: widget.spec["prompt"] == 1)
    mounted.settled()
    assert np.allclose(drawn(mounted, "pattern")[past], widget.pattern(1, 2, 1)[past], atol=1e-6)
    assert seen.errors == []


def own_heads(widget: HeadBoard) -> int:
    return len(widget.meta["layers"]) * widget.meta["heads"]


def test_keys_open_a_head(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    widget = board()
    mounted = Mounted(page, widget)
    mounted.settled()
    page.locator("canvas").first.focus()
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    top = widget.meta["layers"][-1]
    mounted.until(lambda: widget.spec["head"] == [top - 1, 1])
    said = page.locator("[aria-live=polite].wb-sr").first.inner_text()
    assert said.startswith(f"layer {top - 1} head 1: ")
    page.get_by_label("heads sorted by the score").focus()
    for key in ("Home", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: widget.spec["head"] == mounted.debug()["order"][1])


def test_a_typed_neuron_shows_where_it_is_active(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = board()
    mounted = Mounted(page, widget)
    mounted.settled()
    page.get_by_role("tab", name="most active tokens").click()
    page.get_by_label("neuron").fill("L2.mlp_post[neuron=3]")
    page.keyboard.press("Enter")
    lines = page.locator(".wb-active li")
    mounted.until(lambda: lines.count() == 3)
    (first, *_) = widget.frame["examples"]["rows"]
    shown = float(lines.first.locator(".wb-value").inner_text().replace("−", "-"))
    assert shown == pytest.approx(first["value"], rel=0.01)
    peak = lines.first.locator(".wb-peak")
    assert peak.count() == 1
    colours = {lines.first.locator(".wb-token").nth(i).evaluate("e => getComputedStyle(e).backgroundColor")
               for i in range(lines.first.locator(".wb-token").count())}  # fmt: skip
    assert len(colours) > 2
    page.get_by_label("neuron").fill("L2.mlp_post[neuron=99999]")
    page.keyboard.press("Enter")
    mounted.until(lambda: page.get_by_role("alert").inner_text())
    assert seen.errors == []


def test_without_a_kernel_kept_heads_open(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = board(neuron="L2.mlp_post[neuron=3]").choose(1, 2)
    widget.precompute([0.0, 1.0], heads=2)
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    assert mounted.debug()["opened"] == widget.frame["opened"]
    page.get_by_label("strength of the ablation").focus()
    page.keyboard.press("ArrowLeft")
    assert mounted.debug()["opened"]["kl"] == [0, 0]
    layer, head = maps()[0].top(1)[["layer", "head"]].iloc[0].tolist()
    click(mounted, layer, head)
    mounted.until(lambda: mounted.debug()["opened"])
    own = widget.pattern(layer, head)
    past = np.tril(np.ones(own.shape, bool))
    assert np.abs(drawn(mounted, "pattern")[past] - own[past]).max() <= 0.5 / 255 + 1e-6
    # the second weakest: the weakest is the one that was chosen
    worst = np.unravel_index(np.abs(maps()[0].grid()).argsort(None)[1], maps()[0].grid().shape)
    click(mounted, int(worst[0]), int(worst[1]))
    mounted.until(lambda: "its ablation on this prompt was not" in mounted.root.inner_text())
    assert mounted.debug()["opened"] is None and mounted.debug()["pattern"]
    page.get_by_role("tab", name="most active tokens").click()
    assert page.locator(".wb-active li").count() == 3
    assert page.get_by_label("neuron").is_disabled()
    bare = Mounted(page, board(), connected=False)
    bare.until(lambda: "needs a running kernel" in bare.root.inner_text())
    assert seen.errors == []


def test_hostile_texts_are_only_text(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    import torch
    from transformers import PreTrainedTokenizerFast

    model = wb.load(tiny.module("gpt2"), hostile_tokenizer(PreTrainedTokenizerFast))
    found = made(tiny.model(), torch.rand(3, 3, 4), (layer_axis(3), head_axis(4)))
    widget = HeadBoard(model, [HOSTILE], found, neuron="L1.mlp_post[neuron=3]").choose(0, 0)
    mounted = Mounted(page, widget)
    mounted.settled()
    mounted.until(lambda: mounted.debug()["opened"])
    page.get_by_role("tab", name="most active tokens").click()
    assert "<img" in page.locator(".wb-active").inner_text()
    assert page.evaluate("window.hit === undefined && !document.querySelector('.wb img')")
    assert seen.external == [] and seen.errors == []


def test_files_hold_board_pattern_and_tokens(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = board().choose(1, 2)
    mounted = Mounted(page, widget)
    mounted.settled()
    files = {}
    for kind in ("SVG", "CSV", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = Path(download.value.path()).read_bytes()
    lines = files["CSV"].decode().splitlines()
    assert sum(line.startswith("layer by head") for line in lines) == own_heads(widget)
    n = len(widget.frame["tokens"])
    assert sum(line.startswith("query by key") for line in lines) == n * n
    assert any(line.startswith("next token by run") for line in lines)
    assert files["SVG"].count(b"<svg") == 4 and files["PNG"].startswith(b"\x89PNG")
    assert seen.errors == []


def test_what_people_see(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    for dark in (False, True):
        widget = board(neuron="L2.mlp_post[neuron=3]").choose(1, 2)
        mounted = Mounted(page, widget, dark=dark)
        mounted.settled()
        name = "dark" if dark else "light"
        path = mounted.shot(f"head-board-{name}")
        assert path.stat().st_size > 10_000
        page.get_by_role("tab", name="most active tokens").click()
        mounted.shot(f"head-board-active-{name}")


def test_the_list_stands_beside_the_board_in_a_column_of_text(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    size = page.viewport_size
    mounted = Mounted(page, board())
    mounted.settled()
    try:
        page.set_viewport_size({"width": 806, "height": 900})
        page.wait_for_timeout(200)
        assert mounted.root.evaluate("e => e.clientWidth") <= 800
        top = "e => e.getBoundingClientRect().top"
        both = [page.locator(one).first.evaluate(top) for one in (".wb-grid", ".wb-cells")]
        assert both[0] == both[1]
    finally:
        page.set_viewport_size(size)
