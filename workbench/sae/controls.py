"""What a trained dictionary has to beat: as many random directions, as sparse, around the same mean.

    score_j = w_j . (h - m)        f_j = score_j where it is above one cut, or among the k largest
    h'      = m' + sum_j f_j w_j   w_j random and of length 1, read and written alike

One cut for all features, chosen so that as many are active per row as in the trained dictionary, and one
factor on all codes, the least-squares one: a random dictionary at its best.

Shapes: `encoder` `[feature, d]`, `decoder` `[feature, out]`, codes `[row, feature]`.
Source: Heap et al. (2025), Sparse Autoencoders Can Interpret Randomly Initialized Transformers,
    https://arxiv.org/abs/2501.17727, for why a control is needed.
Differs from the paper: there the model is random and the dictionary trained; here it is the other way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from workbench.seeds import derive
from workbench.shapes import Codes, Float, Rows, Tensor, Vector

SAMPLE = 2**24
"""Scores that are held at once while the cut is chosen."""
ROWS = 4096
"""Rows the cut is chosen on, at most."""
TOP_K = ("topk", "abstopk")
"""Architectures that keep the k largest scores of each row."""
SOFT = ("standard", "transcoder", "skip_transcoder")
"""Architectures whose codes are what exceeds the cut, not the score itself."""


@dataclass(frozen=True, eq=False)
class RandomDictionary:
    """Random directions that act like a dictionary.

    Attributes:
        encoder, decoder: `[feature, d]` and `[feature, out]`, rows of length 1.
        centre, bias: mean of what is read, and of what is written.
        cut: the score above which a feature is active.
        k: the number of active features of a row, or None where `cut` says.
        soft: codes are `score - cut`.
        factor: on all codes.
    """

    encoder: Float[Tensor, "feature d"]
    decoder: Float[Tensor, "feature out"]
    centre: Vector
    bias: Float[Tensor, " out"]
    cut: float = 0.0
    k: int | None = None
    soft: bool = False
    factor: float = 1.0

    def encode(self, rows: Rows) -> Codes:
        """Activations of all features."""
        scores = (rows.to(self.encoder) - self.centre) @ self.encoder.T
        if self.k is not None:
            top = scores.topk(self.k)
            kept = torch.zeros_like(scores).scatter_(1, top.indices, top.values.relu())
            return self.factor * kept
        level = scores - self.cut if self.soft else scores
        return self.factor * torch.where(scores > self.cut, level, 0.0).relu()

    def reconstruct(self, rows: Rows) -> Float[Tensor, "row out"]:
        """What the features say."""
        return self.encode(rows) @ self.decoder + self.bias


def random_like(
    dictionary: Any, rows: Rows, targets: Float[Tensor, "row out"], seed: int = 0
) -> RandomDictionary:
    """A random dictionary with the width, the kind of code and the sparsity of `dictionary`.

    Args:
        dictionary: the trained one.
        rows, targets: what it reads and what it reconstructs, on which the cut, the means and the factor
            are chosen.
        seed: of the directions.
    """
    n, device = dictionary.n_features, dictionary.device
    keep = max(1, min(ROWS, SAMPLE // n))
    rows, targets = rows[:keep].to(device).float(), targets[:keep].to(device).float()
    draw = torch.Generator().manual_seed(derive(seed, "random dictionary"))
    decoder = _directions(n, targets.shape[1], draw).to(device)
    tied = dictionary.site == dictionary.target
    encoder = decoder if tied else _directions(n, rows.shape[1], draw).to(device)
    made = RandomDictionary(encoder, decoder, rows.mean(0), targets.mean(0))
    if dictionary.architecture in TOP_K:
        made = replace(made, k=int(dictionary.sae.cfg.k))
    else:
        active = int((dictionary.encode(rows) != 0).sum())
        made = replace(
            made,
            cut=_cut((rows - made.centre) @ encoder.T, active),
            soft=dictionary.architecture in SOFT,
        )
    written = made.encode(rows) @ decoder
    size = float(written.pow(2).sum())
    fit = float(((targets - made.bias) * written).sum()) / size if size else 1.0
    return replace(made, factor=fit)


def _directions(n: int, width: int, draw: torch.Generator) -> Float[Tensor, "feature d"]:
    return torch.nn.functional.normalize(torch.randn(n, width, generator=draw), dim=1)


def _cut(scores: Codes, active: int) -> float:
    """The score that `active` of all scores exceed; never below 0, where no feature is on."""
    if active == 0:
        return float(scores.max())
    most = min(active + 1, scores.numel())
    return max(0.0, float(scores.flatten().topk(most).values[-1]))
