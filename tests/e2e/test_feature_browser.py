"""FeatureBrowser in a browser: search, open, read an own text, steer; a page without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_lens_grid import HOSTILE
from tests.unit.test_widget_feature_browser import PROMPTS, board, made, ranking, real
from workbench import sae
from workbench_widgets import FeatureBrowser

pytestmark = pytest.mark.browser
SIZE = {"width": 1000, "height": 1000}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=SIZE) as found:
        yield found


@pytest.fixture(autouse=True)
def worker_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")


def browser(**options: Any) -> FeatureBrowser:
    return FeatureBrowser(real(), made(), tiny.model(), PROMPTS, **options)


def shown(screen: tuple[Any, Any], widget: FeatureBrowser, **options: Any) -> Mounted:
    mounted = Mounted(screen[0], widget, **options)
    if options.get("connected", True):
        mounted.settled()
    return mounted


def warm(page: Any, label: str, line: int = 0) -> list[float]:
    """The share of warmth of every token of a line."""
    tokens = page.get_by_label(label, exact=True).locator(".wb-line").nth(line).locator(".wb-token")
    text = "all => all.map((e) => parseFloat(e.style.getPropertyValue('--wb-share')) || 0)"
    return tokens.evaluate_all(text)


def test_a_search_lists_what_python_finds(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = FeatureBrowser(board(), rankings={"mine": ranking()})
    mounted = shown(screen, widget)
    assert mounted.debug()["rows"] == widget.found == [9, 3, 5, 12]
    page.get_by_label("search features").fill("two after")
    mounted.until(lambda: mounted.debug()["rows"] == [3])
    assert page.get_by_text("1 of 5 features").is_visible()
    page.get_by_label("search features").fill("")
    page.get_by_label("sort by").select_option("density")
    page.get_by_label("show", exact=True).select_option("all")
    mounted.until(lambda: mounted.debug()["rows"] == [5, 3, 12, 9, 8])
    page.get_by_label("turn the order round").click()
    mounted.until(lambda: mounted.debug()["rows"] == [8, 9, 3, 12, 5])
    assert widget.found == [8, 9, 3, 12, 5]
    assert seen.errors == [] and seen.external == []


def test_keys_open_a_feature_and_a_link_goes_on(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = FeatureBrowser(board())
    mounted = shown(screen, widget)
    page.get_by_role("grid", name="features").focus()
    for key in ("Home", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: widget.spec["feature"] == 12)
    mounted.settled()
    assert page.locator(".wb-place").inner_text() == "feature 12"
    assert widget.selection == {"feature": 12}
    assert page.get_by_role("button", name="40").is_disabled()  # not described in this dashboard
    widget.choose(9)
    mounted.settled()
    page.locator(".wb-relatives button[data-feature='12']").first.click()
    mounted.until(lambda: widget.spec["feature"] == 12)
    assert seen.errors == []


def test_tokens_have_the_warmth_of_their_activation_and_say_it(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    feature = int(np.argsort(-real().density)[1])
    widget = browser(feature=feature)
    mounted = shown(screen, widget)
    one = widget.frame["one"]
    for line in (0, 1):
        values = np.array(one["examples"][line]["values"])
        assert np.allclose(
            warm(page, "strongest examples", line), 100 * values / one["largest"], atol=0.6
        )
    peak = one["examples"][0]["peak"]
    tokens = (
        page.get_by_label("strongest examples", exact=True)
        .locator(".wb-line")
        .first.locator(".wb-token")
    )
    assert tokens.nth(peak).get_attribute("title").startswith(one["examples"][0]["pieces"][peak])
    assert (
        len(set(tokens.evaluate_all("all => all.map((e) => getComputedStyle(e).backgroundColor)")))
        > 1
    )
    listbox = page.get_by_label("strongest examples", exact=True)
    listbox.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    at = listbox.get_attribute("aria-activedescendant")
    assert at.endswith("-1-0") and page.locator(f"#{at}").get_attribute("aria-selected") == "true"
    said = page.locator(".wb-one .wb-sr").first.inner_text()
    assert said == page.locator(f"#{at}").get_attribute("aria-label") != ""
    assert mounted.debug()["one"]["feature"] == feature


def test_an_own_text_is_read_as_it_is_typed(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    feature = int(np.argmax(real().density))
    widget = browser(feature=feature)
    mounted = shown(screen, widget)
    page.get_by_label("own text", exact=True).press_sequentially("12+3", delay=20)
    own = mounted.until(
        lambda: (mounted.debug()["own"] or {}).get("pieces") and mounted.debug()["own"]
    )
    assert own["text"] == "12+3" and own["pieces"] == ["<bos>", *"12+3"]
    shares = 100 * np.clip(np.array(own["values"][1:]) / widget.frame["one"]["largest"], 0, 1)
    assert np.allclose(warm(page, "own text by the feature")[1:], shares, atol=0.6)
    strongest = page.locator(".wb-strong button").first
    feature = own["strongest"][0]["feature"]
    assert strongest.inner_text().startswith(str(feature))
    strongest.click()
    mounted.until(lambda: widget.spec["feature"] == feature)
    mounted.settled()
    assert mounted.debug()["own"]["values"] == widget.frame["own"]["values"]
    page.get_by_label("own text", exact=True).fill("a" * 500)
    mounted.until(lambda: "context" in page.locator(".wb-one").inner_text())
    assert seen.errors == []


def test_the_slider_is_the_edit_and_stays_live(
    screen: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page, seen = screen
    widget = browser(feature=int(np.argmax(real().largest)))
    mounted = shown(screen, widget)
    page.get_by_label("mode of the edit").select_option("clamp")
    slider = page.get_by_label("strength of the edit")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    mounted.until(lambda: widget.spec["strength"] == 0.8)
    assert page.locator("output").inner_text() == "0.800"
    largest = float(real().largest[widget.spec["feature"]])
    assert widget.to_record().params["level"] == pytest.approx(0.8 * largest, rel=1e-5)
    # a kernel that said nothing to a moved slider would count as gone by now
    page.wait_for_timeout(2300)
    mounted.pump()
    assert mounted.root.get_attribute("data-kernel") is None
    page.get_by_role("button", name="Copy as Python").click()
    code = mounted.until(lambda: mounted.debug()["said"])
    assert code == widget.to_code()
    page.get_by_role("button", name="Steer with it").click()
    mounted.until(lambda: "browser.steer() in a cell" in mounted.root.inner_text())
    assert widget._shown_live.to_record()[0].label.startswith("feature ")  # type: ignore[union-attr]
    assert seen.errors == []


def test_without_dictionary_nothing_is_steered_or_read(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    mounted = shown(screen, FeatureBrowser(board()))
    text = mounted.root.inner_text()
    assert "steering needs dictionary=" in text and "dictionary= and model=" in text
    assert page.get_by_label("own text", exact=True).is_disabled()
    assert not page.get_by_label("mode of the edit").is_visible()
    mounted = shown(screen, FeatureBrowser(board(), feature=8))
    assert "none of 10 tokens" in mounted.root.inner_text()
    assert not page.locator(".wb-histogram").count()


def test_without_a_kernel_kept_features_are_searched_and_opened(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    first_, a, b = np.flatnonzero(real().density > 0)[:3].tolist()
    widget = browser(feature=first_).read("12+3").search(sort="largest").precompute(features=[a, b])
    mounted = shown(screen, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    first = widget.frame
    assert mounted.debug()["one"] == first["one"] and mounted.debug()["own"] == first["own"]
    kept = [f for f in widget.found if f in (first_, a, b)]
    assert mounted.debug()["rows"] == kept
    assert "of the 3 features kept" in mounted.root.inner_text()
    page.get_by_role("grid", name="features").locator("tbody tr th").nth(kept.index(b)).click()
    mounted.until(lambda: (mounted.debug()["one"] or {}).get("feature") == b)
    widget.choose(b).settle()
    assert mounted.debug()["one"] == widget.frame["one"]
    assert mounted.debug()["own"]["values"] == widget.frame["own"]["values"]
    page.get_by_label("search features").fill(f"#{a}")
    mounted.until(lambda: mounted.debug()["rows"] == [a])
    for name in ("Steer with it", "Copy as Python"):
        assert page.get_by_role("button", name=name).is_disabled()
    bare = shown(screen, browser(), connected=False)
    bare.until(lambda: "needs a running kernel" in bare.root.inner_text())
    assert seen.errors == []


def test_hostile_texts_are_only_text(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    bad = dict.fromkeys(range(9), HOSTILE)
    corpus = replace(board().corpus, texts=bad)
    hostile = replace(
        board(), labels=[HOSTILE] * 5, texts=bad, corpus=corpus, dictionary_name=HOSTILE
    )
    widget = FeatureBrowser(hostile, rankings={HOSTILE: ranking(unit=[HOSTILE] * 3)})
    mounted = shown(screen, widget)
    assert "<img" in page.locator(".wb-lines").first.inner_text()
    assert "<img" in page.locator(".wb-features").inner_text()
    page.get_by_label("search features").fill(HOSTILE)
    mounted.until(lambda: widget.spec["query"] == HOSTILE)
    mounted.settled()
    assert page.evaluate("window.hit === undefined && !document.querySelector('.wb img')")
    assert seen.external == [] and seen.errors == []


def test_files_hold_examples_and_numbers(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    widget = browser(feature=int(np.argmax(real().density))).read("12+3")
    shown(screen, widget)
    files = {}
    for kind in ("SVG", "CSV", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = Path(download.value.path()).read_bytes()
    lines = files["CSV"].decode().splitlines()
    one = widget.frame["one"]
    tokens = sum(len(e["pieces"]) for e in one["examples"])
    assert sum(line.startswith("example,") for line in lines) == tokens
    assert sum(line.startswith("own text,") for line in lines) == 5
    assert files["SVG"].count(b"<svg") == 3 + len(one["examples"])
    assert files["PNG"].startswith(b"\x89PNG") and seen.errors == []


def test_what_people_see(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    names = sae.shipped()
    model = wb.load("reasoner")
    dictionary = sae.load(names[0], model=model)
    prompts = [p for task in wb.tasks.names() for p in wb.tasks.make(task, n=8, seed=3)]
    found = sae.dashboard(dictionary, model, prompts, progress=False)
    try:
        for name, dark, width in (
            ("light", False, 1000),
            ("dark", True, 1000),
            ("narrow", False, 724),
        ):
            page.set_viewport_size({"width": width, "height": 1000})
            widget = FeatureBrowser(found, dictionary, model, prompts[:3]).read(prompts[0].text)
            mounted = shown(screen, widget, dark=dark)
            path = mounted.shot(f"feature-browser-{name}")
            assert path.stat().st_size > 10_000
            root = mounted.root.evaluate("e => [e.scrollWidth, e.clientWidth]")
            assert root[0] <= root[1]
            top = "e => e.getBoundingClientRect().top"
            list_, one = (page.locator(k).evaluate(top) for k in (".wb-features", ".wb-one"))
            assert (list_ == one) == (width > 760)
    finally:
        page.set_viewport_size(SIZE)
    assert seen.errors == []
