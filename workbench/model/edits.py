"""An intervention bound to a model: checked before anything runs, applied at its site, and receipted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench import registry
from workbench.errors import EditDidNothing, EditError
from workbench.model.layouts.base import Dims
from workbench.model.positions import Frame
from workbench.model.shadow import again
from workbench.operations import ONLY_AT, REQUIRED, WIDTH_TENSORS, Context, Weights, operation
from workbench.records import Receipt
from workbench.rules.base import Around
from workbench.scopes import Scope
from workbench.sites import Index, Site, parse
from workbench.tensors import Fingerprint, Intervention

KV_PARTS = ("k", "v", "k_cache", "v_cache")
_ALL = Scope.all()


class BoundEdit:
    """One intervention at one site of one run; `weights` are its tensors as they were given."""

    def __init__(self, edit: Intervention, site: Site, weights: Weights, dims: Dims):
        self.edit, self.site = edit, site
        self.weights = weights
        self._weights, self._ready = weights, False
        self._operation = operation(edit.operation)
        rule = _rule(edit)
        self._looks_around = getattr(rule, "around", False)
        self._context = Context(edit.params, rule=rule.change if rule else None)
        self._key_scope = edit.params.get("keys")
        self._axes = site.axes
        self._flat_width = _flat_width(weights, site, dims)
        self._one_strength = not isinstance(edit.strength, Tensor)
        self._strength = float(edit.strength) if self._one_strength else edit.strength
        self._own_strength = self._strength
        self.reads = _reads(edit, site)
        self.seen: dict[str, Tensor] = {}
        self.stepwise = edit.params.get("stepwise")
        self._rows: Tensor | None = None
        self._pos = site.selector("pos")
        self._token_dim = 1 + next(i for i, axis in enumerate(site.axes) if axis in ("pos", "q"))
        self._all_of_it = not _picks(site)
        self._over_keys = site.axes[:2] == ("head", "pos")
        self._everywhere = edit.scope == _ALL and self._pos is None and not self._over_keys
        self.fired = self.positions = 0
        # distances stay tensors until somebody asks: reading one would wait for a GPU
        self._distances: list[Tensor] = []
        self._squared_before = 0.0

    def apply(self, h: Tensor, frame: Frame) -> Tensor:
        """The activation after this edit; `h` itself where the scope covers nothing."""
        self.fired += 1
        whole = self._everywhere and not frame.padded and self._rows is None
        cover = None if whole else self._cover(frame, h)
        covered = h.shape[0] * h.shape[self._token_dim] if cover is None else int(cover.sum())
        self.positions += covered
        if not covered:
            return h
        piece = h if self._all_of_it else select(h, self.site)
        new = self._fitted(piece, frame)
        cover = self._without_idle(cover, piece)
        if cover is not None:
            new = torch.where(cover, new, piece)
        self._distances.append(_distance(new, piece))
        return new if piece is h else scatter(h, self.site, new)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        if isinstance(self._strength, Tensor):
            self._strength = self._strength[rows]
        if isinstance(self._own_strength, Tensor):
            self._own_strength = self._own_strength[rows]

    def drive(self, factors: Tensor) -> None:
        """In the next forwards act at `factors` `[batch]` times its own strength; 0 is not at all."""
        self._rows = factors != 0
        self._strength, self._one_strength = self._own_strength * factors, False

    def add(self, other: BoundEdit, copies: int = 1) -> None:
        """Count in what an equal edit did in another forward, `copies` times."""
        self.fired += other.fired
        self.positions += other.positions * copies
        self._squared_before += other._squared() * copies

    def receipt(self) -> Receipt:
        """What it did so far."""
        change = self._squared() ** 0.5
        return Receipt(self.edit.label, str(self.site), self.fired, self.positions, change)

    def _squared(self) -> float:
        """Squared Euclidean size of everything changed so far."""
        if len(self._distances) < 2:
            return self._squared_before + sum(float(d) ** 2 for d in self._distances)
        return self._squared_before + float(torch.stack(self._distances).square().sum())

    def _cover(self, frame: Frame, h: Tensor) -> Tensor | None:
        cover = frame.mask(self.edit.scope, keys=self._over_keys)
        if self._pos is not None:
            cover = _at_positions(frame, self._pos, cover, self._over_keys)
        # a sliding cache and kept logits hold only the last columns
        columns = h.shape[self._token_dim]
        cover = cover if cover is None else cover[:, -columns:]
        if self._rows is None:
            return cover
        acting = self._rows[:, None].expand(-1, columns)
        return acting if cover is None else acting & cover

    def _without_idle(self, cover: Tensor | None, piece: Tensor) -> Tensor | None:
        """The cover, spread over the piece's axes, without masked scores and unrouted experts."""
        spread = None if cover is None else self._spread(cover, piece)
        if self.site.part == "attn_scores":
            idle = piece > torch.finfo(piece.dtype).min / 2
        elif self.site.part == "expert":
            idle = piece.any(-1, keepdim=True)
        else:
            return spread
        return idle if spread is None else idle & spread

    def _fitted(self, piece: Tensor, frame: Frame) -> Tensor:
        """The operation's result, or its misfit in words."""
        wrong: object = None
        try:
            new = self._operate(piece, frame)
        except RuntimeError as error:
            wrong = error
        else:
            if new.shape == piece.shape:
                return new
            wrong = f"a result of shape {tuple(new.shape)}"
        raise EditError(
            f"edit {self.edit.label!r} at {self.site}",
            "its tensors do not fit the activation",
            expected=f"tensors for {tuple(piece.shape)} (batch {' '.join(self._axes)})",
            got={name: tuple(w.shape) for name, w in self.weights.items()},
            do=f"fit it on this site: {wrong}",
        )

    def _operate(self, piece: Tensor, frame: Frame) -> Tensor:
        if not self._ready:
            self._weights = {k: w.to(piece.device, piece.dtype) for k, w in self._weights.items()}
            self._ready = True
        context = self._context
        if self._key_scope is not None:
            keys = frame.mask(Scope.parse(self._key_scope), keys=True)
            cover = None if keys is None else keys[:, None, None, -piece.shape[-1] :]
            context = replace(context, keys=None if cover is None else cover.to(piece))
        if self._looks_around:
            rule = partial(self._rule_around, around=self._around(frame))
            context = replace(context, rule=rule)
        strength = self._strength if self._one_strength else self._strengths(piece)
        if self._flat_width:
            flat = self._operation(piece.flatten(2), self._weights, strength, context)
            return flat.unflatten(2, piece.shape[2:])
        return self._operation(piece, self._weights, strength, context)

    def _around(self, frame: Frame) -> Around:
        now = (frame.positions, frame.all_ids, frame.all_positions, frame.prompt_lengths)
        return Around(*now, self.seen, partial(again, frame))

    def _rule_around(self, h: Tensor, w: Weights, params: Any, *, around: Around) -> Tensor:
        assert self._context.rule is not None
        return self._context.rule(h, w, params, around)  # pyright: ignore[reportCallIssue]

    def _strengths(self, piece: Tensor) -> Tensor:
        assert isinstance(self._strength, Tensor)
        dims = 3 if self._flat_width else piece.dim()
        return self._strength.to(piece).reshape(-1, *[1] * (dims - 1))

    def _spread(self, cover: Tensor, piece: Tensor) -> Tensor:
        shape = [1] * piece.dim()
        shape[0], shape[self._token_dim] = cover.shape
        return cover.to(piece.device).reshape(shape)


