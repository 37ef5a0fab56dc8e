"""SweepExplorer in a real browser: cells, curve, texts, keys, hostile texts, no kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_rollout_board import HOSTILE, VIEW, hostile_model, shown
from workbench.sweep import Point
from workbench_widgets import SweepExplorer

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    with harness.browser(tmp_path_factory.mktemp("page"), viewport=VIEW) as found:
        yield found


@pytest.fixture(scope="module")
def explorer() -> SweepExplorer:
    model = wb.load("reasoner")
    return SweepExplorer(
        model, wb.tasks.make("add", 10, seed=5), edit(model.d_model, (1, 3, 5)),
        strengths=(-2, -1, 0, 1, 2), max_new_tokens=24,
    )  # fmt: skip


def edit(d: int, layers: tuple[int, ...], name: str = "push") -> wb.Intervention:
    tensors = {
        f"L{y}.resid_post": {"shift": torch.randn(d, generator=torch.Generator().manual_seed(y))}
        for y in layers
    }
    return wb.Intervention("custom", "affine", tensors, 1.0, name=name)


def test_the_grid_and_the_words_are_pythons(
    screen: tuple[Any, Any], explorer: SweepExplorer
) -> None:
    page, seen = screen
    mounted = Mounted(page, explorer)
    mounted.settled()
    frame = explorer.frame
    assert mounted.debug()["drawn"] == [[shown(v) for v in row] for row in frame["mean"][0]]
    explorer.choose(3, -2.0)
    mounted.until(lambda: mounted.debug()["chosen"]["layer"] == 3)
    chosen = mounted.debug()["chosen"]
    assert chosen["strength"] == -2
    assert chosen["mean"] == pytest.approx(frame["mean"][0, 1, 0])
    assert f"to the baseline {shown(frame['difference'][0, 1, 0])}" in mounted.debug()["about"]
    curve = page.locator(".wb-curve").get_attribute("aria-label")
    control = frame["control_mean"][0, 1, 4]
    assert (
        f"random direction of the same norm: strength at layer 3 -2 {shown(frame['control_mean'][0, 1, 0])}"
        in curve
    )
    assert f"strength at layer 3 2 {shown(control)}" in curve
    page.get_by_label("metric", exact=True).select_option("1")
    mounted.until(lambda: mounted.debug()["drawn"][0][0] == shown(frame["mean"][1, 0, 0]))
    page.get_by_label("shown").select_option("difference")
    mounted.until(lambda: mounted.debug()["drawn"][2][4] == shown(frame["difference"][1, 2, 4]))
    explorer.ask(metric=0, show="value")
    mounted.until(lambda: mounted.debug()["spec"]["metric"] == 0)
    mounted.shot("sweep_explorer-light")
    assert seen.errors == [] and seen.external == []


def test_keys_choose_a_cell_and_its_texts_open(
    screen: tuple[Any, Any], explorer: SweepExplorer
) -> None:
    page, seen = screen
    mounted = Mounted(page, explorer)
    mounted.settled()
    page.locator(".wb-grid canvas").focus()
    for key in ("Home", "PageUp", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: explorer.chosen == Point(3, -1.0))
    assert "layer 3, strength −1: accuracy" in page.locator(".wb-grid .wb-sr").inner_text()
    page.get_by_role("grid").locator("[data-r='4'][data-c='1']").click()
    transcript = mounted.debug()["transcript"]
    done = explorer._sweep.done
    for side, point in (("base", Point(-1, 0.0)), ("other", Point(3, -1.0))):
        text = done[point].generations[4]
        assert tuple(transcript[side]["text"]["ids"]) == text.ids
        assert np.allclose(transcript[side]["text"]["logprobs"], text.logprobs, atol=1e-6)
    page.get_by_role("button", name="Read all 10").click()
    mounted.until(lambda: page.get_by_role("grid").locator("tbody tr").count() == 10)
    page.get_by_role("grid").locator("[data-r='9'][data-c='0']").first.click()
    ids = mounted.debug()["transcript"]["other"]["text"]["ids"]
    assert tuple(ids) == done[Point(3, -1.0)].generations[9].ids
    assert seen.errors == []


def test_the_layer_is_linked_both_ways(screen: tuple[Any, Any], explorer: SweepExplorer) -> None:
    page, seen = screen
    mounted = Mounted(page, explorer)
    mounted.settled()
    page.locator(".wb-grid canvas").focus()
    for key in ("PageDown", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: explorer.selection.get("layer") == 1 and explorer.chosen.layer == 1)
    explorer.selection = {**explorer.selection, "layer": 5}
    mounted.until(lambda: explorer.chosen.layer == 5)
    explorer.selection = {**explorer.selection, "layer": 4}
    page.wait_for_timeout(50)
    mounted.pump()
    assert explorer.chosen.layer == 5, "the sweep has no layer 4"
    assert seen.errors == []


def test_without_a_kernel_the_cells_still_open(
    screen: tuple[Any, Any], explorer: SweepExplorer
) -> None:
    page, seen = screen
    explorer.view = {}
    mounted = Mounted(page, explorer, connected=False, dark=True)
    said = "complete, but for texts after the first 8 prompts"
    assert said in mounted.root.inner_text()
    page.locator(".wb-grid canvas").focus()
    for key in ("Home", "PageDown", "Enter"):
        page.keyboard.press(key)
    chosen = mounted.debug()["chosen"]
    assert (chosen["layer"], chosen["strength"]) == (1, -2)
    text = explorer._sweep.done[Point(1, -2.0)].generations[0]
    assert tuple(mounted.debug()["transcript"]["other"]["text"]["ids"]) == text.ids
    assert "first 8 of 10 prompts" in mounted.root.inner_text()
    mounted.shot("sweep_explorer-dark")
    assert seen.errors == []


def test_it_fills_cell_by_cell_and_cancel_keeps_them(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    model = tiny.model("gpt2")
    real = model.generate

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.15)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    found = SweepExplorer(
        model, ["abc", "x y"], edit(32, (0, 1, 2)), metrics=("length",), max_new_tokens=6
    )
    mounted = Mounted(page, found)
    mounted.until(lambda: "s left" in page.locator(".wb-state").inner_text())
    mounted.until(lambda: "…" in str(mounted.debug()["drawn"]) and found.seq > 1)
    mounted.shot("sweep_explorer-filling")
    page.get_by_role("button", name="Cancel").click()
    mounted.until(lambda: found.status["state"] == "cancelled")
    mounted.settled()
    done = found.frame["done"]
    assert 0 < done < 37 and page.get_by_text(f"{done} of 37 settings computed").is_visible()
    page.get_by_role("button", name="Continue").click()
    mounted.until(lambda: found.meta["complete"], 30)
    mounted.settled()
    assert "…" not in str(mounted.debug()["drawn"])
    assert seen.errors == []


def test_hostile_texts_stay_texts_and_files_hold_the_numbers(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    found = SweepExplorer(
        hostile_model(), [HOSTILE, "a<b"], edit(32, (0, 2), HOSTILE), metrics=("length", "kl_nats"),
        max_new_tokens=8, strengths=(0, 1),
    )  # fmt: skip
    mounted = Mounted(page, found)
    mounted.settled()
    assert "<img" in page.get_by_role("grid").inner_text()
    got = {}
    for kind in ("PNG", "SVG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        got[kind] = Path(download.value.path()).read_bytes()
    assert got["PNG"].startswith(b"\x89PNG") and len(got["PNG"]) > 5000
    assert b"<script" not in got["SVG"] and b"<img" not in got["SVG"]
    lines = got["CSV"].decode().splitlines()
    assert len(lines) == 1 + 2 * 2 * 3
    page.wait_for_timeout(100)
    assert page.evaluate(
        "window.hit === undefined && !document.querySelector('.wb img, .wb script')"
    )
    assert seen.errors == [] and seen.external == []
