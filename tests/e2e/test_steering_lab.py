"""SteeringLab in a real browser: train, the plot's numbers, keys, texts, hostile names, no kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from tests.e2e.test_rollout_board import HOSTILE, VIEW, hostile_model
from workbench.steering.base import SteeringMethod
from workbench.sweep.methods import MethodPoint
from workbench_widgets import SteeringLab

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Push(SteeringMethod):
    """A fixed direction in every layer; no part of the registry."""

    wait: Callable[[], Any] | None = None

    def fit(self, contrast: Any, **_handed: Any) -> wb.Intervention:
        """The same shift wherever rows are."""
        if self.wait is not None:
            self.wait()
        shift = {s: {"shift": torch.ones(p.shape[1])} for s, p in contrast.positive.items()}
        return wb.Intervention("custom", "affine", shift, unit="ones", name=HOSTILE)


def pairs() -> list[wb.Prompt]:
    texts = ["abc", "bcd", "cde"]
    return [wb.Prompt(text=t, label=y, pair=i) for i, t in enumerate(texts) for y in (True, False)]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    harness.require_chromium()
    with harness.browser(tmp_path_factory.mktemp("page"), viewport=VIEW) as found:
        yield found


@pytest.fixture(scope="module")
def lab() -> SteeringLab:
    return SteeringLab(
        wb.load("reasoner"), wb.tasks.make("locked", 64, seed=1),
        ["mean_difference", "ace", "pca"], layers=[1, 3], strengths=(-2, -1, 1, 2),
        prompts=wb.tasks.make("locked", 10, seed=5), metrics=("accuracy", "kl_nats"),
        max_new_tokens=12, prompting="locked ",
    ).train()  # fmt: skip


def at(mounted: Mounted, point: MethodPoint) -> dict[str, Any]:
    """Where a point is drawn."""
    for place in mounted.debug()["places"]:
        own = place["point"]
        kind = "control" if point.control else "method"
        if (own["kind"], own["method"], own["layer"], own["strength"]) == (kind, *point[:3]):
            return place
    raise LookupError(point)


def move(page: Any, place: dict[str, Any], click: bool = False) -> None:
    box = page.locator(".wb-lab-svg svg").bounding_box()
    scale = box["width"] / 640
    where = box["x"] + place["x"] * scale, box["y"] + place["y"] * scale
    (page.mouse.click if click else page.mouse.move)(*where)


def test_the_numbers_are_pythons(screen: tuple[Any, Any], lab: SteeringLab) -> None:
    page, seen = screen
    lab.ask(chosen=None)
    mounted = Mounted(page, lab)
    mounted.settled()
    places = mounted.debug()["places"]
    assert len(places) == 2 + 3 * 2 * 4 * 2
    for place in places:
        own = place["point"]
        if own["kind"] not in ("method", "control"):
            continue
        point = MethodPoint(own["method"], own["layer"], own["strength"], own["kind"] == "control")
        for axis, metric in (("x", "kl_nats"), ("y", "accuracy")):
            mean = lab._figures.of(point, metric)[0].mean
            assert own[axis]["mean"] == pytest.approx(mean, abs=1e-6)
    assert page.get_by_text("50 of 50 settings computed").is_visible()
    assert not page.get_by_role("button", name="Continue").is_visible()
    page.get_by_label("upright axis").select_option("1")
    page.get_by_label("level axis").select_option("0")
    mounted.until(lambda: (lab.spec["x"], lab.spec["y"]) == (0, 1))
    swapped = at(mounted, MethodPoint("ace", 3, 2.0))["point"]
    want = lab._figures.of(MethodPoint("ace", 3, 2.0), "accuracy")[0]
    assert swapped["x"]["mean"] == pytest.approx(want.mean)
    lab.ask(x=1, y=0)
    mounted.until(lambda: mounted.debug()["spec"]["x"] == 1)
    mounted.shot("steering_lab-light")
    assert seen.errors == [] and seen.external == []


def test_boxes_choose_what_is_seen(screen: tuple[Any, Any], lab: SteeringLab) -> None:
    page, seen = screen
    mounted = Mounted(page, lab)
    mounted.settled()
    page.get_by_label("ace", exact=True).uncheck()
    page.get_by_label("L1", exact=True).uncheck()
    page.get_by_label("controls:").uncheck()
    mounted.until(lambda: lab.spec["methods"] == ["mean_difference", "pca"])
    drawn = {(p["point"]["kind"], p["point"]["layer"]) for p in mounted.debug()["places"]}
    assert drawn == {("base", None), ("prompting", None), ("method", 3)}
    page.get_by_role("button", name="none of the methods").click()
    mounted.until(lambda: lab.spec["methods"] == [])
    page.get_by_role("button", name="all of the methods").click()
    page.get_by_label("L1", exact=True).check()
    page.get_by_label("controls:").check()
    mounted.until(lambda: len(mounted.debug()["places"]) == 50)
    assert lab.spec["layers"] == [1, 3] and lab.spec["controls"]
    assert seen.errors == []


def test_a_point_opens_on_its_texts(
    screen: tuple[Any, Any],
    lab: SteeringLab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    page, seen = screen
    mounted = Mounted(page, lab)
    mounted.settled()
    point = MethodPoint("mean_difference", 3, -2.0)
    place = at(mounted, point)
    move(page, place)
    tip = mounted.debug()["tip"]
    places = mounted.debug()["places"]
    here = [p["point"] for p in places if max(abs(p[k] - place[k]) for k in "xy") < 1]
    assert tip and page.locator(".wb-lab-bar").count() == 2
    assert any(tip.startswith(one["method"]) for one in here)
    move(page, place, click=True)
    mounted.until(lambda: lab.chosen is not None)
    lab.choose(*point[:3])
    mounted.until(lambda: mounted.debug()["about"].startswith("mean_difference, layer 3"))
    page.get_by_role("grid").locator("[data-r='4'][data-c='1']").click()
    transcript, done = mounted.debug()["transcript"], lab._sweep.done
    for side, of in (("base", lab._sweep.BASE), ("other", point)):
        assert tuple(transcript[side]["text"]["ids"]) == done[of].generations[4].ids
    page.get_by_role("button", name="Read all 10").click()
    mounted.until(lambda: page.get_by_role("grid").locator("tbody tr").count() == 10)
    page.get_by_role("grid").locator("[data-r='9'][data-c='0']").first.click()
    ids = mounted.debug()["transcript"]["other"]["text"]["ids"]
    assert tuple(ids) == done[point].generations[9].ids
    page.get_by_role("button", name="Copy as Python").click()
    mounted.until(lambda: mounted.debug()["said"])
    assert mounted.debug()["said"] == lab.to_code()
    page.get_by_role("button", name="Open LiveEdit").click()
    mounted.until(lambda: "lab.live()" in mounted.root.inner_text())
    assert lab.meta["opened"].startswith("IPY_MODEL_")
    lab.choose("ace", 1, 2, control=True)
    mounted.until(lambda: "random direction" in mounted.debug()["about"])
    page.get_by_role("button", name="Read the continuations").click()
    control = done[MethodPoint("ace", 1, 2.0, True)].generations
    mounted.until(lambda: mounted.debug()["transcript"])
    page.get_by_role("grid").locator("[data-r='2'][data-c='0']").first.click()
    assert tuple(mounted.debug()["transcript"]["other"]["text"]["ids"]) == control[2].ids
    mounted.shot("steering_lab-chosen")
    assert seen.errors == []


def test_keys_walk_and_open(screen: tuple[Any, Any], lab: SteeringLab) -> None:
    page, seen = screen
    lab.ask(chosen=None)
    mounted = Mounted(page, lab)
    mounted.settled()
    page.evaluate(
        "() => { window.keys = 0; document.addEventListener('keydown', () => window.keys++) }"
    )
    page.locator(".wb-lab-svg").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "End", "d", "d", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    mounted.until(lambda: lab.chosen is not None)
    assert lab.chosen == MethodPoint("mean_difference", 1, 1.0)
    said = page.locator(".wb-lab-plot .wb-sr").inner_text()
    assert said.startswith("mean_difference, layer 1, strength 1; accuracy")
    assert page.evaluate("window.keys") == 0, "a key left the widget"
    assert lab.selection["layer"] == 1
    assert seen.errors == []


def test_without_a_kernel_everything_but_training_works(
    screen: tuple[Any, Any], lab: SteeringLab
) -> None:
    page, seen = screen
    lab.ask(chosen=None)
    lab.view = {}
    mounted = Mounted(page, lab, connected=False, dark=True)
    assert "complete, but for texts after the first 8 prompts" in mounted.root.inner_text()
    page.get_by_label("root scale").check()
    page.get_by_label("ace", exact=True).uncheck()
    move(page, at(mounted, MethodPoint("mean_difference", 3, 2.0)), click=True)
    chosen = mounted.debug()["chosen"]
    point = MethodPoint(chosen["method"], chosen["layer"], chosen["strength"])
    if chosen["kind"] == "method":
        ids = mounted.debug()["transcript"]["other"]["text"]["ids"]
        assert tuple(ids) == lab._sweep.done[point].generations[0].ids
    page.locator(".wb-lab-svg").focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert mounted.debug()["chosen"]["kind"] in ("method", "control")
    assert "ace" not in {p["point"]["method"] for p in mounted.debug()["places"]}
    page.get_by_role("button", name="Copy as Python").click()
    assert mounted.debug()["said"].startswith("edit = wb.steering.fit(")
    for name in ("Train", "Continue", "Open LiveEdit"):
        assert not page.get_by_role("button", name=name).is_visible()
    mounted.shot("steering_lab-dark")
    assert lab.chosen is None and seen.errors == []


def test_training_shows_progress_and_cancel_keeps_what_is_there(
    screen: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    page, seen = screen
    go = threading.Event()
    found = SteeringLab(
        tiny.model("llama"), pairs(), {"push": Push(), "slow": Push(wait=lambda: go.wait(20))},
        layers=[0, 1], strengths=(1, 2), prompts=["abc", "x y"], metrics=("length", "kl_nats"),
        max_new_tokens=4,
    )  # fmt: skip
    mounted = Mounted(page, found)
    mounted.settled()
    assert page.get_by_text("0 of 17 settings computed").is_visible()
    assert found.seq == 1 and not found._sweep.done
    page.get_by_role("button", name="Train").click()
    mounted.until(lambda: "slow" in page.locator(".wb-state").inner_text())
    assert "s left" in page.locator(".wb-state").inner_text()
    mounted.shot("steering_lab-training")
    page.get_by_role("button", name="Cancel").click()
    mounted.pump()
    go.set()
    mounted.until(lambda: found.status["state"] == "cancelled")
    mounted.settled()
    done = found.frame["done"]
    assert 5 <= done < 17 and page.get_by_text(f"{done} of 17 settings computed").is_visible()
    page.get_by_role("button", name="Continue").click()
    mounted.until(lambda: found.frame["done"] == 17, 30)
    mounted.settled()
    assert found.frame["errors"] == [] and seen.errors == []


def test_hostile_names_stay_text_and_files_hold_the_numbers(screen: tuple[Any, Any]) -> None:
    page, seen = screen
    data = [wb.Prompt(text=t, label=y, pair=0) for t, y in (("ab", True), ("cd", False))]
    found = SteeringLab(
        hostile_model(), data, {HOSTILE: Push()}, layers=[0], strengths=(1,),
        prompts=[HOSTILE, "a<b"], metrics=("length", "kl_nats"), max_new_tokens=6,
    ).train()  # fmt: skip
    found.choose(HOSTILE, 0, 1)
    mounted = Mounted(page, found)
    mounted.settled()
    assert HOSTILE in page.locator(".wb-lab-about").inner_text()
    assert "<img" in page.get_by_role("grid").inner_text()
    got = {}
    for kind in ("PNG", "SVG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        got[kind] = Path(download.value.path()).read_bytes()
    assert got["PNG"].startswith(b"\x89PNG") and len(got["PNG"]) > 5000
    assert b"<script" not in got["SVG"] and b"<img" not in got["SVG"]
    assert len(got["CSV"].decode().splitlines()) == 1 + 3 * 2
    page.wait_for_timeout(100)
    assert page.evaluate(
        "window.hit === undefined && !document.querySelector('.wb img, .wb script')"
    )
    assert seen.errors == [] and seen.external == []
