"""The random control of any edit: the same sizes in a random direction.

A claim that a direction does something needs a random direction of the same norm beside it, at the
same sites, scope and strength. All vectors that an edit writes with are turned together into a
random subspace, so that their lengths and the angles between them stay: the control of an ablation
is an ablation of a random direction, the control of a gate keeps the gate and pushes elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from workbench.linalg import random_rotation_of
from workbench.seeds import derive
from workbench.tensors import Intervention

WRITES = ("shift", "down", "up", "value", "b1", "b2")
"""Tensors whose last axis is a direction of the site."""
PER_UNIT = ("scale", "bias", "factor")
"""Tensors with one number per coordinate, head or expert: their control is a permutation."""
WEIGHTS = ("tangent.", "writer.")
"""Beginnings of the names of whole weights: their control is a random weight of the same norm."""


def random_control(edit: Intervention, seed: int = 0) -> Intervention | None:
    """`edit` with its directions drawn at random; None where no draw can differ from it: it has no
    direction, a site one coordinate wide, or the same number everywhere (a zero ablation).

    The seed is in `params["control_seed"]`; every site draws its own direction. A calibration does
    not carry over: the same norm is seldom the same divergence, and that difference is a finding.
    """
    tensors = {s: _turned(t, derive(seed, "control", s)) for s, t in edit.tensors.items()}
    if all(t is None for t in tensors.values()):
        return None
    kept = {s: t if t is not None else dict(edit.tensors[s]) for s, t in tensors.items()}
    params = {k: v for k, v in edit.params.items() if k != "calibration"}
    return replace(
        edit,
        method="random_direction",
        tensors=kept,
        params={**params, "control_of": edit.label, "control_seed": seed},
        name=f"{edit.label} (random control)",
    )


def _turned(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor] | None:
    """Drawn at random; for a line in each coordinate, about the point that it was fitted around.

    Its `shift` alone says how far 0 moves, which may be far more than any activation does.
    """
    if "centre" not in tensors:
        return _turned_about_zero(tensors, seed)
    centre = tensors["centre"]
    moved = {**tensors, "shift": tensors["shift"] + tensors["scale"] * centre}
    out = _turned_about_zero(moved, seed)
    return out and {**out, "shift": out["shift"] - out["scale"] * centre}


def _turned_about_zero(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor] | None:
    wide = {k: t for k, t in tensors.items() if t.dim() and t.shape[-1] > 1}
    vectors = {k: t for k, t in wide.items() if k in WRITES and t.dim() in (1, 2)}
    units = {k: t for k, t in wide.items() if k in PER_UNIT and t.dim() == 1}
    out = dict(tensors)
    if vectors:
        stacked = torch.cat([t.reshape(-1, t.shape[-1]) for t in vectors.values()])
        turned = random_rotation_of(stacked, seed).to(stacked.dtype)
        pieces = turned.split([t.numel() // t.shape[-1] for t in vectors.values()])
        out |= {k: p.reshape(t.shape) for (k, t), p in zip(vectors.items(), pieces, strict=True)}
    for name, tensor in units.items():
        out[name] = _shuffled(tensor, seed)
    out |= {k: _drawn(t, derive(seed, k)) for k, t in tensors.items() if k.startswith(WEIGHTS)}
    return None if all(torch.equal(t, out[k]) for k, t in tensors.items()) else out


def _drawn(tensor: Tensor, seed: int) -> Tensor:
    """A random tensor of the same shape and norm."""
    drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return (drawn * (tensor.norm().cpu() / drawn.norm())).to(tensor)


def _shuffled(tensor: Tensor, seed: int) -> Tensor:
    """`tensor` in an order that differs; itself where all its numbers are one."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = tensor
    while torch.equal(shuffled, tensor) and bool((tensor != tensor[0]).any()):
        shuffled = tensor[torch.randperm(len(tensor), generator=generator)]
    return shuffled
