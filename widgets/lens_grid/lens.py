"""What the model would say if it stopped at a layer: final norm and unembedding of its residual stream.

The logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens"): at layer l,
logits_l = unembed(final_norm(resid_post_l)). At the last layer these are the model's own logits.

Shapes: resid `[layer, pos, d]`, statistics `[layer, pos]`, top `[layer, pos, k]`.
Units: entropy and KL in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.model.model import Model
from workbench.patching.head import lens_logits
from workbench.tensors import Tokens

STATISTICS = ("p", "rank", "kl", "entropy")
LARGEST_CHUNK = 2**24  # logits at once: 64 MB in fp32
ROWS_IN_CACHE = 2**17  # of them read at once: 512 kB


@dataclass(frozen=True)
class Lens:
    """Every layer's prediction at every position, without the vocabulary.

    Attributes:
        top: `[layer, pos, k]` ids, most probable first.
        top_p: their probabilities.
        p: probability of the first.
        rank: of the model's own first choice at this layer; 1 where the layer agrees.
        kl: KL(model's own distribution || this layer's), in nats.
        entropy: of this layer's distribution, in nats.
    """

    top: np.ndarray
    top_p: np.ndarray
    rank: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """`[layer, pos]`: what the layer gives its own first choice."""
        return self.top_p[..., 0]

    @property
    def statistics(self) -> np.ndarray:
        """`[statistic, layer, pos]` in the order of `STATISTICS`."""
        return np.stack([getattr(self, name) for name in STATISTICS]).astype(np.float32)


def lens(
    model: Model,
    tokens: Tokens,
    resid: Tensor,
    final: Tensor,
    top: int,
    check: Callable[[int, int], None] = lambda _done, _of: None,
) -> Lens:
    """Read every layer in chunks, so that a large vocabulary never lies in memory for all of them.

    Args:
        resid: `[layer, pos, d]`.
        final: the model's own logits `[pos, vocab]`, edits included.
        check: called with (layers done, layers) after each chunk; may raise to stop.
    """
    own = final.float().log_softmax(-1)
    p, target = own.exp(), own.argmax(-1)
    entropy = -_mean(p, own)
    parts = []
    for start, stop in _chunks(resid.shape[0], final.numel()):
        logits = lens_logits(model, tokens, resid[start:stop]).float()
        for layer in logits:
            parts.append(_read(layer, p, target, entropy, min(top, logits.shape[-1])))
        check(stop, resid.shape[0])
    return Lens(*(np.stack(column) for column in zip(*parts, strict=True)))


def _read(z: Tensor, own_p: Tensor, target: Tensor, entropy: Tensor, top: int) -> list[np.ndarray]:
    """One layer, `z` `[pos, vocab]`, a few rows at a time: on large vocabularies memory is what costs."""
    step = max(1, ROWS_IN_CACHE // z.shape[-1])
    parts = []
    for block, p, id_, h in zip(*(x.split(step) for x in (z, own_p, target, entropy)), strict=True):
        best, ids = block.topk(top, -1)
        weights = (block - best[:, :1]).exp_()
        mass = weights.sum(-1)
        total = best[:, 0] + mass.log()
        rank = torch.count_nonzero(block > block.gather(-1, id_[:, None]), -1) + 1
        kl = total - _mean(p, block) - h
        spread = total - _mean(weights, block) / mass
        parts.append(
            (ids, (best - total[:, None]).exp(), rank, kl.clamp(min=0), spread.clamp(min=0))
        )
    return [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]


def _mean(p: Tensor, of: Tensor) -> Tensor:
    """Sum of `p` times `of` over the last axis; a logit of minus infinity has no weight."""
    found = torch.linalg.vecdot(p, of)
    return found if bool(found.isfinite().all()) else torch.linalg.vecdot(p, of.clamp(min=-1e30))


def _chunks(n_layers: int, size: int) -> Iterator[tuple[int, int]]:
    step = max(1, LARGEST_CHUNK // max(1, size))
    for start in range(0, n_layers, step):
        yield start, min(n_layers, start + step)
