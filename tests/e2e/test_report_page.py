"""The page of `workbench report`, opened from its file in a real browser with the network cut."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.e2e import harness
from workbench.reporting import report

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CELLS = [
    new_markdown_cell(f"# Steering\n\nA direction $v \\in \\mathbb{{R}}^d$.\n\n{HOSTILE}"),
    new_code_cell(f"print({HOSTILE!r})"),
    new_code_cell(
        f"from IPython.display import HTML\nHTML({f'<p class=raw>shown{HOSTILE}</p>'!r})"
    ),
    new_code_cell(
        "import plotly.graph_objects as go\n"
        f"bar = go.Bar(x=['base', {HOSTILE!r}], y=[1, 2])\n"
        f"go.Figure(bar, layout={{'title': {{'text': {HOSTILE!r}}}}})"
    ),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    nbformat.write(new_notebook(cells=CELLS), folder / "steering.ipynb")
    return report(folder / "steering.ipynb", folder / "page.html", progress=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_stands_alone(page_file: Path, tmp_path: Path, scheme: str) -> None:
    harness.require_chromium()
    with harness.browser(tmp_path, color_scheme=scheme, offline=True) as (page, seen):
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        assert page.title() == "Steering"
        assert page.locator("math").count() == 1
        assert page.locator("p.raw").inner_text().startswith("shown")
        assert page.locator(".bars .point").count() == 2
        assert "owned" in page.locator("pre.stdout").inner_text()
        assert "workbench report" in page.locator("footer").inner_text()
        assert contrast(page) >= 7
    assert seen.requests == [page_file.as_uri()]
    assert seen.errors == []


def contrast(page: object) -> float:
    """WCAG contrast of the body's ink on its paper."""
    colours = page.evaluate(  # type: ignore[attr-defined]
        """() => { const s = getComputedStyle(document.body);
        return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).map(Number)); }"""
    )
    one, two = sorted(map(_luminance, colours), reverse=True)
    return (one + 0.05) / (two + 0.05)


def _luminance(colour: list[int]) -> float:
    scaled = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in scaled]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
