"""The interactive engine: when an edit moves, only the layers from there upward run again.

The output of every block is kept, before any edit at its `resid_post`. A new list of edits is compared
with the last one; below the lowest difference nothing can have changed, so those blocks are left out and
the rest of the forward is the model's own. The result is what a fresh `model.run` gives, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from workbench import sites
from workbench.errors import WorkbenchError
from workbench.model.backends.base import Tap
from workbench.model.backends.skip import Upper, skipped
from workbench.model.backends.turn import turn
from workbench.model.changes import Kept, Plan, Stages, counted, lowest_difference, versions
from workbench.model.edits import BoundEdit
from workbench.model.model import Model
from workbench.model.run import gradients_off, padding, usable
from workbench.model.session import Session
from workbench.records import Receipt
from workbench.sites import Site
from workbench.tensors import Intervention, Tokens, Trace

Read = Literal["all", "last", "none"]
Record = str | Site | Iterable[str | Site]


@dataclass(frozen=True)
class Sweep:
    """One edit at several strengths, run as one batch.

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
        """What each edit did, over all strengths."""
        return self.trace.receipts

    def __getitem__(self, site: str) -> Tensor:
        """A recorded site, `[strength, batch, ...]`."""
        return self.trace[site].unflatten(0, (len(self.strengths), -1))


@dataclass(frozen=True)
class _Run:
    """What is kept of a run. `streams[l]` entered block l, before any edit between the blocks.

    Streams never leave this file, so nobody can write into them.
    """

    plan: Plan
    bound: list[BoundEdit]
    weights: tuple[int, ...]
    read: Read
    streams: list[Tensor]
    logits: Kept
    values: dict[Site, Kept]