def bind(
    edits: Iterable[object],
    parse: Callable[[str], list[Site]],
    dims: Dims,
    model: Fingerprint,
    n_rows: int,
) -> list[BoundEdit]:
    """Every edit at every site it names, in order. Switched-off edits are checked and left out.

    Raises:
        EditError: an edit of another width or depth, of an unknown operation, or with per-row
            strengths for another number of rows.
    """
    bound = []
    for edit in edits:
        if not isinstance(edit, Intervention):
            raise EditError(
                "edits",
                "holds something that is not an Intervention",
                expected="a list of Intervention",
                got=type(edit).__name__,
                do="fit a method, or wb.load_edit(path)",
            )
        _check_model(edit, model)
        _check_rows(edit, n_rows)
        for text, weights in edit.tensors.items():
            for site in parse(text):
                check_selectors(site, dims)
                _check_operation(edit, site, weights)
                _check_width(edit, site, weights, dims)
                if not edit.is_zero:
                    bound.append(BoundEdit(edit, site, weights, dims))
                    _await_steps(bound[-1], n_rows)
    return bound


def check_receipts(
    bound: list[BoundEdit], saw_generated: Callable[[], bool]
) -> tuple[Receipt, ...]:
    """Receipts of a finished run; `saw_generated` says whether it read any generated token.

    Raises:
        EditDidNothing: a site never reached, a scope that covered nothing, or no change, unless the
            edit or its scope declares itself conditional.
        EditError: an edit that made activations infinite or NaN.
    """
    receipts = tuple(one.receipt() for one in bound)
    for one, receipt in zip(bound, receipts, strict=True):
        edit = one.edit
        where = f"edit {receipt.edit!r} at {receipt.site}"
        if not receipt.fired:
            raise _nothing(where, "was never reached", "a site this forward runs through")
        if not math.isfinite(receipt.change):
            raise EditError(
                where,
                "made the activations infinite or NaN",
                expected="a finite change",
                got=receipt.change,
                do="lower its strength",
            )
        if edit.conditional or edit.scope.conditional:
            continue
        if not receipt.positions:
            later = any(t.kind == "generated" for t in edit.scope.include)
            if later and not saw_generated():
                continue
            raise _nothing(
                where, f"covered no position (scope {edit.scope})", "a scope inside the run"
            )
        if receipt.change == 0:
            raise _nothing(where, "changed nothing", "a change at non-zero strength")
    return receipts


