"""Notebooks that come back and kernels that go: A15, and what a widget says without its kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import harness
from tests.e2e.lab.conftest import PREPARE
from tests.e2e.lab.notebook import IDLE, Notebook, Shown, written

pytestmark = pytest.mark.browser

NO_MODEL = "model not found"
LIVE = "live = LiveEdit(model, prompts, [push], max_new_tokens=4)\nlive"
SHUT = """async () => {
  const context = window.jupyterapp.shell.currentWidget.context;
  await window.jupyterapp.commands.execute('docmanager:save');
  await context.sessionContext.shutdown();
}"""
KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
FIRE = """(code) => { void window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel
  .requestExecute({ code, store_history: false }); }"""
RESTART = """() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()"""


@pytest.fixture
def nb(server: harness.Server, browser: Any, place: Path) -> Iterator[Notebook]:
    """The browser, no notebook open yet."""
    page, seen = browser
    seen.errors.clear()
    yield Notebook(server, page, seen)
    for session in server.api("GET", "sessions"):
        server.api("DELETE", f"sessions/{session['id']}")
    assert seen.external == []
    assert seen.errors == []


def prepared(nb: Notebook, place: Path, name: str, *cells: str) -> Notebook:
    """A notebook with a fresh kernel and these cells, run."""
    nb.open(written(place, name))
    for cell in (PREPARE, *cells):
        nb.cell(cell)
    return nb


def test_a15_a_notebook_reopens_with_its_sweep_or_with_static_pictures(
    nb: Notebook, place: Path
) -> None:
    swept = "swept = LiveEdit(model, prompts, [push], max_new_tokens=4)\nswept.precompute([-2, -1, 0, 1, 2])"
    plain = "plain = LiveEdit(model, prompts, [push], max_new_tokens=4)\nplain"
    prepared(nb, place, "mine.ipynb", swept, plain)
    roots = nb.page.locator(".jp-OutputArea .wb")
    nb.until(lambda: roots.count() == 2)
    nb.run("worker.settle(30)")
    Shown(nb, roots.nth(0)).settled("swept")
    wanted = nb.value("swept.frame['edited']['ids']")
    nb.page.evaluate(SHUT)
    saved = json.loads((place / "mine.ipynb").read_text())
    assert "widgets" in saved["metadata"], "no widget state saved: saveState is off"

    nb.open("mine.ipynb")
    nb.until(lambda: roots.count() == 2)
    first, second = (Shown(nb, roots.nth(i)) for i in range(2))
    first.says("precomputed: 5 settings, no kernel")
    second.says("needs a running kernel")
    assert first.debug()["frame"]["edited"]["ids"] == wanted
    first.root.locator("input[type=range]").first.focus()
    nb.page.keyboard.press("Home")
    assert first.debug()["frame"]["of"]["rows"][0]["strength"] == -2
    assert second.root.locator("input[type=range]").first.is_disabled()
    assert NO_MODEL not in nb.page.locator(".jp-Notebook").inner_text().lower()
    nb.page.evaluate(SHUT)

    # from somebody else: this server has never signed it
    saved["cells"][-1]["source"] += "  # given to me"
    (place / "given.ipynb").write_text(json.dumps(saved))
    nb.open("given.ipynb")
    still = nb.page.locator(".jp-OutputArea-output[data-mime-type='text/html']")
    nb.until(lambda: still.count() == 2)
    assert roots.count() == 0
    assert "reasoner" in still.first.inner_text()
    assert NO_MODEL not in nb.page.locator(".jp-Notebook").inner_text().lower()


@pytest.mark.parametrize("end", ["killed", "restarted"])
def test_a_kernel_that_goes_is_said_and_the_notebook_works_afterwards(
    nb: Notebook, place: Path, end: str
) -> None:
    prepared(nb, place, f"{end}.ipynb", LIVE)
    shown = Shown(nb, nb.page.locator(".jp-OutputArea .wb").first)
    shown.until(lambda: shown.attribute("data-mode") == "live")
    if end == "killed":
        nb.page.evaluate(FIRE, KILL)
        nb.page.wait_for_timeout(500)
    else:
        nb.page.evaluate(RESTART)
    # the server starts another kernel in its place, which knows nothing of the widget
    shown.until(lambda: shown.attribute("data-mode") != "live" or "busy or gone" in shown.text())
    nb.until(lambda: not nb.page.locator(".jp-Dialog").count() or dismiss(nb))
    nb.page.wait_for_function(IDLE)
    assert nb.cell("print('still ' + 'here')").inner_text().rstrip().endswith("\nstill here")
    forgive(nb)


def dismiss(nb: Notebook) -> bool:
    """JupyterLab's word that the kernel died."""
    nb.page.locator(".jp-Dialog .jp-mod-accept").last.click()
    return False


def forgive(nb: Notebook) -> None:
    """JupyterLab itself complains of the socket that a dead kernel closed."""
    ours = ("wb-", "anywidget", "workbench")
    nb.seen.errors[:] = [e for e in nb.seen.errors if any(word in e for word in ours)]
