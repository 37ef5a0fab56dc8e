"""The mixture of experts starts as the dense model: every expert a copy of its MLP.

With the weights of a token's experts adding up to 1, equal experts are exactly the MLP they were copied
from. A little noise tells them apart, and training lets them part.

Source: Komatsuzaki et al. (2022), Sparse Upcycling, https://arxiv.org/abs/2212.05055.
Differs from the paper: the copies get noise, every block is upcycled, and the optimiser starts anew.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

NOISE = 0.1
"""Standard deviation of an expert's difference from the MLP, as a fraction of its weights' own."""


@torch.no_grad()
def upcycle(
    dense: PreTrainedModel, sparse: PreTrainedModel, seed: int, noise: float = NOISE
) -> PreTrainedModel:
    """``sparse`` with the weights of ``dense``, which has its sizes; the router keeps its own."""
    draw = torch.Generator().manual_seed(seed)
    taken = dense.state_dict()
    for name, target in sparse.state_dict().items():
        if name in taken:
            target.copy_(taken[name])
        elif name.endswith("experts.gate_up_proj"):
            mlp = name.removesuffix("experts.gate_up_proj")
            both = [taken[f"{mlp}gate_proj.weight"], taken[f"{mlp}up_proj.weight"]]
            target.copy_(apart(torch.cat(both), len(target), noise, draw))
        elif name.endswith("experts.down_proj"):
            mlp = name.removesuffix("experts.down_proj")
            target.copy_(apart(taken[f"{mlp}down_proj.weight"], len(target), noise, draw))
    return sparse


def apart(weight: Tensor, copies: int, noise: float, draw: torch.Generator) -> Tensor:
    """``copies`` of a matrix, each with its own noise: [copy, row, column]."""
    return weight + noise * weight.std() * torch.randn((copies, *weight.shape), generator=draw)
