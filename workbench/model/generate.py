"""The one loop that calls a model token by token: KV cache, left-padded batches, finished rows dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench import seeds
from workbench.decoding import Decoder, Greedy
from workbench.errors import EditError, WorkbenchError
from workbench.model.backends.base import Step
from workbench.model.edits import BoundEdit, check_receipts
from workbench.model.model import Model
from workbench.model.run import gradients_off, padding, usable
from workbench.model.session import Session
from workbench.model.steps import driver, recorded
from workbench.model.tokens import as_prompts
from workbench.records import Generation, Prompt, Receipt
from workbench.tensors import Intervention, Tokens

OnToken = Callable[[int, list[int], list[int]], None]
"""Called after every step with the step's number from 0, the rows still running, their new ids."""


class Generations(list[Generation]):
    """Generations of one call, with the receipts of its edits."""

    def __init__(self, items: Iterable[Generation] = (), receipts: tuple[Receipt, ...] = ()):
        super().__init__(items)
        self.receipts = receipts


@dataclass
class _Row:
    """What one prompt has produced so far."""

    index: int
    prompt: Prompt
    noise: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str = "length"


@dataclass(frozen=True)
class _Ends:
    """When a row is finished: its end-of-sequence ids and stop texts."""

    eos: frozenset[int]
    texts: tuple[str, ...]
    decode: Callable[[list[int]], str]

    def reason(self, row: _Row) -> str | None:
        if row.ids[-1] in self.eos:
            return "eos"
        if self.texts and any(t in self.decode(row.ids) for t in self.texts):
            return "text"
        return None


def generate(
    model: Model,
    prompts: Any,
    edits: Intervention | Iterable[Intervention] = (),
    *,
    decoder: Decoder | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    stop: str | Iterable[str] = (),
    batch_size: int | None = None,
    use_cache: bool = True,
    on_token: OnToken | None = None,
    arm: str = "",
    progress: bool = False,
) -> Generations:
    """See `Model.generate`."""
    if max_new_tokens < 1:
        raise WorkbenchError(
            "generate",
            "asks for no tokens",
            expected="at least 1",
            got=max_new_tokens,
            do="raise it",
        )
    many = as_prompts(prompts)
    edits = [edits] if isinstance(edits, Intervention) else list(edits)
    size = batch_size or model.fitting_batch(many, max_new_tokens)
    out = Generations()
    loop = _Loop(model, edits, decoder or Greedy(), max_new_tokens, seed, stop, use_cache, on_token)
    with tqdm(total=len(many), unit="prompt", disable=not progress, desc=arm or "generate") as bar:
        for start in range(0, len(many), size):
            rows = loop.batch(many[start : start + size], start)
            out += [model.generation(r.prompt, arm, seed, r.ids, r.logprobs, r.stop) for r in rows]
            bar.update(len(rows))
    out.receipts = loop.receipts()
    return out


class _Loop:
    """One generate call's settings; `batch` runs a batch to its end."""

    def __init__(
        self,
        model: Model,
        edits: list[Intervention],
        decoder: Decoder,
        max_new_tokens: int,
        seed: int,
        stop: str | Iterable[str],
        use_cache: bool,
        on_token: OnToken | None,
    ):
        self.model, self.edits, self.decoder = model, edits, decoder
        self.max_new_tokens, self.seed, self.use_cache = max_new_tokens, seed, use_cache
        self.on_token = on_token
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        _check(texts, edits)
        self.ends = _Ends(model.eos_ids, texts, model.decode)
        self._done: list[BoundEdit] = []
        self._saw_generated = False

    def batch(self, prompts: list[Prompt], offset: int) -> list[_Row]:
        """Generate for one batch; `offset` is the first prompt's place in the whole call."""
        tokens = self.model.tokens(prompts, room=self.max_new_tokens)
        rows = [_Row(offset + i, p, self._generator(offset + i)) for i, p in enumerate(prompts)]
        edits = [edit.for_rows(offset, len(prompts)) for edit in self.edits]
        session = self.model.session(tokens, edits, recorded(edits, self.model.n_layers))
        with session.attached(), gradients_off(self.model):
            self._run(tokens, rows, session)
        self._saw_generated = self._saw_generated or session.saw_generated
        for whole, part in zip(self._done, session.bound, strict=False):
            whole.add(part)
        self._done = self._done or session.bound
        return rows

    def receipts(self) -> tuple[Receipt, ...]:
        """What the edits did over all batches: one batch alone may hold nothing for them."""
        return check_receipts(self._done, lambda: self._saw_generated)

    def _run(self, tokens: Tokens, rows: list[_Row], session: Session) -> None:
        live = list(range(len(rows)))
        state = _State(self.model, tokens, self.use_cache)
        driven = driver(session, state, tokens, self.decoder)
        for step in range(self.max_new_tokens):
            logits = driven.forward() if driven else state.forward(session)
            chosen = self._choose(logits, [rows[i] for i in live])
            if driven:
                driven.took(logits, chosen)
            if self.on_token:
                self.on_token(step, list(live), chosen.tolist())
            left = [k for k, i in enumerate(live) if self._goes_on(rows[i])]
            live = [live[k] for k in left]
            if not live:
                return
            if len(left) < len(chosen):
                state.keep(left)
                session.keep(left)
                if driven:
                    driven.keep(left)
                chosen = chosen[left]
            state.append(chosen)

    def _choose(self, logits: Tensor, rows: list[_Row]) -> Tensor:
        noise = self._noise(logits, rows) if self.decoder.random else None
        chosen = self.decoder.choose(logits, noise)
        logprobs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
        return chosen

    def _goes_on(self, row: _Row) -> bool:
        reason = self.ends.reason(row)
        row.stop = reason or row.stop
        return reason is None

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(seeds.derive(self.seed, "generate", index))

    def _noise(self, logits: Tensor, rows: list[_Row]) -> Tensor:
        """Standard exponentials, one stream per row: a row's draws do not depend on its neighbours."""
        size = logits.shape[-1]
        drawn = [torch.empty(size).exponential_(generator=row.noise) for row in rows]
        return torch.stack(drawn).to(logits.device)


