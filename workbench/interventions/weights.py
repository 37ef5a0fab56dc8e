"""Directional ablation written into the weights: a model that cannot write along a direction.

    W <- W - r^ (r^T W)   for everything that writes into the residual stream: token and positional
    embeddings, each attention output projection, each MLP output projection, and their biases

The result equals projecting r^ out of every write by hooks, without hooks. A tied unembedding is
untied first: it reads the stream, and projecting it too would be another edit.

Source: Arditi et al. (2024), Refusal in Language Models Is Mediated by a Single Direction,
    https://arxiv.org/abs/2406.11717, section 4.1.
Differs from the paper: biases and positional embeddings are projected as well, without which models
    that have them (GPT-2, GPT-NeoX) still write along the direction.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from workbench.errors import EditError
from workbench.linalg import unit
from workbench.shapes import Float, Tensor, Vector

WRITERS = ("o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "w2", "fc2")
"""Names under which architectures keep the projections that write into the residual stream."""
POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""Norms between a write and the stream; their gain turns a projected write back."""


def orthogonalise(model: Any, direction: Vector) -> nn.Module:
    """A new Hugging Face module that never writes along `direction`; `model` stays as it was.

    Args:
        model: a loaded Model or a Hugging Face causal language model.
        direction: `[d]`, of any length and sign (the edit is quadratic in it).

    Raises:
        EditError: a direction of another width or zero, quantised or adapter-wrapped weights, an
            architecture that normalises its writes, or one where the stream still holds the
            direction afterwards (checked by a forward pass).
    """
    module = getattr(model, "hf", model)
    _check(module, direction)
    edited = copy.deepcopy(module)
    _untie(edited)
    width = len(direction)
    with torch.no_grad():
        for embedding in _embeddings(edited, width):
            embedding.copy_(_without(embedding, direction, -1))
        for name, part in edited.named_modules():
            if part is not edited.get_output_embeddings():
                _project_writer(name.rpartition(".")[2], part, direction)
    _prove(edited, direction)
    return edited


def _check(module: nn.Module, direction: Vector) -> None:
    where = f"orthogonalise({type(module).__name__})"
    names = [name for name, _ in module.named_modules()]
    parameters = dict(module.named_parameters())
    width = module.get_input_embeddings().weight.shape[-1]  # pyright: ignore[reportCallIssue]
    if direction.shape != (width,) or not bool(torch.isfinite(direction).all() & direction.any()):
        raise EditError(
            where,
            "the direction does not fit",
            expected=f"{width} finite numbers, not all 0",
            got=f"shape {tuple(direction.shape)}, norm {float(direction.norm()):.3g}",
            do="fit it on this model at a residual site",
        )
    if any(not p.is_floating_point() or p.element_size() < 2 for p in parameters.values()):
        raise _refused(where, "has quantised weights", "load it without quantisation")
    if any("lora_" in name or name.endswith("base_layer") for name in names):
        raise _refused(where, "is wrapped in adapters", "call merge_and_unload() first")
    if any(name.endswith(POST_NORMS) for name in names):
        raise _refused(
            where, "normalises its writes with a gain", "use DirectionalAblation with hooks"
        )


def _untie(module: Any) -> None:
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        module.config.tie_word_embeddings = False


def _embeddings(module: nn.Module, width: int) -> list[Tensor]:
    return [
        part.weight
        for part in module.modules()
        if isinstance(part, nn.Embedding) and part.weight.shape[-1] == width
    ]


def _project_writer(name: str, part: nn.Module, direction: Vector) -> None:
    """Project what `part` writes, whichever way its weight lies."""
    # experts keep all their down projections in one parameter [expert, d, neuron]
    stacked = getattr(part, "down_proj", None)
    if isinstance(stacked, nn.Parameter):
        axis = -1 if getattr(part, "is_transposed", False) else -2
        stacked.copy_(_without(stacked, direction, axis))
        bias = getattr(part, "down_proj_bias", None)
        if isinstance(bias, nn.Parameter):
            bias.copy_(_without(bias, direction, -1))
    if name not in WRITERS or not isinstance(getattr(part, "weight", None), nn.Parameter):
        return
    weight: Any = part.weight
    # GPT-2's Conv1D holds [in, out], Linear [out, in]
    axis = 0 if isinstance(part, nn.Linear) else -1
    if weight.shape[axis] != len(direction):
        return
    weight.copy_(_without(weight, direction, axis))
    if isinstance(getattr(part, "bias", None), nn.Parameter):
        part.bias.copy_(_without(part.bias, direction, 0))  # pyright: ignore


def _without(weight: Float[Tensor, ...], direction: Vector, axis: int) -> Float[Tensor, ...]:
    """`weight` with its component along `direction` on `axis` removed, in float64 and cast back."""
    r = unit(direction.double()).to(weight.device)
    moved = weight.double().movedim(axis, -1)
    return (moved - (moved @ r)[..., None] * r).movedim(-1, axis).to(weight.dtype)


def _prove(module: Any, direction: Vector) -> None:
    """No hidden state before the last norm may hold the direction: a missed writer shows here."""
    device = module.get_input_embeddings().weight.device
    ids = torch.arange(3, 11, device=device)[None] % module.config.vocab_size
    with torch.no_grad():
        states = module(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[
            :-1
        ]
    r = unit(direction.double()).to(device)
    worst = max(float((s.double() @ r).norm() / s.double().norm()) for s in states)
    limit = 1e-4 if states[0].dtype == torch.float32 else 2e-2
    if worst > limit:
        raise _refused(
            f"orthogonalise({type(module).__name__})",
            f"still writes along the direction ({worst:.2g} of the stream)",
            "use DirectionalAblation with hooks",
        )


def _refused(where: str, wrong: str, do: str) -> EditError:
    return EditError(
        where,
        wrong,
        expected="an architecture whose writes are plain projections",
        got="this one",
        do=do,
    )
