"""FeatureBrowser in JupyterLab: "Steer with it" opens a LiveEdit below, which goes with the next one."""

from __future__ import annotations

import pytest

from tests.e2e.lab.examples import WIDGETS
from tests.e2e.lab.notebook import Notebook

pytestmark = pytest.mark.browser


def test_a_feature_opens_as_a_live_edit_below(clean: Notebook) -> None:
    shown = clean.show(f"w = {WIDGETS['FeatureBrowser']}\nw")
    shown.settled("w")
    shown.root.get_by_role("button", name="Steer with it").click()
    child = shown.root.locator(".wb-live_edit")
    clean.until(lambda: child.count() == 1 and child.get_attribute("data-mode") == "live")
    clean.until(lambda: child.get_attribute("data-done") == "true")
    assert child.locator(".site").first.inner_text() == "L3.resid_post"
    child.locator("input[type=range]").first.focus()
    shown.page.keyboard.press("ArrowLeft")
    clean.until(lambda: clean.value("w._shown_live.spec['rows'][0]['strength']") < 1)
    # own widgets again: keys in the browser's own text never reach the notebook
    cells = clean.value("len(In)")
    text = shown.root.get_by_role("textbox", name="own text")
    text.fill("")
    text.press_sequentially("dd add", delay=10)
    clean.until(lambda: clean.value("w.spec['text']") == "dd add")
    shown.root.get_by_label("mode of the edit").select_option("clamp")
    shown.root.get_by_role("button", name="Steer with it").click()
    clean.until(lambda: clean.value("w._shown_live.spec['rows'][0]['label']").endswith("(clamp)"))
    clean.until(lambda: child.count() == 1 and child.get_attribute("data-mode") == "live")
    assert shown.root.count() == 1 and clean.value("len(In)") >= cells
    clean.shot("lab-FeatureBrowser-opened", shown.root)
    clean.run("worker.settle(30)")
