"""LiveEdit in a browser: drag, stream, undo, copy; hostile texts; the page without a kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.e2e import harness
from tests.e2e.bridge import Mounted
from workbench_widgets import LiveEdit

pytestmark = pytest.mark.browser
SLIDER = ".row input[type=range]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    harness.require_chromium()
    profile = tmp_path_factory.mktemp("profile")
    with harness.browser(profile, viewport={"width": 1000, "height": 800}) as both:
        yield both


@pytest.fixture
def page(browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    page, seen = browser
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    yield page
    assert seen.errors == [] and seen.external == []


@pytest.fixture(scope="module")
def edit() -> wb.Intervention:
    model = wb.load("reasoner")
    locked = wb.tasks.make("locked", n=64, seed=1)
    acts = model.record(locked, sites="L3.resid_post", progress=False)
    return wb.steering.MeanDifference().fit(acts.contrast()).named("locked")


def live(edit: wb.Intervention, **options: Any) -> LiveEdit:
    return LiveEdit(wb.load("reasoner"), wb.tasks.make("add", n=3, seed=2), [edit], **options)


def test_a_drag_shows_what_plain_python_gives(page: Any, edit: wb.Intervention) -> None:
    shown = Mounted(page, live(edit))
    shown.settled()
    page.locator(SLIDER).focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
        shown.pump()
    shown.settled()
    strength = shown.debug()["sliders"][0]
    assert strength == pytest.approx(1 + 20 * 4 / 200)
    model, prompt = wb.load("reasoner"), wb.tasks.make("add", n=3, seed=2)[0]
    (text,) = model.generate([prompt], [edit.at(strength)], max_new_tokens=32)
    assert shown.debug()["edited"].removesuffix("<eos>") == text.text
    logits = model.run([prompt], edits=[edit.at(strength)], logits="last").logits[0, -1]
    near = shown.debug()["next"]
    torch.testing.assert_close(torch.tensor(near["edited"]), logits.softmax(-1)[near["ids"]])
    page.emulate_media(color_scheme="light")
    shown.shot("live_edit-light")


def test_tokens_stream_and_a_newer_setting_ends_an_older_one(
    page: Any, edit: wb.Intervention
) -> None:
    widget = live(edit.at(5.0), max_new_tokens=200)
    # a quick machine is through before the browser has asked twice
    slow = widget._model.hf.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    shown = Mounted(page, widget)
    lengths: list[int] = []
    try:
        shown.until(
            lambda: (
                lengths.append(len(shown.debug().get("base") or ""))
                or shown.root.get_attribute("data-done") == "true"
            )
        )
    finally:
        slow.remove()
    assert len(set(lengths)) > 2, "the continuation came at once, not token by token"
    ran = []
    original = shown.widget._frame
    shown.widget._frame = lambda spec, job: ran.append(spec) or original(spec, job)
    page.locator(SLIDER).focus()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    shown.settled()
    assert shown.widget.frame["of"]["rows"][0]["strength"] == shown.debug()["sliders"][0]
    assert len(ran) < 40


def test_rows_come_and_go_and_come_back(page: Any, edit: wb.Intervention) -> None:
    shown = Mounted(page, live(edit))
    widget = shown.widget
    shown.settled()
    page.get_by_label("operation").select_option("zero")
    page.get_by_label("layer").select_option("2")
    page.get_by_label("part").select_option("z")
    page.get_by_label("selector").fill("[head=1]")
    page.get_by_text("Add row").click()
    shown.until(
        lambda: [e.sites for e in widget.to_record()] == [("L3.resid_post",), ("L2.z[head=1]",)]
    )
    page.get_by_text("Undo").click()
    shown.until(lambda: len(widget.spec["rows"]) == 1)
    shown.settled()
    page.get_by_text("Redo").click()
    shown.until(lambda: len(widget.spec["rows"]) == 2)
    page.get_by_text("Pin").click()
    shown.until(lambda: [arm.name for arm in widget.arms()] == ["base", "pin 1"])
    page.get_by_label("locked on").uncheck()
    shown.until(lambda: len(widget.to_record()) == 1)
    page.get_by_label("scope of locked").fill("nowhere")
    page.keyboard.press("Tab")
    page.get_by_label("locked on").check()
    shown.until(lambda: "unknown scope" in shown.root.inner_text())
    page.get_by_label("remove locked").click()
    shown.settled()
    assert "unknown scope" not in shown.root.inner_text()


def test_copy_as_python_shows_the_cell(
    page: Any, edit: wb.Intervention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = Mounted(page, live(edit))
    shown.settled()
    page.get_by_text("Copy as Python").click()
    shown.until(lambda: page.locator("textarea.code").is_visible())
    names: dict[str, Any] = {}
    exec(page.locator("textarea.code").input_value(), names)
    assert names["generation"].ids == tuple(shown.widget.frame["edited"]["ids"])


def test_without_a_kernel_the_slider_walks_the_precomputed_settings(
    page: Any, edit: wb.Intervention
) -> None:
    widget = live(edit)
    widget.precompute([0, 1, 2, 4])
    shown = Mounted(page, widget, connected=False, dark=True)
    assert "precomputed: 4 settings, no kernel" in shown.root.inner_text()
    page.locator(SLIDER).focus()
    page.keyboard.press("End")
    assert shown.debug()["sliders"] == [2.0]
    page.keyboard.press("Home")
    assert shown.debug()["sliders"] == [0.0]
    assert shown.debug()["edited"] == shown.debug()["base"]
    assert page.get_by_text("Add row").is_hidden()
    assert page.get_by_label("scope of locked").is_disabled()
    shown.shot("live_edit-dark")


@pytest.mark.parametrize(
    "moved",
    [
        {"strength": 1.3},  # no setting of the grid
        {"on": False},
        {"scope": "generated"},
    ],
)
def test_a_page_shows_the_frame_that_was_saved_until_something_moves(
    page: Any, edit: wb.Intervention, moved: dict[str, Any]
) -> None:
    widget = live(edit)
    widget.precompute([0, 1, 3])
    widget.ask(rows=[{**widget.spec["rows"][0], **moved}])
    widget.settle(20)
    shown = Mounted(page, widget, connected=False)
    assert shown.debug()["next"]["kl_nats"] == widget.frame["next"]["kl_nats"]
    assert shown.debug()["edited"] == "".join(widget.frame["edited"]["tokens"])


def test_a_widget_whose_swept_row_is_gone_still_starts(page: Any, edit: wb.Intervention) -> None:
    widget = live(edit)
    widget.precompute([0, 1])
    kept = widget.sweep
    widget.ask(rows=[])
    widget.settle(20)
    widget.sweep = kept  # as a notebook saved by hand may hold it
    Mounted(page, widget).settled()


def test_no_text_runs_as_script(page: Any, edit: wb.Intervention) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    )
    widget = live(edit.named(hostile))
    frame = widget.frame if widget.settle(20) is None else {}
    from workbench_widgets.frames import pack

    side = {**frame["edited"], "tokens": [hostile] * len(frame["edited"]["tokens"])}
    widget.meta = {**widget.meta, "title": hostile, "prompts": [hostile]}
    widget.data = pack(
        {**frame, "edited": side, "next": {**frame["next"], "tokens": [hostile] * 8}}
    )
    shown = Mounted(page, widget, connected=False)
    assert "owned" in shown.root.inner_text()
    assert page.title() == "bridge"
    assert shown.root.locator("img, script").count() == 0