class Live:
    """One batch of prompts, run again and again while edits move.

    Kept are a `[batch, pos, d]` tensor per block, the logits and what was recorded. Weights changed in
    place, and logits or recorded values that a caller wrote into, are noticed. A change through
    `.data`, a replaced module or a new hook of your own is not: call `forget` then.

    Args:
        model: on backend "transformers"; on another one every run is a full run, see `note`.
        prompts: text, Prompt, a list of either, or Tokens.
        edits: what `run` applies where it is given none.
        completions: ids put after each prompt, as in `model.run`.

    Attributes:
        tokens: the batch.
        edits: those of the last run.
        reran: the blocks that the last run executed; empty where at most the head ran.
        note: why every run is a full one, or "".
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
        self.note = _why_full(model)
        self._stages = Stages(model.layout, model.n_layers)
        self._pads = padding(self.tokens)
        self.forget()

    def forget(self) -> None:
        """The next run is a full one."""
        self._last: _Run | None = None
        self._weights = counted([*self.model.hf.parameters(), *self.model.hf.buffers()])
        self._upper = None if self.note else Upper(self.model.backend)

    @torch.no_grad()
    def run(
        self,
        edits: Iterable[Intervention] | None = None,
        record: Record = (),
        *,
        logits: Read = "last",
    ) -> Trace:
        """What `model.run(prompts, record, edits, logits=logits)` gives, from the changed layers on.

        Args:
            edits: in order; None repeats the last list. Equal content re-runs nothing, whoever
                made the record. Otherwise the run starts at the lowest layer where a strength,
                scope, tensor, order or presence differs: an edit of `embed` re-runs everything,
                one of `final_norm` or `logits` the head alone.
            record: sites to read. Values below the start are those of the last run; a site that
                it did not record moves the start down to there.
            logits: which positions are unembedded.

        Raises:
            WorkbenchError: as `model.run`; the next run is then compared with the last good one.
        """
        edits, read = self.edits if edits is None else tuple(edits), _as_list(record)
        self._follow_the_model()
        if self.note:
            trace = self.model.run(self.tokens, read, edits, logits=logits)
            self.edits, self.reran = edits, range(self.model.n_layers)
            return trace
        session = self.model.session(self.tokens, edits, read)
        places = sites.parse_all(read, self.model.n_layers)
        plan = self._stages.plan(session.bound, places)
        stage = self._resume_at(plan, places, logits)
        with turn(self.model.backend):
            last, receipts = self._rerun(session, plan, places, stage, logits)
        self._last, self.edits = last, edits
        self.reran = range(min(_skips(stage), self.model.n_layers), self.model.n_layers)
        in_order = sorted(places, key=lambda site: site.depth) if len(places) > 1 else places
        values = {str(site): last.values[site].tensor for site in in_order}
        return Trace(self.tokens, last.logits.tensor, values, receipts)

    @torch.no_grad()
    def sweep(
        self,
        edit: Intervention,
        strengths: Iterable[float | int],
        record: Record = (),
        *,
        logits: Read = "last",
    ) -> Sweep:
        """One edit at every strength, among the current edits, as one batch from its layer up.

        Args:
            edit: takes the place of the current edit with this operation and these tensors, or
                comes last where there is none. Its own strength is not used.
            strengths: a batch row each for every prompt; 0 is no edit.
            record, logits: as in `run`.

        Returns:
            A Sweep. Each strength equals its own run to about 1e-5 in fp32 logits, not bit for
            bit: a larger batch is summed in another order.

        Raises:
            WorkbenchError: as `model.run`, or no strengths.
        """
        values, read = _checked_strengths(strengths), _as_list(record)
        self._follow_the_model()
        rows = len(self.tokens)
        edits = _batch_edits(self.edits, edit, torch.tensor(values).repeat_interleave(rows), rows)
        tokens = _repeated(self.tokens, len(values))
        if self.note:
            return Sweep(values, self.model.run(tokens, read, edits, logits=logits))
        # re-runs nothing where nothing changed since
        self.run(logits=self._last.read if self._last else logits)
        session = self.model.session(tokens, edits, read)
        reached = sites.parse_all([*edit.sites, *read], self.model.n_layers)
        # a stand-in cannot come before the first block
        stage = min(map(self._stages.of, reached)) or -1
        with turn(self.model.backend):
            out = self._swept(session, tokens, stage, logits, copies=len(values))
        found = {site: usable(value) for site, value in session.values.items()}
        return Sweep(values, Trace(tokens, usable(out), found, session.receipts()))

    def _follow_the_model(self) -> None:
        """After `model.to(device)` nothing that is kept is where it has to be."""
        device = self.model.device
        if self.tokens.ids.device != device:
            ids, mask = self.tokens.ids.to(device), self.tokens.mask.to(device)
            self.tokens = replace(self.tokens, ids=ids, mask=mask)
            self._pads = padding(self.tokens)
            self.forget()

    def _usable(self) -> bool:
        """Whether the last run still holds: the weights are what they were."""
        last = self._last
        return last is not None and last.weights == versions(self._weights)

    def _resume_at(self, plan: Plan, places: list[Site], read: Read) -> int:
        """The lowest stage that has to run again; one beyond the head where none has."""
        last, head = self._last, self._stages.head
        if last is None or not self._usable():
            return -1
        changed = lowest_difference(last.plan, plan)
        stage = head + 1 if changed is None else changed
        if last.read != read or not last.logits.intact:
            stage = min(stage, head)
        for site in places:
            kept = last.values.get(site)
            if kept is None or not kept.intact:
                stage = min(stage, self._stages.of(site))
        return stage

    def _rerun(
        self, session: Session, plan: Plan, places: list[Site], stage: int, read: Read
    ) -> tuple[_Run, tuple[Receipt, ...]]:
        """Run again from `stage`; what is kept afterwards, and the receipts."""
        last = self._last
        if last is not None and stage > self._stages.head:
            self._take_over(session.bound, stage)
            return replace(last, bound=session.bound), session.receipts()
        # a stand-in cannot come before the first block, a direct call can
        if last is None or stage < 0 or (stage == 0 and not self._exact(last)):
            streams, logits = self._in_full(session, read)
            kept: dict[Site, Kept] = {}
        else:
            streams, logits = self._upwards(session, last, stage, read)
            kept = {s: k for s, k in last.values.items() if self._stages.of(s) < _floor(stage)}
        values = kept | _recorded(session, places, streams)
        weights = versions(self._weights) if last is None or stage < 0 else last.weights
        made = _Run(plan, session.bound, weights, read, streams, Kept(usable(logits)), values)
        return made, session.receipts()

    def _in_full(self, session: Session, read: Read) -> tuple[list[Tensor], Tensor]:
        """The whole forward; what entered the first block, every block's output, and the logits."""
        assert self._upper is not None
        outputs: list[Tensor] = []
        # before the session's own taps there, so that what is kept lacks their edits
        captures = [_capture(layer, outputs) for layer in range(self.model.n_layers)]
        with self._upper.listening():
            logits = self._forward(session, self.tokens, [*captures, *session.taps], read)
        assert self._upper.entered is not None
        return [self._upper.entered, *outputs], logits

    def _upwards(
        self, session: Session, last: _Run, stage: int, read: Read
    ) -> tuple[list[Tensor], Tensor]:
        """The same from `stage` on; streams below are the last run's."""
        upper, count, h = self._upper, _skips(stage), last.streams[_skips(stage)]
        assert upper is not None
        self._take_over(session.bound, _floor(stage))
        taps = self._taps(session, stage)
        if self._exact(last):
            _advance(session, self.tokens, self._pads)
            between = {part: _by_layer(taps, part) for part in ("resid_pre", "resid_post")}
            hooked = [tap for tap in taps if tap.site.part not in between]
            attached = self.model.backend.attach(hooked) if hooked else nullcontext()
            with attached, gradients_off(self.model):
                logits, outputs = upper.run(
                    self.tokens.ids, h, count, int(read != "all"), *between.values()
                )
        else:
            outputs = []
            taps = [_capture(layer, outputs) for layer in range(count, self.model.n_layers)] + taps
            with skipped(self.model.backend.blocks, count, h):
                logits = self._forward(session, self.tokens, taps, read)
        return [*last.streams[: count + 1], *outputs], _cut(logits, read)

    def _exact(self, last: _Run) -> bool:
        """Whether the upper blocks may be called directly."""
        assert self._upper is not None
        return self._upper.exact(self.tokens.ids, last.streams[-2], self._plain)

    def _plain(self) -> Tensor:
        """The last logits of the model's own forward, without taps."""
        with gradients_off(self.model):
            return self.model.backend.forward(
                self.tokens.ids, **self._pads, cache=None, use_cache=False, keep=1
            ).logits

    def _swept(
        self, session: Session, tokens: Tokens, stage: int, read: Read, copies: int
    ) -> Tensor:
        """Logits of `copies` of this batch from `stage` on."""
        assert self._last is not None
        count = _skips(stage)
        kept = self._last.streams[count]
        output = kept.repeat(copies, *[1] * (kept.dim() - 1)) if count else None
        self._take_over(session.bound, _floor(stage), copies)
        with skipped(self.model.backend.blocks, count, output):
            return self._forward(session, tokens, self._taps(session, stage), read)

    def _forward(self, session: Session, tokens: Tokens, taps: list[Tap], read: Read) -> Tensor:
        """The model's own forward under `taps`."""
        pads, backend = padding(tokens), self.model.backend
        _advance(session, tokens, pads)
        with backend.attach(taps), gradients_off(self.model):
            step = backend.forward(
                tokens.ids, **pads, cache=None, use_cache=False, keep=int(read != "all")
            )
        return _cut(step.logits, read)

    def _taps(self, session: Session, stage: int) -> list[Tap]:
        floor = _floor(stage)
        return [tap for tap in session.taps if self._stages.of(tap.site) >= floor]

    def _take_over(self, bound: list[BoundEdit], below: int, copies: int = 1) -> None:
        """Edits below a stage do not run: they did what they did in the last run."""
        if not bound or below < 0:
            return
        did: dict[int, list[BoundEdit]] = {}
        for edit in reversed([] if self._last is None else self._last.bound):
            did.setdefault(self._stages.of(edit.site), []).append(edit)
        for edit in bound:
            stage = self._stages.of(edit.site)
            if stage < below:
                edit.add(did[stage].pop(), copies)


