"""A notebook run headless into one HTML file that opens anywhere, with the network cut."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from nbconvert.filters.highlight import Highlight2HTML
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from tqdm import tqdm

from workbench.errors import WorkbenchError
from workbench.files import write_atomically
from workbench.reporting import execute, ledger, outputs, share
from workbench.reporting.mount import Mounts
from workbench.reporting.prose import markdown
from workbench.reporting.provenance import Provenance
from workbench.reporting.saved import Saved
from workbench.reporting.stale import refuse_stale


def report(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    ipynb: str | os.PathLike[str] | None = None,
    progress: bool = True,
    cell_timeout_s: int | None = None,
) -> Path:
    """Run a notebook from top to bottom and write it as one self-contained HTML page.

    Its widgets open in the page as they were saved, and precomputed settings still work there. The
    notebook runs in its own folder, as in JupyterLab, in a kernel of the running Python. Whatever
    is written appears under its name only when it is whole.

    Args:
        path: the notebook. It is not changed, unless `ipynb` names it too.
        output: the page; `reports/<stem>.html` if left out and `ipynb` too.
        parameters: values for the cell tagged `parameters`.
        ipynb: where to write the executed notebook with static pictures in the place of widgets, as
            GitHub and nbviewer show it. Without `output` the page is not written then.
        progress: whether to print each cell as it starts, and the time left.
        cell_timeout_s: seconds that a cell may take; no limit if left out.

    Returns:
        The page's path, or the notebook's where no page is written.

    Raises:
        NotebookFailed: a cell failed, or a widget was still at work at the end (WidgetStale); files
            of an earlier run are untouched.
        FileRefused: no such notebook, or not a notebook.

    Example:
        wb.report("notebooks/00_start_here.ipynb", parameters={"n_prompts": 16})
    """
    source, given = Path(path).resolve(), dict(parameters or {})
    notebook = execute.read(source)
    static = _checked(ipynb, ".ipynb")
    target = _checked(output, ".html", ".htm")
    if target is None and static is None:
        target = Path("reports") / f"{source.stem}.html"
    with tempfile.TemporaryDirectory() as folder, _progress(source.name, progress) as tell:
        seen = Path(folder) / "ledger.json"
        done = execute.execute(
            notebook, source.name, source.parent, given, tell, cell_timeout_s, seen
        )
        provenance = Provenance.of(source, given, done, ledger.read(seen))
    refuse_stale(done, source.name)
    made: dict[Path, bytes] = {}
    whole = page(done, source, provenance)
    if target is not None:
        made[target] = whole.encode()
    if static is not None:
        made[static] = share.notebook_bytes(done, whole)
    for file, data in made.items():
        write_atomically(file, data)
    return next(iter(made))


def page(notebook: NotebookNode, source: Path, provenance: Provenance) -> str:
    """An executed notebook as the text of one HTML page."""
    folder = source.parent
    mounts = Mounts(Saved.of(notebook), lambda node: outputs.output(node, folder, mounts))
    body = Markup("\n").join(_cells(notebook, folder, mounts))
    figures, widgets = outputs.has_plotly(body), mounts.block()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=_title(notebook, source),
            body=body,
            style=Markup(_asset("style.css") + _code_style()),
            plotly=_inline_script(_plotly_bundle()) if figures else "",
            figures=_inline_script(_asset("figures.js")) if figures else "",
            widgets=Markup(outputs.json_block(widgets)) if widgets else "",
            host=_inline_script(_asset("host.js")) if widgets else "",
            modes=mounts.modes(),
            nonce=secrets.token_urlsafe(16),
            provenance=provenance,
        )
    )


def _cells(notebook: NotebookNode, folder: Path, mounts: Mounts) -> Iterator[Markup]:
    highlight = Highlight2HTML(pygments_lexer="ipython3")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = markdown(cell.source, folder, cell.get("attachments"))
            yield Markup(f'<section class="prose">{prose}</section>')
        elif cell.cell_type == "code" and cell.source.strip():
            shown = "".join(outputs.output(node, folder, mounts) for node in cell.outputs)
            opened = "" if "hide-input" in cell.metadata.get("tags", []) else " open"
            yield Markup(
                f'<section class="cell"><details{opened}><summary>code</summary>'
                f'{highlight(cell.source)}</details><div class="outputs">{shown}</div></section>'
            )


def _title(notebook: NotebookNode, source: Path) -> str:
    lines = (line for cell in notebook.cells for line in cell.source.splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), source.stem)


def _environment() -> Environment:
    loader = PackageLoader("workbench.reporting", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)


def _asset(name: str) -> str:
    return (resources.files("workbench.reporting") / "templates" / name).read_text("utf-8")


def _code_style() -> str:
    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _plotly_bundle() -> str:
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")


def _inline_script(source: str) -> Markup:
    return Markup(source.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


@contextmanager
def _progress(name: str, shown: bool) -> Iterator[execute.Progress]:
    with tqdm(desc=name, unit="cell", disable=not shown, file=sys.stderr) as bar:

        def tell(number: int, count: int, line: str) -> None:
            bar.total = count
            bar.n = number - 1
            bar.set_postfix_str(line)

        yield tell
        bar.n = bar.total or 0
        bar.set_postfix_str("done")


def _checked(target: str | os.PathLike[str] | None, *endings: str) -> Path | None:
    """The path to write to, its name fit for what is written."""
    if target is None:
        return None
    file = Path(target)
    if file.is_dir() or file.suffix.lower() not in endings:
        raise WorkbenchError(
            "report",
            "the file to write has another name than its kind",
            expected=f"a path that ends in {endings[0]}",
            got=str(file),
            do="give such a path, or leave it out",
        )
    return file
