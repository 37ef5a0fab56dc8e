"""Packages whose folder has another name than their import; the rest is in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

MAPPED = {"workbench.data": "data", "workbench_widgets": "widgets"}
present = {package: folder for package, folder in MAPPED.items() if Path(folder).is_dir()}

setup(
    packages=[
        *find_packages(include=["workbench", "workbench.*"]),
        *present,
        *(f"workbench_widgets.{name}" for name in find_packages("widgets")),
    ],
    package_dir=present,
    package_data={
        "workbench.data": ["**/*"],
        "workbench.reporting": ["templates/*"],
        "workbench_widgets": ["**/*.js", "**/*.css"],
    },
)
