"""AttentionView in a browser: heads, a fetched pattern, keys, hostile prompts, a page without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_lens_grid import HOSTILE, PROMPT, edit, hostile_tokenizer
from workbench_widgets import AttentionView

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    size = {"width": 900, "height": 760}
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=size) as found:
        yield found


def drawn(mounted: Mounted, name: str) -> np.ndarray:
    about = mounted.debug()[name]
    return np.array(about["values"], float).reshape(about["shape"])


def choose(mounted: Mounted, layer: int, head: int) -> None:
    """Click a head."""
    plan, n = mounted.debug()["plan"], len(mounted.widget.meta["layers"])
    x = plan["gutter"] + (head + 0.5) * plan["cellWidth"]
    y = plan["header"] + (n - 1 - layer + 0.5) * plan["cellHeight"]
    mounted.page.locator("canvas").first.click(position={"x": x, "y": y})
    mounted.until(lambda: mounted.debug()["head"])


def test_heads_and_pattern_hold_python_numbers(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    model = wb.load("reasoner")
    widget = AttentionView(model, PROMPT)
    mounted = Mounted(page, widget)
    mounted.settled()
    assert np.allclose(drawn(mounted, "heads")[::-1], widget.frame["base"][0], atol=1e-6)
    page.get_by_label("colour").first.select_option("previous")
    assert np.allclose(drawn(mounted, "heads")[::-1], widget.frame["base"][2], atol=1e-6)
    choose(mounted, layer=2, head=3)
    assert widget.selection["layer"] == 2 and widget.selection["head"] == 3
    found, n = drawn(mounted, "head"), len(widget.meta["tokens"])
    past = np.tril(np.ones((n, n), bool))
    own = model.run(PROMPT, record="L2.pattern")["L2.pattern"][0, 3].numpy()
    assert np.allclose(found[past], own[past], atol=1e-6)
    assert np.isnan(found[~past]).all()
    assert seen.errors == [] and seen.external == []


def test_keys_choose_a_head_and_say_it(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    widget = AttentionView(wb.load("reasoner"), PROMPT)
    mounted = Mounted(page, widget)
    mounted.settled()
    page.locator("canvas").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: widget.selection.get("layer") == 4 and widget.selection["head"] == 2)
    said = page.locator("[aria-live=polite].wb-sr").first.inner_text()
    assert said.startswith("layer 4 head 2: ")
    assert abs(float(said.split(": ")[1]) - widget.frame["base"][0][4, 2]) < 0.01


def test_a_moved_edit_moves_the_fetched_pattern(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    widget = AttentionView(model, PROMPT, [edit(model)])
    mounted = Mounted(page, widget)
    mounted.settled()
    choose(mounted, layer=4, head=1)
    before = drawn(mounted, "head")
    widget.ask(strengths=[-2.0])
    own = widget.pattern(4, 1, "edited").numpy()
    past = np.tril(np.ones(own.shape, bool))
    mounted.until(lambda: np.allclose(drawn(mounted, "head")[past], own[past], atol=1e-6))
    assert np.abs(before[past] - own[past]).max() > 0.01
    page.get_by_role("tab", name="difference").click()
    base = widget.pattern(4, 1).numpy()
    assert np.allclose(drawn(mounted, "head")[past], (own - base)[past], atol=1e-6)
    mounted.shot("attention-difference")


def test_without_a_kernel_patterns_are_there_where_small(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    widget = AttentionView(model, PROMPT).precompute()
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: "complete: no kernel needed" in mounted.root.inner_text())
    choose(mounted, layer=1, head=7)
    own = widget.pattern(1, 7).numpy()
    past = np.tril(np.ones(own.shape, bool))
    assert np.abs(drawn(mounted, "head")[past] - own[past]).max() <= 0.5 / 255 + 1e-6
    edited = AttentionView(model, PROMPT, [edit(model)]).precompute([0.0, 1.0])
    mounted = Mounted(page, edited, connected=False)
    slider = page.get_by_label("strength of toward a token")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("output").inner_text() == "0"
    base = edited.frame["base"][0]
    assert np.allclose(drawn(mounted, "heads")[::-1], base, atol=1e-6)
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "1.00"
    assert not np.allclose(drawn(mounted, "heads")[::-1], base, atol=1e-3)
    bare = Mounted(page, AttentionView(model, PROMPT), connected=False)
    page.locator("canvas").first.click(position={"x": 60, "y": 40})
    assert "needs a running kernel" in bare.debug()["words"]


def test_a_pattern_of_another_strength_is_not_shown_beside_saved_heads(
    screen: tuple[Any, Any],
) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    widget = AttentionView(model, PROMPT, [edit(model)]).precompute([0.0, 1.0])
    widget.ask(strengths=[0.6])  # dragged after the sweep, then saved
    widget.selection = {"layer": 4, "head": 1}
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    assert page.locator("output").inner_text() == "0.600"
    assert np.array_equal(drawn(mounted, "heads")[::-1], widget.frame["edited"][0])
    assert "needs a running kernel" in mounted.debug()["words"]
    page.get_by_label("strength of toward a token").focus()
    page.keyboard.press("ArrowRight")
    own = AttentionView(model, PROMPT, [edit(model)]).pattern(4, 1, "edited").numpy()
    past = np.tril(np.ones(own.shape, bool))
    assert np.abs(drawn(mounted, "head")[past] - own[past]).max() <= 0.5 / 255 + 1e-6
    # both grids are in the files
    files = {}
    for kind in ("SVG", "CSV"):
        with page.expect_download() as found:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = Path(found.value.path()).read_text("utf-8")
    assert "heads by layers" in files["SVG"] and "queries by keys" in files["SVG"]
    kinds = [line.split(",")[0] for line in files["CSV"].splitlines()]
    assert kinds.count("layer by head") == model.n_layers * model.n_heads
    assert "query by key" in kinds


def test_a_hostile_prompt_is_only_text(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    from transformers import PreTrainedTokenizerFast

    from tests import tiny

    model = wb.load(tiny.module("gpt2"), hostile_tokenizer(PreTrainedTokenizerFast))
    mounted = Mounted(page, AttentionView(model, HOSTILE))
    mounted.settled()
    choose(mounted, layer=0, head=0)
    page.locator("canvas").nth(1).hover(position={"x": 100, "y": 90})
    page.get_by_role("button", name="show as table").nth(1).click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit === undefined && !document.querySelector('.wb img')")
    assert "<img" in page.locator(".wb table").inner_text()
    assert seen.errors == [] and seen.external == []


def test_a_chosen_head_is_told_to_linked_widgets_and_followed(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    widget = AttentionView(wb.load("reasoner"), PROMPT, link="one")
    mounted = Mounted(page, widget)
    mounted.settled()
    page.evaluate(
        "() => { window.told = []; document.addEventListener('workbench-selection',"
        " (e) => window.told.push([e.detail.group, e.detail.next])); }"
    )
    choose(mounted, layer=3, head=0)
    assert page.evaluate("window.told") == [["one", {"layer": 3, "head": 0}]]
    tell = (
        "([group, head]) => document.dispatchEvent(new CustomEvent('workbench-selection',"
        " { detail: { group, next: { layer: 5, head, token: null }, from: null } }))"
    )
    page.evaluate(tell, ["another", 1])
    page.evaluate(tell, ["one", 6])
    own = widget.pattern(5, 6).numpy()
    past = np.tril(np.ones(own.shape, bool))
    mounted.until(lambda: np.allclose(drawn(mounted, "head")[past], own[past], atol=1e-6))


def test_what_people_see(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    for dark in (False, True):
        mounted = Mounted(page, AttentionView(model, PROMPT + "1+3+0=4\n#46"), dark=dark)
        mounted.settled()
        choose(mounted, layer=3, head=2)
        page.locator("canvas").nth(1).hover(position={"x": 150, "y": 200})
        path = mounted.shot(f"attention-{'dark' if dark else 'light'}")
        assert path.stat().st_size > 10_000
