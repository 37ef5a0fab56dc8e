"""The built module of every widget: small, alone, and what its sources build."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDGETS = ROOT / "widgets"
NAMES = sorted(file.parent.name for file in WIDGETS.glob("*/main.js"))
LARGEST = 100_000
NAMESPACES = ("http://www.w3.org/",)
# a module is a blob in JupyterLab: it has no address that an import could be relative to
IMPORTS = re.compile(r"(?:^|[;}\n])\s*import\s*[\s{*\"']|\bimport\s*\(|\bfrom\s*[\"']")
# a method named fetch, as View has one, is no call of the browser's
REACHES_OUT = re.compile(
    r"(?<![.\w$])fetch\((?!\w+(?:,\w+=\{\})?\)\{)"
    r"|XMLHttpRequest|new WebSocket|EventSource|sendBeacon|importScripts"
)
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment"
)
RUNS_TEXT = re.compile(r"(?<![.\w$])eval\(|new Function\(")
DEFAULT = re.compile(r"export\s*\{[^}]*\bas default\b[^}]*\}|export default\b")
# Parsed as a script, an `await` outside of functions is a syntax error.
PARSE = """
const vm = require('node:vm'), fs = require('node:fs');
const text = fs.readFileSync(process.argv[1], 'utf8').replace(/export\\s*\\{[^}]*\\};?\\s*$/, '');
new vm.Script(text);
"""


@pytest.fixture(params=NAMES)
def built(request: pytest.FixtureRequest) -> str:
    """The text of one built module."""
    file = WIDGETS / request.param / "widget.js"
    assert file.is_file(), f"{file.parent.name}: no widget.js; run `make widgets`"
    return file.read_text("utf-8")


def node() -> str:
    """Where node is; skips without one."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("no node (tests/SKIPS.md)")
    return found


def test_every_widget_has_a_source() -> None:
    assert len(NAMES) >= 2
    folders = {f.parent.name for f in WIDGETS.glob("*/widget.js")}
    assert folders == set(NAMES)


def test_a_module_is_small(built: str) -> None:
    assert len(built.encode()) <= LARGEST


def test_a_module_stands_alone_and_exports_a_widget(built: str) -> None:
    assert not IMPORTS.findall(built)
    assert len(DEFAULT.findall(built)) == 1


def test_a_module_asks_for_nothing_outside(built: str) -> None:
    urls = re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}/[^\"'`\s)]*", built)
    assert [url for url in urls if not url.startswith(NAMESPACES)] == []
    assert not REACHES_OUT.findall(built)


def test_a_module_writes_no_markup_and_runs_no_text(built: str) -> None:
    assert not MARKUP.findall(built)
    assert not RUNS_TEXT.findall(built)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_does_not_wait_at_its_top(name: str) -> None:
    """anywidget loses every update of a module that takes more than two seconds to start."""
    file = WIDGETS / name / "widget.js"
    done = subprocess.run([node(), "-e", PARSE, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]


def test_the_rules_find_what_they_forbid() -> None:
    assert IMPORTS.search('var a=1;import{b}from"./b.js";') and IMPORTS.search("x=import('y')")
    assert REACHES_OUT.search("await fetch('/x')") and REACHES_OUT.search("}fetch(u,{a:1}).then(f)")
    assert not REACHES_OUT.search("view.fetch('code');class V{a(){}fetch(s,e={}){return 1}}")
    assert MARKUP.search("e.innerHTML=t") and RUNS_TEXT.search(";eval(t)")


def test_the_committed_modules_are_what_the_sources_build(tmp_path: Path) -> None:
    node()
    if not (ROOT / "node_modules" / "esbuild").is_dir():
        pytest.skip("no node_modules: `make test-js` installs esbuild (tests/SKIPS.md)")
    ignored = shutil.ignore_patterns("__pycache__", "*.py", "widget.js", "test")
    shutil.copytree(WIDGETS, tmp_path / "widgets", ignore=ignored)
    shutil.copy(ROOT / "package.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    subprocess.run(["node", str(tmp_path / "widgets/js/build.js")], check=True, timeout=120)
    stale = [
        name
        for name in NAMES
        if (tmp_path / "widgets" / name / "widget.js").read_bytes()
        != (WIDGETS / name / "widget.js").read_bytes()
    ]
    assert stale == [], "run `make widgets` and commit"
