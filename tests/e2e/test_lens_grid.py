"""LensGrid in a browser: numbers on the screen, keys, slider, hostile prompts, no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import ARTEFACTS, Mounted
from workbench_widgets import LensGrid

pytestmark = pytest.mark.browser
PROMPT = "add 12+34\n2+4+0=6\n"
HOSTILE = "<img src=x onerror=window.hit=1></script><script>window.hit=1</script>"


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    size = {"width": 900, "height": 640}
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=size) as found:
        yield found


def edit(model: wb.Model, strength: float = 1.0) -> wb.Intervention:
    """Along the unembedding of one token, so that its effect is plain to see."""
    shift = 6 * torch.nn.functional.normalize(model.hf.get_output_embeddings().weight[40], dim=0)
    return wb.Intervention(
        "custom", "affine", {"L2.resid_post": {"shift": shift}}, strength, name="toward a token"
    )


def drawn(mounted: Mounted) -> np.ndarray:
    """The painted values, lowest layer first."""
    about = mounted.debug()
    return np.array(about["values"]).reshape(about["shape"])[::-1]


def test_cells_hold_python_numbers_and_texts(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    model = wb.load("reasoner")
    widget = LensGrid(model, PROMPT)
    mounted = Mounted(page, widget)
    mounted.settled()
    lens = widget.read()
    assert np.allclose(drawn(mounted), lens.p, atol=1e-6)
    last = mounted.debug()["texts"][0][-1]
    assert last == model.tokenizer.decode([int(lens.top[-1, -1, 0])])
    page.get_by_label("colour").first.select_option("kl")
    assert np.allclose(drawn(mounted), lens.kl, atol=1e-6)
    page.get_by_label("colour").first.select_option("rank")
    assert np.array_equal(drawn(mounted), lens.rank)
    assert seen.errors == [] and seen.external == []


def test_the_pixel_of_a_cell_has_the_colour_of_its_number(screen: tuple[Any, Any]) -> None:
    from workbench_widgets.stills.grid import colours

    page, _ = screen
    mounted = Mounted(page, LensGrid(wb.load("reasoner"), PROMPT))
    mounted.settled()
    values, plan = drawn(mounted)[::-1], mounted.debug()["plan"]
    for row, col in ((0, 0), (2, 5), (5, 8)):
        x = plan["gutter"] + (col + 1) * plan["cellWidth"] - 4
        y = plan["header"] + (row + 1) * plan["cellHeight"] - 3
        pixel = page.evaluate(
            "([x, y]) => [...document.querySelector('canvas').getContext('2d')"
            ".getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data].slice(0, 3)",
            [x, y],
        )
        assert np.abs(np.array(pixel) - colours(values[row, col], "sequential", 0, 1)).max() <= 1


def test_keys_move_and_enter_follows_a_position(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    widget = LensGrid(wb.load("reasoner"), PROMPT)
    mounted = Mounted(page, widget)
    mounted.settled()
    canvas = page.locator("canvas")
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "End", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    at = len(widget.meta["tokens"]) - 2
    mounted.until(lambda: widget.selection == {"token": at, "layer": 3})
    said = page.locator("[aria-live=polite].wb-sr").inner_text()
    p = widget.read().p[3, at]
    assert said.startswith(f"layer 3 token {at} ") and abs(float(said.split(" p ")[1]) - p) < 0.01
    followed = mounted.debug()["followed"]
    assert np.allclose(followed[0]["values"], widget.read().p[:, at], atol=1e-6)
    mounted.shot("lens-grid-followed")
    page.keyboard.press("Enter")
    mounted.until(lambda: widget.selection == {"token": None, "layer": None})


def test_the_slider_moves_the_edited_side_live(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    model = wb.load("reasoner")
    widget = LensGrid(model, PROMPT, [edit(model)])
    mounted = Mounted(page, widget)
    mounted.settled()
    slider = page.get_by_label("strength of toward a token")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    mounted.until(lambda: widget.spec["strengths"] == [1.25])
    mounted.settled()
    fresh = LensGrid(model, PROMPT, [edit(model, 1.25)])
    assert np.allclose(drawn(mounted), fresh.read("edited").p, atol=1e-6)
    page.get_by_role("tab", name="difference").click()
    gain = fresh.read("edited").p - fresh.read().p
    assert np.allclose(drawn(mounted), gain, atol=1e-6) and np.abs(gain).max() > 0.01
    assert np.abs(gain[:2]).max() == 0
    page.locator("canvas").click(position={"x": 200, "y": 60})
    mounted.pump()
    mounted.shot("lens-grid-difference")
    assert seen.errors == []


def test_a_hostile_prompt_is_only_text(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    from transformers import PreTrainedTokenizerFast

    hf = tiny.module("gpt2")
    model = wb.load(hf, hostile_tokenizer(PreTrainedTokenizerFast))
    mounted = Mounted(page, LensGrid(model, HOSTILE))
    mounted.settled()
    page.locator("canvas").hover(position={"x": 120, "y": 40})
    page.get_by_role("button", name="show as table").click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit === undefined && !document.querySelector('.wb img')")
    assert "<img" in page.locator(".wb table").inner_text()
    assert seen.external == [] and seen.errors == []


def hostile_tokenizer(kind: Any) -> Any:
    """Whole tags as tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = ["<img src=x onerror=window.hit=1>", "</script>", "<script>", "window.hit=1"]
    vocab = {t: i for i, t in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *words * 23])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[^>]*>|window.hit=1(?!>)"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return kind(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def test_without_a_kernel_the_slider_snaps(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    widget = LensGrid(model, PROMPT, [edit(model)]).precompute([0.0, 0.5, 1.0, 2.0])
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    # what came with the page is exact, all choices included, until something is moved
    assert np.array_equal(drawn(mounted), widget.read("edited").p)
    assert mounted.debug()["frame"]["edited_top"]["shape"][-1] == 5
    slider, said = page.get_by_label("strength of toward a token"), page.locator("output")
    slider.focus()
    walked = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        walked.append((mounted.debug()["spec"]["strengths"], said.inner_text()))
    assert walked == [([2.0], "2.00"), ([1.0], "1.00"), ([0.5], "0.500")]
    edited = LensGrid(model, PROMPT, [edit(model, 0.5)]).read("edited")
    assert np.allclose(drawn(mounted), edited.p, atol=1e-3)
    # hold still where nothing was computed: without a sweep the slider is off
    bare = Mounted(page, LensGrid(model, PROMPT, [edit(model)]), connected=False)
    bare.until(lambda: "needs a running kernel" in bare.root.inner_text())
    assert page.get_by_label("strength of toward a token").is_disabled()


