"""Expert neurons and router logits of a mixture of experts.

transformers fuses the experts into 3-D tensors, so no module holds one expert's neurons: a tapped block
computes the experts it hits one by one, with the model's own gate. A router returns logits that nothing
reads downstream, so a write re-runs the router with its logits replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

Fn = Callable[[Tensor], Tensor]
Shape = Callable[[], tuple[int, int]]


def supported(experts: nn.Module) -> bool:
    """Whether the experts are fused, gated, untransposed and without bias: the form computed here."""
    plain = not any(
        getattr(experts, flag, False)
        for flag in ("is_transposed", "has_bias", "has_post_expert_norm")
    )
    return plain and hasattr(experts, "gate_up_proj") and hasattr(experts, "down_proj")


@contextmanager
def tapped(experts: nn.Module, fn: Fn, shape: Shape) -> Iterator[None]:
    """While open, `fn` sees `[batch, pos, expert, neuron]`; 0 where a token was not routed."""
    had = "forward" in experts.__dict__
    before = experts.__dict__.get("forward")

    def forward(hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return computed(experts, fn, shape(), hidden, top_k_index, top_k_weights)

    experts.forward = forward
    try:
        yield
    finally:
        if had:
            experts.forward = before
        else:
            del experts.forward


def hook_router(gate: nn.Module, fn: Fn, shape: Shape) -> RemovableHandle:
    """A hook by which `fn` sees `[batch, pos, expert]` logits and, where it changes them, re-routes."""

    def after(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        logits = out[0].unflatten(0, shape())
        new = fn(logits)
        return None if new is logits else rerouted(module, args, new.flatten(0, 1))

    return gate.register_forward_hook(after)


def rerouted(gate: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Any:
    """The router's output had its logits been `logits` `[token, expert]`."""
    with _FirstLinear(logits):
        return type(gate).forward(gate, *args)


class _FirstLinear(TorchFunctionMode):
    """Replaces the result of the first linear map inside."""

    def __init__(self, result: Tensor):
        super().__init__()
        self.result, self.done = result, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.done and func is F.linear:
            self.done = True
            return self.result
        return func(*args, **(kwargs or {}))


def computed(
    experts: Any, fn: Fn, shape: tuple[int, int], x: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    """The experts' output with `fn` in between, from the arguments of their own forward."""
    n_experts, width = experts.down_proj.shape[0], experts.down_proj.shape[-1]
    neurons = x.new_zeros(x.shape[0], n_experts, width)
    hits = [(e, *torch.where(index == e)) for e in index.unique().tolist() if e < n_experts]
    for e, token, _ in hits:
        neurons[token, e] = _gated(experts, F.linear(x[token], experts.gate_up_proj[e]))
    neurons = fn(neurons.unflatten(0, shape)).flatten(0, 1)
    out = torch.zeros_like(x)
    for e, token, rank in hits:
        written = F.linear(neurons[token, e], experts.down_proj[e])
        out.index_add_(0, token, (written * weights[token, rank, None]).to(out.dtype))
    return out


def _gated(experts: Any, gate_up: Tensor) -> Tensor:
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return experts.act_fn(gate) * up
