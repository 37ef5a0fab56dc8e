"""What a reader needs to trust a page and to make it again."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

PACKAGES = (
    "interp-workbench",
    "torch",
    "transformers",
    "numpy",
    "plotly",
    "ipykernel",
    "ipywidgets",
    "anywidget",
)


@dataclass(frozen=True)
class Provenance:
    """Where a page comes from, as text.

    Attributes:
        notebook, sha256: the notebook's file name and the hash of its bytes before the run.
        made, machine: when and on what.
        versions: "package version", Python first.
        rerun: the command that makes the page again.
        commit: of the git tree that the notebook stands in; "" outside of one.
        parameters: "name = value" of every parameter.
        models: every model that was alive after some cell, with a hash of its weights.
        seeds: "name = value" of every variable named after a seed, at the end.
    """

    notebook: str
    sha256: str
    made: str
    versions: tuple[str, ...]
    machine: str
    rerun: str
    commit: str = ""
    parameters: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        source: Path,
        given: Mapping[str, Any],
        done: NotebookNode | None = None,
        ledger: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """The provenance of a page made now from `source`, run into `done`."""
        values = [f"-p {shlex.quote(f'{k}={v}')}" for k, v in given.items()]
        seen = ledger or {}
        parameters = _parameters(done) if done is not None else {}
        seeds = {k: v for k, v in seen.get("seeds", {}).items() if k not in parameters}
        return cls(
            notebook=source.name,
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            versions=tuple(_versions()),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            rerun=" ".join(["workbench report", shlex.quote(_relative(source)), *values]),
            commit=_commit(source.parent),
            parameters=tuple(f"{k} = {v}" for k, v in parameters.items()),
            models=tuple(_model(m) for m in seen.get("models", ())),
            seeds=tuple(f"{k} = {v}" for k, v in seeds.items()),
        )


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()}"
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue


def _relative(source: Path) -> str:
    here = Path.cwd()
    return str(source.relative_to(here)) if source.is_relative_to(here) else source.name


def _model(model: Mapping[str, Any]) -> str:
    return f"{model['name']} ({model['family']}, weights {model['weights']})"


def _parameters(notebook: NotebookNode) -> dict[str, str]:
    """Source text of each parameter's value: the defaults, then what was given for them."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", ())
        if cell.cell_type != "code" or not {"parameters", "injected-parameters"} & set(tags):
            continue
        try:
            body = ast.parse(cell.source).body
        except SyntaxError:  # a line of IPython's own
            continue
        for node in body:
            found.update(_assigned(node))
    return found


def _assigned(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Names and the source of their values: `x = 1`, `x: int = 1`, `x, y = 1, 2`."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=False))
        yield from ((t.id, ast.unparse(v)) for t, v in pairs if isinstance(t, ast.Name))


def _commit(folder: Path) -> str:
    """Hash of the last commit, with a word where the tree has changed since; "" without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    return (
        f"{commit}, with uncommitted changes" if _git(folder, "status", "--porcelain") else commit
    )


def _git(folder: Path, *command: str) -> str:
    try:
        # --no-optional-locks: a report changes nothing in the tree, not even its index.
        run = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *command],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
