"""The wheel: what a person gets who has no checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources with a small data folder, built without a network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("workbench", "widgets"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "data" / "models" / "reasoner").mkdir(parents=True)
    (tree / "data" / "models" / "reasoner" / "config.json").write_text("{}")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tree / "dist"), str(tree)], check=True, timeout=300)
    return next((tree / "dist").glob("*.whl"))


def test_the_wheel_holds_every_source_file_the_templates_and_the_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "workbench").rglob("*.py")}
    assert sources <= held
    assert "workbench/reporting/templates/page.html.j2" in held
    assert "workbench/data/models/reasoner/config.json" in held
    assert not [name for name in held if name.startswith(("tests/", "data/"))]


def test_the_wheel_holds_the_widgets_without_their_sources(wheel: Path) -> None:
    held = {
        name.removeprefix("workbench_widgets/")
        for name in zipfile.ZipFile(wheel).namelist()
        if name.startswith("workbench_widgets/")
    }
    folder = ROOT / "widgets"
    built = {p.with_name("widget.js") for p in folder.glob("*/main.js")}
    code = {*folder.rglob("*.py"), *folder.glob("*/style.css"), folder / "js" / "base.css", *built}
    assert built
    assert held == {file.relative_to(folder).as_posix() for file in code}


def test_an_installation_enables_the_server_extension_and_saves_widget_state(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    place = next(name for name in archive.namelist() if ".data/data/etc/jupyter/" in name)
    jupyter = place.partition("/etc/jupyter/")[0] + "/etc/jupyter/"
    config = json.loads(archive.read(f"{jupyter}jupyter_server_config.d/workbench.json"))
    assert config == {"ServerApp": {"jpserver_extensions": {"workbench.lab.server": True}}}
    overrides = f"{jupyter}labconfig/default_setting_overrides.d/workbench.json"
    manager = "@jupyter-widgets/jupyterlab-manager:plugin"
    assert json.loads(archive.read(overrides)) == {manager: {"saveState": True}}


def test_data_path_finds_the_data_of_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import workbench; print(workbench.__file__, workbench.data_path(), workbench.shipped())"
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "workbench" / "data") in done.stdout
    assert "['reasoner']" in done.stdout
