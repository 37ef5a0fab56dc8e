"""RolloutBoard in a real browser: numbers, transcripts, keys, training, hostile texts, no kernel."""

from __future__ import annotations

import string
import time
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from workbench.rl import Reinforce, TrainArm
from workbench_widgets import RolloutBoard

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=window.hit=1></script><script>window.hit=1</script>"
VIEW = {"width": 1100, "height": 900}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    with harness.browser(tmp_path_factory.mktemp("page"), viewport=VIEW) as found:
        yield found


@pytest.fixture(scope="module")
def board() -> RolloutBoard:
    model = wb.load("reasoner")
    arm = TrainArm("rl", 2, trainer=Reinforce(prompts_per_step=2, samples=3, max_new_tokens=16))
    arms = [wb.Arm("steered", [push(model)]), arm]
    prompts = wb.tasks.make("add", 8, seed=5)
    return RolloutBoard(model, prompts, arms, seeds=(0, 1, 2, 3), max_new_tokens=24)


def push(model: wb.Model) -> wb.Intervention:
    shift = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    return wb.Intervention(
        "custom", "affine", {"L3.resid_post": {"shift": shift}}, 1.0, name="push"
    )


def hostile_model() -> wb.Model:
    """A model whose tokenizer spells any ASCII text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {c: i for i, c in enumerate(["<eos>", "<unk>", *string.printable])}
    tok = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tok.decoder = decoders.Fuse()
    hf = tiny.module("gpt2", vocab_size=len(words), bos_token_id=0, eos_token_id=0)
    return wb.load(
        hf, PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<eos>", unk_token="<unk>")
    )


def shown(value: float) -> str:
    """A number as the widget writes it."""
    size = abs(value)
    if not size:
        return "0"
    if size < 0.001 or size >= 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+").replace("-", "−")
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    exact = Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return str(exact).replace("-", "−")


def test_the_numbers_are_pythons(screen: tuple[Any, Any], board: RolloutBoard) -> None:
    page, seen = screen
    mounted = Mounted(page, board)
    mounted.settled()
    head, *rows = mounted.debug()["table"]
    summary = board.table().summary().set_index(["arm", "metric"])
    columns = {text.split(" ")[0]: i for i, text in enumerate(head)}
    assert [row[0] for row in rows] == ["base", "steered", "steered (random control)"]
    for row in rows:
        for metric in ("accuracy", "length"):
            want = summary.loc[row[0], metric]
            own = f"{shown(want['mean'])} [{shown(want['low'])}, {shown(want['high'])}]"
            assert row[columns[metric]].startswith(own)
            if row[0] != "base":
                plus = "+" if want["difference"] > 0 else ""
                assert f"{plus}{shown(want['difference'])} [" in row[columns[metric]][len(own) :]
                assert row[columns[metric]].endswith("*") == want["differs"]
    assert {"pass@2", "pass@4"} <= set(columns)
    mounted.shot("rollout_board-light")
    assert seen.errors == [] and seen.external == []


def test_keys_lead_from_an_arm_to_a_transcript(
    screen: tuple[Any, Any], board: RolloutBoard
) -> None:
    page, seen = screen
    mounted = Mounted(page, board)
    mounted.settled()
    arms = page.get_by_role("grid").nth(0)
    arms.focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert mounted.debug()["chosen"]["arm"] == "steered (random control)"
    page.get_by_role("grid").nth(1).focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    about = mounted.debug()
    assert (about["chosen"]["prompt"], about["chosen"]["seed"]) == (2, 2)
    for side, name in (("base", "base"), ("other", "steered (random control)")):
        text = next(g for g in board.table().read(name, 2) if g.seed == 2)
        assert tuple(about["transcript"][side]["text"]["ids"]) == text.ids
        assert np.allclose(about["transcript"][side]["text"]["logprobs"], text.logprobs, atol=1e-6)
    said = page.locator(".wb-cells .wb-sr").nth(1).inner_text()
    right = (
        board.table()
        .frame()
        .query(
            "arm == 'steered (random control)' and prompt == 2 and seed == 2 and metric == 'accuracy'"
        )
    )
    assert said == f"prompt 2, seed 2: {'right' if right.value.item() else 'wrong'}"
    assert seen.errors == []


def test_without_a_kernel_every_transcript_is_there(
    screen: tuple[Any, Any], board: RolloutBoard
) -> None:
    page, seen = screen
    mounted = Mounted(page, board, connected=False, dark=True)
    assert mounted.root.get_attribute("data-mode") == "sweep"
    assert "complete, but for the training of rl" in mounted.root.inner_text()
    page.get_by_role("row", name="base").first.click()
    page.get_by_role("grid").nth(1).locator("[data-r='5'][data-c='3']").click()
    about = mounted.debug()
    assert about["chosen"] == {"arm": "base", "prompt": 5, "seed": 3}
    text = next(g for g in board.table().read("base", 5) if g.seed == 3)
    assert tuple(about["transcript"]["base"]["text"]["ids"]) == text.ids
    assert page.get_by_role("button", name="Train 2 steps").is_disabled()
    page.get_by_role("row", name="steered").first.click()
    mounted.shot("rollout_board-dark")
    assert seen.errors == []


def test_the_button_trains_and_the_arms_appear(
    screen: tuple[Any, Any], board: RolloutBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    mounted = Mounted(page, board)
    mounted.settled()
    page.get_by_role("button", name="Train 2 steps").click()
    mounted.until(lambda: len(mounted.debug()["table"]) == 7, 60)
    mounted.until(lambda: board.status["state"] == "idle", 60)
    mounted.settled()
    assert [row[0] for row in mounted.debug()["table"]][-1] == "rl (shuffled rewards)"
    said = page.locator(".wb-training svg").get_attribute("aria-label")
    mean = board.frame["trainings"][0]["runs"][0]["mean"][1]
    assert f"step 2 {shown(mean)}" in said
    mounted.shot("rollout_board-trained")
    assert seen.errors == []


def test_it_fills_while_watched_and_cancel_keeps_what_is_there(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    model = tiny.model("gpt2")
    real = model.generate

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return real(*args, **options)

    monkeypatch.setattr(model, "generate", slow)
    shift = wb.Intervention("custom", "affine", {"L1.resid_post": {"shift": torch.ones(32)}})
    found = RolloutBoard(
        model, ["abc", "x y"], [wb.Arm("a", [shift])], seeds=range(8), metrics=("length",)
    )
    mounted = Mounted(page, found)
    mounted.until(lambda: "left" in page.locator(".wb-state").inner_text())
    mounted.until(lambda: any("/8 seeds" in row[0] for row in mounted.debug()["table"]))
    page.get_by_role("button", name="Cancel").click()
    mounted.until(lambda: found.status["state"] == "cancelled")
    mounted.settled()
    done = sum(arm["done"] for arm in found.frame["arms"])
    assert 0 < done < 24
    mounted.shot("rollout_board-cancelled")
    page.get_by_role("button", name="Continue").click()
    mounted.until(lambda: found.meta["complete"], 30)
    assert seen.errors == []


def test_hostile_texts_stay_texts(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    model = hostile_model()
    shift = wb.Intervention(
        "custom", "affine", {"L1.resid_post": {"shift": torch.ones(32)}}, name=HOSTILE
    )
    found = RolloutBoard(
        model, [HOSTILE, HOSTILE], [wb.Arm(HOSTILE, [shift]), TrainArm(f"{HOSTILE}t", 1, [shift])],
        seeds=(0,), metrics=("length",), max_new_tokens=8,
    )  # fmt: skip
    mounted = Mounted(page, found)
    mounted.settled()
    page.get_by_role("grid").nth(1).locator("tbody td").first.click()
    with page.expect_download() as got:
        page.get_by_role("button", name="SVG").click()
    svg = Path(got.value.path()).read_text("utf-8")
    assert "<img" not in svg and "<script" not in svg and "&lt;img" in svg
    page.set_content(found._still())
    assert page.locator("img, script").count() == 0
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit === undefined")
    assert seen.external == []


def test_pictures_and_numbers_are_files(screen: tuple[Any, Any], board: RolloutBoard) -> None:
    page, _ = screen
    mounted = Mounted(page, board)
    mounted.settled()
    got = {}
    for kind in ("PNG", "SVG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        got[kind] = Path(download.value.path()).read_bytes()
    assert got["PNG"].startswith(b"\x89PNG") and len(got["PNG"]) > 5000
    shown_now = mounted.debug()["transcript"]["other"]["name"]
    curves = page.locator(".wb-training svg").count()
    svg = got["SVG"].decode()
    assert shown_now in svg and svg.count("mean reward") == curves == 1
    lines = got["CSV"].decode().splitlines()
    assert len(lines) == 1 + len(board.frame["lines"])
    mean = board.frame["lines"][0]["mean"]
    assert lines[1].startswith(f"base,accuracy,fraction,{mean!r}"[:24])
