"""TokenStrip: any numbers, one per token, over their text; or two texts aligned token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError, unknown
from workbench.model.model import Model
from workbench.records import Generation
from workbench_widgets.align import align
from workbench_widgets.base import Widget
from workbench_widgets.token_strip.reading import Side, read, scale, summary
from workbench_widgets.token_strip.still import still

LOGPROB = "log-probability"


class TokenStrip(Widget):
    """Numbers over text. Holds all it shows: it works in a page without a kernel.

    Args:
        tokens: a list with the text of each token; or a text, Prompt or Generation, with `model`.
        values: `[token]` numbers, None or NaN where a token has none; or several rows by name.
        model: whose tokenizer cuts the text.
        title: shown above.
        unit: of the values, or one by name.
        other: a second text, shown under the first and aligned with it by token.
        other_values: its values, by the same names.
        first: the absolute position of the first token; by default 0, or where a Generation begins.
        other_first: the same of the second text.
        diverging: True puts 0 in the middle of the colours; by default where both signs occur.

    Raises:
        WorkbenchError: no tokens, values that are not one per token, other names in `other_values`,
            or a first position below 0.

    Example:
        TokenStrip(["2", "+", "2"], [0.1, -0.3, 0.2], unit="logits", title="attribution")
        TokenStrip.of(generation, model)
    """

    folder = "token_strip"

    def __init__(
        self,
        tokens: Any,
        values: Any = None,
        *,
        model: Model | None = None,
        title: str = "",
        unit: str | Mapping[str, str] = "",
        other: Any = None,
        other_values: Any = None,
        first: int | None = None,
        other_first: int | None = None,
        diverging: bool | None = None,
        link: str = "",
    ):
        self._a, self._b = read(tokens, values, model, first), None
        if other is not None:
            self._b = read(other, other_values, model, other_first, "TokenStrip(other=)")
        _check(self._a, self._b, {"other_values": other_values, "other_first": other_first})
        self._title, self._diverging = title, diverging
        names = list(self._a.rows)
        self._units = {n: unit if isinstance(unit, str) else unit.get(n, "") for n in names}
        self._pairs = None if self._b is None else align(self._a.keys, self._b.keys)
        super().__init__(
            spec={"row": names[0] if names else ""},
            meta={"title": title, "rows": names, "complete": True},
            link=link,
        )
        self.refresh()

    @classmethod
    def of(
        cls,
        generation: Generation,
        model: Model,
        other: Generation | None = None,
        *,
        title: str = "",
        link: str = "",
    ) -> TokenStrip:
        """Log-probability in nats of each generated token under the model that drew it, edits included.

        `other` is a second generation, aligned with the first by token.
        """
        return cls(
            generation,
            {LOGPROB: generation.logprobs},
            model=model,
            title=title or "Log-probability of each generated token",
            unit="nats",
            other=other,
            other_values=None if other is None else {LOGPROB: other.logprobs},
            link=link,
        )

    def refresh(self) -> Any:
        """Everything is here already, so no turn of the model's worker is needed."""
        with self._turn:
            self._pending += 1
            number, spec = self._pending, dict(self.spec)
        self._took_ms = 0.0
        try:
            frame = self._frame(spec, None)
        except WorkbenchError as error:
            return self._failed(error)
        return self._publish({"of": spec, **frame}, number, last=True)

    def _frame(self, spec: dict[str, Any], _job: Any) -> Mapping[str, Any]:
        names = list(self._a.rows)
        if names and spec.get("row") not in names:
            raise unknown("TokenStrip", "row of values", spec.get("row"), names)
        sides = [side for side in (self._a, self._b) if side is not None]
        frame: dict[str, Any] = {
            "sides": [_plain(side) for side in sides],
            "names": names,
            "scales": [
                scale([side.rows[n] for side in sides], self._diverging, self._units[n])
                for n in names
            ],
            "summaries": [[summary(side.rows[n]) for side in sides] for n in names],
        }
        for key, side in zip(("values", "other_values"), sides, strict=False):
            frame[key] = np.stack([side.rows[n] for n in names] or [np.zeros(0)])
        if self._pairs is not None:
            frame["pairs"] = self._pairs
        return frame

    def table(self) -> pd.DataFrame:
        """One line per token, or per aligned pair of tokens: positions, texts and every row of values."""
        if self._b is None or self._pairs is None:
            return pd.DataFrame(_columns(self._a, np.arange(len(self._a.pieces)), ""))
        left, right = self._pairs[:, 0], self._pairs[:, 1]
        both = {**_columns(self._a, left, ""), **_columns(self._b, right, "other ")}
        return pd.DataFrame({**both, "kind": self._kinds()})

    def _kinds(self) -> list[str]:
        """What happened from the first text to the other, per aligned pair."""
        if self._b is None or self._pairs is None:
            return []
        a, b = self._a.keys, self._b.keys
        return [
            "added" if i < 0 else "removed" if j < 0 else "same" if a[i] == b[j] else "changed"
            for i, j in self._pairs.tolist()
        ]

    def to_record(self) -> pd.DataFrame:
        """The numbers with their tokens; see `table`."""
        return self.table()

    def to_code(self) -> str:
        """A cell that shows the same tokens and numbers, written out; it needs no model."""
        parts = [_texts(self._a), _values(self._a)]
        parts += [f"title={self._title!r}", f"unit={self._units!r}"]
        parts += [f"first={self._a.first}"] if self._a.first else []
        if self._b is not None:
            parts += [f"other={_texts(self._b)}", f"other_values={_values(self._b)}"]
            parts += [f"other_first={self._b.first}"] if self._b.first else []
        parts += [f"diverging={self._diverging!r}"] if self._diverging is not None else []
        inner = ",\n    ".join(parts)
        return f"from workbench_widgets import TokenStrip\n\nTokenStrip(\n    {inner},\n)\n"

    def precompute(self, grid: Any = None) -> TokenStrip:
        """Nothing is left to compute: a page without a kernel shows every row."""
        return self

    def _words(self) -> str:
        counts = f"{len(self._a.pieces)} tokens"
        if self._b is not None:
            differ = sum(kind != "same" for kind in self._kinds())
            counts += f" against {len(self._b.pieces)}, {differ} differ"
        row = self.spec.get("row")
        if row not in self._a.rows:
            return counts
        return f"{counts}, mean {row} {summary(self._a.rows[row])['mean']:.4g} {self._units[row]}".strip()

    def _still(self) -> str:
        return still(self._title, str(self.spec.get("row")), self.frame, repr(self))


