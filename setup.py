"""Packages whose folder has another name than their import, and files that Jupyter reads.

The rest is in pyproject.toml.
"""

from pathlib import Path

from setuptools import find_packages, setup

MAPPED = {"workbench.data": "data", "workbench_widgets": "widgets"}
present = {package: folder for package, folder in MAPPED.items() if Path(folder).is_dir()}

# Installed under etc/jupyter of the environment, where every Jupyter server looks.
JUPYTER = Path("workbench/lab/jupyter")
settings = [
    (f"etc/jupyter/{file.parent.relative_to(JUPYTER).as_posix()}", [file.as_posix()])
    for file in sorted(JUPYTER.rglob("*.json"))
]

setup(
    packages=[
        *find_packages(include=["workbench", "workbench.*"]),
        *present,
        *(f"workbench_widgets.{name}" for name in find_packages("widgets")),
    ],
    package_dir=present,
    package_data={
        "workbench.data": ["**/*"],
        "workbench.lab": ["jupyter/**/*.json"],
        "workbench.reporting": ["templates/*"],
        "workbench_widgets": ["*/widget.js", "*/style.css", "js/base.css"],
    },
    data_files=settings,
)
