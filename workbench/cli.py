"""The `workbench` command: lab, report, doctor, models, methods, compare.

Each command imports what it needs when it runs, so that `workbench --help` is immediate.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import WorkbenchError

app = typer.Typer(
    help="Look inside language models and steer them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# JupyterLab asks its own servers for news, updates and extensions unless told not to.
OFFLINE = (
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.news_url=",
    "--LabApp.extension_manager=readonly",
)


def main() -> None:
    """Run the command; an error of the user's is one line on stderr and exit status 1."""
    try:
        app()
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        raise SystemExit(1) from None


@app.command(context_settings={"ignore_unknown_options": True})
def lab(
    options: Annotated[list[str] | None, typer.Argument(help="Options of `jupyter lab`.")] = None,
    nodelay: Annotated[
        bool | None,
        typer.Option(
            "--nodelay/--no-nodelay",
            help="Send small kernel messages at once. Default: on, unless WORKBENCH_NODELAY=0.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Open JupyterLab on the first notebook."""
    asked = options or []
    if nodelay is not None:
        asked = [f"--WorkbenchServer.nodelay={nodelay}", *asked]
    names = {option.partition("=")[0] for option in asked}
    own = [option for option in lab_options() if option.partition("=")[0] not in names]
    before = dict(os.environ)
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(lab_config_path())
    try:
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *own, *asked])
    finally:  # reached only where this process was not replaced
        os.environ.clear()
        os.environ.update(before)


def lab_config_path() -> list[str]:
    """Where Jupyter looks for configuration, our folder last: whatever a person configured wins.

    A wheel installs the same files into the environment; an editable installation does not.
    """
    from jupyter_core.paths import jupyter_config_path

    own = str(Path(__file__).parent / "lab" / "jupyter")
    return [*(path for path in jupyter_config_path() if path != own), own]


def lab_options() -> list[str]:
    """Where JupyterLab starts, and what it must not ask the network for."""
    root = Path(__file__).parents[1]
    first = Path("notebooks") / "00_start_here.ipynb"
    if not (root / first).is_file():
        return list(OFFLINE)
    place = (f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{first.as_posix()}")
    return [*OFFLINE, *place]


@app.command()
def report(
    notebook: Annotated[Path, typer.Argument(help="The notebook to run.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value, repeatable.")
    ] = None,
    ipynb: Annotated[
        Path | None,
        typer.Option(
            help="Write the executed notebook with static pictures here; the page only with -o."
        ),
    ] = None,
    timeout: Annotated[int | None, typer.Option(help="Seconds that a cell may take.")] = None,
) -> None:
    """Run a notebook from top to bottom into one self-contained HTML page."""
    from workbench.reporting import report as make

    values = dict(_assignment(text) for text in parameter or [])
    print(make(notebook, output, values, ipynb=ipynb, cell_timeout_s=timeout))


@app.command()
def doctor() -> None:
    """Check versions, devices, memory, shipped models and one edit; status 1 if one fails."""
    from workbench.doctor import checks

    failed = 0
    for check in checks():
        failed += not check.ok
        print(check, flush=True)
    print(f"{failed} failed" if failed else "all ok")
    raise typer.Exit(1 if failed else 0)


@app.command()
def models() -> None:
    """List the models that are shipped with the package."""
    from workbench.catalogue import as_text, model_rows

    print(as_text(model_rows()))
    print("\nAny other: a folder, or a Hugging Face hub name, given to workbench.load.")


@app.command()
def methods(
    family: Annotated[str | None, typer.Argument(help="One family, or all.")] = None,
    write_readme: Annotated[
        Path | None, typer.Option(help="Write the tables of this README anew.")
    ] = None,
) -> None:
    """List the registered methods with their sources."""
    from workbench import catalogue

    if write_readme is not None:
        write_readme.write_text(catalogue.with_tables(write_readme.read_text("utf-8")), "utf-8")
        return
    print(catalogue.as_text(catalogue.method_rows(family)))


class Form(StrEnum):
    """How a comparison is printed."""

    text = "text"
    html = "html"
    csv = "csv"


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="A TOML file; see workbench.comparison.config.")],
    form: Annotated[Form, typer.Option(help="What is printed.")] = Form.text,
    save: Annotated[
        Path | None, typer.Option(help="Also write everything, texts included, as JSON.")
    ] = None,
) -> None:
    """Run the comparison that a TOML file describes and print its table."""
    from workbench.comparison.config import compare_file

    table = compare_file(config)
    if save is not None:
        table.save(save)
    printed = {
        Form.text: lambda: repr(table),
        Form.html: table._repr_html_,
        Form.csv: lambda: table.frame().to_csv(index=False),
    }
    print(printed[form]().rstrip())


def _assignment(text: str) -> tuple[str, Any]:
    """`n=16` -> ("n", 16): TOML values where they parse, text where they do not."""
    import tomllib

    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise WorkbenchError(
            "-p", "is not a parameter", expected="name=value", got=repr(text), do="write -p n=16"
        )
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