def _skips(stage: int) -> int:
    """Blocks that a forward from `stage` leaves out. Edits of the last one's `resid_post` act anew."""
    return (stage + 1) // 2


def _floor(stage: int) -> int:
    """The lowest stage that a forward from `stage` reaches again."""
    return max(2 * _skips(stage) - 1, min(stage, 0))


def _recorded(session: Session, places: list[Site], streams: list[Tensor]) -> dict[Site, Kept]:
    """What was recorded; copied where it is what the next run starts from, which nobody may change."""
    found: dict[Site, Kept] = {}
    own = {h.untyped_storage().data_ptr() for h in streams} if places else set()
    for site in places:
        value = session.values.get(str(site))
        if value is not None:
            shared = value.untyped_storage().data_ptr() in own
            found[site] = Kept(value.clone() if shared else usable(value))
    return found


def _advance(session: Session, tokens: Tokens, pads: dict[str, Any]) -> None:
    session.advance(tokens.ids, None if pads["mask"] is None else tokens.positions)


def _cut(logits: Tensor, read: Read) -> Tensor:
    return logits[:, :0] if read == "none" else logits


def _by_layer(taps: list[Tap], part: str) -> dict[int, Callable[[Tensor], Tensor]]:
    return {tap.site.layer or 0: tap.fn for tap in taps if tap.site.part == part}


