"""Where the columns of one forward stand, and which of them a scope covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.errors import PromptError
from workbench.scopes import Scope, Term, Token
from workbench.shapes import Bool, Int, Mask

Encode = Callable[[str], list[int]]
Columns = tuple[Tensor, Tensor | None]
"""Ids of some columns, and their positions where they do not count from 0."""

_NONE = torch.zeros(0, 0, dtype=torch.long)


class Frame:
    """The columns of the forward under way, in absolute positions, and all columns before them.

    Kept as it comes and looked at, on the CPU, only when asked: most edits cover every position. In a
    packed row `visible` says which columns each column sees; elsewhere it is None, and they see what
    is before them. `backend` is what runs this forward, for edits that run another one.
    """

    def __init__(self, prompt_lengths: Sequence[int], bos_id: int | None, encode: Encode):
        self.bos_id, self.encode = bos_id, encode
        self.visible: Bool[Tensor, "q k"] | None = None
        self.backend: Any = None
        self._lengths = list(prompt_lengths)
        self._past: list[Columns] = []
        self._now: Columns = (_NONE, None)
        self.padded = True
        self._masks: dict[tuple[Scope, bool], Tensor | None] = {}

    def advance(self, ids: Tensor, positions: Tensor | None, *, padded: bool = True) -> None:
        """Enter the next forward: its `ids` and absolute `positions`, `[batch, pos]`.

        `positions` are None where they count from 0 in every row. `padded=False` promises that no
        column is padding, which is then not looked for.
        """
        self._now, self.padded = (ids, positions), padded and positions is not None
        self._past.append(self._now)
        self._masks.clear()

    def forget(self) -> None:
        """The next forward starts over from position 0 (no KV cache)."""
        self._past.clear()

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self._lengths = [self._lengths[row] for row in rows]
        self._past = [(self.all_ids[rows], self.all_positions[rows])]
        self._now = (self.ids[rows], self.positions[rows])

    @property
    def prompt_lengths(self) -> Int[Tensor, "batch 1"]:
        """Tokens of each row's prompt."""
        return torch.tensor(self._lengths)[:, None]

    @property
    def ids(self) -> Int[Tensor, "batch pos"]:
        """Ids of this forward's columns."""
        return self._now[0].cpu()

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Their absolute positions, negative on padding."""
        return _positions(*self._now)

    @property
    def all_ids(self) -> Int[Tensor, "batch pos"]:
        """Ids of every column since the start, this forward's included."""
        return self._joined()[0]

    @property
    def all_positions(self) -> Int[Tensor, "batch pos"]:
        """Their absolute positions."""
        return self._joined()[1]

    @property
    def generated(self) -> bool:
        """Whether this forward reads a generated token in any row."""
        return bool(self._past) and bool((self.positions[:, -1:] >= self.prompt_lengths).any())

    def mask(self, scope: Scope, *, keys: bool = False) -> Mask | None:
        """Columns the scope covers, `[batch, pos]`; None where it covers every one.

        With `keys` the columns are all keys so far instead of this forward's queries.
        """
        if (scope, keys) not in self._masks:
            covered = self._union(scope.include, keys)
            if scope.exclude:
                covered = covered & ~self._union(scope.exclude, keys)
            if self.padded or keys:
                covered = covered & ((self.all_positions if keys else self.positions) >= 0)
            self._masks[scope, keys] = None if bool(covered.all()) else covered
        return self._masks[scope, keys]

    def column(self, position: int) -> Int[Tensor, " batch"]:
        """This forward's column of an absolute position (negative: from the end of the prompt).

        Raises:
            PromptError: a row has no such position.
        """
        target = self.prompt_lengths + position if position < 0 else position
        found = self.positions == target
        if not bool(found.any(1).all()):
            raise PromptError(
                f"pos={position}",
                "is not in every prompt of this run",
                expected=f"a position below {int(self.prompt_lengths.min())}",
                got=position,
                do="choose another position or drop the short prompts",
            )
        return found.int().argmax(1)

    def _joined(self) -> tuple[Tensor, Tensor]:
        """All columns in one piece; steps of generation are joined only when somebody looks back."""
        past = self._past or [(self._now[0][:, :0], None)]
        if len(past) > 1:
            ids, positions = zip(*((i, _positions(i, p)) for i, p in past), strict=True)
            past = self._past = [(torch.cat(ids, 1).cpu(), torch.cat(positions, 1))]
        return past[0][0].cpu(), _positions(*past[0])

    def _union(self, terms: tuple[Term, ...], keys: bool) -> Bool[Tensor, "batch pos"]:
        positions = self.all_positions if keys else self.positions
        ids = self.all_ids if keys else self.ids
        covered = self._term(terms[0], positions, ids)
        for term in terms[1:]:
            covered = covered | self._term(term, positions, ids)
        return covered

    def _term(self, term: Term, at: Tensor, ids: Tensor) -> Bool[Tensor, "batch pos"]:
        match term.kind:
            case "all":
                return torch.ones_like(at, dtype=torch.bool)
            case "prompt":
                return at < self.prompt_lengths
            case "last_prompt":
                return at == self.prompt_lengths - 1
            case "generated":
                return at >= self.prompt_lengths
            case "span":
                return (at >= int(term.args[0])) & (at < int(term.args[1]))
            case "bos":
                return (at == 0) & (ids == (-1 if self.bos_id is None else self.bos_id))
            case "tokens":
                return torch.isin(ids, torch.tensor([self._id(t) for t in term.args]))
            case _:  # after
                return at >= self._first(self._id(term.args[0]))

    def _first(self, token: int) -> Int[Tensor, "batch column"]:
        """Absolute position of the token's first reading in each row; beyond all where none."""
        seen = (self.all_ids == token) & (self.all_positions >= 0)
        at = torch.where(seen, self.all_positions, 2**60)
        if self.visible is None:
            return at.min(1, keepdim=True).values
        return torch.where(self.visible, at, 2**60).min(1).values[None]

    def _id(self, token: Token) -> int:
        if isinstance(token, int):
            return token
        ids = self.encode(token)
        if len(ids) != 1:
            raise PromptError(
                f"scope token {token!r}",
                "is not one token of this model",
                expected="a text that is a single token, or a token id",
                got=f"{len(ids)} tokens {ids}",
                do="pass the id",
            )
        return ids[0]


def _positions(ids: Tensor, positions: Tensor | None) -> Int[Tensor, "batch pos"]:
    return torch.arange(ids.shape[1]).expand(ids.shape) if positions is None else positions.cpu()
