"""One forward pass with edits and recordings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.model.backends.lower import ended_above
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
    # a recording of the logits means all of them
    keep = int(logits != "all" and all(tap.site.part != "logits" for tap in session.taps))
    with session.attached(), torch.enable_grad() if grad else gradients_off(model):
        session.advance(tokens.ids, None if pads["mask"] is None else tokens.positions)
        out = tokens.ids.new_empty((len(tokens), 0, model.dims.n_vocab), dtype=model.dtype)
        with ended_above(model.backend, session.taps) if logits == "none" else nullcontext():
            step = model.backend.forward(tokens.ids, **pads, cache=None, use_cache=False, keep=keep)
            out = _cut(step.logits, logits)
    values = {site: usable(value) for site, value in session.values.items()}
    return Trace(tokens, usable(out), values, session.receipts())


def handed_run(
    model: Model, prompts: Any, record: Any = (), edits: Any = (), **options: Any
) -> Trace:
    """`model.run` as methods are handed it: no logits unless they are asked for."""
    return model.run(prompts, record, edits, **{"logits": "none", **options})


def _cut(logits: Tensor, wanted: Literal["all", "last", "none"]) -> Tensor:
    return {"all": logits, "last": logits[:, -1:], "none": logits[:, :0]}[wanted]


def padding(tokens: Tokens) -> dict[str, Any]:
    """`mask` and `positions` for a backend: None where nothing is padded, the fastest case."""
    if bool(tokens.mask.all()):
        return {"mask": None, "positions": None}
    return {"mask": tokens.mask.long(), "positions": tokens.positions.clamp(min=0)}


def gradients_off(model: Model) -> AbstractContextManager[None]:
    """No autograd: in inference mode, which spares a seventh of a small model's time, where it is safe.

    Other backends have machinery of their own in the forward; a dispatched model moves its weights.
    What comes out goes through `usable`.
    """
    plain = model.backend.name == "transformers" and not hasattr(model.hf, "hf_device_map")
    return torch.inference_mode() if plain else torch.no_grad()


def usable(value: Tensor) -> Tensor:
    """The same memory as a tensor that autograd takes: one made in inference mode is refused there."""
    if not value.is_inference():
        return value
    plain = torch.empty(0, dtype=value.dtype, device=value.device)
    return plain.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
