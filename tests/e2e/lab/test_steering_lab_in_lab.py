"""SteeringLab in JupyterLab: the LiveEdit of a point opens below it, works, and goes with the next one."""

from __future__ import annotations

import pytest

from tests.e2e.lab.examples import WIDGETS
from tests.e2e.lab.notebook import Notebook

pytestmark = pytest.mark.browser


def test_a_point_opens_as_a_live_edit_below(clean: Notebook) -> None:
    shown = clean.show(f"w = {WIDGETS['SteeringLab']}\nw")
    shown.settled("w")
    shown.root.get_by_role("button", name="Open LiveEdit").click()
    child = shown.root.locator(".wb-live_edit")
    clean.until(lambda: child.count() == 1 and child.get_attribute("data-mode") == "live")
    clean.until(lambda: child.get_attribute("data-done") == "true")
    assert child.locator(".site").first.inner_text() == "L3.resid_post"
    child.locator("input[type=range]").first.focus()
    shown.page.keyboard.press("ArrowLeft")
    clean.until(lambda: clean.value("w._shown_live.spec['rows'][0]['strength']") < 2)
    clean.run("w.choose('mean_difference', 1, -2)")
    clean.until(lambda: shown.debug()["about"].startswith("mean_difference"))
    shown.root.get_by_role("button", name="Open LiveEdit").click()
    clean.until(lambda: child.count() == 1 and child.locator(".site").count() == 1)
    clean.until(lambda: child.locator(".site").inner_text() == "L1.resid_post")
    clean.shot("lab-SteeringLab-opened", shown.root)
    clean.run("worker.settle(30)")
