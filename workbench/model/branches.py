"""Many continuations at many prefixes of one sequence, scored in one forward.

The sequence goes in once; every branch, a continuation at a prefix, is packed behind it under a mask that
lets it see its prefix and itself, at the positions it would have alone. The last token of a branch
predicts nothing that is asked for and stays out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.errors import EditError, PromptError
from workbench.model import edits as bound_edits
from workbench.model import packing
from workbench.model.edits import BoundEdit
from workbench.model.model import Model, free_bytes
from workbench.model.packing import Branch, Pack
from workbench.model.run import padding
from workbench.model.session import Session
from workbench.model.tokens import as_prompts, encode, pad_id
from workbench.records import Prompt, Receipt
from workbench.shapes import Float, Int
from workbench.sites import parse_all
from workbench.tensors import Intervention, Tokens

Words = str | Sequence[int] | Tensor
"""A text, or token ids."""

_trials: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class BranchScores:
    """Log-probabilities in nats of every continuation at every prefix.

    Attributes:
        logprobs: per token, given its prefix and the tokens before; NaN beyond a continuation's end.
        lengths: tokens of each continuation; 0 where a prefix has fewer continuations than another.
        receipts: what each edit did, over all forwards.
        forwards: how many were needed.
        note: why the branches were not packed but run as rows of their own, or "".
    """

    logprobs: Float[Tensor, "prefix continuation token"]
    lengths: Int[Tensor, "prefix continuation"]
    receipts: tuple[Receipt, ...]
    forwards: int
    note: str

    @property
    def totals(self) -> Float[Tensor, "prefix continuation"]:
        """Log-probability of each whole continuation; NaN where there is none."""
        return self.logprobs.nansum(-1).masked_fill(self.lengths == 0, torch.nan)

    @property
    def means(self) -> Float[Tensor, "prefix continuation"]:
        """Log-probability per token."""
        return self.totals / self.lengths


@torch.no_grad()
def score_branches(
    model: Model,
    prompt: Prompt | Words,
    prefixes: Iterable[int],
    continuations: Iterable[Any],
    edits: Iterable[Intervention] = (),
    *,
    completion: Words = (),
    pack: bool = True,
    max_columns: int | None = None,
) -> BranchScores:
    """Log-probabilities of continuations at prefixes of one sequence.

    Each scores as its prefix with it behind would alone, to about 1e-5 nats in fp32.

    Args:
        model: packs on backend "transformers" with eager or sdpa attention; else see `pack`.
        prompt: a text, a Prompt, or ids as they are (with their beginning-of-sequence token).
        prefixes: lengths in tokens, the beginning-of-sequence token counted, of prefixes of the
            sequence prompt + completion. Each at least 1.
        continuations: texts or lists of ids; or one such list per prefix. Lengths may differ.
        edits: scopes count positions of a prefix with its continuation. As prompt count the
            prompt's tokens, at most as many as the shortest prefix; all later ones as generated.
        completion: text or ids after the prompt, e.g. its chain of thought.
        pack: False runs each branch as a row of its own. That also happens, and `note` says why,
            where packing would be wrong: other backends and attention kernels; layers that are
            neither full nor sliding attention (windows are kept to, whatever their size); a model
            that fails a small trial of packing, run once; edits of `pattern` or `attn_scores`
            other than `score_bias`, which would join branches.
        max_columns: tokens per forward; more branches make more forwards. By default what a
            quarter of the free memory holds: n columns need about `n^2 (4 + 8 n_heads)` bytes of
            masks and scores and `n (32 d_model + 12 d_mlp + 8 n_vocab)` of activations and logits.

    Raises:
        PromptError: a prefix outside the sequence, an empty continuation, ids outside the
            vocabulary, a branch longer than the context.
        WorkbenchError: as `model.run`.
    """
    edits = list(edits)
    trunk, n_prompt = _trunk(model, prompt, completion)
    lengths = _checked_prefixes(prefixes, len(trunk))
    table = _table(model, list(continuations), len(lengths))
    branches = [Branch(n, ids) for n, row in zip(lengths, table, strict=True) for ids in row]
    _check_branches(model, trunk, branches)
    _check_values(edits, model.n_layers)
    note = (packing.why_not(model, edits) or _trial(model)) if pack else "pack=False"
    scorer = _Scorer(model, trunk, min(n_prompt, *lengths), edits, max_columns)
    found = scorer.rows(branches) if note else scorer.packed(branches)
    logprobs, counts = _padded(table, found)
    return BranchScores(logprobs, counts, scorer.receipts(), scorer.forwards, note)


class _Scorer:
    """One call's sequence and edits. Counts its forwards and adds up what the edits did."""

    def __init__(
        self,
        model: Model,
        trunk: list[int],
        n_prompt: int,
        edits: list[Intervention],
        max_columns: int | None,
    ):
        self.model, self.trunk, self.n_prompt, self.edits = model, trunk, n_prompt, edits
        self.max_columns, self.forwards = max_columns, 0
        self.bound: list[BoundEdit] = []
        self.saw_generated = False

    def packed(self, branches: list[Branch]) -> list[Tensor]:
        """Log-probabilities `[token]` of each branch, packed behind the sequence."""
        found: list[Tensor] = []
        for group in _groups(branches, *self._room(), shared=True):
            pack = Pack.of(self.trunk, group)
            logits = self._pack_logits(pack)
            at = torch.tensor(pack.which, device=logits.device)
            target = torch.tensor([t for b in group for t in b.ids], device=logits.device)
            logprobs = logits[at, target].float() - _normalisers(logits)[at]
            found += logprobs.split([len(b.ids) for b in group])
        return found

    def rows(self, branches: list[Branch]) -> list[Tensor]:
        """The same with every branch as a row of its own."""
        found: list[Tensor] = []
        for group in _groups(branches, *self._room(), shared=False):
            for logits, branch in zip(self._row_logits(group), group, strict=True):
                own = logits[-len(branch.ids) :]
                target = torch.tensor(branch.ids, device=own.device)
                found.append(own.gather(1, target[:, None])[:, 0].float() - _normalisers(own))
        return found

    def receipts(self) -> tuple[Receipt, ...]:
        """What the edits did in all forwards."""
        return bound_edits.check_receipts(self.bound, lambda: self.saw_generated)

    def _pack_logits(self, pack: Pack) -> Float[Tensor, "read vocab"]:
        device = self.model.device
        positions = torch.tensor([pack.positions], device=device)
        visible, reads = pack.visible(device), torch.tensor(pack.reads, device=device)
        ids = torch.tensor([pack.ids], device=device)
        session, tokens = self._session(ids, torch.ones_like(ids, dtype=torch.bool))
        session.frame.visible = visible.cpu()
        # an edit there takes its scope's last columns, so it has to see them all
        whole = any(edit.site.layer is None for edit in session.bound)
        mask = packing.masks(self.model, visible, positions[0])
        options = {"mask": mask, "positions": positions, "keep": 0 if whole else reads}
        logits = self._forward(session, tokens, positions, options)
        return logits[0, reads] if whole else logits[0]

    def _row_logits(self, group: list[Branch]) -> Float[Tensor, "branch kept vocab"]:
        rows = [[*self.trunk[: b.prefix], *b.ids[:-1]] for b in group]
        width, pad = max(map(len, rows)), pad_id(self.model.tokenizer)
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=self.model.device)
        lengths = torch.tensor([[len(r)] for r in rows], device=ids.device)
        mask = torch.arange(width, device=ids.device) >= width - lengths
        session, tokens = self._session(ids, mask)
        options = {**padding(tokens), "keep": max(len(b.ids) for b in group)}
        return self._forward(session, tokens, tokens.positions, options)

    def _session(self, ids: Tensor, mask: Tensor) -> tuple[Session, Tokens]:
        n = len(ids)
        tokens = Tokens(ids, mask, (Prompt(text="(ids)"),) * n, (self.n_prompt,) * n)
        return self.model.session(tokens, self.edits, ()), tokens

    def _forward(
        self, session: Session, tokens: Tokens, positions: Tensor, options: dict[str, Any]
    ) -> Tensor:
        with session.attached():
            session.advance(tokens.ids, positions, padded=not bool(tokens.mask.all()))
            step = self.model.backend.forward(tokens.ids, cache=None, use_cache=False, **options)
        self.forwards += 1
        self.saw_generated = self.saw_generated or session.saw_generated
        for total, edit in zip(self.bound, session.bound, strict=False):
            total.add(edit)
        self.bound = self.bound or session.bound
        return step.logits

    def _room(self) -> tuple[int, int, float]:
        """Bytes per squared column, per column, and in all; or plain columns where these are given."""
        if self.max_columns is not None:
            return 0, 1, float(self.max_columns)
        d = self.model.dims
        per_column = 32 * d.d_model + 12 * d.d_mlp + 8 * d.n_vocab
        return 4 + 8 * d.n_heads, per_column, free_bytes(self.model.device) / 4