def replay(
    model: Model,
    prompts: list[Prompt],
    completions: Sequence[Sequence[int]],
    edits: list[Intervention],
    batch_size: int | None = None,
) -> list[Tensor]:
    """Per prompt, log-probabilities in nats `[generated, vocab]` at each position of its completion,
    which is forced on the loop token by token: what step-by-step edits decide is decided again.
    """
    longest = max(1, *map(len, completions), 1)
    loop = _Replay(model, edits, Greedy(), longest, 0, (), True, None)
    loop.forced = completions
    size = batch_size or model.fitting_batch(prompts, longest)
    for start in range(0, len(prompts), size):
        loop.batch(prompts[start : start + size], start)
    empty = torch.zeros(0, model.dims.n_vocab)
    return [torch.stack(loop.lines[i]) if i in loop.lines else empty for i in range(len(prompts))]


class _Replay(_Loop):
    """The same loop over tokens that are given."""

    forced: Sequence[Sequence[int]] = ()

    def __init__(self, *settings: Any):
        super().__init__(*settings)
        self.lines: dict[int, list[Tensor]] = {}

    def _choose(self, logits: Tensor, rows: list[_Row]) -> Tensor:
        logprobs = logits.log_softmax(-1).cpu()
        for row, line in zip(rows, logprobs, strict=True):
            given = self.forced[row.index]
            if given:
                self.lines.setdefault(row.index, []).append(usable(line.clone()))
            row.ids.append(given[len(row.ids)] if given else 0)
        return torch.tensor([row.ids[-1] for row in rows], device=logits.device)

    def _goes_on(self, row: _Row) -> bool:
        return len(row.ids) < len(self.forced[row.index])


def _check(stop: tuple[str, ...], edits: list[Intervention]) -> None:
    """Refuse what only looks like it could work."""
    if "" in stop:
        raise WorkbenchError(
            "generate(stop=)", "holds an empty text", expected="text", got="''", do="leave it out"
        )
    for edit in edits:
        values = [t["value"] for t in edit.tensors.values() if "value" in t]
        if any(value.dim() > 2 for value in values):
            raise EditError(
                f"edit {edit.label!r}",
                "sets a value per prompt and position, which new tokens have none of",
                expected="one value for every position",
                got=[tuple(value.shape) for value in values],
                do="use model.run, or set one vector within a scope",
            )


class _State:
    """Cache, padding, and the tokens not yet in the cache of the rows still running."""

    def __init__(self, model: Model, tokens: Tokens, use_cache: bool):
        self.model, self.use_cache = model, use_cache
        self.ids, self.mask = tokens.ids, tokens.mask
        self.positions = tokens.positions
        self.pads = padding(tokens)["mask"] is not None
        self.cache = model.backend.new_cache() if use_cache else None

    def forward(self, session: Session) -> Tensor:
        """Next-token logits `[batch, vocab]` in fp32 from the tokens not yet in the cache."""
        self.enter(session)
        step = self.read(self.cache)
        self.cache = step.cache
        return step.logits[:, -1].float()

    def enter(self, session: Session) -> None:
        """Tell the edits which tokens come next."""
        if not self.use_cache:
            session.frame.forget()
        session.advance(self.ids, self.positions, padded=self.pads and self.ids.shape[1] > 1)

    def read(self, cache: Any) -> Step:
        """One forward over the tokens not yet in `cache`."""
        return self.model.backend.forward(
            self.ids,
            mask=self.mask.long() if self.pads else None,
            positions=self.positions.clamp(min=0) if self.pads else None,
            cache=cache,
            use_cache=self.use_cache,
            keep=1,
        )

    def append(self, chosen: Tensor) -> None:
        """Add one token per row."""
        positions = self.positions[:, -1:] + 1
        if self.use_cache:
            self.ids, self.positions = chosen[:, None], positions
        else:
            self.ids = torch.cat([self.ids, chosen[:, None]], 1)
            self.positions = torch.cat([self.positions, positions], 1)
        if self.pads:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)

    def keep(self, rows: list[int]) -> None:
        """Drop every other row, in the cache too."""
        # on the CPU: a model spread over several devices has a cache on each
        index = torch.tensor(rows)
        self.ids, self.positions = self.ids[index], self.positions[index]
        self.mask = self.mask[index]
        if self.cache is not None:
            self.cache.batch_select_indices(index)