def _check(a: Side, b: Side | None, of_other: Mapping[str, Any]) -> None:
    alone = next((name for name, given in of_other.items() if given is not None), None)
    if b is None and alone is not None:
        raise WorkbenchError(
            f"TokenStrip({alone}=)",
            "belongs to no text" if alone == "other_first" else "belong to no text",
            expected="other=",
            got="None",
            do="pass the second text too",
        )
    if b is not None and list(a.rows) != list(b.rows):
        raise WorkbenchError(
            "TokenStrip(other_values=)",
            "has other rows than values",
            expected=list(a.rows),
            got=list(b.rows),
            do="give both texts the same names, in the same order",
        )


def _plain(side: Side) -> dict[str, Any]:
    return {
        "text": [p.text for p in side.pieces],
        "shown": [p.shown for p in side.pieces],
        "first": side.first,
    }


def _columns(side: Side, places: np.ndarray, prefix: str) -> dict[str, list[Any]]:
    def taken(values: Any) -> list[Any]:
        return [values[k] if k >= 0 else None for k in places.tolist()]

    positions = [side.first + k for k in range(len(side.pieces))]
    columns = {"position": taken(positions), "token": taken([p.text for p in side.pieces])}
    columns |= {name: taken(row.tolist()) for name, row in side.rows.items()}
    return {f"{prefix}{name}": column for name, column in columns.items()}


def _texts(side: Side) -> str:
    return repr([p.shown or p.text for p in side.pieces])


def _values(side: Side) -> str:
    rows = (
        f"{name!r}: [{', '.join(map(_number, row.tolist()))}]" for name, row in side.rows.items()
    )
    return f"{{{', '.join(rows)}}}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "None"
    return f"float('{value}')" if math.isinf(value) else repr(value)