def check_selectors(site: Site, dims: Dims) -> None:
    """Raise where a head or expert selector is beyond the model.

    Raises:
        EditError: naming the selector and what the model has.
    """
    if not site.selectors:
        return
    sizes = {
        "head": dims.n_kv_heads if site.part in KV_PARTS else dims.n_heads,
        "expert": dims.n_experts,
    }
    for key, index in site.selectors:
        size, many = sizes.get(key), [index] if isinstance(index, int) else index
        if size and any(not -size <= i < size for i in many):
            raise EditError(
                f"site {site}",
                f"selects a {key} the model lacks",
                expected=f"{key}s 0 to {size - 1}",
                got=index,
                do="count from 0; key-value heads may be fewer than heads",
            )


def _distance(new: Tensor, old: Tensor) -> Tensor:
    if new.dtype != torch.float32 or new.requires_grad:
        new, old = new.detach().float(), old.detach().float()
    return torch.dist(new, old)


def select(h: Tensor, site: Site) -> Tensor:
    """The part of `h` that the head, neuron and expert selectors mean; axes are kept."""
    for dim, index in _picks(site):
        one = isinstance(index, int)
        size = h.shape[dim]
        if any(not -size <= i < size for i in ([index] if isinstance(index, int) else index)):
            raise EditError(
                f"site {site}",
                "selects beyond the activation",
                expected=f"0 to {size - 1}",
                got=index,
                do="count from 0",
            )
        h = (
            h.narrow(dim, index % h.shape[dim], 1)
            if one
            else h[(slice(None),) * dim + (list(index),)]
        )
    return h


def scatter(h: Tensor, site: Site, new: Tensor) -> Tensor:
    """A copy of `h` with the selected part replaced by `new`."""
    out = h.clone()
    where: list[object] = [slice(None)] * h.dim()
    for dim, index in _picks(site):
        where[dim] = [index] if isinstance(index, int) else list(index)
    if sum(isinstance(w, list) for w in where) > 1:
        raise EditError(
            f"site {site}",
            "selects along two axes at once",
            expected="one of head, neuron, expert",
            got=str(site),
            do="use two edits",
        )
    out[tuple(where)] = new  # pyright: ignore[reportArgumentType]
    return out


def _picks(site: Site) -> list[tuple[int, Index]]:
    return [(1 + site.axes.index(k), v) for k, v in site.selectors if k != "pos"]


def _at_positions(frame: Frame, pos: Index, cover: Tensor | None, keys: bool) -> Tensor:
    at = frame.all_positions if keys else frame.positions
    chosen = torch.zeros_like(at, dtype=torch.bool)
    for p in [pos] if isinstance(pos, int) else pos:
        chosen |= at == (frame.prompt_lengths + p if p < 0 else p)
    return chosen if cover is None else chosen & cover


def _rule(edit: Intervention):
    if edit.operation != "adaptive":
        return None
    return registry.get("rules", str(edit.params.get("rule")))


