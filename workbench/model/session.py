"""One run with edits and recordings: from records to backend taps, and back to values and receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from workbench import sites
from workbench.model import edits as bound_edits
from workbench.model.backends.base import Backend, Tap
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
        self.frame = Frame(list(tokens.prompt_lengths), bos_id, encode)
        self.values: dict[str, Tensor] = {}
        self.bound = bound_edits.bind(
            edits, lambda text: sites.parse(text, dims.n_layers), dims, model, len(tokens)
        )
        self._saw_generated = False
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
        with self._backend.attach(self.taps):
            yield

    def advance(self, ids: Tensor, positions: Tensor) -> None:
        """Tell the edits which tokens the next forward reads, `[batch, pos]` both."""
        self.frame.advance(ids, positions)
        generated = self.frame.positions >= self.frame.prompt_lengths
        self._saw_generated = self._saw_generated or bool(generated.any())

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.frame.keep(rows)
        for edit in self.bound:
            edit.keep(rows)

    def receipts(self) -> tuple[Receipt, ...]:
        """What the edits did, or an error where one did nothing."""
        return bound_edits.check_receipts(self.bound, saw_generated=self._saw_generated)

    def _make_taps(self, record: list[Site]) -> list[Tap]:
        """One tap per place: its edits in order, then its recordings."""
        places: dict[Site, list[Callable[[Tensor], Tensor]]] = {}
        written = {edit.site.base for edit in self.bound}
        for edit in self.bound:
            places.setdefault(edit.site.base, []).append(
                lambda h, edit=edit: edit.apply(h, self.frame)
            )
        for site in record:
            places.setdefault(site.base, []).append(lambda h, site=site: self._record(site, h))
        return [
            Tap(site, _chain(fns), site in written)
            for site, fns in sorted(places.items(), key=lambda item: item[0].depth)
        ]

    def _record(self, site: Site, h: Tensor) -> Tensor:
        value = bound_edits.select(h, site)
        pos = site.selector("pos")
        if pos is not None:
            value = self._columns(site, value, pos)
        for dim, key in reversed(list(enumerate(site.axes, start=1))):
            if key != "pos" and isinstance(site.selector(key), int):
                value = value.squeeze(dim)
        # OLMoE clamps its projections in place after the hook has seen them
        self.values[str(site)] = value.clone() if site.part in ("q", "k", "v") else value
        return h

    def _columns(self, site: Site, value: Tensor, pos: sites.Index) -> Tensor:
        dim = 1 + (site.axes.index("pos") if "pos" in site.axes else site.axes.index("q"))
        many = [pos] if isinstance(pos, int) else list(pos)
        rows = torch.arange(value.shape[0])
        picked = [value.movedim(dim, 1)[rows, self.frame.column(p)] for p in many]
        return picked[0] if isinstance(pos, int) else torch.stack(picked, 1).movedim(1, dim)


def _chain(fns: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if len(fns) == 1:
        return fns[0]

    def run(h: Tensor) -> Tensor:
        for fn in fns:
            h = fn(h)
        return h

    return run
