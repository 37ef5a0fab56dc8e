"""What probes that read all of an example's tokens share: their tokens, and a softmax over them."""

from __future__ import annotations

import torch

from workbench.errors import WorkbenchError
from workbench.shapes import Bool, Float, Tensor

Tokens = Float[Tensor, "example pos d"]
Mask = Bool[Tensor, "example pos"]


def tokens_of(where: str, rows: Tensor, mask: Tensor | None) -> tuple[Tokens, Mask]:
    """Rows in float32, finite on padding, and which of them are tokens: all, where no mask is given.

    Raises:
        WorkbenchError: rows are single, the mask has another shape, or an example has no token.
    """
    if rows.ndim != 3 or (mask is not None and mask.shape != rows.shape[:2]):
        raise WorkbenchError(
            where,
            "reads all tokens of an example",
            expected="rows [example, pos, d] and a mask [example, pos]",
            got=f"rows {list(rows.shape)}, mask {None if mask is None else list(mask.shape)}",
            do="record with pool='all'; for one example, pass rows[None]",
        )
    if mask is None:
        mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    if not bool(mask.any(-1).all()):
        raise WorkbenchError(
            where,
            "an example has no tokens",
            expected="at least one token in each",
            got=f"{int((~mask.any(-1)).sum())} of {len(mask)} without",
            do="leave them out",
        )
    rows = rows.float()
    if not bool(torch.isfinite(rows[~mask]).all()):  # padding weighs 0, and 0 x NaN is NaN
        rows = rows.masked_fill(~mask[..., None], 0.0)
    return rows, mask


def softmax_weights(
    values: Float[Tensor, "example pos"], mask: Mask, temperature: float | int
) -> Float[Tensor, "example pos"]:
    """Softmax of `values / temperature` over an example's tokens; 0 on padding.

    At temperature 0 all weight is on the largest value, shared by ties; at infinity tokens weigh the same.
    """
    values = values.masked_fill(~mask, -torch.inf)
    if temperature == 0:
        largest = (values == values.max(-1, keepdim=True).values).to(values.dtype)
        return largest / largest.sum(-1, keepdim=True)
    if temperature == float("inf"):
        return mask / mask.sum(-1, keepdim=True)
    return (values / temperature).softmax(-1)
