"""A notebook open in JupyterLab: its cells, its kernel, and the widgets that it shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from tests.e2e import harness

ARTEFACTS = Path(__file__).parents[2] / "artefacts"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
OPTIONS = ("--LabApp.expose_app_in_browser=True", "--ServerApp.terminals_enabled=False")

_CONTEXT = "const context = window.jupyterapp?.shell?.currentWidget?.context;"
IDLE = f"""() => {{ {_CONTEXT} const s = context?.sessionContext;
  return !!(s && s.isReady && s.session?.kernel?.status === 'idle'); }}"""
RUN = f"""async (code) => {{ {_CONTEXT}
  const future = context.sessionContext.session.kernel.requestExecute(
    {{ code, store_history: false, silent: false }});
  let text = '', trace = '';
  future.onIOPub = (m) => {{ if (m.header.msg_type === 'stream') text += m.content.text;
    if (m.header.msg_type === 'error') trace = m.content.traceback.join('\\n'); }};
  const reply = await future.done;
  return {{ text, trace, status: reply.content.status }}; }}"""
CELL = """async ({ code, wait }) => {
  const notebook = window.jupyterapp.shell.currentWidget.content, cells = notebook.model.sharedModel;
  const at = cells.cells.length;
  cells.insertCell(at, { cell_type: 'code', source: code, metadata: { trusted: true } });
  notebook.activeCellIndex = at; notebook.deselectAll();
  const done = window.jupyterapp.commands.execute('notebook:run-cell');
  if (wait) await done;
  return at; }"""
CELLS = """() => { const panel = window.jupyterapp.shell.currentWidget;
  return { cells: panel.content.widgets.map((c) => [c.model.type, c.model.sharedModel.source]),
    kernel: panel.context.sessionContext.session?.kernel?.id,
    dialogs: document.querySelectorAll('.jp-Dialog').length,
    editing: panel.content.mode }; }"""
DROP = """(from) => { const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
  if (cells.cells.length > from) cells.deleteCellRange(from, cells.cells.length); }"""
DEBUG = """(el) => JSON.parse(JSON.stringify(el.__debug(),
  (key, value) => ArrayBuffer.isView(value) ? [...value] : value))"""


class Notebook:
    """One open notebook.

    Args:
        page: a page of the browser; its console is watched by `seen`.
    """

    def __init__(self, server: harness.Server, page: Any, seen: harness.Seen):
        self.server, self.page, self.seen = server, page, seen
        page.set_default_timeout(60_000)

    def open(self, name: str, kernel: bool = True) -> Notebook:
        """Show a file of the server's folder, and wait until its kernel listens."""
        self.page.goto(f"{self.server.url}doc/tree/{name}?token={self.server.token}&reset")
        self.page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell")
        if kernel:
            self.page.wait_for_function(IDLE)
        return self

    def run(self, code: str) -> str:
        """Run code in the kernel beside the notebook; returns what it printed.

        Raises:
            AssertionError: it raised; the message is its traceback.
        """
        done = self.page.evaluate(RUN, code)
        while done["status"] == "aborted":  # an interrupted cell takes what waits behind it along
            self.page.wait_for_timeout(100)
            done = self.page.evaluate(RUN, code)
        assert not done["trace"], done["trace"]
        return done["text"]

    def value(self, expression: str) -> Any:
        """A value of the kernel, by way of JSON."""
        return json.loads(self.run(f"import json; print(json.dumps({expression}))"))

    def cell(self, code: str, wait: bool = True) -> Any:
        """Append a cell and run it; returns its output area."""
        at = self.page.evaluate(CELL, {"code": code, "wait": wait})
        return self.page.locator(".jp-Notebook .jp-Cell").nth(at)

    def drop_from(self, count: int) -> None:
        """Remove every cell after the first `count`."""
        self.page.evaluate(DROP, count)

    def show(self, expression: str) -> Shown:
        """Append a cell that shows a widget, and wait until the widget is live."""
        shown = Shown(self, self.cell(expression).locator(".wb").first)
        shown.root.wait_for()
        shown.until(lambda: shown.attribute("data-mode") == "live")
        return shown

    def cells(self) -> dict[str, Any]:
        """Cells, kernel and dialogs: what stray keys would change."""
        return self.page.evaluate(CELLS)

    def command(self, name: str) -> None:
        """One of JupyterLab's own commands, as its menus call it."""
        self.page.evaluate("(name) => { void window.jupyterapp.commands.execute(name); }", name)

    def until(self, true: Callable[[], Any], within_s: float = 30.0) -> Any:
        """Wait until `true()`; returns its value.

        Raises:
            TimeoutError: it stays false.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if value := true():
                return value
            self.page.wait_for_timeout(20)
        raise TimeoutError(f"not within {within_s} s")

    def shot(self, name: str, part: Any = None) -> Path:
        """A screenshot among the test artefacts."""
        ARTEFACTS.mkdir(exist_ok=True)
        (part or self.page).screenshot(path=ARTEFACTS / f"{name}.png")
        return ARTEFACTS / f"{name}.png"


class Shown:
    """A widget in an output."""

    def __init__(self, notebook: Notebook, root: Any):
        self.notebook, self.root, self.page = notebook, root, notebook.page

    def attribute(self, name: str) -> str:
        """An attribute of the widget's root."""
        return self.root.get_attribute(name) or ""

    @property
    def seq(self) -> int:
        """The number of the frame that is drawn."""
        return int(self.attribute("data-seq") or 0)

    def text(self) -> str:
        """Every word that the widget shows."""
        return self.root.inner_text()

    def debug(self) -> dict[str, Any]:
        """What the widget says that it has drawn."""
        return self.root.evaluate(DEBUG)

    def until(self, true: Callable[[], Any], within_s: float = 30.0) -> Any:
        """Wait until `true()`.

        Raises:
            TimeoutError: it stays false; the message shows the widget's words.
        """
        try:
            return self.notebook.until(true, within_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the widget says: {self.text()}") from None

    def says(self, words: str, within_s: float = 30.0) -> None:
        """Wait until the widget shows these words."""
        self.until(lambda: words.lower() in self.text().lower(), within_s)

    def settled(self, name: str, within_s: float = 60.0) -> dict[str, Any]:
        """Wait until the last frame of the kernel's widget `name` is drawn; returns `debug()`."""
        self.notebook.until(lambda: self._agrees(name), within_s)
        return self.debug()

    def _agrees(self, name: str) -> bool:
        state, seq, spec = self.notebook.value(f"[{name}.status['state'], {name}.seq, {name}.spec]")
        # what the browser asked for last may still be on its way
        asked = self.root.evaluate("(el) => el.__debug().spec") == spec
        return asked and state not in ("queued", "running") and self.seq == seq


def written(folder: Path, name: str, *cells: str) -> str:
    """A notebook file with these code cells; returns its name."""
    notebook = new_notebook(
        cells=[new_code_cell(c) for c in cells or ("",)], metadata={"kernelspec": KERNEL}
    )
    nbformat.write(notebook, folder / name)
    return name
