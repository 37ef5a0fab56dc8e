"""Reports without a browser: what is on a page, what cannot get on it, what a failure leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.errors import FileRefused, WorkbenchError
from workbench.reporting import outputs, report
from workbench.reporting.clean import clean
from workbench.reporting.execute import NotebookFailed
from workbench.reporting.prose import markdown, tex, tex_output


def write(folder: Path, *cells: str, name: str = "small", **tags: str) -> Path:
    made = [new_code_cell(c) for c in cells]
    for index, tag in tags.items():
        made[int(index.removeprefix("cell"))].metadata["tags"] = [tag]
    file = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A <i>title</i>"), *made]), file)
    return file


def test_a_page_holds_outputs_and_provenance(tmp_path: Path) -> None:
    (tmp_path / "beside.txt").write_text("read from the notebook's own folder")
    source = write(
        tmp_path, "n = 2", "print('n is', n)", "open('beside.txt').read()", cell0="parameters"
    )
    before = source.read_bytes()
    page = report(source, tmp_path / "out" / "page.html", {"n": 7}, progress=False).read_text()
    assert "n is 7" in page
    assert (
        "read from the notebook&#39;s own folder" in page or "read from the notebook's own" in page
    )
    assert "-p n=7" in page
    assert f"python {sys.version.split()[0]}" in page
    assert "plotly.js v" not in page, "a page without figures carries no bundle"
    assert source.read_bytes() == before
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["page.html"]


def test_the_kernel_is_this_python_and_knows_that_nobody_watches(tmp_path: Path) -> None:
    code = "import os, sys\nprint(sys.executable, os.environ['WORKBENCH_HEADLESS'])"
    page = report(write(tmp_path, code), tmp_path / "p.html", progress=False).read_text()
    assert f"{sys.executable} 1" in page


def test_a_failing_cell_is_named_and_the_old_page_stays(tmp_path: Path) -> None:
    source, target = write(tmp_path, "1 + 1", "# why\n[][3]"), tmp_path / "page.html"
    target.write_text("the old page")
    with pytest.raises(
        NotebookFailed, match=r"code cell 2 of 2 failed \(`# why`\).*IndexError"
    ) as caught:
        report(source, target, progress=False)
    assert "[][3]" in caught.value.__notes__[0]
    assert target.read_text() == "the old page"
    assert not list(tmp_path.glob(".*.part"))


def test_a_cell_beyond_its_time_and_a_dead_kernel_are_failures(tmp_path: Path) -> None:
    slow = write(tmp_path, "import time\ntime.sleep(60)", name="slow")
    with pytest.raises(NotebookFailed, match="no end within the time limit") as caught:
        report(slow, tmp_path / "page.html", progress=False, cell_timeout_s=1)
    assert "    time.sleep(60)\n" in caught.value.__notes__[0], "the cell itself is shown"
    dead = write(tmp_path, "import os\nos._exit(1)", name="dead")
    with pytest.raises(NotebookFailed, match="kernel died"):
        report(dead, tmp_path / "page.html", progress=False)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("text", [None, "", "{}", '{"cells": [', '{"nbformat": 4}'])
def test_what_is_not_a_notebook_is_refused(tmp_path: Path, text: str | None) -> None:
    source = tmp_path / "broken.ipynb"
    if text is not None:
        source.write_text(text)
    with pytest.raises(FileRefused, match="report broken.ipynb: .*; expected .*; got "):
        report(source, tmp_path / "page.html", progress=False)


def test_bad_requests_are_said_before_anything_runs(tmp_path: Path) -> None:
    source = write(tmp_path, "1")
    with pytest.raises(WorkbenchError, match="takes no parameters.*'parameters'.*values for n"):
        report(source, tmp_path / "p.html", {"n": 1}, progress=False)
    with pytest.raises(WorkbenchError, match="ends in .html"):
        report(source, tmp_path / "page.pdf", progress=False)


@pytest.mark.parametrize(
    "markup",
    [
        "<p>a</p><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<p OnClick='alert(1)'>a</p>",
        "<a href=' java\tscript:alert(1)'>a</a>",
        "<svg><script>alert(1)</script></svg>",
        "<iframe src='data:text/html,<script>alert(1)</script>'></iframe>",
        "<form action='javascript:alert(1)'><input type=submit></form>",
        "<math><a xlink:href='javascript:alert(1)'>a</a></math>",
    ],
)
def test_no_markup_can_run(markup: str) -> None:
    assert "alert" not in clean(markup)


@pytest.mark.parametrize(
    "markup",
    [
        "<img src='https://example.org/x.png'>",
        "<link rel=stylesheet href='https://example.org/x.css'>",
        "<p style='background:url(https://example.org/x.png)'>a</p>",
        "<style>@import 'https://example.org/x.css'</style>",
        "<image xlink:href='https://example.org/x.png'/>",
    ],
)
def test_no_markup_can_fetch(markup: str) -> None:
    cleaned = clean(markup)
    assert "src=" not in cleaned
    assert "url(" not in cleaned
    assert "@import" not in cleaned
    assert "href=" not in cleaned


def test_harmless_markup_stays() -> None:
    link = '<a href="https://example.org">paper</a> <a href="01_next.ipynb">next</a>'
    assert clean(link) == link
    picture = '<img alt="x" src="data:image/png;base64,AAAA"/>'
    assert clean(picture) == picture
    clipped = '<svg><g style="clip-path: url(#a)"></g></svg>'
    assert clean(clipped) == clipped


def test_tex_becomes_mathml_and_bad_tex_stays_readable() -> None:
    assert tex(r"\frac{a}{b}", display=False).startswith("<math")
    assert "<mfrac>" in tex_output(r"$$\frac{a}{b}$$")
    assert tex(r"\frac{<b>", display=True).count("<b>") == 0
    page = markdown("$x^2$ and\n\n$$\n\\sum_i x_i\n$$\n\n\\begin{align}a&=b\\end{align}", Path())
    assert page.count("<math") == 3


def test_local_pictures_move_into_the_page(tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in markdown("![dot](dot.png)", tmp_path)
    assert "not shown" in markdown("![dot](missing.png)", tmp_path)


def test_text_outputs_are_escaped_and_coloured() -> None:
    stream = new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m <script>\n10%\r99%\n")
    drawn = outputs.output(stream, Path())
    assert "&lt;script&gt;" in drawn
    assert "ansi-red" in drawn
    assert "10%" not in drawn


def test_a_figure_cannot_leave_its_element() -> None:
    figure = {"data": [{"name": "</script><script>alert(1)</script>"}], "layout": {}}
    drawn = outputs.output(new_output("display_data", data={outputs.PLOTLY: figure}), Path())
    assert drawn.count("</script>") == 1
    block = drawn.partition('class="plotly-json">')[2].partition("</script>")[0]
    assert json.loads(block)["data"] == figure["data"]


def test_a_widget_shows_its_static_picture() -> None:
    view = "application/vnd.jupyter.widget-view+json"
    data = {view: {"model_id": "1"}, "text/html": "<b>picture</b>", "text/plain": "Widget()"}
    assert outputs.output(new_output("display_data", data=data), Path()) == "<b>picture</b>"


def test_progress_says_the_cell_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(write(tmp_path, "first = 1", "second = 2", "third = 3"), tmp_path / "p.html")
    told = capsys.readouterr().err.split("\r")
    (line,) = {t for t in told if "third = 3" in t}
    assert "2/3" in line
    assert "<00:" in line, "the time that is left"
    assert "3/3" in told[-1]
