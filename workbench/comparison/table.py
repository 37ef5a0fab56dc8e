"""Tables and figures: what a comparison hands back. They hold numbers and words, no tensors."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from workbench.comparison import layout
from workbench.errors import FileRefused, WorkbenchError, unknown
from workbench.files import refuse_pickle, write_atomically
from workbench.prompts.plain import from_plain, to_plain
from workbench.records import Generation

FORMAT = "workbench.table"
VERSION = 1
COMPARED = ("arm", "prompt", "seed", "metric", "value", "unit")


@dataclass(frozen=True, repr=False)
class Table:
    """Tidy rows with units and provenance.

    Attributes:
        columns: equally long columns by name. A comparison has arm, prompt, seed, metric, value,
            unit.
        units: what the values of a column, or of a metric, are counted in.
        provenance: model, edits, decoder, seeds, versions, date: what made these numbers.
        generations: the texts behind the numbers.
    """

    columns: Mapping[str, Sequence[Any]]
    units: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    generations: tuple[Generation, ...] = ()

    def __post_init__(self) -> None:
        if len({len(c) for c in self.columns.values()}) > 1:
            raise WorkbenchError(
                "Table",
                "has columns of different lengths",
                expected="equal lengths",
                got={k: len(c) for k, c in self.columns.items()},
                do="correct the columns",
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def frame(self) -> Any:
        """All rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame({name: list(column) for name, column in self.columns.items()})

    def summary(self, against: str | None = None) -> Any:
        """A DataFrame with a row per arm and metric: the mean, its 95 % interval, and the
        difference to another arm.

        Differences are paired by prompt; their interval is a bootstrap over prompts, their p-value
        a sign-flip test, Holm-corrected over the whole summary. `differs` holds where the interval
        leaves out 0, the corrected p-value is below 0.05, and the difference is no smaller than
        `seed_sd`, the standard deviation over seeds of the other arm's mean (NaN for one seed).

        Args:
            against: the arm to compare with; the baseline by default.

        Raises:
            WorkbenchError: the table is no comparison.
            UnknownName: no such arm.
        """
        if not self._compared:
            raise WorkbenchError(
                "Table.summary",
                "is no comparison",
                expected=f"columns {list(COMPARED)}",
                got=list(self.columns),
                do="use frame()",
            )
        base = against or self.provenance.get("base") or self.arms[0]
        if base not in self.arms:
            raise unknown("Table.summary(against=...)", "arm", base, self.arms)
        from workbench.comparison.summary import summarise

        return summarise(self.frame(), base)

    @cached_property
    def _shown(self) -> Any:
        """The summary that text, HTML and figure show, computed once."""
        return self.summary()

    @property
    def arms(self) -> list[str]:
        """Arm names in the order of their first row."""
        return list(dict.fromkeys(self.columns.get("arm", ())))

    def figure(self) -> Figure:
        """Means with 95 % intervals, one panel per metric, one point per arm."""
        metrics = list(dict.fromkeys(self.columns.get("metric", ())))
        n = len(set(self.columns.get("prompt", ())))
        caption = f"Mean and 95 % interval over {n} prompts; one point per arm."
        if n == 1:
            caption = "One prompt: no interval over prompts; one point per arm."
        return Figure(self, {"kind": "means", "metrics": metrics}, caption)

    def read(self, arm: str | None = None, prompt: int | None = None) -> list[Generation]:
        """The generations of an arm, of one prompt (by its number) over the arms, or both."""
        n = int(self.provenance.get("n_prompts", 0)) or len(self.generations)
        return [
            g
            for i, g in enumerate(self.generations)
            if arm in (None, g.arm) and prompt in (None, i % n)
        ]

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV."""
        write_atomically(Path(path), self.frame().to_csv(index=False).encode())
        return Path(path)

    def save(self, path: str | Path) -> Path:
        """Write everything, generations included, as one JSON file; `Table.load` gives it back."""
        refuse_pickle(Path(path))
        plain = {"format": FORMAT, "version": VERSION, **self._plain()}
        write_atomically(Path(path), json.dumps(plain, allow_nan=False).encode())
        return Path(path)

    def _plain(self) -> dict[str, Any]:
        """Everything as values that JSON knows; `_of` makes it a table again."""
        return {
            "columns": {k: [_without_nan(v) for v in c] for k, c in self.columns.items()},
            "missing": [k for k, c in self.columns.items() if any(map(_is_nan, c))],
            "units": dict(self.units),
            "provenance": dict(self.provenance),
            "generations": [{**asdict(g), "prompt": to_plain(g.prompt)} for g in self.generations],
        }

    @classmethod
    def _of(cls, plain: dict[str, Any]) -> Any:
        columns = dict(plain["columns"])
        for name in {"value", *plain.get("missing", ())} & set(columns):
            columns[name] = [float("nan") if v is None else v for v in columns[name]]
        generations = tuple(_generation(g) for g in plain["generations"])
        return cls(columns, plain["units"], plain["provenance"], generations)

    @classmethod
    def load(cls, path: str | Path) -> Table:
        """Read a table back.

        Raises:
            FileRefused: a pickle, or a file that is not a table of this version.
        """
        path = Path(path)
        refuse_pickle(path)
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if (plain["format"], plain["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {plain['format']} {plain['version']}")
            return cls._of(plain)
        except (OSError, ValueError, KeyError, TypeError) as reason:
            raise FileRefused(
                f"{cls.__name__}.load({str(path)!r})",
                f"is not a saved {cls.__name__.lower()} ({reason})",
                expected=f"a file of format {FORMAT} {VERSION}",
                got=path.suffix or "no suffix",
                do=f"save it again with {cls.__name__}.save",
            ) from None

    @property
    def _compared(self) -> bool:
        return set(COMPARED) <= set(self.columns) and len(self) > 0

    def __repr__(self) -> str:
        if not self._compared:
            return f"Table({len(self)} rows; columns {', '.join(self.columns)})"
        return layout.as_text(self._shown, self.provenance)

    def _repr_html_(self) -> str:
        if not self._compared:
            return f"<pre>{escape(repr(self))}</pre>"
        return layout.as_html(self._shown, self.provenance)


@dataclass(frozen=True, repr=False)
class Figure:
    """A chart as data: its table, what is drawn, and a caption.

    Attributes:
        table: where the numbers come from.
        spec: plain values that say what is drawn.
        caption: a sentence under it.
    """

    table: Table
    spec: Mapping[str, Any]
    caption: str = ""

    def frame(self) -> Any:
        """The numbers drawn, as a pandas DataFrame."""
        return self.table._shown.copy()

    def plot(self) -> Any:
        """A plotly figure, what `workbench.figures.<kind>` draws."""
        # figures stand on the floor above; they are found by their name
        drawer = importlib.import_module(f"workbench.figures.{self.spec['kind']}")
        return drawer.draw(self.frame(), self.spec, self.caption)

    def __repr__(self) -> str:
        return f"Figure({self.spec.get('kind')}: {self.caption})"

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        return self.plot()._repr_mimebundle_(*args, **kwargs)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _without_nan(value: Any) -> Any:
    return None if _is_nan(value) else value


def _generation(plain: dict[str, Any]) -> Generation:
    ids, logprobs = tuple(plain["ids"]), tuple(plain["logprobs"])
    return Generation(
        **{**plain, "prompt": from_plain(plain["prompt"]), "ids": ids, "logprobs": logprobs}
    )
