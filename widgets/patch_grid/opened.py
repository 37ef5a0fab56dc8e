"""A place of a map, opened: which runs there are, and what each of them says next.

base      the run that is changed: the corrupted prompts for denoising, else the clean ones
source    where patched values come from
patched   the base with the source's own values at the place, case by case
edited    the base with the map's edit of the place, at the slider's strength

The first three do not move with the slider: the patched run is kept, the others keep their streams, so
that only layers above a change run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.locate.base import Cases
from workbench.locate.sides import Sides
from workbench.model.changes import counted, versions
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.patching.map import Map
from workbench.patching.patcher import Patched
from workbench.tensors import Intervention
from workbench_widgets.next_tokens import cases_at, next_tokens
from workbench_widgets.patch_grid.maps import beside, column, direction, labels, puts_values_in
from workbench_widgets.pieces import pieces

CASES_RUN = 32
TOKENS_NAMED = 4
SITES_NAMED = 3


class Opened:
    """Runs of some cases of a map, kept between clicks.

    Args:
        rows: which cases; at most the first 32 of them are run.
    """

    def __init__(self, model: Model, cases: Cases, found: Map, rows: list[int], top: int):
        self.model, self.found, self.top = model, found, top
        self.rows = rows[:CASES_RUN]
        self.left_out = len(rows) - len(self.rows)
        self.cases = cases_at(cases, self.rows)
        self._sides = None
        self.direction = direction(found) if cases.corrupted is not None else None
        if self.direction is not None:
            self._sides = Sides.of(self.cases, self.direction)
        base = self._sides.base if self._sides else self.cases.clean
        other = self._sides.source if self._sides else self.cases.corrupted
        self._lives = {name: Live(model, base) for name in ("base", "edited")}
        if other is not None:
            self._lives["source"] = Live(model, other)
        self._weights = counted([*model.hf.parameters(), *model.hf.buffers()])
        self._patched: tuple[Any, Tensor] | None = None

    def at(self, place: Sequence[int], strength: float) -> dict[str, Any]:
        """What the place says and what the runs give, as JSON."""
        edit, why = self._edit(place)
        runs = self._runs(place, edit, strength)
        return {
            "labels": labels(self.found, place),
            "site": self.site(place) if "patched" in runs else _sites(edit),
            "tokens_at": self._tokens(place),
            "direction": self.direction,
            "cases": len(self.rows),
            "left_out": self.left_out,
            "beside": beside(self.found, place),
            "does_nothing": "patched" in runs and bool((runs["patched"] == runs["base"]).all()),
            "unit": edit.unit if edit else "",
            "no_edit": why,
            **next_tokens(self.model, self.cases, runs, self.top),
        }

    def site(self, place: Sequence[int]) -> str:
        """Where a patching method puts values in at a place."""
        at, options = labels(self.found, place), self.found.provenance.get("options") or {}
        return f"L{at['layer']}.{at.get('part') or options.get('part', 'resid_pre')}"

    def _edit(self, place: Sequence[int]) -> tuple[Intervention | None, str]:
        """The map's edit of a place, or why there is none."""
        if self.found.scores.edit is None:
            return None, ""
        try:
            return self.found.edit(**labels(self.found, place)), ""
        except WorkbenchError as error:  # both runs agree there, or every case has another position
            return None, str(error).split(";")[0]

    def _runs(
        self, place: Sequence[int], edit: Intervention | None, strength: float
    ) -> dict[str, Tensor]:
        runs = {"base": self._logits("base", ())}
        if "source" in self._lives:
            runs["source" if self.direction else "corrupted"] = self._logits("source", ())
        if self._sides is not None and puts_values_in(self.found):
            runs["patched"] = self._kept_patch(self._sides, place)
        if edit is not None:
            # that it changes nothing at all is worth seeing
            now = replace(edit.at(strength), conditional=True)
            runs["edited"] = self._logits("edited", (now,))
        return runs

    def _logits(self, name: str, edits: Sequence[Intervention]) -> Tensor:
        return self._lives[name].run(edits).logits[:, -1]

    def _kept_patch(self, two: Sides, place: Sequence[int]) -> Tensor:
        key = (tuple(place), versions(self._weights))
        if self._patched is None or self._patched[0] != key:
            self._patched = key, self._patch(two, place)
        return self._patched[1]

    def _patch(self, two: Sides, place: Sequence[int]) -> Tensor:
        """Logits of the base with the source's own values at the place, case by case: `[case, vocab]`."""
        at, site = labels(self.found, place), self.site(place)
        own, other = (self._lives[name].run((), [site])[site] for name in ("base", "source"))
        values = two.put(own, other)
        if "neuron" in at:
            values, whole = own.clone(), values
            values[..., at["neuron"]] = whole[..., at["neuron"]]
        patches = two.patches(site, values, column(self.found, place, self.cases), at.get("head"))
        logits = Patched(self.model, progress=False)(two.base, [patches], lambda z: z)
        return logits[0]

    def _tokens(self, place: Sequence[int]) -> dict[str, list[str]]:
        """The tokens at the place's position, clean and corrupted, each once."""
        at = column(self.found, place, self.cases)
        if at is None:
            return {}
        found = {"clean": _named(self.model, self.cases.clean, at)}
        if self.cases.corrupted is not None and self.cases.columns is not None:
            other = self.cases.columns[:, at].tolist()
            found["corrupted"] = _named(self.model, self.cases.corrupted, other)
        return found


def _sites(edit: Intervention | None) -> str:
    many = edit.sites if edit else ()
    return ", ".join(many[:SITES_NAMED]) + (", …" if len(many) > SITES_NAMED else "")


def _named(model: Model, tokens: Any, at: int | Sequence[int]) -> list[str]:
    columns = [at] * len(tokens) if isinstance(at, int) else at
    found: dict[str, None] = {}
    for row, i in enumerate(columns):
        if i < 0 or not bool(tokens.mask[row, i]):
            continue
        before = tokens.ids[row, max(0, i - 1) : i].tolist()
        found[pieces(model.tokenizer, [int(tokens.ids[row, i])], before)[0]] = None
    many = [*found]
    return many if len(many) <= TOKENS_NAMED else [*many[:TOKENS_NAMED], "…"]
