"""One JupyterLab and one browser for the tests of this folder.

The numbers A1 to A19 are rows of one acceptance list; a test's name begins with its row.

| row | what | where |
| --- | --- | --- |
| A1-A3 | milliseconds to the painted frame | `tests.benchmarks.widgets`; that it comes, `test_live_loop.py` |
| A4-A7 | drag, cancel, free kernel, interrupt | `test_live_loop.py`; their milliseconds in the benchmark |
| A8 | threads and kernels | `test_threads.py`, `make test-all` |
| A9 | keys | `test_keys_and_cost.py` |
| A10-A12, A18 | bytes, opening, late module, leaks | `test_keys_and_cost.py` |
| A13, A14 | the report, stale widgets | `../test_report_page.py`, `tests/unit/test_report_widgets.py` |
| A15 | reopened notebooks | `test_reopened.py` |
| A16 | numbers | `test_live_loop.py` |
| A17 | themes, contrast, accessibility | `test_a11y.py` |
| A19 | no outside request, no console error | every test here: the fixture `clean` |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import harness
from tests.e2e.lab.notebook import OPTIONS, Notebook, written

PREPARE = """
import json, threading, time
import torch
torch.set_num_threads(1)
import workbench as wb
from workbench import worker
from workbench.tensors import Intervention
import workbench_widgets as widgets
from workbench_widgets import LiveEdit, RunPanel
model = wb.load("reasoner")
prompts = wb.tasks.make("add", n=4, seed=2)
shift = 4 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
push = Intervention("custom", "affine", {"L3.resid_post": {"shift": shift}}, unit="multiples of the shift",
                    params={}, model=model.fingerprint_shape, name="push")
def slow(steps=2000):
    for _ in range(steps):
        model.run(prompts, logits="last")
"""
VIEWPORT = {"width": 1400, "height": 1100}


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="package")
def server(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Server]:
    harness.require_chromium()
    options = (f"--ServerApp.root_dir={place}", *OPTIONS)
    # the suite is headless, this is not
    live = {"WORKBENCH_HEADLESS": "0"}
    with harness.lab(tmp_path_factory.mktemp("lab"), *options, environment=live) as running:
        yield running


@pytest.fixture(scope="package")
def browser(
    server: harness.Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, harness.Seen]]:
    with harness.browser(tmp_path_factory.mktemp("profile"), viewport=VIEWPORT) as (page, seen):
        yield page, seen


@pytest.fixture(scope="module")
def notebook(
    request: pytest.FixtureRequest, place: Path, server: harness.Server, browser: Any
) -> Iterator[Notebook]:
    """A notebook of its own for every file, its kernel prepared: `model`, `prompts`, `push`, `slow`."""
    page, seen = browser
    name = written(place, f"{Path(str(request.path)).stem}.ipynb")
    opened = Notebook(server, page, seen).open(name)
    opened.run(PREPARE)
    yield opened
    for session in server.api("GET", "sessions"):
        server.api("DELETE", f"sessions/{session['id']}")


@pytest.fixture
def clean(notebook: Notebook) -> Iterator[Notebook]:
    """The notebook, and after the test: nothing asked for outside, no error, the cells as before."""
    notebook.seen.errors.clear()
    count = len(notebook.cells()["cells"])
    yield notebook
    # a panel that nobody sees still follows the worker
    notebook.run(
        "import ipywidgets; worker.cancel(); worker.settle(20); ipywidgets.Widget.close_all()"
    )
    notebook.drop_from(count)
    assert notebook.seen.external == []
    assert notebook.seen.errors == []
