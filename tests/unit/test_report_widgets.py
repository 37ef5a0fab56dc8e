"""Saved widgets in a page and in a notebook to share: what is kept, what is refused, what is inert."""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.errors import WorkbenchError
from workbench.reporting import build, outputs, report, share, stills
from workbench.reporting.clean import clean
from workbench.reporting.outputs import PLOTLY
from workbench.reporting.provenance import Provenance
from workbench.reporting.saved import STATE, VIEW, Saved
from workbench.reporting.stale import WidgetStale, refuse_stale

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>"
PLAIN = Provenance("a.ipynb", "0" * 64, "now", (), "here", "workbench report a.ipynb")
IDLE = {"state": "idle", "i": 0, "n": 0, "requested_seq": 3, "t_model_ms": 1.0, "msg": ""}

CLASS = """
import anywidget, traitlets as t
class Dial(anywidget.AnyWidget):
    _esm = "export default { render({ el }) { el.textContent = 'dial'; } }"
    _css = ".dial { color: red }"
    spec = t.Dict({"v": 1}).tag(sync=True)
    meta = t.Dict({"title": "the dial"}).tag(sync=True)
    data = t.Bytes(b"").tag(sync=True)
    seq = t.Int(0).tag(sync=True)
    status = t.Dict({"state": "idle", "requested_seq": 0}).tag(sync=True)
    sweep = t.Bytes(b"").tag(sync=True)
    def _repr_mimebundle_(self, **options):
        data, about = super()._repr_mimebundle_(**options)
        return {**data, "text/html": "<b>still</b>", "text/plain": "Dial()"}, about
"""


def sweep(n: int) -> str:
    """Packed bytes with a grid of n settings, as base64."""
    header = json.dumps({"json": {"grid": list(range(n))}, "arrays": {}}).encode()
    return base64.b64encode(struct.pack("<I", len(header)) + header).decode()


def dial(module: str = "export default {}", **state: Any) -> dict[str, Any]:
    """A saved widget that follows the contract, idle unless told otherwise."""
    base = {"_esm": module, "_css": ".dial {}", "_anywidget_id": "somewhere.Dial", "layout": "x"}
    kept = {**base, "meta": {"title": "the dial"}, "seq": 3, "status": IDLE, **state}
    return {"model_module": "anywidget", "model_name": "AnyModel", "state": kept, "buffers": []}


def core(name: str, **state: Any) -> dict[str, Any]:
    """A saved widget of ipywidgets."""
    module = "@jupyter-widgets/controls"
    return {"model_module": module, "model_name": f"{name}Model", "state": state, "buffers": []}


def executed(models: dict[str, Any], *shown: str) -> NotebookNode:
    """A notebook whose cells each showed one of the models."""
    cells = []
    for model_id in shown:
        data = {VIEW: {"model_id": model_id}, "text/html": f"<b>still of {model_id}</b>"}
        data["text/plain"] = "Dial()"
        node = new_output("display_data", data=data)
        cells.append(new_code_cell(f"show {model_id}", outputs=[node], execution_count=1))
    notebook = new_notebook(cells=cells)
    notebook.metadata["widgets"] = {STATE: {"state": models}}
    return nbformat.from_dict(notebook)


def page_of(models: dict[str, Any], *shown: str) -> str:
    return build.page(executed(models, *shown), Path("/nowhere/a.ipynb"), PLAIN)


