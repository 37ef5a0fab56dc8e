"""What importing costs: the package's door, the command line and the display floor stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pandas", "plotly", "scipy", "sklearn", "jupyterlab", "nbconvert")
LIGHT = {
    "workbench": HEAVY,
    "workbench.cli": HEAVY,
    "workbench.records": HEAVY,
    "workbench.sites": HEAVY,
    "workbench.scopes": HEAVY,
    "workbench.registry": HEAVY,
    "workbench.reporting": ("torch", "transformers"),
}


@pytest.mark.parametrize("module", LIGHT)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(h for h in {LIGHT[module]!r} if h in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_the_package_says_what_it_holds() -> None:
    import workbench

    listed = dir(workbench)
    assert {"load", "report", "compare", "tasks", "steering"} <= set(listed)
    with pytest.raises(AttributeError, match="no_such_name"):
        workbench.no_such_name  # noqa: B018
