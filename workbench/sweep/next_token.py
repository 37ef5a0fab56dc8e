"""Next-token logits of an edit at every layer and strength: no text, so a map of a model in seconds.

Each layer's cells start from the residual stream below the edit, all strengths go as one batch, and
only the last position is unembedded (`Live.sweep`). A cell equals its own `model.run` to about 1e-5
in fp32 logits; strength 0 is the base, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import EditError, WorkbenchError
from workbench.interventions.control import random_control
from workbench.linalg import kl_divergence
from workbench.model.live import Live
from workbench.model.model import free_bytes
from workbench.model.tokens import as_prompts
from workbench.sweep.strength_by_layer import (
    STRENGTHS,
    checked_layers,
    checked_strengths,
    sites_by_layer,
)
from workbench.tensors import Intervention

Ids = int | Sequence[int]
Edits = dict[int, Intervention | None]


@dataclass(frozen=True)
class NextToken:
    """What the model would say next under every setting. All tensors on the CPU, in float32.

    Attributes:
        layers, strengths: the axes, sorted.
        read: the token ids that are kept, in the order of the last axis; None for all of them.
        base: logits without an edit, `[prompt, token]`.
        logits: `[layer, strength, prompt, token]`; NaN in a cell that failed.
        base_total, total: log of the summed exponentials of all logits, those not kept included,
            `[prompt]` and `[layer, strength, prompt]`.
        kl: KL(edited || base) over the whole vocabulary in nats, `[layer, strength, prompt]`.
        errors: (layer, strength) -> why the cell failed, in words.
        control: the same for a random direction of the same norm, where it was asked for.
    """

    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    read: tuple[int, ...] | None
    base: Tensor
    logits: Tensor
    base_total: Tensor
    total: Tensor
    kl: Tensor
    errors: dict[tuple[int, float], str] = field(default_factory=dict)
    control: NextToken | None = None

    def probability(self, ids: Ids) -> Tensor:
        """Probability of a token, `[layer, strength, prompt]`. `ids`: one id, or one per prompt.

        Raises:
            WorkbenchError: an id that was not kept, or not one per prompt.
        """
        return (self._of(self.logits, ids) - self.total).exp()

    def base_probability(self, ids: Ids) -> Tensor:
        """The same without an edit, `[prompt]`."""
        return (self._of(self.base, ids) - self.base_total).exp()

    def logit_difference(self, a: Ids, b: Ids) -> Tensor:
        """Logit of `a` less logit of `b`, `[layer, strength, prompt]`; ids as in `probability`."""
        return self._of(self.logits, a) - self._of(self.logits, b)

    def base_logit_difference(self, a: Ids, b: Ids) -> Tensor:
        """The same without an edit, `[prompt]`."""
        return self._of(self.base, a) - self._of(self.base, b)

    def kl_nats(self) -> Tensor:
        """KL(edited || base) of the next token, mean over prompts, `[layer, strength]`."""
        return self.kl.mean(-1)

    def top(self) -> Tensor:
        """The likeliest kept token's id, `[layer, strength, prompt]`; -1 in a cell that failed."""
        best = self.logits.nan_to_num().argmax(-1)
        best = best if self.read is None else torch.tensor(self.read)[best]
        return torch.where(self.total.isnan(), -1, best)

    def _of(self, logits: Tensor, ids: Ids) -> Tensor:
        prompts = self.base.shape[0]
        many = [ids] * prompts if isinstance(ids, int) else list(ids)
        if len(many) != prompts:
            raise _refused("ids are not one per prompt", prompts, len(many), "pass one id, or all")
        known = range(self.base.shape[1]) if self.read is None else self.read
        missing = sorted({i for i in many if i not in known})
        if missing:
            kept = f"some of {list(known)[:8]}" if self.read else f"ids below {len(known)}"
            raise _refused("tokens were not kept", kept, missing, "name them in read=")
        column = torch.tensor([known.index(i) for i in many])
        return logits.gather(-1, column[:, None].expand(*logits.shape[:-1], 1)).squeeze(-1)


