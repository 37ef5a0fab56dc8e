"""A8: whichever thread a widget's messages arrive on, only the model's thread runs the model."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import harness
from tests.e2e.lab.conftest import PREPARE, VIEWPORT
from tests.e2e.lab.notebook import OPTIONS, Notebook, written

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OLDER = "7.3.0"
ROUTINGS = ("perCommTarget", "perComm", "disabled")
KERNELS = "@jupyterlab/apputils-extension/kernels-settings.jupyterlab-settings"
WATCH = """
threads = set()
model.hf.register_forward_pre_hook(lambda *_: threads.add(threading.current_thread().name))
arrived = set()
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older ipykernel in a folder that goes before the installed one."""
    folder = tmp_path_factory.mktemp("older")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run(
        [*command, str(folder), f"ipykernel=={OLDER}"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"pip cannot fetch ipykernel {OLDER} (tests/SKIPS.md)")
    return folder


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("kernel", ["installed", OLDER])
def test_a08_every_routing_of_messages_gives_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, routing: str, kernel: str
) -> None:
    harness.require_chromium()
    environment = {"WORKBENCH_HEADLESS": "0"}
    if kernel == OLDER:
        paths = [str(request.getfixturevalue("older")), str(harness.ROOT)]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    home, profile = tmp_path / "home", tmp_path / "profile"
    home.mkdir()
    options = (f"--ServerApp.root_dir={tmp_path}", *OPTIONS)
    settings = {KERNELS: {"commsOverSubshells": routing}}
    with (
        harness.lab(home, *options, settings=settings, environment=environment) as server,
        harness.browser(profile, viewport=VIEWPORT) as (page, seen),
    ):
        notebook = Notebook(server, page, seen).open(written(tmp_path, "threads.ipynb"))
        notebook.run(PREPARE + WATCH)
        version = notebook.value("__import__('ipykernel').__version__")
        assert version == (OLDER if kernel == OLDER else metadata.version("ipykernel"))
        arrived = loop(notebook)
        if routing == "disabled":
            assert arrived == ["MainThread"]
        assert seen.external == []
        assert seen.errors == []


def loop(notebook: Notebook) -> list[Any]:
    """Step, type, cancel, fetch, a panel's button; returns the threads that messages came on."""
    shown = notebook.show("live = LiveEdit(model, prompts, [push], max_new_tokens=4)\nlive")
    shown.settled("live")
    notebook.run("threads.clear()\n"
                 "live.observe(lambda _: arrived.add(threading.current_thread().name), 'spec')")  # fmt: skip
    slider = shown.root.locator("input[type=range]").first
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "End", "Home"):
        notebook.page.keyboard.press(key)
    drawn = shown.settled("live")
    assert drawn["frame"]["of"]["rows"][0]["strength"] == -2.0
    shown.root.get_by_role("button", name="Copy as Python").click()
    shown.until(lambda: "wb.load" in shown.root.locator("textarea").input_value())
    job = "job = worker.submit(lambda _job: slow(), label='long')"
    panel = notebook.show(f"panel = RunPanel(model)\n{job}\npanel")
    panel.says("long")
    panel.root.get_by_role("button", name="Cancel all").click()
    notebook.until(lambda: notebook.value("job.state") == "cancelled")
    # a cell that waits holds the kernel's main thread, where some routings bring messages
    waiting = "await wb.in_background(time.sleep, 1)"
    cell = notebook.cell(waiting, wait=False)
    notebook.until(lambda: "[*]" in cell.inner_text())
    slider.focus()
    notebook.page.keyboard.press("End")
    drawn = shown.settled("live")
    assert drawn["frame"]["of"]["rows"][0]["strength"] == 2.0
    assert notebook.value("sorted(threads)") == ["model-worker"]
    return notebook.value("sorted(arrived)")
