"""The floors of the house: a module imports its own floor and those below, never upwards.

Read from the sources alone, so that a forbidden import fails even where the import would work.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workbench"

FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("words", ("errors", "records", "sites", "scopes", "seeds", "shapes", "files")),
    ("ground", ("tensors", "registry", "linalg", "operations")),
    (
        "methods",
        (
            "locate",
            "probes",
            "sae.scorers",
            "steering",
            "decoding",
            "tasks",
            "comparison.metrics",
            "rules",
            "stepwise",
        ),
    ),
    ("machinery", ("prompts", "model", "activations", "interventions")),
    ("experiments", ("comparison", "patching", "probing", "rl", "sae", "sweep", "worker", "zoo")),
    ("display", ("figures", "reporting")),
    ("doors", ("cli", "lab", "doctor", "catalogue", "__main__", "__init__")),
)
NAMES = tuple(name for name, _ in FLOORS)
NO_TORCH = (
    "errors",
    "records",
    "sites",
    "scopes",
    "seeds",
    "registry",
    "figures",
    "reporting",
    "tasks",
    "cli",
)
ONLY_INSIDE_FUNCTIONS = ("transformer_lens", "nnsight", "sae_lens", "trl", "ray", "peft")
NOT_IN_METHODS = (
    "transformers",
    "os",
    "io",
    "pathlib",
    "json",
    "safetensors",
    "subprocess",
    "urllib",
    "requests",
    "shutil",
    "tempfile",
)
VAGUE = ("utils", "util", "helpers", "helper", "misc", "common", "manager", "managers")
LONGEST_FUNCTION = 60  # lines of code; a docstring may be as long as it has to
LIGHT_AT_THE_DOOR = ("workbench.data_path", "workbench.__version__")


def modules() -> list[str]:
    """Every module of the package, without the package's name: `model.run`, `steering`."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts))
    return found


def source_of(module: str) -> str:
    file = PACKAGE.joinpath(*module.split("."))
    return (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8")


def within(module: str, root: str) -> bool:
    return module == root or module.startswith(root + ".")


def floor(module: str) -> int | None:
    """The floor of a module, by its longest listed root; None where no floor holds it."""
    held = [
        (len(root), i)
        for i, (_, roots) in enumerate(FLOORS)
        for root in roots
        if within(module, root)
    ]
    return max(held)[1] if held else None


def imports(tree: ast.Module) -> Iterator[tuple[str, bool, int]]:
    """Each imported dotted name, whether it stands inside a function, and its line."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from ((name, id(node) in inside, node.lineno) for name in sorted(names))


def violations(module: str, source: str, known: frozenset[str]) -> list[str]:
    """Every way in which a module breaks the rules of its floor."""
    here, tree = floor(module), ast.parse(source)
    if here is None:
        return [f"{module}: stands on no floor; add it to FLOORS"]
    found = [f"{module}: the name says nothing"] if module.split(".")[-1] in VAGUE else []
    for name, inside, line in imports(tree):
        found += [
            f"{module}:{line}: {wrong}" for wrong in _wrong(module, here, name, inside, known)
        ]
    return found + [f"{module}:{line}: {wrong}" for line, wrong in _bodies(tree, here)]


def _wrong(module: str, here: int, name: str, inside: bool, known: frozenset[str]) -> Iterator[str]:
    top = name.split(".")[0]
    if top == "workbench_widgets":
        yield "workbench does not import its widgets"
    own_backend = (
        module == f"model.backends.{top}"
    )  # loaded on demand, so it may import its library
    if top in ONLY_INSIDE_FUNCTIONS and not inside and not own_backend:
        yield f"{top} is optional: import it inside the function that needs it"
    if top == "torch" and any(within(module, root) for root in NO_TORCH):
        yield "this floor has no torch"
    if NAMES[here] == "methods" and top in NOT_IN_METHODS:
        yield f"a method does no I/O and knows no model library, so not {top}"
    if top == "workbench" and name not in LIGHT_AT_THE_DOOR:
        yield from _wrong_within(module, here, _target(name, known))


def _target(name: str, known: frozenset[str]) -> str:
    """`workbench.records.Prompt` -> `records`: the module that the name lives in."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def _wrong_within(module: str, here: int, target: str) -> Iterator[str]:
    there = floor(target)
    if target == "__init__":
        if NAMES[here] != "doors":
            yield "imports the package's front door"
        return
    if there is None:
        return
    if target.startswith("model.backends.") and target.rpartition(".")[2] in ONLY_INSIDE_FUNCTIONS:
        yield f"{target} is loaded on demand only, by its name"
    if there > here:
        yield f"{NAMES[here]} may not import {target}, on the floor above ({NAMES[there]})"
    family = target.rpartition(".")[0]
    is_method = NAMES[there] == "methods" and family and not target.endswith(".base")
    if (
        is_method
        and NAMES[here] == "methods"
        and module not in (family, target)
        and _is_method(target)
    ):
        yield f"a method does not import its sibling {target}"
    if is_method and NAMES[here] == "machinery" and _is_method(target):
        yield f"machinery reaches {target} through the registry"


def _is_method(module: str) -> bool:
    """Whether the file registers a method; the rest of a family's folder is shared ground."""
    file = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return file.is_file() and "@register(" in file.read_text("utf-8")


def _bodies(tree: ast.Module, here: int) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) else 0)
            if length > LONGEST_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines, more than {LONGEST_FUNCTION}"
        called = (
            node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        )
        if called == "open" and NAMES[here] == "methods":
            yield node.lineno, "a method opens no file"


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


KNOWN = frozenset(modules())


@pytest.mark.parametrize("module", sorted(KNOWN))
def test_module_keeps_to_its_floor(module: str) -> None:
    assert violations(module, source_of(module), KNOWN) == []


LONG = "def f():\n" + "    x = 1\n" * 60


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("records", "import torch", "no torch"),
        ("reporting.build", "def f():\n    import torch", "no torch"),
        ("sites", "from workbench.model import load", "may not import model"),
        ("steering.mean_difference", "from workbench.model.run import run", "floor above"),
        ("steering.mean_difference", "import transformers", "no model library"),
        ("steering.mean_difference", "def f():\n    return open('x')", "opens no file"),
        ("model.backends.lens", "import transformer_lens", "optional"),
        ("model.load", "from workbench.model.backends.nnsight import Nnsight", "on demand"),
        ("zoo.build", "import trl", "optional"),
        ("comparison.run", "from workbench.figures import bars", "floor above"),
        ("model.load", "import workbench as wb", "front door"),
        ("model.load", "import workbench_widgets", "widgets"),
        ("model.utils", "", "says nothing"),
        ("brand_new", "", "no floor"),
        ("model.load", LONG, "61 lines"),
    ],
)
def test_the_checker_sees_a_planted_fault(module: str, source: str, said: str) -> None:
    known = KNOWN | {"model", "model.run", "model.backends.nnsight", "figures", "steering"}
    assert any(said in wrong for wrong in violations(module, source, known))


def test_the_checker_lets_good_code_pass() -> None:
    good = "import torch\nfrom workbench.errors import WorkbenchError\n\ndef f():\n    import nnsight\n"
    assert violations("model.backends.lazy", good, KNOWN) == []
