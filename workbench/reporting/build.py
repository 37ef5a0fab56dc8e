"""A notebook run headless into one HTML file that opens anywhere, with the network cut."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
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
from workbench.reporting import execute, outputs
from workbench.reporting.prose import markdown

PACKAGES = ("interp-workbench", "torch", "transformers", "numpy", "plotly")


def report(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    cell_timeout_s: int | None = None,
) -> Path:
    """Run a notebook from top to bottom and write it as one self-contained HTML page.

    The notebook itself is not changed. It runs in its own folder, as in JupyterLab, in a kernel of
    the running Python. The page appears under its name only when it is whole.

    Args:
        path: the notebook.
        output: the page; `reports/<stem>.html` if left out.
        parameters: values for the cell tagged `parameters`.
        progress: whether to print each cell as it starts.
        cell_timeout_s: seconds that a cell may take; no limit if left out.

    Returns:
        The page's path.

    Raises:
        NotebookFailed: a cell failed; the page of an earlier run is untouched.
        FileRefused: no such notebook, or not a notebook.

    Example:
        wb.report("notebooks/00_start_here.ipynb", parameters={"n_prompts": 16})
    """
    source = Path(path).resolve()
    notebook = execute.read(source)
    target = Path(output) if output is not None else Path("reports") / f"{source.stem}.html"
    _check_target(target)
    provenance = Provenance.of(source, parameters or {})
    with _progress(source.name, progress) as tell:
        done = execute.execute(
            notebook, source.name, source.parent, parameters or {}, tell, cell_timeout_s
        )
    write_atomically(target, page(done, source, provenance).encode())
    return target


def page(notebook: NotebookNode, source: Path, provenance: Provenance) -> str:
    """An executed notebook as the text of one HTML page."""
    body = Markup("\n").join(_cells(notebook, source.parent))
    figures = outputs.has_plotly(body)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=_title(notebook, source),
            body=body,
            style=Markup(_asset("style.css") + _code_style()),
            plotly=_inline_script(_plotly_bundle()) if figures else "",
            figures=_inline_script(_asset("figures.js")) if figures else "",
            nonce=secrets.token_urlsafe(16),
            provenance=provenance,
        )
    )


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to trust a page and to make it again."""

    notebook: str
    sha256: str
    made: str
    versions: tuple[str, ...]
    machine: str
    rerun: str

    @classmethod
    def of(cls, source: Path, parameters: Mapping[str, Any]) -> Provenance:
        """The provenance of a page made now."""
        values = [f"-p {shlex.quote(f'{k}={v}')}" for k, v in parameters.items()]
        return cls(
            notebook=source.name,
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            versions=tuple(_versions()),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            rerun=" ".join(["workbench report", shlex.quote(_relative(source)), *values]),
        )


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()}"
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue


def _relative(source: Path) -> str:
    here = Path.cwd()
    return str(source.relative_to(here)) if source.is_relative_to(here) else source.name


def _cells(notebook: NotebookNode, folder: Path) -> Iterator[Markup]:
    highlight = Highlight2HTML(pygments_lexer="ipython3")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = markdown(cell.source, folder, cell.get("attachments"))
            yield Markup(f'<section class="prose">{prose}</section>')
        elif cell.cell_type == "code" and cell.source.strip():
            shown = "".join(outputs.output(node, folder) for node in cell.outputs)
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


def _check_target(target: Path) -> None:
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        raise WorkbenchError(
            "report",
            "the page's name is not an HTML file",
            expected="a path that ends in .html",
            got=str(target),
            do="give -o such a path, or leave it out",
        )
