"""`workbench compare CONFIG.toml`: what it runs, and how it says what is wrong in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench import cli
from workbench.comparison import config
from workbench.errors import FileRefused, UnknownName, WorkbenchError
from workbench.interventions import save

GOOD = """
model = "reasoner"
metrics = ["accuracy", "length"]
seeds = [3]
max_new_tokens = 4
[prompts]
task = "add"
n = 2
seed = 5
digits = [1, 2]
[[arms]]
name = "steered"
edits = [{ file = "edit.safetensors", strength = 3, scope = "prompt" }]
[[arms]]
name = "sampled"
decoder = { name = "sample", temperature = 0.5 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import torch

    model = wb.load("reasoner", proof=False)
    tensors = {"L1.resid_post": {"shift": torch.ones(model.d_model)}}
    save(wb.Intervention("custom", "affine", tensors), tmp_path / "edit.safetensors")
    (tmp_path / "good.toml").write_text(GOOD)
    return tmp_path


def test_a_file_gives_the_table_that_python_gives(folder: Path) -> None:
    table = config.compare_file(folder / "good.toml", progress=False)
    edit = wb.interventions.load(folder / "edit.safetensors").at(3.0).within("prompt")
    arms = [
        wb.Arm("steered", edits=[edit]),
        wb.Arm("sampled", decoder=wb.decoding.Sample(temperature=0.5)),
    ]
    prompts = wb.tasks.make("add", n=2, seed=5, digits=(1, 2))
    same = wb.compare(
        arms,
        wb.load("reasoner"),
        prompts,
        metrics=["accuracy", "length"],
        seeds=[3],
        max_new_tokens=4,
        progress=False,
    )
    assert table.arms == same.arms
    assert table.frame().equals(same.frame())


@pytest.mark.parametrize("form", ["text", "html", "csv"])
def test_the_command_prints_and_saves(folder: Path, form: str) -> None:
    saved = folder / "table.json"
    asked = ["compare", str(folder / "good.toml"), "--form", form, "--save", str(saved)]
    shown = CliRunner().invoke(cli.app, asked, catch_exceptions=False).stdout
    assert {"text": "steered", "html": "<table", "csv": "arm,prompt,seed,metric"}[form] in shown
    assert json.loads(saved.read_text())["provenance"]["seeds"] == [3]
    assert len(wb.Table.load(saved)) > 0


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        (
            "max_new_tokens",
            "max_tokens",
            WorkbenchError,
            "nearest: .*max_new_tokens.*got max_tokens",
        ),
        ('model = "reasoner"', "", WorkbenchError, "an entry is missing: model"),
        ("[prompts]", "[promts]", WorkbenchError, "nearest: prompts"),
        ('task = "add"', "", WorkbenchError, "an entry is missing: task"),
        ('task = "add"', 'task = "ad"', WorkbenchError, "'ad'"),
        ('name = "sampled"', "", WorkbenchError, "an entry is missing: name"),
        ('"sample"', '"sampel"', UnknownName, "sample"),
        ("temperature", "temprature", WorkbenchError, "nearest: temperature"),
        ("edit.safetensors", "other.safetensors", FileRefused, "other.safetensors"),
        ("strength = 3", "stregth = 3", WorkbenchError, "nearest: strength"),
        ("seeds = [3]", "seeds = [3", FileRefused, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    folder: Path,
    old: str,
    new: str,
    kind: type[Exception],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("loaded a model")

    monkeypatch.setattr(config, "load_model", never)
    (folder / "bad.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(kind, match=said):
        config.compare_file(folder / "bad.toml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="compare none.toml: cannot be read.*No such file"):
        config.compare_file(tmp_path / "none.toml")