def test_a_saved_page_says_the_strengths_that_it_draws(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    later = edit(model, 0.5).named("later")
    widget = LensGrid(model, PROMPT, [edit(model), later]).precompute([0.0, 1.0, 2.0])
    widget.ask(strengths=[0.6, 0.5])  # dragged after the sweep, then saved
    mounted = Mounted(page, widget, connected=False)
    mounted.until(lambda: mounted.root.get_attribute("data-mode") == "sweep")
    first, second = (
        page.get_by_label("strength of toward a token"),
        page.get_by_label("strength of later"),
    )
    assert page.locator("output").all_inner_texts() == ["0.600", "0.500"]
    assert np.array_equal(drawn(mounted), widget.read("edited").p)
    assert second.is_disabled()
    first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output").all_inner_texts() == ["1.00", "0.500"]
    own = LensGrid(model, PROMPT, [edit(model), later]).read("edited").p
    assert np.allclose(drawn(mounted), own, atol=1e-3)
    page.keyboard.press("ArrowLeft")
    assert np.array_equal(drawn(mounted), widget.read("edited").p)
    # a later edit was moved: the settings are of another one
    widget.ask(strengths=[0.6, -1.0])
    mounted = Mounted(page, widget, connected=False)
    assert page.locator("output").all_inner_texts() == ["0.600", "−1.00"]
    assert np.array_equal(drawn(mounted), widget.read("edited").p)
    assert page.get_by_label("strength of toward a token").is_disabled()


def test_files_hold_the_followed_position_too(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    model = wb.load("reasoner")
    widget = LensGrid(model, PROMPT, [edit(model)])
    mounted = Mounted(page, widget)
    mounted.settled()
    page.locator("canvas").click(position={"x": 200, "y": 60})
    mounted.until(lambda: mounted.debug()["followed"])
    token, files = widget.selection["token"], {}
    for kind in ("SVG", "CSV", "PNG"):
        with page.expect_download() as found:
            page.get_by_role("button", name=kind, exact=True).click()
        files[kind] = Path(found.value.path()).read_bytes()
    svg = files["SVG"].decode()
    assert svg.count("<polyline") == 2 and f"token {token} “" in svg
    assert files["PNG"].startswith(b"\x89PNG")
    rows = [line.split(",") for line in files["CSV"].decode().splitlines()]
    lens = {side: widget.read(side).p[:, token] for side in ("base", "edited")}
    for side, p in lens.items():
        kept = [float(r[4]) for r in rows if r[0].startswith("layer by side") and r[3] == side]
        assert np.allclose(kept[::-1], p, atol=1e-6)
    assert sum(r[0] == "layer by token" for r in rows) >= lens["base"].size
    page.set_content(svg)
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / "lens-grid-file.png"))
    assert seen.errors == []


def test_what_people_see(screen: tuple[Any, Any]) -> None:
    page, _ = screen
    model = wb.load("reasoner")
    for dark in (False, True):
        widget = LensGrid(model, PROMPT, [edit(model)])
        mounted = Mounted(page, widget, dark=dark)
        mounted.settled()
        page.locator("canvas").click(position={"x": 420, "y": 70})
        page.locator("canvas").hover(position={"x": 300, "y": 50})
        path: Path = mounted.shot(f"lens-grid-{'dark' if dark else 'light'}")
        assert path.stat().st_size > 10_000
