"""Edits that are decided step by step: their controller runs each step of `generate`.

A step may be read several times, with the edit at other factors; every reading starts from the cache as
the step found it, and one of them is committed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench import registry, sites
from workbench.errors import EditError
from workbench.model.session import Session
from workbench.tensors import Intervention, Tokens


def recorded(edits: Iterable[Intervention], n_layers: int) -> list[str]:
    """What the controllers of these edits want recorded; nothing where none is decided by steps."""
    found: list[str] = []
    for edit in edits:
        if "stepwise" in edit.params and not edit.is_zero:
            controller = registry.get("stepwise", str(edit.params["stepwise"]))
            found += controller.record(_layers(edit, n_layers))
    return found


def driver(session: Session, state: Any, tokens: Tokens, decoder: Any) -> Driver | None:
    """Who runs the steps of this batch; None where no edit is decided step by step.

    Raises:
        EditError: two such edits in one call, no cache, or sampling under one that is greedy.
    """
    driven = [edit.edit for edit in session.bound if edit.stepwise]
    if not driven:
        return None
    edit = driven[0]
    controller = registry.get("stepwise", str(edit.params["stepwise"]))
    twice = len({one.site for one in session.bound if one.stepwise}) < len(driven)
    if twice or any(other is not edit for other in driven):
        raise _refused(edit, "is not the only edit decided step by step", "one in a call", "two")
    if not state.use_cache:
        raise _refused(edit, "needs the KV cache", "use_cache=True", "use_cache=False")
    if controller.greedy and decoder.random:
        raise _refused(
            edit, "is defined for greedy decoding alone", "Greedy()", type(decoder).__name__
        )
    session.driven = True
    return Driver(controller(edit.params, len(tokens)), session, state, tokens)


class Driver:
    """One batch under a controller; also the `Step` that the controller sees."""

    def __init__(self, controller: Any, session: Session, state: Any, tokens: Tokens):
        self._controller, self._session, self._state = controller, session, state
        self._edits = [edit for edit in session.bound if edit.stepwise]
        self.layers = tuple(sorted({edit.site.layer or 0 for edit in self._edits}))
        self.number = 0
        self.prompts = [
            ids[mask][:n].tolist()
            for ids, mask, n in zip(tokens.ids, tokens.mask, tokens.prompt_lengths, strict=True)
        ]
        self.ids: list[list[int]] = [[] for _ in self.prompts]
        self.confidences: list[list[float]] = [[] for _ in self.prompts]
        self._cache: Any = None
        self._committed: Any = None

    @property
    def positions(self) -> Tensor:
        """See `stepwise.base.Step`."""
        return self._session.frame.all_positions

    @property
    def values(self) -> Mapping[str, Tensor]:
        """See `stepwise.base.Step`."""
        return self._session.values

    def forward(
        self,
        factors: float | Tensor | Mapping[int, Tensor] | None = None,
        *,
        commit: bool = True,
        told: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Without factors the whole step, as the generating loop calls it; with them one reading."""
        if factors is None:
            return self._whole()
        for edit in self._edits:
            edit.drive(self._factor(factors, edit.site.layer))
            edit.seen.update(told or {})
        read = self._state.read(_copied(self._cache))
        if commit:
            self._committed = read.cache
        return read.logits[:, -1].float()

    def took(self, logits: Tensor, chosen: Tensor) -> None:
        """What was drawn from the step's logits."""
        largest = logits.softmax(-1).amax(-1).tolist()
        for row, (token, sure) in enumerate(zip(chosen.tolist(), largest, strict=True)):
            self.ids[row].append(token)
            self.confidences[row].append(sure)
        self.number += 1

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.prompts = [self.prompts[row] for row in rows]
        self.ids = [self.ids[row] for row in rows]
        self.confidences = [self.confidences[row] for row in rows]
        self._controller.keep(rows)

    def _whole(self) -> Tensor:
        self._state.enter(self._session)
        self._cache, self._committed = self._state.cache, None
        logits = self._controller.step(self)
        assert self._committed is not None, "a controller commits one reading per step"
        self._state.cache = self._committed
        return logits

    def _factor(self, factors: float | Tensor | Mapping[int, Tensor], layer: int | None) -> Tensor:
        n = len(self.ids)
        if isinstance(factors, Mapping):
            factors = factors.get(layer or 0, 0.0)
        made = torch.as_tensor(factors, dtype=torch.float32, device="cpu")
        return made.expand(n) if made.dim() == 0 else made


def _copied(cache: Any) -> Any:
    """A cache whose growth the given one does not see.

    Layers grow by making new tensors, so copies may share what is there; the tensors of other kinds
    of caches are copied.
    """
    layers = getattr(cache, "layers", None)
    if layers is None or not all(type(layer).__name__.startswith("Dynamic") for layer in layers):
        return copy.deepcopy(cache)
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in layers]
    return made


def _layers(edit: Intervention, n_layers: int) -> list[int]:
    """Those of the edit's layers that the model has; that it has all is checked where edits are bound."""
    texts = [text.replace("L*", f"L0-{n_layers - 1}") for text in edit.sites]
    found = {site.layer for text in texts for site in sites.parse(text, 10**6)}
    return sorted(layer for layer in found if layer is not None and layer < n_layers)


def _refused(edit: Intervention, wrong: str, expected: str, got: str) -> EditError:
    return EditError(
        f"edit {edit.label!r}",
        wrong,
        expected=expected,
        got=got,
        do="it decides anew at every token; change the call",
    )