def _reads(edit: Intervention, site: Site) -> dict[str, Site]:
    """The sites of this forward that the edit's rule is shown, by their texts in `params["reads"]`."""
    found: dict[str, Site] = {}
    for text in edit.params.get("reads", ()):
        layers = 10**6 if site.layer is None else site.layer + 1
        (one,) = parse(text.replace("{layer}", str(site.layer)), layers)
        if one.selectors or one.layer != site.layer or one.depth >= site.depth:
            raise EditError(
                f"edit {edit.label!r} at {site}",
                "wants to read what this forward has not reached, or another layer",
                expected="sites of its own layer that come before it, without selectors",
                got=text,
                do="write 'L{layer}.<part>' in params['reads']",
            )
        found[text] = one
    return found


def _await_steps(edit: BoundEdit, n_rows: int) -> None:
    """An edit that is decided step by step does nothing before, unless it acts on prompts."""
    if edit.stepwise is not None:
        controller = registry.get("stepwise", str(edit.stepwise))
        if not controller.on_prompt:
            edit.drive(torch.zeros(n_rows))


def _widths(site: Site, dims: Dims) -> tuple[int, int]:
    """Width of the last axis, and of all axes after `pos` flattened (0 where the same)."""
    if site.axes == ("pos", "d"):
        return dims.d_model, 0
    heads = dims.n_kv_heads if site.part in KV_PARTS else dims.n_heads
    picked = site.selector("head") if "head" in site.axes else site.selector("expert")
    if site.axes == ("pos", "head", "d_head"):
        n = heads if picked is None else 1 if isinstance(picked, int) else len(picked)
        return dims.d_head, n * dims.d_head
    width = {"d": dims.d_model, "vocab": dims.n_vocab, "expert": dims.n_experts}
    return width.get(site.axes[-1], 0), 0


def _flat_width(weights: Weights, site: Site, dims: Dims) -> bool:
    last, flat = _widths(site, dims)
    sizes = {w.shape[-1] for k, w in weights.items() if k in WIDTH_TENSORS and w.dim()}
    return bool(flat) and flat != last and flat in sizes


def _check_operation(edit: Intervention, site: Site, weights: Weights) -> None:
    where, name = f"edit {edit.label!r} at {site}", edit.operation
    operation(name)
    if name in ONLY_AT and site.part not in ONLY_AT[name]:
        raise EditError(
            where,
            f"{name} means nothing there",
            expected=" or ".join(ONLY_AT[name]),
            got=site.part,
            do="move it, or use another operation",
        )
    missing = [t for t in REQUIRED.get(name, ()) if t not in weights]
    missing += ["up"] if "down" in weights and "up" not in weights else []
    cancels = name == "score_bias" and site.part == "attn_scores" and "keys" not in edit.params
    missing += ["params['keys']"] if cancels else []
    if missing:
        raise EditError(
            where,
            f"{name} lacks a tensor or parameter",
            expected=missing,
            got=[*weights, *(f"params[{p!r}]" for p in edit.params)],
            do="add it; workbench.operations says what each operation reads",
        )


def _check_width(edit: Intervention, site: Site, weights: Weights, dims: Dims) -> None:
    last, flat = _widths(site, dims)
    if not last or site.part.startswith("hf:") or "neuron" in dict(site.selectors):
        return
    for name, tensor in weights.items():
        if name in WIDTH_TENSORS and tensor.dim() and tensor.shape[-1] not in (last, flat, 1):
            raise EditError(
                f"edit {edit.label!r} at {site}",
                f"{name} has another width than the site",
                expected=f"{last}" + (f" or {flat}" if flat else ""),
                got=tensor.shape[-1],
                do="fit it on this model",
            )


def _check_model(edit: Intervention, model: Fingerprint) -> None:
    made = edit.model
    if made and (made.d_model, made.n_layers) != (model.d_model, model.n_layers):
        raise EditError(
            f"edit {edit.label!r}",
            "was made on a model of another width or depth",
            expected=f"d_model {model.d_model}, {model.n_layers} layers",
            got=f"d_model {made.d_model}, {made.n_layers} layers ({made.name})",
            do="fit it on this model",
        )


def _check_rows(edit: Intervention, n_rows: int) -> None:
    if isinstance(edit.strength, Tensor) and edit.strength.shape != (n_rows,):
        raise EditError(
            f"edit {edit.label!r}",
            "has strengths for another number of rows",
            expected=f"a number, or {n_rows} of them",
            got=tuple(edit.strength.shape),
            do="give one strength per prompt",
        )


def _nothing(where: str, wrong: str, expected: str) -> EditDidNothing:
    return EditDidNothing(
        where,
        wrong,
        expected=expected,
        got="no effect",
        do="check site, scope and strength; a gate sets conditional=True",
    )
