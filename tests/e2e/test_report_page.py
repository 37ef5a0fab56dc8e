"""The page of `workbench report`, opened from its file in a real browser with the network cut."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.e2e import harness
from workbench.reporting import report

pytestmark = pytest.mark.browser
ARTEFACTS = Path(__file__).parents[1] / "artefacts"

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


MODULE = """
const scripts = /* not the end: </script> */ 1;
function unpack(view) {
  const at = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const length = new DataView(at).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(at, 4, length)));
  const start = Math.ceil((4 + length) / 8) * 8, { offset, shape } = header.arrays.p;
  const count = shape.reduce((a, b) => a * b, 1);
  return { ...header.json, p: new Uint8Array(at, start + offset, count) };
}
function initialize({ model }) {
  model.started = (model.started ?? 0) + 1;
  model.set("view", { opened: true });
}
function render({ model, el, signal, experimental }) {
  const root = document.createElement("div"), slider = document.createElement("input");
  const words = document.createElement("output"), canvas = document.createElement("canvas");
  root.className = "heads";
  const table = document.createElement("table");
  table.insertRow().insertCell().textContent = "cell";
  root.append(slider, words, canvas, table);
  el.append(root);
  const { grid, lo, hi, p } = unpack(model.get("sweep")), n = p.length / grid.length;
  slider.type = "range"; slider.min = 0; slider.max = grid.length - 1; slider.value = 0;
  canvas.width = n; canvas.height = 1;
  const shown = () =>
    Array.from(p.slice(slider.value * n, (+slider.value + 1) * n), (u) => lo + u / 255 * (hi - lo));
  const draw = () => {
    const ink = canvas.getContext("2d");
    words.textContent = `${model.get("spec").prompt} at ${grid[slider.value]}`;
    shown().forEach((v, i) => {
      ink.fillStyle = `rgb(${Math.round(255 * v)} 90 90)`;
      ink.fillRect(i, 0, 1, 1);
    });
  };
  const ask = () => model.set("spec", { ...model.get("spec"), at: +slider.value });
  slider.addEventListener("input", ask, { signal });
  model.on("change:spec", draw);
  const held = () => ({ at: model.get("spec").at, view: model.get("view"), started: model.started });
  root.__debug = () => ({ shown: shown(), ...held() });
  experimental.invoke("work").catch((error) => { root.dataset.invoke = error.message; });
  model.send({ type: "hello" });
  root.dataset.mode = "sweep";
  draw();
}
export default { initialize, render };
"""
WIDGET = f"""
import json, struct
import anywidget, numpy as np, traitlets as t
class Heads(anywidget.AnyWidget):
    _esm = {MODULE!r}
    _css = '.heads {{ border: 1px solid var(--jp-border-color1); color: var(--jp-ui-font-color1) }}'
    spec = t.Dict().tag(sync=True)
    view = t.Dict().tag(sync=True)
    meta = t.Dict().tag(sync=True)
    seq = t.Int(1).tag(sync=True)
    status = t.Dict({{'state': 'idle', 'requested_seq': 1, 'msg': ''}}).tag(sync=True)
    sweep = t.Bytes(b'').tag(sync=True)
    def _repr_mimebundle_(self, **options):
        data, about = super()._repr_mimebundle_(**options)
        return {{**data, 'text/html': '<p class=still>a still picture</p>'}}, about

def pack(grid, p, lo, hi):
    about = {{'dtype': '|u1', 'shape': list(p.shape), 'offset': 0}}
    head = json.dumps({{'json': {{'grid': grid, 'lo': lo, 'hi': hi}}, 'arrays': {{'p': about}}}}).encode()
    start = struct.pack('<I', len(head)) + head
    return start + bytes(-len(start) % 8) + p.tobytes()

grid = [float(g) for g in np.linspace(-1, 1, 21)]
true = np.stack([np.random.default_rng(i).random(12) for i in range(21)])
lo, hi = float(true.min()), float(true.max())
sweep = pack(grid, np.round((true - lo) / (hi - lo) * 255).astype('u1'), lo, hi)
w = Heads(spec={{'prompt': {HOSTILE!r}, 'at': 0}}, meta={{'title': {HOSTILE!r}}}, sweep=sweep)
w
"""
# Markup of a model's that would be the page's own state, or its widget, if anything took it for that.
FORGED = json.dumps({"models": {}, "modules": {"x": "document.title = 'owned'"}, "styles": {}})
FORGERY = (
    f"<div class='widget-state' id='widget-state'>{FORGED}</div>"
    "<img name='querySelector' alt=''><img name='currentScript' alt=''><div data-afm='nothing'></div>"
)
BROKEN = """
class Broken(Heads):
    _esm = "export default { render({ el }) { el.textContent = 'half'; throw new Error('no <b>'); } }"
