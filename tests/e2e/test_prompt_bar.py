"""PromptBar in a real browser: editing, spans, pairs, words for what goes wrong, and no kernel."""

from __future__ import annotations

import pytest

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from workbench_widgets import PromptBar

pytestmark = pytest.mark.browser
VIEW = {"width": 900, "height": 600}
AXE = """async () => (await axe.run('.wb')).violations.map(
    (v) => v.id + ': ' + v.nodes[0].html)"""
HOSTILE = "<img src=x onerror='window.hacked=1'></script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with harness.browser(tmp_path_factory.mktemp("page"), viewport=VIEW) as (page, seen):
        yield page
    assert not seen.errors and not seen.external


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")


def titles(shown: Mounted, row: int = 0) -> list[str]:
    return [c["title"] for c in shown.debug()["chips"] if c["row"] == row]


def test_typing_cuts_the_text_anew(page, live):
    model = tiny.model("gpt2")
    bar = PromptBar(model, "12+7=")
    shown = Mounted(page, bar)
    shown.settled()
    field = page.get_by_role("textbox").first
    field.press_sequentially("88")
    shown.until(lambda: bar.spec["prompt"]["text"] == "12+7=88")
    shown.until(lambda: len(titles(shown)) == 8)
    shown.settled()
    ids = model.tokens(["12+7=88"]).ids[0].tolist()
    assert [int(t.split("id ")[1].split(",")[0]) for t in titles(shown)] == ids
    assert field.input_value() == "12+7=88" and "8 of 128 tokens" in shown.debug()["words"]


def test_no_text_and_too_much_text_are_said_in_words(page, live):
    bar = PromptBar(tiny.model("gpt2"), "12+7=")
    shown = Mounted(page, bar)
    shown.settled()
    for text, words in (
        ("", "is empty"),
        ("a" * 4000, "longer than the context"),
        ("é", "vocabulary"),
    ):
        page.get_by_role("textbox").first.fill(text)
        shown.until(lambda words=words: words in page.locator(".wb-problem").text_content())
    page.get_by_role("textbox").first.fill("1+1=")
    shown.until(lambda: page.locator(".wb-problem").is_hidden() and len(titles(shown)) == 5)


def test_spans_by_keys_and_by_dragging(page, live):
    bar = PromptBar(tiny.model("gpt2"), "12+7=")
    shown = Mounted(page, bar)
    shown.settled()
    page.locator(".wb-strip-list").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    shown.until(lambda: bar.span == (1, 3))
    shown.settled()
    assert [c["chosen"] for c in shown.debug()["chips"]] == [False, True, True, False, False, False]
    chips = page.locator(".wb-tok")
    boxes = [chips.nth(i).bounding_box() for i in (2, 5)]
    page.mouse.move(*center(boxes[0]))
    page.mouse.down()
    page.mouse.move(*center(boxes[1]), steps=6)
    page.mouse.up()
    shown.until(lambda: bar.span == (2, 6))
    assert str(bar.scope) == "span(2, 6)" and "span(2, 6)" in shown.debug()["words"]
    page.get_by_role("button", name="Clear span").click()
    shown.until(lambda: bar.span is None)


def center(box) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_pair_stands_aligned_and_never_runs(page, dark):
    bar = PromptBar(wb.load("reasoner"), "12+7=\n" + HOSTILE, "112+8=\n" + HOSTILE)
    bar.select(2, 5)
    shown = Mounted(page, bar, dark=dark)
    shown.settled()
    chips = shown.debug()["chips"]
    assert sum("changed" in c["title"] for c in chips) == 3  # the added 1, and 7 against 8
    places = {
        (cell.get_attribute("data-i"), cell.get_attribute("data-row")): cell.bounding_box()
        for cell in page.locator(".wb-tok").all()
    }
    for (i, row), box in places.items():
        assert row == "0" or abs(box["x"] - places[i, "0"]["x"]) < 1.5
        assert row == "0" or box["y"] > places[i, "0"]["y"]
    assert bar.span == (2, 5) and bar.other_span is not None
    assert page.evaluate("window.hacked") is None and page.locator(".wb-strip img").count() == 0
    shown.shot(f"prompt_bar-pair-{'dark' if dark else 'light'}")


def test_without_a_kernel_it_switches_among_precomputed_prompts(page):
    bar = PromptBar(tiny.model("gpt2"), "12+7=").precompute(["12+7=", "9-4=" + "a" * 9])
    shown = Mounted(page, bar, connected=False)
    assert "precomputed: 2 settings" in shown.root.inner_text()
    assert page.locator("textarea").first.get_attribute("readonly") is not None
    page.get_by_role("combobox").select_option("1")
    assert (
        len(titles(shown)) == 14
        and page.locator("textarea").first.input_value() == "9-4=" + "a" * 9
    )


def test_without_anything_it_says_that_it_needs_a_kernel(page):
    shown = Mounted(page, PromptBar(tiny.model("gpt2"), "12+7="), connected=False)
    assert "needs a running kernel" in shown.root.inner_text() and len(titles(shown)) == 6


def test_accessible(page):
    axe = harness.ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("no axe-core (tests/SKIPS.md)")
    for dark in (False, True):
        bar = PromptBar(tiny.model("gpt2"), "12+7=", "12+8=")
        Mounted(page, bar, dark=dark).settled()
        page.add_script_tag(path=axe)
        found = page.evaluate(AXE)
        assert found == []