def _capture(layer: int, outputs: list[Tensor]) -> Tap:
    def keep(h: Tensor) -> Tensor:
        outputs.append(h)
        return h

    return Tap(Site(layer, "resid_post"), keep, writes=False)


def _why_full(model: Model) -> str:
    if model.backend.name == "transformers":
        return ""
    return f"backend {model.backend.name} runs every layer; backend 'transformers' resumes"


def _as_list(record: Record) -> list[str | Site]:
    return [record] if isinstance(record, str | Site) else list(record)


def _checked_strengths(strengths: Iterable[float | int]) -> tuple[float, ...]:
    values = tuple(float(s) for s in strengths)
    if values:
        return values
    raise WorkbenchError(
        "Live.sweep", "has no strengths", expected="at least one", got="none", do="pass some"
    )


def _batch_edits(
    edits: Sequence[Intervention], edit: Intervention, strengths: Tensor, rows: int
) -> list[Intervention]:
    """The edits of a sweep's batch, which is `len(strengths) / rows` copies of the prompts."""
    copies = len(strengths) // rows
    batch = [_copied(one, copies, rows) for one in edits]
    swept = _copied(edit.at(1.0), copies, rows).at(strengths)
    same = [i for i, one in enumerate(edits) if _same_tensors(one, edit)]
    if not same:
        return [*batch, swept]
    batch[same[0]] = swept
    return batch


def _copied(edit: Intervention, copies: int, rows: int) -> Intervention:
    """The edit for `copies` of the batch: per-row strengths and per-row values repeated."""
    if isinstance(edit.strength, Tensor):
        edit = edit.at(edit.strength.repeat(copies))
    if edit.operation != "set" or rows == 1:
        return edit
    repeated = {
        site: {
            name: w.repeat(copies, *[1] * (w.dim() - 1)) if w.dim() > 2 and len(w) == rows else w
            for name, w in weights.items()
        }
        for site, weights in edit.tensors.items()
    }
    return replace(edit, tensors=repeated)


def _same_tensors(a: Intervention, b: Intervention) -> bool:
    if a.operation != b.operation or a.tensors.keys() != b.tensors.keys():
        return False
    return all(
        a.tensors[site].keys() == weights.keys()
        and all(
            w is a.tensors[site][k] or torch.equal(w, a.tensors[site][k])
            for k, w in weights.items()
        )
        for site, weights in b.tensors.items()
    )


def _repeated(tokens: Tokens, copies: int) -> Tokens:
    ids, mask = tokens.ids.repeat(copies, 1), tokens.mask.repeat(copies, 1)
    return Tokens(ids, mask, tokens.prompts * copies, tokens.prompt_lengths * copies)
