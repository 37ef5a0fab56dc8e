"""Run a copy of a notebook from top to bottom, headless, and say what each cell is doing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.parameterize import parameterize_notebook

from workbench.errors import FileRefused, WorkbenchError
from workbench.reporting.ledger import FILE as LEDGER

Progress = Callable[[int, int, str], None]
"""Called before each code cell with its number from 1, how many there are, and its first line."""

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailed(WorkbenchError):
    """A cell of the notebook failed: the message says which, the notes hold it and its traceback."""


def read(path: Path) -> NotebookNode:
    """The notebook at `path`, as version 4.

    Raises:
        FileRefused: no such file, or not a notebook.
    """
    where = f"report {path.name}"
    if not path.is_file():
        raise FileRefused(
            where,
            "there is no such notebook",
            expected="a file",
            got=str(path),
            do="check the path",
        )
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises its own, json's and KeyError for broken files
        raise FileRefused(
            where,
            "the file is not a readable notebook",
            expected="an .ipynb file of version 4",
            got=f"{type(error).__name__}: {str(error)[:100]}",
            do="open and save it in JupyterLab",
        ) from error
    return notebook


def execute(
    notebook: NotebookNode,
    name: str,
    folder: Path,
    parameters: Mapping[str, Any],
    progress: Progress,
    cell_timeout_s: int | None = None,
    ledger: Path | None = None,
) -> NotebookNode:
    """The notebook with `parameters` in, run in `folder` by a kernel of this Python.

    The kernel writes the models and seeds it has seen to `ledger` (`workbench.reporting.ledger`).

    Raises:
        NotebookFailed: a cell raised, took longer than `cell_timeout_s`, or took the kernel down.
        WorkbenchError: parameters for a notebook that takes none.
    """
    notebook = _with_parameters(notebook, name, parameters)
    numbers = number_code_cells(notebook)
    running: list[int] = [0]

    def started(cell: NotebookNode, cell_index: int) -> None:
        if cell_index in numbers:
            running[0] = cell_index
            progress(numbers[cell_index], len(numbers), first_line(cell.source))

    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython()),
        timeout=cell_timeout_s,
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=started,
    )
    try:
        # cleanup_kc: nbclient leaves a kernel that it was handed running.
        environment = {**headless_environment(), **({LEDGER: str(ledger)} if ledger else {})}
        client.execute(env=environment, cleanup_kc=True)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = notebook.cells[running[0]]
        raise _failure(name, numbers.get(running[0], 0), len(numbers), cell, error) from None
    return notebook


def headless_environment() -> dict[str, str]:
    """The kernel's environment: widgets settle before a cell ends, progress bars stay away."""
    return {
        **os.environ,
        "WORKBENCH_HEADLESS": "1",
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


class ThisPython(KernelSpecManager):
    """Kernels of the running interpreter, whatever kernels the user has registered elsewhere."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernel of this Python, under any name."""
        quiet = "--log-level=40"  # errors only: the kernel remarks on its loopback connection
        own = "--ext=workbench.reporting.ledger"
        argv = [sys.executable, "-m", "ipykernel_launcher", quiet, own, "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def _with_parameters(
    notebook: NotebookNode, name: str, parameters: Mapping[str, Any]
) -> NotebookNode:
    if not parameters:
        return notebook
    for cell in notebook.cells:  # papermill expects what its own reader fills in
        cell.metadata.setdefault("tags", [])
    if not any("parameters" in cell.metadata.tags for cell in notebook.cells):
        raise WorkbenchError(
            f"report {name}",
            "the notebook takes no parameters",
            expected="a cell tagged 'parameters'",
            got=f"values for {', '.join(parameters)}",
            do="tag the cell that holds the defaults, or leave the parameters out",
        )
    notebook.metadata.setdefault("papermill", {})
    return parameterize_notebook(
        notebook, dict(parameters), kernel_name="python3", language="python"
    )


def number_code_cells(notebook: NotebookNode) -> dict[int, int]:
    """Number, from 1, of each code cell that holds anything, by its index among all cells."""
    runnable = [
        i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and c.source.strip()
    ]
    return {index: number for number, index in enumerate(runnable, start=1)}


def first_line(source: str) -> str:
    """The first line of a cell that is not blank, at most 80 characters of it."""
    return next((line.strip() for line in source.splitlines() if line.strip()), "")[:80]


def _failure(
    name: str, number: int, count: int, cell: NotebookNode, error: Exception
) -> NotebookFailed:
    got = {
        CellExecutionError: lambda: f"{error.ename}: {error.evalue}",  # type: ignore[attr-defined]
        CellTimeoutError: lambda: "no end within the time limit",
        DeadKernelError: lambda: "the kernel died (out of memory, perhaps)",
    }[type(error)]()
    failed = NotebookFailed(
        f"report {name}",
        f"code cell {number} of {count} failed (`{first_line(cell.source)}`)",
        expected="a notebook that runs from top to bottom",
        got=ANSI.sub("", got),
        do="mend the cell and run the report again; the old page, if any, is untouched",
    )
    shown = "\n".join(f"    {line}" for line in cell.source.splitlines())
    trace = ANSI.sub("", getattr(error, "traceback", "") or str(error))
    failed.add_note(f"the cell:\n{shown}\n\n{trace}")
    return failed