def _groups(
    branches: list[Branch], squared: int, linear: int, room: float, *, shared: bool
) -> Iterator[list[Branch]]:
    """Branches that fit into one forward together; `shared` where they stand behind one sequence."""
    cost = lambda columns: (squared * columns + linear) * columns  # noqa: E731
    group: list[Branch] = []
    longest = own = 0
    for branch in branches:
        inputs = len(branch.ids) - 1
        length = branch.prefix if shared else branch.prefix + inputs
        taller, more = max(longest, length), own + inputs
        needed = cost(taller + more) if shared else (len(group) + 1) * cost(taller)
        if group and needed > room:
            yield group
            group, taller, more = [], length, inputs
        group, longest, own = [*group, branch], taller, more
    yield group


def _normalisers(logits: Float[Tensor, "read vocab"]) -> Float[Tensor, " read"]:
    """`logsumexp` in fp32, some rows at a time: a large vocabulary is not held twice."""
    return torch.cat([part.float().logsumexp(-1) for part in logits.split(256)])


def _padded(
    table: list[list[tuple[int, ...]]], found: list[Tensor]
) -> tuple[Float[Tensor, "prefix continuation token"], Int[Tensor, "prefix continuation"]]:
    widest, longest = max(map(len, table)), max(len(ids) for row in table for ids in row)
    logprobs = torch.full((len(table), widest, longest), torch.nan)
    lengths = torch.zeros(len(table), widest, dtype=torch.long)
    scores = iter(found)
    for i, row in enumerate(table):
        for j, ids in enumerate(row):
            logprobs[i, j, : len(ids)] = next(scores).cpu()
            lengths[i, j] = len(ids)
    return logprobs, lengths


