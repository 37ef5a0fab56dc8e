"""Scores, pattern, and the keys and values attended to: seen by standing in for the attention function.

A tapped layer gets a private copy of its configuration that names our function, so every other layer
and the mask keep the implementation the model was loaded with. The tapped layer runs the model's *own*
eager attention while the softmax inside it is intercepted: its input are the scores, its output the
pattern. This keeps soft-capping, sinks and scaling as the architecture has them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Fn = Callable[[Tensor], Tensor]
_NAME = "workbench"
_SOFTMAX = (torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)


def supported(attention: nn.Module) -> bool:
    """Whether the module calls its attention through the interface and has an eager form."""
    return hasattr(_source(attention), "eager_attention_forward") and hasattr(attention, "config")


@contextmanager
def tapped(attention: nn.Module, taps: Mapping[str, Fn]) -> Iterator[None]:
    """While open, `taps` (by part name) see this module's attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    with implementation(attention, _NAME) as private:
        object.__setattr__(private, "workbench_taps", dict(taps))
        yield


@contextmanager
def implementation(attention: nn.Module, name: str) -> Iterator[Any]:
    """This module alone attends by `name`, through a private copy of its configuration."""
    shared = attention.config
    private = copy.copy(shared)
    private._attn_implementation_internal = name
    attention.config = private
    try:
        yield private
    finally:
        attention.config = shared


class _SoftmaxTap(TorchFunctionMode):
    """Calls `scores` on the input of the first softmax and `pattern` on its output."""

    def __init__(self, scores: Fn | None, pattern: Fn | None):
        super().__init__()
        self.scores, self.pattern, self.done = scores, pattern, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.done or func not in _SOFTMAX:
            return func(*args, **kwargs)
        self.done = True
        scores = self.scores(args[0]) if self.scores else args[0]
        pattern = func(scores, *args[1:], **kwargs)
        return self.pattern(pattern) if self.pattern else pattern


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    taps = module.config.workbench_taps
    key = taps["k_cache"](key) if "k_cache" in taps else key
    value = taps["v_cache"](value) if "v_cache" in taps else value
    mask = additive(attention_mask, query, key, options.get("sliding_window"))
    with _SoftmaxTap(taps.get("attn_scores"), taps.get("pattern")):
        return _source(module).eager_attention_forward(module, query, key, value, mask, **options)


def additive(
    mask: Tensor | None, query: Tensor, key: Tensor, window: int | None = None
) -> Tensor | None:
    """The mask as the eager form wants it, whatever the loaded implementation uses.

    An implementation that is given no mask knows its sliding `window` by itself.
    """
    n_q, n_k = query.shape[-2], key.shape[-2]
    if mask is None and n_q == 1:
        return None
    if mask is None or mask.dim() == 2:
        causal = torch.ones(1, 1, n_q, n_k, dtype=torch.bool, device=query.device).tril(n_k - n_q)
        if window:
            causal = causal.triu(n_k - n_q - window + 1)
        mask = causal if mask is None else causal & mask[:, None, None, -n_k:].bool()
    if mask.dtype != torch.bool:
        return mask[..., :n_k]
    # most models take the softmax in float32, in which float64's least is -inf: NaN where all is masked
    blocked = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min)
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~mask, blocked
    )[..., :n_k]


def _source(module: nn.Module) -> Any:
    return sys.modules[type(module).__module__]