def next_token(
    model: Any,
    prompts: Any,
    edit: Intervention | Callable[[int], Intervention],
    strengths: Iterable[float | int] = STRENGTHS,
    *,
    layers: Iterable[int] | None = None,
    read: Iterable[int] | None = None,
    control: bool = False,
    control_seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> NextToken:
    """Next-token logits at the last position of every prompt, for every layer and strength.

    Args:
        edit: one with sites in several layers, each layer's sites taken alone, or a callable from a
            layer's number to the edit there (called once per layer).
        layers: those of the edit, or all, by default.
        read: token ids whose logits are kept; all by default. Probabilities stay exact either way.
        control: also a random direction of the same norm for every cell.
        batch_size: rows at once, a row being a prompt at a strength; sized to memory by default.
        progress: show a bar.

    Returns:
        A NextToken. An edit that cannot be applied, does nothing, or makes the model overflow for any
        prompt leaves NaN in its cell, and its reason in `errors`.

    Raises:
        WorkbenchError: no layers or strengths, a strength that is not finite, an id outside the
            vocabulary, or a result beyond the free memory.
        PromptError: a prompt that the model cannot read.
    """
    job = _Job(model, as_prompts(prompts), checked_strengths(strengths), _kept(read, model))
    edits = _edits(edit, layers, model.n_layers)
    kinds: list[Edits] = [edits]
    if control:
        kinds.append({y: one and random_control(one, control_seed) for y, one in edits.items()})
    job.refuse_beyond_memory(len(edits) * len(kinds))
    size = batch_size or model.fitting_batch(job.prompts, 0)
    found = [_Found.empty(job, kind) for kind in kinds]
    chunks = job.chunks(size)
    bar = tqdm(total=len(chunks) * len(found), desc="next token", disable=not progress)
    with bar:
        for rows in chunks:
            live = Live(model, [job.prompts[i] for i in rows])
            base = job.based(live, rows, found)
            for one in found:
                one.fill(job, live, rows, base, size)
                bar.update()
    twins = [one.finished(job) for one in found]
    return NextToken(**twins[0], control=NextToken(**twins[1]) if control else None)


@dataclass(frozen=True)
class _Job:
    """What is asked of which prompts."""

    model: Any
    prompts: list[Any]
    strengths: list[float]
    read: tuple[int, ...] | None

    @property
    def n_tokens(self) -> int:
        return self.model.dims.n_vocab if self.read is None else len(self.read)

    @property
    def moved(self) -> list[float]:
        """Strengths that edit; 0 is the base."""
        return [s for s in self.strengths if s != 0]

    def chunks(self, size: int) -> list[list[int]]:
        """Prompts that go together, of like lengths, so that little is padded."""
        lengths = [self.model.tokens(p).lengths[0] for p in self.prompts]
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        step = max(1, size // max(1, len(self.moved)))
        return [order[i : i + step] for i in range(0, len(order), step)]

    def refuse_beyond_memory(self, layers: int) -> None:
        """Raise before anything runs where the logits would fill the memory."""
        cells = layers * len(self.strengths) * len(self.prompts) * self.n_tokens * 4
        free = free_bytes(torch.device("cpu"))
        if cells > free // 2:
            have, want = f"{free / 2e9:.1f} GB", f"{cells / 1e9:.1f} GB"
            raise _refused(
                "logits do not fit into memory", have, want, "keep few tokens with read="
            )

    def based(self, live: Live, rows: list[int], found: Sequence[_Found]) -> Tensor:
        """Logits without an edit, written into the results; `[row, vocab]`."""
        base = live.run((), logits="last").logits[:, -1].detach().float().cpu()
        for one in found:
            one.base[rows], one.base_total[rows] = self.keep(base), base.logsumexp(-1)
        return base

    def keep(self, logits: Tensor) -> Tensor:
        """The tokens that are read."""
        return logits if self.read is None else logits[..., list(self.read)]


@dataclass(frozen=True)
class _Found:
    """Results of one kind of edits while they come in."""

    edits: Edits
    base: Tensor
    base_total: Tensor
    logits: Tensor
    total: Tensor
    kl: Tensor
    errors: dict[tuple[int, float], str]

    @classmethod
    def empty(cls, job: _Job, edits: Edits) -> _Found:
        grid = (len(edits), len(job.strengths), len(job.prompts))
        n = len(job.prompts)
        base, total = torch.empty(n, job.n_tokens), torch.empty(n)
        cells = torch.empty(*grid, job.n_tokens), torch.empty(grid), torch.empty(grid)
        return cls(edits, base, total, *cells, {})

    def fill(self, job: _Job, live: Live, rows: list[int], base: Tensor, size: int) -> None:
        """All cells of some prompts."""
        log_base = base.double().log_softmax(-1)
        for y, (layer, edit) in enumerate(self.edits.items()):
            for strength, logits in _cells(job, live, edit, base, max(1, size // len(rows))):
                if isinstance(logits, str):
                    self.errors.setdefault((layer, strength), logits)
                    continue
                s = job.strengths.index(strength)
                self.logits[y, s, rows] = job.keep(logits)
                self.total[y, s, rows] = logits.logsumexp(-1)
                if strength == 0:
                    self.kl[y, s, rows] = 0.0
                else:
                    kl = kl_divergence(logits.double().log_softmax(-1), log_base)
                    self.kl[y, s, rows] = kl.float()

    def finished(self, job: _Job) -> dict[str, Any]:
        """The fields of a NextToken; a cell that failed for any prompt is NaN for all."""
        layers = tuple(self.edits)
        for layer, strength in self.errors:
            cell = layers.index(layer), job.strengths.index(strength)
            for values in (self.logits, self.total, self.kl):
                values[cell] = torch.nan
        named = {k: v for k, v in vars(self).items() if k != "edits"}
        return {**named, "layers": layers, "strengths": tuple(job.strengths), "read": job.read}


def _cells(
    job: _Job, live: Live, edit: Intervention | None, base: Tensor, step: int
) -> Iterator[tuple[float, Tensor | str]]:
    """Every strength with its logits `[row, vocab]`, or why there are none."""
    yield from ((s, base) for s in job.strengths if s == 0)
    for start in range(0, len(job.moved), step):
        part = job.moved[start : start + step]
        if edit is None:
            yield from ((s, "no random control: the edit has no direction") for s in part)
        else:
            yield from zip(part, _swept(live, edit, part), strict=True)


def _swept(live: Live, edit: Intervention, strengths: list[float]) -> list[Tensor | str]:
    """Logits per strength; where one of them fails, halves tell which."""
    try:
        swept = live.sweep(edit, strengths).logits[:, :, -1].float().cpu()
    except EditError as error:
        if len(strengths) == 1:
            return [str(error)]
        half = len(strengths) // 2
        return _swept(live, edit, strengths[:half]) + _swept(live, edit, strengths[half:])
    overflow = "the logits are infinite or NaN; lower the strength"
    return [one if bool(one.isfinite().all()) else overflow for one in swept]


def _edits(
    edit: Intervention | Callable[[int], Intervention], layers: Iterable[int] | None, n_layers: int
) -> Edits:
    if isinstance(edit, Intervention):
        places = sites_by_layer(edit, n_layers)
        asked = checked_layers(places if layers is None else layers, places)
        return {y: edit.only(*places[y]) for y in asked}
    if not callable(edit):
        raise _refused("edit is none", "an Intervention, or layer -> one", edit, "fit a method")
    every = range(n_layers)
    return {y: edit(y) for y in checked_layers(every if layers is None else layers, every)}


def _kept(read: Iterable[int] | None, model: Any) -> tuple[int, ...] | None:
    if read is None:
        return None
    ids = tuple(dict.fromkeys(read))
    if not ids or not all(0 <= i < model.dims.n_vocab for i in ids):
        raise _refused(
            "read= holds no such tokens",
            f"ids below {model.dims.n_vocab}",
            ids,
            "see model.tokenizer",
        )
    return ids


def _refused(wrong: str, expected: object, got: object, do: str) -> WorkbenchError:
    return WorkbenchError("next_token", wrong, expected=expected, got=got, do=do)
