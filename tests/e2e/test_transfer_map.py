"""TransferMap in a real browser: grid, scatter, features, keys, hostile names, no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_rollout_board import VIEW
from tests.unit.test_widget_transfer_map import (
    CHANGE,
    HOSTILE,
    SOURCES,
    TARGETS,
    board,
    dictionary,
    forecast,
)
from workbench_widgets import TransferMap

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    with harness.browser(tmp_path_factory.mktemp("page"), viewport=VIEW) as found:
        yield found


@pytest.fixture
def shown() -> TransferMap:
    return TransferMap(forecast(), board(), dictionary()).choose("sort", "mul")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_the_grid_shows_what_is_chosen(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    drawn = mounted.debug()["drawn"]
    scores = shown.frame["score"]
    assert np.allclose(np.array(drawn, float), scores, atol=0.006)
    page.get_by_label("coloured by").select_option("1")
    changes = mounted.debug()["drawn"]
    assert changes[0][:4] == ["+30", "−20", "+10", "+2"] and changes[2] == [""] * 5
    assert shown.view["colour"] == 1 and shown.status["state"] == "idle"
    page.get_by_label("coloured by").select_option("2")
    ranks = shown.frame["ranks"]
    signs = {1: "+", -1: "−", 0: ""}
    want = "" if np.isnan(ranks[1, 0]) else f"{signs[np.sign(ranks[1, 0])]}{abs(ranks[1, 0]):g}"
    assert mounted.debug()["drawn"][1][0] == want
    mounted.shot("transfer_map-light")
    assert seen.errors == [] and seen.external == []


def test_keys_open_a_pair_and_its_features(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    page.locator(".wb-grid canvas").focus()
    press(page, "Home", "PageUp", "ArrowRight", "ArrowRight", "Enter")
    mounted.until(lambda: shown.spec["target"] == 2 and shown.spec["source"] == 0)
    mounted.settled()
    said = page.locator(".wb-grid .wb-sr").inner_text()
    assert "add → mul; forecast" in said and "measured change +10 [+5, +15] points" in said
    rows = shown.frame["opened"]["contributions"]
    table = page.get_by_role("grid", name="shifted features of the pair")
    assert [int(t) for t in table.locator("tbody th").all_inner_texts()] == [
        row["feature"] for row in rows
    ]
    table.focus()
    press(page, "ArrowDown", "Enter")
    mounted.until(lambda: shown.spec["feature"] == rows[1]["feature"])
    assert shown.to_record().feature == rows[1]["feature"] == mounted.debug()["feature"]
    assert shown.status["state"] == "idle"
    page.locator(".wb-grid canvas").focus()
    press(page, "Enter")
    mounted.until(lambda: shown.spec["target"] is None)
    assert "click a cell or a point" in mounted.root.inner_text()
    assert seen.errors == []


def test_the_scatter_is_walked_and_opens_pairs(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    points = mounted.debug()["points"]
    assert [p["x"]["mean"] for p in points] == pytest.approx(sorted(shown.frame["score"][1]))
    sizes = {p["label"]: p["y"]["mean"] for p in points}
    assert sizes == pytest.approx(dict(zip(TARGETS, 100 * np.abs(CHANGE[1]), strict=True)))
    assert [p["label"] for p in points if p["own"]] == ["sort"]
    page.locator(".wb-scatter").focus()
    press(page, "Home", "Enter")
    first = TARGETS.index(points[0]["label"])
    mounted.until(lambda: shown.spec["target"] == first)
    press(page, "End")
    last = points[-1]["name"] + (" (the source itself)" if points[-1]["own"] else "")
    assert page.locator(".wb-scatter-all > .wb-sr").inner_text().startswith(last)
    assert mounted.debug()["said"] == shown.frame["stats"][1]["words"]
    page.get_by_label("all sources pooled").check()
    assert len(mounted.debug()["points"]) == np.isfinite(CHANGE).sum()
    assert mounted.debug()["said"] == shown.frame["stats"][3]["words"]
    page.get_by_label("source", exact=True).select_option("2")
    page.get_by_label("all sources pooled").uncheck()
    mounted.until(lambda: shown.spec["source"] == 2)
    mounted.settled()
    assert "No change was measured after fine-tuning on judge" in mounted.root.inner_text()
    assert seen.errors == []


def test_the_slider_makes_an_edit(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    slider = page.get_by_label("strength of the edit")
    assert slider.get_attribute("aria-valuetext") == "switched off"
    slider.focus()
    press(page, *["ArrowRight"] * 5)
    mounted.until(lambda: shown.spec["strength"] == -0.5)
    assert slider.get_attribute("aria-valuetext") == "0.500 × its activation"
    edit = shown.to_record().edit
    assert edit is not None and edit.strength == -0.5
    assert edit.params["feature"] == shown.to_record().feature
    assert seen.errors == []


def test_the_feature_is_linked_both_ways(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    first, second = (row["feature"] for row in shown.frame["opened"]["contributions"])
    page.get_by_role("grid", name="shifted features of the pair").locator("tbody th").nth(1).click()
    mounted.until(lambda: shown.selection.get("feature") == second == shown.spec["feature"])
    shown.selection = {"feature": first}
    mounted.until(lambda: shown.spec["feature"] == first)
    shown.selection = {"feature": 99}
    page.wait_for_timeout(50)
    mounted.pump()
    assert shown.spec["feature"] == first, "the pair does not list 99"
    assert seen.errors == []


def test_examples_are_coloured_by_the_feature(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    shown.choose("sort", "mul", feature=7)
    mounted = Mounted(page, shown)
    mounted.settled()
    strip = page.get_by_role("listbox", name="example 1")
    tokens = strip.get_by_role("option")
    assert tokens.count() == 5
    assert tokens.nth(4).get_attribute("aria-label") == "token 4 1: 7.00 activation, the peak"
    assert tokens.nth(4).evaluate("e => e.style.background") == "rgb(254, 232, 56)"
    assert tokens.nth(0).evaluate("e => e.style.background") == "rgb(0, 34, 78)"
    assert "digit 7" in page.locator(".wb-feature").inner_text()
    assert seen.errors == []


def test_without_a_kernel_every_pair_opens(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    shown.precompute()
    page.set_viewport_size({"width": 700, "height": 900})
    mounted = Mounted(page, shown, connected=False, dark=True)
    assert "precomputed: 15 settings, no kernel" in mounted.root.inner_text()
    page.locator(".wb-grid canvas").focus()
    press(page, "Home", "PageUp", "ArrowRight", "Enter")
    debug = mounted.debug()
    assert (debug["opened"]["source"], debug["opened"]["target"]) == (0, 1)
    assert sum(row["value"] for row in debug["opened"]["contributions"]) == pytest.approx(
        shown.frame["score"][0, 1], rel=1e-3
    )
    assert page.get_by_role("listbox", name="example 1").is_visible()
    page.get_by_label("strength of the edit").focus()
    press(page, "ArrowRight")
    assert mounted.debug()["spec"]["strength"] == -0.9
    width = mounted.root.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert width[0] <= width[1], "nothing is wider than the page"
    mounted.shot("transfer_map-dark-700")
    page.set_viewport_size(VIEW)
    assert seen.errors == []


def test_a_pair_that_was_not_kept_says_so(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    shown = TransferMap(forecast(), board()).precompute([("add", "sub")])
    mounted = Mounted(page, shown, connected=False)
    page.locator(".wb-grid canvas").focus()
    press(page, "Home", "PageUp", "Enter")
    assert "not computed ahead" in page.locator(".wb-opened").inner_text()
    assert "add → add" in page.locator(".wb-opened").inner_text()
    assert mounted.debug()["opened"] is None
    assert seen.errors == []


def test_without_measurement_there_is_no_scatter(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    shown = TransferMap(forecast(measured=False))
    mounted = Mounted(page, shown)
    mounted.settled()
    assert "forecast.against(measured)" in mounted.root.inner_text()
    assert not page.locator(".wb-scatter").is_visible()
    assert page.get_by_label("coloured by").locator("option:disabled").count() == 2
    assert seen.errors == []


def test_keys_stay_inside(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    page.evaluate(
        "window.leaked = []; document.addEventListener('keydown', e => leaked.push(e.key))"
    )
    for place in (
        ".wb-grid canvas",
        ".wb-scatter",
        ".wb-cells table",
        ".wb-edit input",
        ".wb-strip-list",
    ):
        page.locator(place).first.focus()
        press(page, "d", "d", "ArrowDown", "x")
    assert page.evaluate("window.leaked") == []
    assert seen.errors == []


def test_hostile_names_stay_texts_and_files_hold_the_numbers(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    names = (*TARGETS[:4], HOSTILE)
    shown = TransferMap(forecast(names=names), board(HOSTILE)).choose("add", HOSTILE, feature=3)
    mounted = Mounted(page, shown)
    mounted.settled()
    assert HOSTILE in mounted.root.inner_text()
    got = {}
    for kind in ("PNG", "SVG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        got[kind] = Path(download.value.path()).read_bytes()
    assert got["PNG"].startswith(b"\x89PNG") and len(got["PNG"]) > 5000
    assert b"<img" not in got["SVG"] and got["SVG"].count(b"<circle") >= 3
    lines = got["CSV"].decode().splitlines()
    assert len(lines) == 1 + len(SOURCES) * len(names)
    assert lines[2].startswith(f"add,sub,{shown.frame['score'][0, 1]:.6g}"[:14])
    page.wait_for_timeout(100)
    assert page.evaluate(
        "window.hit === undefined && !document.querySelector('.wb img, .wb script')"
    )
    assert seen.errors == [] and seen.external == []


def test_nothing_is_left_behind(screen: tuple[Any, Any], shown: TransferMap) -> None:
    page, seen = screen
    mounted = Mounted(page, shown)
    mounted.settled()
    page.evaluate("window.__unmount()")
    assert page.evaluate("window.__listeners()") == 0
    assert seen.errors == []
