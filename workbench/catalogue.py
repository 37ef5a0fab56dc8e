"""What this installation holds, as tables: registered methods and shipped models.

The README's tables are written here and checked by a test, so they cannot drift from the code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import data_path, registry
from workbench.errors import FileRefused, WorkbenchError

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class ShippedModel:
    """A model under data/models, read from its files without loading it."""

    name: str
    architecture: str
    layers: int
    width: int
    parameters: int
    megabytes: float


def methods(family: str | None = None) -> list[registry.Entry]:
    """Every registered method, or those of one family, in the order of the families."""
    families = [family] if family else list(registry.FAMILIES)
    return [entry for name in families for entry in registry.entries(name)]


def models() -> list[ShippedModel]:
    """The shipped models, by name."""
    folder = data_path() / "models"
    return [_read_model(config.parent) for config in sorted(folder.glob("*/config.json"))]


def method_rows(family: str | None = None) -> Rows:
    """Rows of family, name, summary and citation, after a heading row."""
    heading = ("family", "method", "what it does", "source")
    found = methods(family)
    return [heading, *((e.family, e.name, e.summary, str(e.citation)) for e in found)]


def model_rows() -> Rows:
    """Rows of name, architecture, shape, parameters and size, after a heading row."""
    heading = ("model", "architecture", "layers x width", "parameters", "size")
    return [heading, *(_model_row(m) for m in models())]


def as_text(rows: Rows) -> str:
    """Rows as aligned columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(rows: Rows) -> str:
    """Rows as a Markdown table."""
    heading, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(r) + " |" for r in (heading, ["---"] * len(heading), *body))


def with_tables(readme: str) -> str:
    """The README's text with its generated tables made anew."""
    text = _between(readme, "methods", as_markdown(_readme_method_rows()))
    return _between(text, "models", as_markdown(model_rows()))


def _readme_method_rows() -> Rows:
    def linked(e: registry.Entry) -> tuple[str, ...]:
        first, *others = e.citation.authors.split(", ")
        authors = f"{first} et al." if len(others) > 1 else e.citation.authors
        source = f"[{authors} {e.citation.year}]({e.citation.url})"
        return e.family, f"`{e.name}`", e.summary, source

    return [("family", "method", "what it does", "source"), *map(linked, methods())]


def _between(text: str, name: str, table: str) -> str:
    start, stop = f"<!-- {name}: start -->", f"<!-- {name}: stop -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(stop)
    if not (opened and closed):
        raise WorkbenchError(
            "README.md",
            f"has no place for the {name} table",
            expected=f"{start} and {stop}",
            got="no such markers",
            do="put them back",
        )
    return f"{before}{start}\n{table}\n{stop}{after}"


def _read_model(folder: Path) -> ShippedModel:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    files = sorted(folder.glob("*.safetensors"))
    return ShippedModel(
        name=folder.name,
        architecture=config["model_type"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        parameters=sum(map(_count_parameters, files)),
        megabytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6,
    )


def _count_parameters(file: Path) -> int:
    """From the header alone: eight bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError) as error:
        raise FileRefused(
            str(file),
            "is not a whole safetensors file",
            expected="a length and a JSON header",
            got=type(error).__name__,
            do="restore it from the repository",
        ) from error
    return sum(_product(e["shape"]) for name, e in header.items() if name != "__metadata__")


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _model_row(m: ShippedModel) -> tuple[str, ...]:
    shape, size = f"{m.layers} x {m.width}", f"{m.megabytes:.1f} MB"
    return m.name, m.architecture, shape, f"{m.parameters / 1e6:.2f} M", size
