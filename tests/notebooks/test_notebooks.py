"""Every notebook runs from top to bottom and becomes a page; the first one in every test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.reporting import report

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FIRST = "00_start_here.ipynb"


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(n, id=n.stem, marks=() if n.name == FIRST else pytest.mark.slow)
        for n in NOTEBOOKS
    ],
)
def test_notebook_runs_into_a_page(notebook: Path, tmp_path: Path) -> None:
    page = report(notebook, tmp_path / "page.html", progress=False, cell_timeout_s=600)
    assert "Where this page comes from" in page.read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_committed_notebook_is_executed_and_small(notebook: Path) -> None:
    import nbformat

    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert all(c.execution_count for c in cells if c.source.strip()), "commit it executed"
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    assert notebook.stat().st_size <= 500_000
