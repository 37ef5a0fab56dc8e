"""The ReFT family as affine edits: six ways to write in a subspace of r directions.

    loreft     h + R^T (W h + b - R h)      direft    h + R^T (W h + b)
    consreft   h + R^T (b - R h)            lobireft  h + R^T b
    noreft, nodireft: loreft and direft whose R need not have orthonormal rows

All are `h + M h + c` with M = up^T down of rank r, so that what is trained folds into one affine
edit: up = R, down = W - R (loreft, noreft), -R (consreft) or W (direft, nodireft), c = R^T b.
As maps loreft and direft are the same set (W - R is any matrix); as parameters they train
differently, because R is also what loreft reads with.

Shapes: R, W, up, down `[r, d]`; b `[r]`; shift `[d]`.
Source: Wu, Arora, Wang, Geiger, Jurafsky, Manning and Potts (2024), ReFT: Representation Finetuning
    for Language Models, https://arxiv.org/abs/2404.03592.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.seeds import derive
from workbench.shapes import Float, Rows, Tensor

Form = Literal["loreft", "consreft", "lobireft", "direft", "noreft", "nodireft"]
FORMS: tuple[Form, ...] = get_args(Form)
FREE = ("noreft", "nodireft")
"""Forms whose R is any matrix."""


def check(where: str, form: str, rank: int, examples: int, widths: Mapping[str, int]) -> None:
    """Raise where a form, a rank and the data do not fit.

    Raises:
        UnknownName: no such form.
        WorkbenchError: a rank below 1, above a site's width, or above the number of examples.
    """
    if form not in FORMS:
        raise unknown(where, "form", form, FORMS)
    narrow = min(widths, key=lambda site: widths[site])
    limits = {f"the width of {narrow}": widths[narrow], "the number of examples": examples}
    for name, limit in limits.items():
        if not 1 <= rank <= limit:
            raise WorkbenchError(
                where,
                f"the rank does not fit {name}",
                expected=f"1 to {limit}",
                got=rank,
                do="lower the rank" if rank > limit else "take at least one direction",
            )


def start(form: str, rank: int, widths: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """What training begins with, named `site::name`: R random, and the rest so that nothing changes.

    At the start every form but consreft is the identity (W = R or 0, b = 0). Consreft has no such
    start, because it always erases R h; with b = 0 it begins as the ablation of a random subspace.
    """
    tensors: dict[str, Tensor] = {}
    for site, width in widths.items():
        generator = torch.Generator().manual_seed(derive(seed, "reft", site))
        spread = torch.randn(rank, width, generator=generator, dtype=torch.float64)
        rotation = orthonormal(spread).float()
        tensors[f"{site}::rotation"] = rotation
        tensors[f"{site}::bias"] = torch.zeros(rank)
        if form in ("loreft", "noreft"):
            tensors[f"{site}::weight"] = rotation.clone()
        elif form in ("direft", "nodireft"):
            tensors[f"{site}::weight"] = torch.zeros_like(rotation)
    return tensors


def folded(form: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The affine tensors of trained ones, by site; differentiable."""
    sites = [key.removesuffix("::rotation") for key in tensors if key.endswith("::rotation")]
    return {
        site: fold(
            form,
            tensors[f"{site}::rotation"],
            tensors.get(f"{site}::weight"),
            tensors[f"{site}::bias"],
        )
        for site in sites
    }


def fold(
    form: str, rotation: Rows, weight: Rows | None, bias: Float[Tensor, " row"]
) -> dict[str, Tensor]:
    """`up`, `down` and `shift` of one site. Rows of `rotation` are made orthonormal where the form asks."""
    turn = rotation if form in FREE else orthonormal(rotation)
    shift = bias @ turn
    if form == "lobireft":
        return {"shift": shift}
    if form == "consreft":
        return {"up": turn, "down": -turn, "shift": shift}
    assert weight is not None
    down = weight if form in ("direft", "nodireft") else weight - turn
    return {"up": turn, "down": down, "shift": shift}


def orthonormal(rows: Rows) -> Rows:
    """Orthonormal rows with the same span, in order; rows that are so already stay.

    By QR with R's diagonal made positive, which is continuous and differentiable.
    """
    q, r = torch.linalg.qr(rows.mT)
    return (q * r.diagonal().sign()).mT


def stacked(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One affine edit that does `first` and then `second`, exactly.

    With h1 = h + M1 h + c1 and h2 = h1 + M2 h1 + c2:  M = M1 + M2 + M2 M1,  c = c1 + c2 + M2 c1.
    """
    up1, down1, shift1 = (first[name].double() for name in ("up", "down", "shift"))
    up2, down2, shift2 = (second[name].double() for name in ("up", "down", "shift"))
    return {
        "up": torch.cat([up1, up2]).float(),
        "down": torch.cat([down1, down2 + (down2 @ up1.mT) @ down1]).float(),
        "shift": (shift1 + shift2 + (down2 @ shift1) @ up2).float(),
    }
