"""Where the columns of one forward stand, and which of them a scope covers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.errors import PromptError
from workbench.scopes import Scope, Term, Token
from workbench.shapes import Bool, Int, Mask

Encode = Callable[[str], list[int]]


class Frame:
    """The columns of the forward under way, in absolute positions, and all columns before them.

    Kept on the CPU: what a scope covers is known without waiting for a GPU.
    """

    def __init__(self, prompt_lengths: list[int], bos_id: int | None, encode: Encode):
        self.prompt_lengths = torch.tensor(prompt_lengths)[:, None]
        self.bos_id, self.encode = bos_id, encode
        self.positions = torch.zeros(len(prompt_lengths), 0, dtype=torch.long)
        self.ids = self.positions
        self.all_positions, self.all_ids = self.positions, self.ids
        self._masks: dict[tuple[Scope, bool], Tensor | None] = {}

    def advance(self, ids: Tensor, positions: Tensor) -> None:
        """Enter the next forward: its `ids` and absolute `positions`, `[batch, pos]`."""
        self.ids, self.positions = ids.cpu(), positions.cpu()
        self.all_ids = torch.cat([self.all_ids, self.ids], 1)
        self.all_positions = torch.cat([self.all_positions, self.positions], 1)
        self._masks.clear()

    def forget(self) -> None:
        """The next forward starts over from position 0 (no KV cache)."""
        self.all_positions, self.all_ids = self.all_positions[:, :0], self.all_ids[:, :0]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.prompt_lengths = self.prompt_lengths[rows]
        self.all_ids, self.all_positions = self.all_ids[rows], self.all_positions[rows]

    def mask(self, scope: Scope, *, keys: bool = False) -> Mask | None:
        """Columns the scope covers, `[batch, pos]`; None where it covers every one.

        With `keys` the columns are all keys so far instead of this forward's queries.
        """
        if (scope, keys) not in self._masks:
            covered = self._union(scope.include, keys) & ~self._union(scope.exclude, keys)
            covered &= (self.all_positions if keys else self.positions) >= 0
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

    def _union(self, terms: tuple[Term, ...], keys: bool) -> Bool[Tensor, "batch pos"]:
        positions = self.all_positions if keys else self.positions
        covered = torch.zeros_like(positions, dtype=torch.bool)
        for term in terms:
            covered = covered | self._term(term, positions, self.all_ids if keys else self.ids)
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

    def _first(self, token: int) -> Int[Tensor, "batch 1"]:
        """Absolute position of the token's first reading in each row; beyond all where none."""
        never = torch.full_like(self.all_positions, 2**60)
        seen = (self.all_ids == token) & (self.all_positions >= 0)
        return torch.where(seen, self.all_positions, never).min(1, keepdim=True).values

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
