"""One forward pass with edits and recordings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from workbench.model.model import Model
from workbench.sites import Site
from workbench.tensors import Intervention, Tokens, Trace


def run(
    model: Model,
    prompts: Any,
    record: Iterable[str | Site] = (),
    edits: Iterable[Intervention] = (),
    *,
    completions: Sequence[Iterable[int]] | None = None,
    logits: Literal["all", "last", "none"] = "all",
    grad: bool = False,
) -> Trace:
    """See `Model.run`."""
    tokens = prompts if isinstance(prompts, Tokens) else model.tokens(prompts, completions)
    session = model.session(tokens, edits, record)
    pads = padding(tokens)
    with session.attached(), torch.set_grad_enabled(grad):
        session.advance(tokens.ids, None if pads["mask"] is None else tokens.positions)
        step = model.backend.forward(
            tokens.ids, **pads, cache=None, use_cache=False, keep=int(logits != "all")
        )
    out = step.logits[:, :0] if logits == "none" else step.logits
    return Trace(tokens, out, session.values, session.receipts())


def padding(tokens: Tokens) -> dict[str, Any]:
    """`mask` and `positions` for a backend: None where nothing is padded, the fastest case."""
    if bool(tokens.mask.all()):
        return {"mask": None, "positions": None}
    return {"mask": tokens.mask.long(), "positions": tokens.positions.clamp(min=0)}
