"""`make lab`: the server comes up, its kernels run notebooks, and a browser sees no error."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.e2e import harness

SMALL = [
    "import workbench as wb\nwb",
    "prompts = wb.tasks.make('add', n=4, seed=0)\nprompts",
    "from IPython.display import HTML\nHTML(f'<b class=made>{prompts[0].text}</b>')",
    "import plotly.graph_objects as go\ngo.Figure(go.Bar(x=['base', 'steered'], y=[1, 2]))",
]
FIRST = sorted((harness.ROOT / "notebooks").glob("00_*.ipynb"))
IDLE = """() => { const s = window.jupyterapp?.shell?.currentWidget?.context?.sessionContext;
  return !!(s && s.isReady && s.session?.kernel?.status === 'idle'); }"""
DONE = """() => { const w = window.jupyterapp.shell.currentWidget;
  const code = c => c.model.type === 'code' && c.model.sharedModel.source.trim();
  const ended = c => c.model.executionCount != null && c.model.executionState !== 'running';
  const failed = c => c.outputArea.model.toJSON().some(o => o.output_type === 'error');
  const cells = w.content.widgets.filter(code);
  return w.context.sessionContext.session?.kernel?.status === 'idle'
    && (cells.every(ended) || cells.some(failed)) && { failed: cells.filter(failed).length }; }"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    cells = [new_markdown_cell("# Small\n\nA formula: $x^2$."), *map(new_code_cell, SMALL)]
    # Without a kernel's name JupyterLab asks for one in a dialog.
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    small = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(small, folder / "small.ipynb")
    for notebook in FIRST:
        shutil.copy(notebook, folder)
    return folder


@pytest.fixture(scope="module")
def server(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Server]:
    # Exposing the app lets the browser test run JupyterLab's own commands.
    options = (f"--ServerApp.root_dir={place}", "--LabApp.expose_app_in_browser=True")
    with harness.lab(tmp_path_factory.mktemp("lab"), *options) as running:
        yield running


def run_cell(socket: Any, code: str) -> dict[str, Any]:
    """The kernel's reply to one cell, over the server's own channel."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "version": "5.3"}
    header |= {"username": "test", "session": uuid.uuid4().hex, "date": ""}
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    content |= {"user_expressions": {}, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    socket.send(json.dumps({**message, "channel": "shell", "buffers": []}))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        reply = json.loads(socket.recv())
        mine = reply["parent_header"].get("msg_id") == header["msg_id"]
        if mine and reply["msg_type"] == "execute_reply":
            return reply["content"]
    raise TimeoutError(code)


def test_the_server_runs_a_notebook_through_its_interface(server: harness.Server) -> None:
    from websocket import create_connection

    session = server.api(
        "POST",
        "sessions",
        {"path": "small.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}},
    )
    cells = server.api("GET", "contents/small.ipynb")["content"]["cells"]
    address = (
        server.url.replace("http", "ws", 1) + f"api/kernels/{session['kernel']['id']}/channels"
    )
    socket = create_connection(f"{address}?token={server.token}", timeout=120)
    try:
        for cell in (c for c in cells if c["cell_type"] == "code"):
            reply = run_cell(socket, cell["source"])
            assert reply["status"] == "ok", reply
    finally:
        socket.close()
        server.api("DELETE", f"sessions/{session['id']}")


@pytest.mark.browser
@pytest.mark.parametrize("name", ["small.ipynb", *(n.name for n in FIRST)])
def test_a_person_runs_all_cells_in_jupyterlab(
    server: harness.Server, tmp_path: Path, name: str
) -> None:
    harness.require_chromium()
    with harness.browser(tmp_path, viewport={"width": 1400, "height": 1000}) as (page, seen):
        page.goto(f"{server.url}doc/tree/{name}?token={server.token}&reset")
        page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)", timeout=60_000)
        page.wait_for_function(IDLE, timeout=60_000)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        done = page.wait_for_function(DONE, timeout=300_000)
        assert done.json_value() == {"failed": 0}
        if name == "small.ipynb":
            page.wait_for_selector(".main-svg", timeout=30_000)
            assert page.locator("b.made").inner_text().startswith("add ")
        assert seen.external == []
        assert seen.errors == []