def _trial(model: Model) -> str:
    """Whether this model scores packed branches as it scores rows: tried once, on a few tokens."""
    if model.hf not in _trials:
        _trials[model.hf] = _tried(model)
    return _trials[model.hf]


def _tried(model: Model) -> str:
    window = getattr(model.hf.config, "sliding_window", None) or 0
    n = 6 + (window if window < 64 else 0)
    ids = [3 + i % (model.dims.n_vocab - 3) for i in range(2 * n)]
    branches = [Branch(p, tuple(ids[k : k + 3])) for p in (n // 2, n) for k in (1, n)]
    scorer = _Scorer(model, ids[:n], 1, [], None)
    rows = torch.stack(scorer.rows(branches))
    try:
        packed = torch.stack(scorer.packed(branches))
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        return f"{model.hf.config.model_type} takes no packed mask: {error}"
    tolerance = 256 * torch.finfo(model.dtype).eps * max(1.0, float(rows.abs().max()))
    off = float((packed - rows).abs().max())
    return "" if off <= tolerance else f"packed branches of this model are off by {off:.2g} nats"


def _trunk(model: Model, prompt: Prompt | Words, completion: Words) -> tuple[list[int], int]:
    """Ids of the whole sequence, and how many of them are the prompt's."""
    if isinstance(prompt, str | Prompt):
        head = encode(model.tokenizer, as_prompts(prompt)[0])
    else:
        head = [int(t) for t in prompt]
    return head + list(_ids(model, completion)), len(head)


def _ids(model: Model, words: Words) -> tuple[int, ...]:
    if not isinstance(words, str):
        return tuple(int(t) for t in words)
    ids, unknown = model.tokenizer(words, add_special_tokens=False)["input_ids"], None
    if model.tokenizer.unk_token_id != model.tokenizer.eos_token_id:
        unknown = model.tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        raise PromptError(
            f"text {words[:40]!r}",
            "has a token outside the vocabulary",
            expected="text this tokenizer can spell",
            got="an unknown token",
            do="leave it out",
        )
    return tuple(ids)


def _table(model: Model, continuations: list[Any], n: int) -> list[list[tuple[int, ...]]]:
    """Continuations of each prefix as ids."""
    first = continuations[0] if continuations else ()
    each = not isinstance(first, str | Tensor) and any(not isinstance(x, int) for x in first)
    rows = continuations if each else [continuations] * n
    if len(rows) != n or not any(map(len, rows)):
        raise PromptError(
            "score_branches(continuations)",
            "are not a list for all prefixes or one list per prefix",
            expected=f"texts or lists of ids, or {n} lists of them",
            got=f"{len(rows)} lists",
            do="pass one list of continuations per prefix",
        )
    return [[_ids(model, words) for words in row] for row in rows]


def _checked_prefixes(prefixes: Iterable[int], n: int) -> list[int]:
    lengths = [int(p) for p in prefixes]
    if lengths and all(1 <= p <= n for p in lengths):
        return lengths
    raise PromptError(
        "score_branches(prefixes)",
        "are not lengths of prefixes of this sequence",
        expected=f"token counts from 1 to {n}",
        got=lengths[:10],
        do="count tokens, the beginning-of-sequence token included",
    )


def _check_branches(model: Model, trunk: list[int], branches: list[Branch]) -> None:
    d = model.dims
    longest = max((b.prefix + len(b.ids) for b in branches), default=0)
    every = [*trunk, *(t for b in branches for t in b.ids)]
    problems = {
        "a continuation is empty": ("at least one token", 0, not all(b.ids for b in branches)),
        "a branch is longer than the context": (
            f"at most {d.n_context} tokens",
            longest,
            0 < d.n_context < longest,
        ),
        "has a token outside the vocabulary": (
            f"ids 0 to {d.n_vocab - 1}",
            f"{min(every)} to {max(every)}",
            min(every) < 0 or max(every) >= d.n_vocab,
        ),
    }
    for wrong, (expected, got, holds) in problems.items():
        if holds:
            raise PromptError(
                "score_branches", wrong, expected=expected, got=got, do="check the branches"
            )


def _check_values(edits: list[Intervention], n_layers: int) -> None:
    """A value per position fits one length only, and branches have many."""
    for edit in edits:
        for site in parse_all(edit.sites, n_layers):
            value = edit.tensors.get(str(site), {}).get("value")
            n = len(site.axes)
            if value is not None and value.dim() >= n and value.shape[-n] != 1:
                raise EditError(
                    f"edit {edit.label!r} at {site}",
                    "sets a value per position, and branches have different lengths",
                    expected="a value for one position",
                    got=tuple(value.shape),
                    do="score each branch with model.run",
                )