def block_of(page: str) -> dict[str, Any]:
    found = re.findall(r'class="widget-state">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_each_module_and_style_is_in_the_page_once() -> None:
    other = dial("export default { other: 1 }")
    models = {"a": dial(), "b": dial(), "c": other, "unseen": dial("export default { no: 1 }")}
    page = page_of(models, "a", "b", "a", "c")
    block = block_of(page)
    assert sorted(block["models"]) == ["a", "b", "c"]
    assert sorted(block["modules"].values()) == [
        "export default { other: 1 }",
        "export default {}",
    ]
    assert list(block["styles"].values()) == [".dial {}"]
    assert block["models"]["a"]["module"] == block["models"]["b"]["module"]
    assert not {"_esm", "_css", "layout"} & set(block["models"]["a"]["state"])
    assert [page.count(f'data-afm="{m}"') for m in "abc"] == [2, 1, 1]
    assert page.count("<b>still of a</b>") == 2


def test_a_page_without_widgets_has_no_host_and_no_blob_modules() -> None:
    page = build.page(
        new_notebook(cells=[new_markdown_cell("# a")]), Path("/nowhere/a.ipynb"), PLAIN
    )
    assert "widget-state" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "connect-src 'none'" in policy[1]
    assert re.search(r"script-src 'nonce-[^']+';", policy[1])
    with_widget = page_of({"a": dial()}, "a")
    assert re.search(r"script-src 'nonce-[^']+' blob:;", with_widget)
    assert len(with_widget) < 40_000


def test_hostile_state_stays_data() -> None:
    widget = dial(spec={"prompt": HOSTILE}, meta={"title": HOSTILE})
    page = page_of({"a": widget}, "a")
    block = block_of(page)
    assert block["models"]["a"]["state"]["spec"]["prompt"] == HOSTILE
    assert "<script>alert" not in page
    assert "<img" not in page


def test_no_markup_passes_for_a_part_of_the_page() -> None:
    assert "data-afm" not in clean('<div data-afm="a">x</div>')
    assert "name" not in clean('<img name="querySelector" alt="x">')
    assert clean('<a name="here">x</a>') == '<a name="here">x</a>'


@pytest.mark.parametrize(
    "widget",
    [None, dial("https://example.org/w.js"), dial(""), core("ColorPicker", value=None)],
    ids=["not saved", "module at an address", "no module", "no stand-in"],
)
def test_a_widget_that_cannot_start_is_a_still_picture(widget: Any) -> None:
    page = page_of({"b": dial()} if widget is None else {"a": widget}, "a")
    assert "<b>still of a</b>" in page
    assert "needs a running kernel" in page
    assert "data-afm=" not in page


def test_boxes_text_and_controls_of_ipywidgets() -> None:
    refs = ["IPY_MODEL_" + m for m in ("w", "slider", "pick", "html", "label", "gone")]
    models = {
        "box": core("VBox", children=refs),
        "w": dial(),
        "slider": core("IntSlider", description="<k>", min=1, max=200, step=1, value=150),
        "pick": core("Dropdown", description="", _options_labels=["a", "b<"], index=1),
        "html": core("HTML", value=f"<i>kept</i>{HOSTILE}"),
        "label": core("Label", value=HOSTILE),
    }
    page = page_of(models, "box")
    assert '<div class="afm-column">' in page
    assert page.count('data-afm="w"') == 1
    assert '<input type="range" disabled min="1" max="200" step="1" value="150">' in page
    assert "&lt;k&gt;" in page
    assert "<option selected>b&lt;</option>" in page
    assert "<i>kept</i>" in page
    assert page.count("<small>needs a running kernel</small>") == 2
    assert "<img" not in page
    assert "<script>alert" not in page
    assert sorted(block_of(page)["models"]) == ["w"]


def test_a_box_that_holds_itself_ends() -> None:
    page = page_of({"box": core("HBox", children=["IPY_MODEL_box"])}, "box")
    assert page.count('class="afm-row"') == 1


@pytest.mark.parametrize(
    ("state", "buffers", "words"),
    [
        ({}, [], "needs a running kernel"),
        ({"meta": {"complete": True}}, [], "complete: no kernel needed"),
        (
            {},
            [{"path": ["sweep"], "data": sweep(21)}],
            "precomputed: 21 settings, no kernel",
        ),
        ({}, [{"path": ["sweep"], "data": base64.b64encode(b"\1").decode()}], "needs a running"),
        ({"status": {**IDLE, "state": "error", "msg": "bad <b>"}}, [], "failed: bad &lt;b&gt;"),
    ],
)
def test_the_footer_says_what_works(state: Any, buffers: Any, words: str) -> None:
    page = page_of({"a": {**dial(**state), "buffers": buffers}}, "a")
    footer = page.partition("<footer>")[2]
    assert "Dial" in footer
    assert words in footer


def test_an_error_is_shown_beside_its_widget() -> None:
    page = page_of({"a": dial(status={**IDLE, "state": "error", "msg": "no <memory>"})}, "a")
    body = page.partition("<footer>")[0]
    assert "The last run of this widget failed: no &lt;memory&gt;" in body


@pytest.mark.parametrize(
    ("status", "got"),
    [
        ({"state": "queued"}, "state 'queued'"),
        ({"state": "running"}, "state 'running'"),
        ({"requested_seq": 4}, "frame 3 where frame 4 was asked for"),
        ({"requested_seq": 2}, "frame 3 where frame 2 was asked for"),
        ({"state": "cancelled", "requested_seq": 4}, "state 'cancelled'"),
    ],
)
def test_a_stale_widget_is_refused_with_its_cell(status: Any, got: str) -> None:
    models = {"a": dial(), "b": dial(status={**IDLE, **status})}
    with pytest.raises(
        WidgetStale, match=r"Dial \(the dial\) of code cell 2 of 2 \(`show b`\)"
    ) as e:
        refuse_stale(executed(models, "a", "b"), "a.ipynb")
    assert got in str(e.value)
    boxed = {"box": core("HBox", children=["IPY_MODEL_b"]), **models}
    with pytest.raises(WidgetStale, match="code cell 1 of 1"):
        refuse_stale(executed(boxed, "box"), "a.ipynb")


def test_what_is_not_stale_passes() -> None:
    failed = dial(status={"state": "error", "requested_seq": 9, "msg": "x"})
    unseen = dial(status={**IDLE, "state": "running"})
    foreign = dial(status="a word of its own")
    models = {"a": dial(), "failed": failed, "unseen": unseen, "foreign": foreign}
    refuse_stale(executed(models, "a", "failed", "foreign", "gone"), "a.ipynb")


def run_of(folder: Path, *cells: str) -> Path:
    made = [new_markdown_cell("# Dials"), *map(new_code_cell, cells)]
    file = folder / "dials.ipynb"
    nbformat.write(new_notebook(cells=made), file)
    return file


def test_a_run_that_ends_stale_writes_nothing(tmp_path: Path) -> None:
    source = run_of(
        tmp_path, CLASS, "w = Dial()\nw", "w.status = {'state': 'queued', 'requested_seq': 1}"
    )
    (tmp_path / "page.html").write_text("the old page")
    command = [sys.executable, "-m", "workbench", "report", source.name, "-o", "page.html"]
    command += ["--ipynb", "shared.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert "Dial (the dial) of code cell 2 of 3 (`w = Dial()`) is stale" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(f.name for f in tmp_path.iterdir()) == ["dials.ipynb", "page.html"]
    assert (tmp_path / "page.html").read_text() == "the old page"


def test_a_run_keeps_the_last_bytes_and_shares_a_still_notebook(tmp_path: Path) -> None:
    source = run_of(
        tmp_path,
        CLASS,
        "w = Dial(data=b'first')\nw",
        "with w.hold_sync():\n    w.data, w.seq = bytes(range(256)), 1\n"
        "    w.status = {'state': 'idle', 'requested_seq': 1}",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass",
    )
    before = source.read_bytes()
    made = report(source, tmp_path / "p.html", ipynb=tmp_path / "s.ipynb", progress=False)
    assert made == tmp_path / "p.html"
    (model,) = [m for m in block_of(made.read_text())["models"].values() if "module" in m]
    assert model["state"]["seq"] == 1
    (data,) = [b["data"] for b in model["buffers"] if b["path"] == ["data"]]
    assert base64.b64decode(data) == bytes(range(256))
    assert source.read_bytes() == before
    shared = nbformat.read(tmp_path / "s.ipynb", 4)
    nbformat.validate(shared)
    assert "widgets" not in shared.metadata
    assert shared.cells[2].outputs[0].data == {"text/html": "<b>still</b>", "text/plain": "Dial()"}
    assert [c.metadata for c in shared.cells] == [{}] * 5
    again = report(source, ipynb=tmp_path / "t.ipynb", progress=False)
    assert again == tmp_path / "t.ipynb"
    assert again.read_bytes() == (tmp_path / "s.ipynb").read_bytes()
    assert not (tmp_path / "reports").exists()


def figure_notebook() -> NotebookNode:
    figure = {"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {}}
    kept = {PLOTLY: figure, "image/png": "a2VwdA=="}
    nodes = [new_output("display_data", data=d) for d in ({PLOTLY: figure}, kept)]
    cell = new_code_cell("figures", outputs=nodes, execution_count=1)
    cell.metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00Z"}
    return nbformat.from_dict(new_notebook(cells=[cell]))


def test_a_figure_without_a_picture_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stills, "of_figures", lambda figures: [None] * len(figures))
    notebook = figure_notebook()
    bare, kept = share.static(notebook).cells[0].outputs
    assert "without a static picture" in bare.data["text/html"]
    assert kept.data == notebook.cells[0].outputs[1].data
    monkeypatch.setattr(stills, "of_figures", lambda figures: ["cG5n"] * len(figures))
    shared = share.static(notebook)
    assert shared.cells[0].outputs[0].data["image/png"] == "cG5n"
    assert "text/html" not in shared.cells[0].outputs[0].data
    assert shared.cells[0].metadata == {}
    assert "execution" in notebook.cells[0].metadata, "the run itself is left as it was"


def test_a_widget_without_a_still_is_told_of_in_words() -> None:
    notebook = executed({"a": dial()}, "a")
    notebook.cells[0].outputs[0].data = {VIEW: {"model_id": "a"}}
    assert share.static(notebook).cells[0].outputs[0].data == {
        "text/plain": "a widget, which needs a running kernel"
    }


def test_the_notebook_to_share_has_a_notebooks_name(tmp_path: Path) -> None:
    source = run_of(tmp_path, "1")
    with pytest.raises(WorkbenchError, match="ends in .ipynb"):
        report(source, ipynb=tmp_path / "a.html", progress=False)


def test_the_page_names_models_seeds_parameters_and_commit(tmp_path: Path) -> None:
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    source = run_of(
        tmp_path,
        "strength = 2.0\nseed = 0",
        "import workbench as wb\nmodel = wb.load('reasoner', proof=False)\n"
        "print('WEIGHTS', model.fingerprint.weights)",
        "del model\nrollout_seeds = [1, 2]\nseedling = 5",
    )
    notebook = nbformat.read(source, 4)
    notebook.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, source)
    page = report(source, tmp_path / "p.html", {"seed": 7}, progress=False).read_text()
    weights = re.search(r"WEIGHTS (\w+)", page.partition("<footer>")[0].partition("<pre class=")[2])
    assert weights is not None
    footer = page.partition("<footer>")[2]
    assert "reasoner (" in footer
    assert f"weights {weights[1]})" in footer
    assert "strength = 2.0, seed = 7" in footer
    assert "rollout_seeds = [1, 2]" in footer
    assert "seedling" not in footer
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True
    ).stdout.strip()
    assert f"{head}, with uncommitted changes" in footer
    assert re.search(r"anywidget \d", footer)
    assert re.search(r"transformers \d", footer)
    assert str(tmp_path) not in page


def test_saved_reaches_every_model_once() -> None:
    saved = Saved({"a": dial(spec={"of": ["IPY_MODEL_b"]}), "b": dial(of="IPY_MODEL_a")})
    assert list(saved.reach("a")) == ["a", "b"]
    assert list(saved.reach("gone")) == []


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ('model_name, seed = "reasoner", 0', {"model_name": "'reasoner'", "seed": "0"}),
        ("seed: int = 3", {"seed": "3"}),
        ("a = b = 1", {"a": "1", "b": "1"}),
        ("a, b = pair", {}),
    ],
)
def test_parameters_are_read_however_they_are_written(source: str, kept: dict[str, str]) -> None:
    from workbench.reporting.provenance import _parameters

    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    assert _parameters(new_notebook(cells=[cell])) == kept


def test_markup_cannot_pose_as_a_figure() -> None:
    hostile = '<figure class="plotly"><i class="plotly-json">x</i></figure>'
    assert not outputs.has_plotly(clean(hostile))
