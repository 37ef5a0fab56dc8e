"""The interactive engine: when an edit moves, only the layers from there upward run again.

The output of every block is kept, before any edit at its `resid_post`. A new list of edits is compared
with the last one; below the lowest difference nothing can have changed, so those blocks are left out and
the rest of the forward is the model's own. The result is what a fresh `model.run` gives, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from workbench import sites
from workbench.errors import EditError
from workbench.model.backends.base import Tap
from workbench.model.backends.skip import skipped
from workbench.model.edits import BoundEdit
from workbench.model.model import Model
from workbench.model.run import padding
from workbench.model.session import Session
from workbench.records import Receipt
from workbench.sites import Site
from workbench.tensors import Intervention, Tokens, Trace

Read = Literal["all", "last", "none"]
_RECOMPUTED = ("attention", "experts")
"""Ways of tapping that run another kernel than an untapped layer: recording there changes last bits."""


@dataclass(frozen=True)
class Sweep:
    """One edit at several strengths, as one batch.

    Attributes:
        strengths: as asked for.
        trace: the whole batch, strength-major: row `s * n_prompts + p`.
    """

    strengths: tuple[float, ...]
    trace: Trace

    @property
    def logits(self) -> Tensor:
        """`[strength, batch, pos, vocab]`."""
        return self.trace.logits.unflatten(0, (len(self.strengths), -1))

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """What each edit did, all strengths together."""
        return self.trace.receipts

    def __getitem__(self, site: str) -> Tensor:
        """A recorded site, `[strength, batch, ...]`."""
        return self.trace[site].unflatten(0, (len(self.strengths), -1))


class Live:
    """One batch of prompts, run again and again while edits move.

    Args:
        model: on the "transformers" backend; on another every run is a full one, see `note`.
        prompts: text, Prompt, a list of either, or Tokens.
        edits: what the first run applies where `run` is given none.
        completions: ids put after each prompt, as in `model.run`.

    Attributes:
        edits: of the last run.
        reran: the blocks that the last run executed; empty when at most the head ran.
        note: why every run is a full one, or "".

    Kept are one `[batch, pos, d]` tensor per block, the logits, and what was recorded. Weights changed
    in place through autograd-visible operations, and kept tensors that a caller changed, are noticed;
    after a change through `.data`, a replaced module or a new hook of yours, call `forget`.
    """

    def __init__(
        self,
        model: Model,
        prompts: Any,
        edits: Iterable[Intervention] = (),
        *,
        completions: Sequence[Iterable[int]] | None = None,
    ):
        self.model = model
        self.tokens = prompts if isinstance(prompts, Tokens) else model.tokens(prompts, completions)
        self.edits = tuple(edits)
        self.reran = range(0)
        self.note = _why_not(model)
        self._last: _Run | None = None
        self._weights = [*model.hf.parameters(), *model.hf.buffers()]
        self._stages = _Stages(model)

    @torch.no_grad()
    def run(
        self,
        edits: Iterable[Intervention] | None = None,
        record: Iterable[str | Site] = (),
        *,
        logits: Read = "last",
    ) -> Trace:
        """The trace of `model.run(prompts, record, edits, logits=logits)`, from the changed layers.

        Args:
            edits: in order; None repeats the last list. Equal content re-runs nothing, whoever
                made the record; a strength, scope, tensor, order or presence that differs re-runs
                from its layer, an edit of `embed` everything, one of `final_norm` or `logits` the
                head alone.
            record: sites to read. Values of layers that did not run again are kept from before;
                what was not recorded then is run from its layer.
            logits: which positions are unembedded.

        Raises:
            WorkbenchError: as `model.run`; then the last good run stays the one compared with.
        """
        edits = self.edits if edits is None else tuple(edits)
        record = [record] if isinstance(record, str | Site) else list(record)
        if self.note:
            trace = self.model.run(self.tokens, record, edits, logits=logits)
            self.edits, self.reran = edits, range(self.model.n_layers)
            return trace
        session = self.model.session(self.tokens, edits, record)
        want = _Run(_imprints(session, self._stages, record), session, logits, self._versions())
        stage = self._resume_at(want, record)
        trace = self._execute(want, stage, record)
        self.edits, self._last, self.reran = edits, want, self._blocks_from(stage)
        return trace

    @torch.no_grad()
    def sweep(
        self,
        edit: Intervention,
        strengths: Iterable[float],
        record: Iterable[str | Site] = (),
        *,
        logits: Read = "last",
    ) -> Sweep:
        """One edit at every strength, beside the current edits, as one batch from its layer up.

        Args:
            edit: takes the place of the current edit with the same operation and tensors, or comes
                after all others; its own strength is not used.
            strengths: one batch row per prompt and strength; 0 is no edit.
            record, logits: as in `run`.

        Returns:
            A Sweep. Each strength equals its own run to about 1e-5 in fp32 logits: a larger batch
            sums in another order. Bit for bit equality holds at equal batch composition only.
        """
        values = tuple(float(s) for s in strengths)
        if not values:
            raise EditError("Live.sweep", "has no strengths", expected="at least one", got=0, do="add")
        record = [record] if isinstance(record, str | Site) else list(record)
        rows = len(self.tokens)
        per_row = torch.tensor(values).repeat_interleave(rows)
        edits = _swept(self.edits, edit.at(per_row), len(values), rows)
        tokens = _repeated(self.tokens, len(values))
        if self.note:
            return Sweep(values, self.model.run(tokens, record, edits, logits=logits))
        last = self._ready()
        session = self.model.session(tokens, edits, record)
        swept = [self._stages.of(s) for text in edit.sites for s in self._parse(text)]
        read = [self._stages.of(s) for s in self._parse(*record)]
        stage = min([*swept, *read, self._stages.head])
        trace = self._forward(session, last, stage, logits, copies=len(values))
        return Sweep(values, trace)

    def forget(self) -> None:
        """The next run is a full one."""
        self._last = None
        self._weights = [*self.model.hf.parameters(), *self.model.hf.buffers()]

    def _ready(self) -> _Run:
        """The last run, brought up to date with the weights."""
        if self._last is None or self._last.weights != self._versions():
            self.run()
        elif not all(kept.intact for kept in self._last.outputs):
            self.run()
        assert self._last is not None
        return self._last

    def _versions(self) -> tuple[int, ...]:
        return tuple(p._version for p in self._weights)

    def _parse(self, *texts: str | Site) -> list[Site]:
        return sites.parse_all(list(texts), self.model.n_layers)

    def _resume_at(self, want: _Run, record: list[str | Site]) -> int:
        """The lowest stage that has to run again; beyond the head where none has."""
        last, head = self._last, self._stages.head
        if last is None or last.weights != want.weights:
            return -1
        if not all(kept.intact for kept in last.outputs):
            return -1
        stage = _lowest_difference(last.imprints, want.imprints, default=head + 1)
        if last.read != want.read or not last.logits.intact:
            stage = min(stage, head)
        for site in self._parse(*record):
            kept = last.values.get(str(site))
            if kept is None or not kept.intact:
                stage = min(stage, self._stages.of(site))
        return stage

    def _execute(self, want: _Run, stage: int, record: list[str | Site]) -> Trace:
        """Run from `stage` and keep in `want` what the next run may need."""
        last, session = self._last, want.session
        if last is not None and stage > self._stages.head:
            want.take_over(last)
            _inherit(session.bound, last.session.bound, lambda _site: True)
            kept = {str(s): last.values[str(s)].tensor for s in self._parse(*record)}
            return Trace(self.tokens, last.logits.tensor, kept, session.receipts())
        captured: dict[int, Tensor] = {}
        trace = self._forward(session, last, stage, want.read, captured=captured)
        below = last.outputs[: _skips(stage)] if last is not None else []
        want.outputs = [*below, *(_Kept(captured[i]) for i in sorted(captured))]
        want.logits = _Kept(trace.logits)
        old = last.values if last is not None else {}
        floor = 2 * _skips(stage) - 1
        want.values = {k: v for k, v in old.items() if self._stages.of_text(k) < floor}
        asked = {str(s): want.values[str(s)].tensor for s in self._parse(*record) if str(s) in want.values}
        want.values |= {k: _Kept(v) for k, v in trace.values.items()}
        return replace(trace, values={**asked, **trace.values})

    def _forward(
        self,
        session: Session,
        last: _Run | None,
        stage: int,
        read: Read,
        *,
        captured: dict[int, Tensor] | None = None,
        copies: int = 1,
    ) -> Trace:
        """The forward with the blocks below `stage` left out; `captured` is filled with outputs."""
        count, tokens = _skips(stage), session.tokens
        output = last.outputs[count - 1].tensor if last is not None and count else None
        if output is not None and copies > 1:
            output = output.repeat(copies, *[1] * (output.dim() - 1))
        if last is not None:
            above = 2 * count - 1
            _inherit(session.bound, last.session.bound, lambda s: self._stages.of(s) < above, copies)
        taps = [t for t in session.taps if self._stages.of(t.site) >= 2 * count - 1]
        if captured is not None:
            # before the session's own taps there, so that edits of resid_post are not in what is kept
            taps = [*_captures(captured, range(count, self.model.n_layers)), *taps]
        session.advance(tokens.ids, tokens.positions)
        backend = self.model.backend
        with skipped(backend.blocks, count, output), backend.attach(taps):
            step = backend.forward(
                tokens.ids, **padding(tokens), cache=None, use_cache=False, keep=int(read != "all")
            )
        logits = step.logits[:, :0] if read == "none" else step.logits
        return Trace(tokens, logits, session.values, session.receipts())

    def _blocks_from(self, stage: int) -> range:
        return range(_skips(min(stage, self._stages.head)), self.model.n_layers)
