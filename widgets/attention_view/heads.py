"""What a head looks at, as four numbers per pattern.

All are means over the queries after the first, which can only look at itself; NaN where there are none.

Shapes: pattern `[..., q, k]`, rows sum to 1; statistics `[statistic, ...]`.
Units: entropy in nats, distance in tokens, the others are attention weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("entropy", "first", "previous", "distance")


def statistics(pattern: Tensor) -> Tensor:
    """Entropy of a row, weight on the first token, on the token before, and mean distance looked back."""
    if pattern.dim() > 2:  # one at a time: those of a long prompt are large
        return torch.stack([statistics(one) for one in pattern], 1)
    p = pattern.float()[1:]
    if not len(p):
        return p.new_full((len(STATISTICS),), float("nan"))
    queries = torch.arange(1, p.shape[-1], device=p.device)
    back = queries[:, None] - torch.arange(p.shape[-1], device=p.device)
    entropy = -torch.special.xlogy(p, p).sum(-1)
    previous = p.diagonal()
    return torch.stack([v.mean(-1) for v in (entropy, p[:, 0], previous, (p * back).sum(-1))])
