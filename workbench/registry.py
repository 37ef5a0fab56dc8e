"""One registry for every family of methods: a file in the family's folder is a method by existing.

File name = registry name = test id; the class is its CamelCase. Importing `workbench.<family>.<name>`
runs its `@register`, and `names`, `get`, `entries` find the files by themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from workbench.errors import WorkbenchError, unknown

FAMILIES: dict[str, str] = {
    "tasks": "workbench.tasks",
    "locate": "workbench.locate",
    "probes": "workbench.probes",
    "scorers": "workbench.sae.scorers",
    "steering": "workbench.steering",
    "rules": "workbench.rules",
    "stepwise": "workbench.stepwise",
    "decoding": "workbench.decoding",
    "metrics": "workbench.comparison.metrics",
}


@dataclass(frozen=True)
class Citation:
    """Where a method comes from."""

    authors: str
    title: str
    year: int
    url: str

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}. {self.url}"


@dataclass(frozen=True)
class Entry:
    """One registered method: its family, name, class and citation."""

    family: str
    name: str
    cls: type
    citation: Citation

    @property
    def summary(self) -> str:
        """First line of the class docstring."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]


_entries: dict[tuple[str, str], Entry] = {}
T = TypeVar("T", bound=type)


def camel(name: str) -> str:
    """`mean_difference` -> `MeanDifference`."""
    return "".join(part.capitalize() for part in name.split("_"))


def register(family: str, citation: Citation) -> Callable[[T], T]:
    """Class decorator: enter a method into `family` under its file's name.

    Raises:
        WorkbenchError: the class is not the CamelCase of its file, or the name is taken.
    """

    def enter(cls: T) -> T:
        name = cls.__module__.rsplit(".", 1)[-1]
        where = f"register({family!r})"
        if cls.__name__ != camel(name):
            raise WorkbenchError(
                where,
                "class and file disagree",
                expected=f"class {camel(name)} in {name}.py",
                got=cls.__name__,
                do="rename one of them",
            )
        known = _entries.get((family, name))
        if (
            known
            and known.cls.__qualname__ + known.cls.__module__ != cls.__qualname__ + cls.__module__
        ):
            raise WorkbenchError(
                where,
                f"{name!r} is registered twice",
                expected="one class per name",
                got=f"{known.cls.__module__} and {cls.__module__}",
                do="rename one of them",
            )
        _entries[family, name] = Entry(family, name, cls, citation)
        return cls

    return enter


def names(family: str) -> list[str]:
    """The method names of a family, sorted; read from its folder, so nothing is imported twice."""
    return sorted(entry.name for entry in entries(family))


def entries(family: str) -> list[Entry]:
    """Every registered method of a family, sorted by name."""
    if family not in FAMILIES:
        raise unknown("registry", "family", family, FAMILIES)
    package = importlib.import_module(FAMILIES[family])
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{FAMILIES[family]}.{module.name}")
    return sorted((e for (f, _), e in _entries.items() if f == family), key=lambda e: e.name)


def get(family: str, name: str) -> Any:
    """The class registered under `name`.

    Raises:
        UnknownName: no such method; the message lists the nearest names.
    """
    for entry in entries(family):
        if entry.name == name:
            return entry.cls
    raise unknown(f"registry.get({family!r})", "method", name, [e.name for e in entries(family)])


def attribute(family: str, name: str, verbs: Mapping[str, str]) -> Any:
    """What `name` is on a family's package: a verb, from the module that `verbs` names, or a method.

    Files of the folder are imported by their names and are none of these.

    Raises:
        AttributeError: neither.
    """
    if name in verbs:
        return getattr(importlib.import_module(verbs[name]), name)
    if name[:1].isupper():
        for entry in entries(family):
            if entry.cls.__name__ == name:
                return entry.cls
    # files are asked for while methods are being imported: those cannot be listed then
    methods = classes(family) if name[:1].isupper() else [f"`workbench methods {family}`"]
    known = ", ".join([*verbs, *methods])
    raise AttributeError(f"{FAMILIES[family]} has no {name!r}; it has {known}")


def classes(family: str) -> list[str]:
    """The class names of a family's methods, in the order of their files."""
    return [entry.cls.__name__ for entry in entries(family)]
