"""Edits that a row of the widget makes on the spot, without training: zero, scale, mean, toward a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench import sites
from workbench.errors import EditError, unknown
from workbench.model.model import Model
from workbench.records import Prompt
from workbench.tensors import Intervention

OPERATIONS: dict[str, tuple[str, str, tuple[float, float]]] = {
    "zero": ("set to zero", "fraction of the way to zero", (0.0, 1.0)),
    "mean": ("set to its mean over the prompts", "fraction of the way to the mean", (0.0, 1.0)),
    "scale": ("scale", "added multiples of the activation", (-1.0, 3.0)),
    "toward": ("push toward a token", "multiples of the activation's mean norm", (-2.0, 2.0)),
}
"""What a row can make: its words, what one unit of strength is, and how far the slider goes."""


KEY_WIDE = ("pattern", "attn_scores")


def make(
    model: Model, operation: str, site: str, prompts: Sequence[Prompt], token: str = ""
) -> Intervention:
    """The edit at strength 1.

    Args:
        operation: one of `OPERATIONS`.
        site: one site, selectors allowed: `L2.z[head=3]`.
        prompts: whose activations give the mean, the norm and the width.
        token: for "toward", the token pushed to; its first id counts.

    Raises:
        UnknownName: no such operation or site.
        EditError: "toward" at a site that is not d_model wide, or without a token.
    """
    if operation not in OPERATIONS:
        raise unknown("edit row", "operation", operation, OPERATIONS)
    place = sites.parse(site, model.n_layers)
    if len(place) != 1:
        raise EditError(
            f"edit row {site!r}",
            "names several sites",
            expected="one site",
            got=len(place),
            do="add a row for each",
        )
    rows = _activations(model, site, prompts)
    if place[0].part in KEY_WIDE:
        rows = _one_wide(operation, site, rows)
    tensors = _TENSORS[operation](model, rows, site, token)
    kind = {"zero": "set", "mean": "set"}.get(operation, "affine")
    name = f"{operation} {site}" + (f" {token!r}" if operation == "toward" else "")
    return Intervention(
        "custom",
        kind,
        {str(place[0]): tensors},
        unit=OPERATIONS[operation][1],
        params={"make": {"operation": operation, "site": site, "token": token}},
        model=model.fingerprint_shape,
        name=name,
    )


def _one_wide(operation: str, site: str, rows: Tensor) -> Tensor:
    """A site whose last axis counts keys is as wide as the text is long: only a number fits it."""
    if operation not in ("zero", "scale"):
        raise EditError(
            f"edit row {site!r}",
            f"has no {operation}: it is as wide as the text is long",
            expected="zero or scale",
            got=operation,
            do="choose one of these, or another site",
        )
    return rows[:, :1]


def _activations(model: Model, site: str, prompts: Sequence[Prompt]) -> Tensor:
    """`[row, d]` at the site, over every position of the prompts."""
    values = model.run(list(prompts), record=[site], logits="last")
    found = next(iter(values.values.values()))
    # padding holds no activation: mask it out where the site has a position axis right after batch
    mask = values.tokens.mask
    if found.shape[:2] == mask.shape:
        found = found[mask]
    return found.reshape(-1, found.shape[-1])


def _zero(_model: Model, rows: Tensor, _site: str, _token: str) -> dict[str, Tensor]:
    return {"value": torch.zeros_like(rows[0])}


def _mean(_model: Model, rows: Tensor, _site: str, _token: str) -> dict[str, Tensor]:
    return {"value": rows.mean(0)}


def _scale(_model: Model, rows: Tensor, _site: str, _token: str) -> dict[str, Tensor]:
    return {"scale": torch.ones_like(rows[0])}


def _toward(model: Model, rows: Tensor, site: str, token: str) -> dict[str, Tensor]:
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"] if token else []
    if not ids:
        raise EditError(
            "edit row", "names no token", expected="a token's text", got=repr(token), do="type one"
        )
    if rows.shape[-1] != model.d_model:
        raise EditError(
            f"edit row {site!r}",
            "a token's direction does not fit there",
            expected=f"a site {model.d_model} wide, such as L0.resid_post",
            got=f"{rows.shape[-1]} wide",
            do="choose a site of the residual stream",
        )
    direction = model.hf.get_output_embeddings().weight[ids[0]].to(rows)
    return {"shift": direction / direction.norm() * rows.norm(dim=-1).mean()}


_TENSORS: Mapping[str, Any] = {"zero": _zero, "mean": _mean, "scale": _scale, "toward": _toward}
