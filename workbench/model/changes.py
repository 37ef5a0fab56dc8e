"""How deep two runs of the same prompts agree: edits compared by what they do, places counted by depth.

A *stage* is a place in the order a forward pass reaches it: -1 before the blocks, `2 l` inside block l,
`2 l + 1` at its `resid_post`, `2 n` from the last norm on. Whatever has a stage below the first
difference did exactly the same in both runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.model.edits import BoundEdit
from workbench.model.layouts.base import Layout
from workbench.sites import Site

_OTHER_KERNEL = ("attention", "experts")
"""Taps that make their layer run another kernel: there even reading changes the last bits."""

Plan = dict[int, list[Any]]


class Stages:
    """Stages of the sites of one model."""

    def __init__(self, layout: Layout, n_layers: int):
        self.layout, self.head = layout, 2 * n_layers

    def of(self, site: Site) -> int:
        """The stage at which a forward pass reaches the site."""
        if site.layer is not None:
            return 2 * site.layer + (site.part == "resid_post")
        if not site.part.startswith("hf:"):
            return -1 if site.part == "embed" else self.head
        path = site.part.removeprefix("hf:").rpartition(":")[0]
        number = path.removeprefix(self.layout.blocks + ".").partition(".")[0]
        if path.startswith(self.layout.blocks + ".") and number.isdigit():
            return 2 * int(number)
        last = self.layout.outside["final_norm"].module
        return self.head if path in (last, "lm_head", "embed_out") else -1

    def plan(self, bound: Iterable[BoundEdit], read: Iterable[Site]) -> Plan:
        """By stage, everything that decides the numbers there: edits in order, then reading taps."""
        plan: Plan = {}
        for edit in bound:
            plan.setdefault(self.of(edit.site), []).append(Imprint(edit))
        for site in sorted({s.base for s in read if self._other_kernel(s)}, key=str):
            plan.setdefault(self.of(site), []).append(site)
        return plan

    def _other_kernel(self, site: Site) -> bool:
        point = self.layout.inside.get(site.part)
        return point is not None and point.via in _OTHER_KERNEL


class Imprint:
    """What a bound edit does, remembered well enough to notice a change made in place later."""

    def __init__(self, edit: BoundEdit):
        one = edit.edit
        self.words = (edit.site, one.operation, one.scope, dict(one.params))
        self.tensors = {k: Kept(w) for k, w in edit.weights.items()}
        self.strength = Kept(one.strength) if isinstance(one.strength, Tensor) else one.strength

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Imprint)
            and self.words == other.words
            and self.strength == other.strength
            and self.tensors == other.tensors
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Kept:
    """A tensor and the version it had: `intact` until somebody writes into it."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.version = tensor, version(tensor)

    @property
    def intact(self) -> bool:
        """Whether it still holds what it held."""
        return version(self.tensor) == self.version

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Kept) or not self.intact:
            return False
        a, b = self.tensor, other.tensor
        return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def version(tensor: Tensor) -> int:
    """Number of writes into the tensor so far; always 0 where torch does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def counted(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those whose writes torch counts."""
    return [t for t in tensors if not t.is_inference()]


def versions(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """`version` of many `counted` tensors."""
    return tuple([t._version for t in tensors])


def lowest_difference(old: Mapping[int, list[Any]], new: Mapping[int, list[Any]]) -> int | None:
    """The lowest stage at which two plans differ; None where they are equal."""
    differing = (s for s in {*old, *new} if old.get(s) != new.get(s))
    return min(differing, default=None)
