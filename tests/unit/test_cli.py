"""The command line, through the door a person uses; and the README's tables against the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

import workbench as wb
from workbench import catalogue, cli, doctor, registry
from workbench.errors import WorkbenchError

ROOT = Path(__file__).parents[2]
run = CliRunner()


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "workbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


def test_report_goes_to_the_reports_folder(tmp_path: Path) -> None:
    cell = new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[cell, new_code_cell("print(n, name)")]), tmp_path / "a.ipynb"
    )
    done = shell("report", "a.ipynb", "-p", "n=3", "-p", "name=two words", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reports/a.html"]
    page = (tmp_path / "reports" / "a.html").read_text()
    assert "3 two words" in page
    assert "workbench report a.ipynb -p n=3 -p &#39;name=two words&#39;" in page


def test_a_users_mistake_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = shell("report", "missing.ipynb", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: report missing.ipynb: there is no such notebook; expected"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["n", "=3", "two words=3"])
def test_a_parameter_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    result = run.invoke(cli.app, ["report", str(tmp_path / "x.ipynb"), "-p", text])
    assert isinstance(result.exception, WorkbenchError)
    assert "expected name=value" in str(result.exception)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a first notebook, for the command to find."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_start_here.ipynb").write_text("{}")
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "workbench" / "cli.py"))
    return tmp_path


def started(monkeypatch: pytest.MonkeyPatch, *options: str) -> list[str]:
    """What `workbench lab` would run."""
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: seen.append(arguments))
    run.invoke(cli.app, ["lab", *options], catch_exceptions=False)
    assert seen[0][1:3] == ["-m", "jupyterlab"]
    return seen[0][3:]


def test_lab_starts_on_the_first_notebook_and_asks_nobody_anything(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = started(monkeypatch, "--no-browser", "--ServerApp.port=0")
    assert set(cli.OFFLINE) <= set(options)
    assert f"--ServerApp.root_dir={checkout}" in options
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in options
    assert options[-2:] == ["--no-browser", "--ServerApp.port=0"]


def test_what_a_person_asks_of_lab_replaces_our_own_option(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = started(monkeypatch, "--ServerApp.root_dir=/elsewhere")
    assert [o for o in options if "root_dir" in o] == ["--ServerApp.root_dir=/elsewhere"]


def test_methods_lists_every_registered_method_with_its_source() -> None:
    shown = run.invoke(cli.app, ["methods"], catch_exceptions=False).output
    for family in registry.FAMILIES:
        for entry in registry.entries(family):
            assert any(
                entry.name in line and entry.citation.url in line for line in shown.splitlines()
            )


def test_methods_of_one_family_and_of_none() -> None:
    shown = run.invoke(cli.app, ["methods", "steering"], catch_exceptions=False).output
    assert "mean_difference" in shown
    assert "greedy" not in shown
    wrong = run.invoke(cli.app, ["methods", "stering"]).exception
    assert isinstance(wrong, WorkbenchError)
    assert "steering" in str(wrong)


def test_models_lists_what_is_shipped() -> None:
    shown = run.invoke(cli.app, ["models"], catch_exceptions=False).output
    assert {line.split()[0] for line in shown.splitlines()[1:] if " M  " in line} == set(
        wb.shipped()
    )


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert catalogue.with_tables(text) == text, "run: workbench methods --write-readme README.md"


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="no place for the methods table"):
        catalogue.with_tables("# nothing here")


def test_the_doctor_finds_this_machine_well() -> None:
    found = list(doctor.checks())
    assert [str(c) for c in found if not c.ok] == []
    assert {f"{name} edit" for name in wb.shipped()} <= {c.name for c in found}


def test_the_doctor_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["torch>=999", "no-such-package", "peft>=999; extra == 'peft'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: required)
    packages, peft = doctor.packages()
    assert not packages.ok
    assert "no-such-package is missing" in packages.found
    assert "is not >=999" in packages.found
    assert "pip install 'peft>=999'" in str(peft)
    monkeypatch.setattr(wb, "shipped", lambda: [])
    assert [c.ok for c in doctor.models()] == [False]


def test_the_doctor_sees_an_edit_that_sticks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wb.load(wb.shipped()[0])
    handle = model.hf.register_forward_hook(lambda *_: None)
    try:
        check = doctor.edit_round_trip("reasoner", model)
    finally:
        handle.remove()
    assert not check.ok
    assert "1 hooks are left" in str(check)


def test_a_failed_check_is_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = doctor.Check("memory", False, "0.1 GiB free", "close something")
    monkeypatch.setattr(doctor, "checks", lambda: iter([bad]))
    result = run.invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "FAILED  memory: 0.1 GiB free; close something",
        "1 failed",
    ]
