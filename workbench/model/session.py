"""One run with edits and recordings: from records to backend taps, and back to values and receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from workbench import sites
from workbench.errors import EditError
from workbench.model import edits as bound_edits
from workbench.model.backends.base import Backend, Tap
from workbench.model.backends.turn import turn
from workbench.model.layouts.base import Dims
from workbench.model.positions import Encode, Frame
from workbench.records import Receipt
from workbench.sites import Site
from workbench.tensors import Fingerprint, Intervention, Tokens


class Session:
    """Edits and recordings of one call, attached to a backend while the call lasts."""

    def __init__(
        self,
        backend: Backend,
        dims: Dims,
        model: Fingerprint,
        tokens: Tokens,
        edits: Iterable[Intervention],
        record: Iterable[str | Site],
        bos_id: int | None,
        encode: Encode,
    ):
        self.frame = Frame(tokens.prompt_lengths, bos_id, encode)
        self.frame.backend = backend
        self.values: dict[str, Tensor] = {}
        self.bound = bound_edits.bind(
            edits, lambda text: sites.parse(text, dims.n_layers), dims, model, len(tokens)
        )
        self._dropped_generated = False
        self.driven = not any(edit.stepwise for edit in self.bound)
        self._backend = backend
        recorded = sites.parse_all(list(record), dims.n_layers)
        for site in recorded:
            bound_edits.check_selectors(site, dims)
        self.taps = self._make_taps(recorded)
        for tap in self.taps:
            backend.check(tap.site, write=tap.writes)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Taps are live inside; nothing is left behind, whatever happens."""
        with turn(self._backend), self._backend.attach(self.taps):
            yield

    def advance(self, ids: Tensor, positions: Tensor | None, *, padded: bool = True) -> None:
        """Tell the edits which tokens the next forward reads, see `Frame.advance`."""
        self.frame.advance(ids, positions, padded=padded)
        if not self.driven and self.frame.generated:
            raise _undriven(self.bound)

    @property
    def saw_generated(self) -> bool:
        """Whether any row has read a generated token so far; positions only grow."""
        return self._dropped_generated or self.frame.generated

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self._dropped_generated = self.saw_generated
        self.frame.keep(rows)
        for edit in self.bound:
            edit.keep(rows)

    def receipts(self) -> tuple[Receipt, ...]:
        """What the edits did, or an error where one did nothing."""
        return bound_edits.check_receipts(self.bound, lambda: self.saw_generated)

    def _make_taps(self, record: list[Site]) -> list[Tap]:
        """One tap per place: its edits in order, then its recordings.

        No tap holds the session: what it recorded is freed without waiting for a garbage collection.
        """
        places: dict[Site, list[Callable[[Tensor], Tensor]]] = {}
        written = {edit.site.base for edit in self.bound}
        for edit in self.bound:
            places.setdefault(edit.site.base, []).append(
                lambda h, edit=edit, frame=self.frame: edit.apply(h, frame)
            )
        for site in record:
            places.setdefault(site.base, []).append(_recorder(site, self.values, self.frame))
        for edit in self.bound:
            for text, site in edit.reads.items():
                places.setdefault(site, []).append(_reader(text, site, edit.seen))
        return [
            Tap(site, _chain(fns), site in written)
            for site, fns in sorted(places.items(), key=lambda item: item[0].depth)
        ]


def _recorder(site: Site, values: dict[str, Tensor], frame: Frame) -> Callable[[Tensor], Tensor]:
    text = str(site)
    # OLMoE clamps its projections in place after the hook has seen them
    copied = site.part in ("q", "k", "v")

    def keep(h: Tensor) -> Tensor:
        value = _selected(h, site, frame) if site.selectors else h
        values[text] = value.clone() if copied and not torch.is_grad_enabled() else value
        return h

    return keep


def _reader(text: str, site: Site, seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Shows a value to the rule of an edit that stands further on in the same forward."""
    copied = site.part in ("q", "k", "v")  # as in `_recorder`

    def show(h: Tensor) -> Tensor:
        seen[text] = h.clone() if copied else h
        return h

    return show


def _undriven(bound: Iterable[bound_edits.BoundEdit]) -> EditError:
    (name, *_) = [edit.edit.label for edit in bound if edit.stepwise]
    return EditError(
        f"edit {name!r}",
        "decides anew at every generated token, which one forward over finished text cannot do",
        expected="model.generate, or a prompt without a continuation",
        got="generated tokens in one forward",
        do="use model.generate, which calls it step by step",
    )


def _selected(h: Tensor, site: Site, frame: Frame) -> Tensor:
    """What the selectors mean; the axis of a single index is gone."""
    value = bound_edits.select(h, site)
    pos = site.selector("pos")
    if pos is not None:
        value = _columns(value, site, pos, frame)
    for dim, key in reversed(list(enumerate(site.axes, start=1))):
        if key != "pos" and isinstance(site.selector(key), int):
            value = value.squeeze(dim)
    return value


def _columns(value: Tensor, site: Site, pos: sites.Index, frame: Frame) -> Tensor:
    dim = 1 + (site.axes.index("pos") if "pos" in site.axes else site.axes.index("q"))
    many = [pos] if isinstance(pos, int) else list(pos)
    rows = torch.arange(value.shape[0])
    picked = [value.movedim(dim, 1)[rows, frame.column(p)] for p in many]
    return picked[0] if isinstance(pos, int) else torch.stack(picked, 1).movedim(1, dim)


def _chain(fns: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if len(fns) == 1:
        return fns[0]

    def run(h: Tensor) -> Tensor:
        for fn in fns:
            h = fn(h)
        return h

    return run
