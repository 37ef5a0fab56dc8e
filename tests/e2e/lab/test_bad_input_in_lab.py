"""Input that cannot work is said in words, in the widget or at once, and the notebook stays usable."""

from __future__ import annotations

import pytest

from tests.e2e.lab.notebook import Notebook, Shown

pytestmark = pytest.mark.browser

LIVE = "live = LiveEdit(model, prompts, [push], max_new_tokens=4)\nlive"
BROKEN = """broken = Intervention(
    "custom", "affine", {"L3.resid_post": {"shift": shift * float("nan")}}, unit="x", params={},
    model=model.fingerprint_shape, name="broken")"""


@pytest.mark.parametrize("case", ["nan", "too long", "empty"])
def test_input_that_cannot_work_is_said_in_the_widget_or_at_once(
    clean: Notebook, case: str
) -> None:
    made = {
        "nan": "LiveEdit(model, prompts, [broken], max_new_tokens=4)",
        "too long": "LiveEdit(model, '1' * 4000, [push], max_new_tokens=4)",
        "empty": "LiveEdit(model, '', [push], max_new_tokens=4)",
    }[case]
    words = {"nan": "NaN", "too long": "256", "empty": ""}[case]
    clean.run(BROKEN)
    cell = clean.cell(f"w = {made}\nw")
    clean.until(lambda: cell.locator(".wb").count() or "Error" in cell.inner_text())
    if cell.locator(".wb").count():
        shown = Shown(clean, cell.locator(".wb").first)
        shown.until(lambda: shown.attribute("data-mode") == "live")
        shown.until(lambda: shown.attribute("data-state") in ("idle", "error"))
        clean.run("worker.settle(30)")
        shown.says(words)
        said = shown.root.locator(".wb-problem").inner_text() if words else ""
    else:
        said = cell.inner_text()
    assert words in said
    # and the next cell works
    assert clean.cell("print(1 + 1)").inner_text().rstrip().endswith("\n2")


@pytest.mark.parametrize("first", [True, False])
def test_a_nan_edit_can_be_turned_off_in_the_widget(clean: Notebook, first: bool) -> None:
    """Whether it was there from the start, or came when a slider moved."""
    clean.run(BROKEN)
    edit = "broken" if first else "broken.at(0.0)"
    shown = clean.show(f"w = LiveEdit(model, prompts, [{edit}], max_new_tokens=4)\nw")
    if not first:
        shown.settled("w")
        shown.root.locator("input[type=range]").first.focus()
        clean.page.keyboard.press("End")
    shown.says("NaN")
    clean.run("worker.settle(30)")
    shown.root.locator(".row input[type=checkbox]").first.click(timeout=5000)
    drawn = shown.settled("w")
    assert drawn["frame"]["done"] is True
    assert shown.root.locator(".wb-problem").is_hidden()


def test_a_deleted_model_leaves_the_widget_working(clean: Notebook) -> None:
    shown = clean.show(LIVE)
    shown.settled("live")
    clean.run("kept = model; del model; import gc; gc.collect()")
    try:
        shown.root.locator("input[type=range]").first.focus()
        clean.page.keyboard.press("Home")
        assert shown.settled("live")["frame"]["of"]["rows"][0]["strength"] == -2
    finally:
        clean.run("model = kept")