Broken()
"""


@pytest.fixture(scope="module")
def widget_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the same widget twice: by itself, and in a box beside a control."""
    folder = tmp_path_factory.mktemp("widgets")
    box = "import ipywidgets as iw\niw.VBox([iw.HTML('<b>in a box</b>'), iw.IntSlider(value=3), w])"
    forged = f"from IPython.display import HTML\nHTML({FORGERY!r})"
    cells = [new_markdown_cell("# Heads"), *map(new_code_cell, (forged, WIDGET, box))]
    nbformat.write(new_notebook(cells=cells), folder / "heads.ipynb")
    return report(folder / "heads.ipynb", folder / "page.html", progress=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_saved_sweep_moves_without_a_kernel(
    widget_page: Path, tmp_path: Path, scheme: str
) -> None:
    harness.require_chromium()
    true = np.stack([np.random.default_rng(i).random(12) for i in range(21)])
    step = (true.max() - true.min()) / 255
    with harness.browser(tmp_path, color_scheme=scheme, offline=True) as (page, seen):
        page.goto(widget_page.as_uri())
        page.wait_for_function(
            "() => document.querySelectorAll('.heads[data-mode=sweep]').length == 2"
        )
        page.wait_for_function("() => document.querySelectorAll('.still').length == 0")
        for at in (0, 1, 2):
            read = page.locator(".heads").first.evaluate("e => e.__debug()")
            assert np.abs(np.array(read["shown"]) - true[at]).max() <= step
            page.locator(".heads input").first.focus()
            page.keyboard.press("ArrowRight")
        assert read["at"] == 2
        other = page.locator(".heads").nth(1).evaluate("e => e.__debug()")
        assert other["at"] == 3, "two views of one model share its values"
        assert other["started"] == 1, "initialize runs once per model"
        assert other["view"] == {"opened": True}
        assert "needs a running kernel" in page.locator(".heads").first.get_attribute("data-invoke")
        assert page.locator(".heads output").first.inner_text().startswith(HOSTILE[:8])
        assert page.title() == "Heads", "no prompt ran as script"
        assert page.locator(".afm-control input").is_disabled()
        assert (
            page.locator("body").get_attribute("data-jp-theme-light")
            == str(scheme == "light").lower()
        )
        assert colour_of(page, ".heads") == colour_of(page, "body")
        alignment = "e => getComputedStyle(e).textAlign"
        assert page.locator(".heads td").first.evaluate(alignment) == "start", "the page's style"
        footer = page.locator("footer").inner_text()
        assert "precomputed: 21 settings, no kernel" in footer
        shot(page, f"report-widgets-{scheme}")
    assert [r for r in seen.requests if not r.startswith("blob:")] == [widget_page.as_uri()]
    assert seen.errors == []
    assert widget_page.stat().st_size <= 500_000


def test_a_widget_that_fails_leaves_its_still_picture(tmp_path: Path) -> None:
    harness.require_chromium()
    cells = [new_code_cell(WIDGET), new_code_cell(BROKEN)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "broken.ipynb")
    made = report(tmp_path / "broken.ipynb", tmp_path / "page.html", progress=False)
    with harness.browser(tmp_path / "profile", offline=True) as (page, seen):
        page.goto(made.as_uri())
        page.wait_for_selector(".afm-note")
        page.wait_for_selector(".heads")
        assert page.locator(".still").count() == 1
        note = page.locator(".afm-note").inner_text()
        assert "still picture" in note
        assert "no <b>" in note
        assert "half" not in page.locator("main .outputs").last.inner_text()
    assert len(seen.errors) == 1


def test_the_policy_keeps_scripts_of_others_out(widget_page: Path, tmp_path: Path) -> None:
    """Even a script that got into the page: inline, from an address, or by a request."""
    harness.require_chromium()
    text = widget_page.read_text()
    bad = "<script>document.title='owned'</script>"
    bad += "<script src='data:text/javascript,document.title=1'></script>"
    bad += "<img src=x onerror=\"document.title='owned'\"><base href='https://example.org'>"
    (tmp_path / "bad.html").write_text(text.replace("<main>", f"<main>{bad}", 1))
    with harness.browser(tmp_path / "profile") as (page, seen):
        page.goto((tmp_path / "bad.html").as_uri())
        page.wait_for_selector(".heads")
        assert page.title() == "Heads"
        assert page.evaluate("() => document.baseURI").startswith("file:")
        reached = page.evaluate("() => fetch('data:,x').then(() => 'reached', () => 'kept in')")
        assert reached == "kept in"
    assert seen.external == []
    assert len(seen.errors) >= 3


def test_figures_get_pictures_in_a_notebook_to_share(tmp_path: Path) -> None:
    harness.require_chromium()
    code = "import plotly.graph_objects as go\ngo.Figure(go.Bar(x=['a'], y=[1]), layout={'height': 200})"
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / "bar.ipynb")
    shared = report(tmp_path / "bar.ipynb", ipynb=tmp_path / "s.ipynb", progress=False)
    (node,) = nbformat.read(shared, 4).cells[0].outputs
    picture = base64.b64decode(node.data["image/png"])
    assert struct.unpack(">II", picture[16:24]) == (800, 200)
    assert len(set(zlib.decompress(_pixels(picture)))) > 8, "not an empty sheet"
    again = report(tmp_path / "bar.ipynb", ipynb=tmp_path / "t.ipynb", progress=False)
    assert again.read_bytes() == shared.read_bytes()


def _pixels(png: bytes) -> bytes:
    """The compressed pixels of a PNG: its IDAT chunks, joined."""
    at, found = 8, b""
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        found += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return found


def colour_of(page: Any, selector: str) -> str:
    """The ink of an element, as the browser computed it."""
    return page.evaluate("s => getComputedStyle(document.querySelector(s)).color", selector)


def shot(page: Any, name: str) -> None:
    """A picture of the whole page among the test artefacts, for a person to look at."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


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
