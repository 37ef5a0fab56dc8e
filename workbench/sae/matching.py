"""Which feature of one dictionary is which of another: one to one, by the cosine of their decoder rows.

Source: the assignment problem is Kuhn's (1955), https://doi.org/10.1002/nav.3800020109; comparing two
    dictionaries by it: Paulo and Belrose (2025), Sparse Autoencoders Trained on the Same Data Learn
    Different Features, https://arxiv.org/abs/2501.16615.
"""

from __future__ import annotations

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.sae.dictionary import Dictionary
from workbench.seeds import derive
from workbench.shapes import Float, Tensor

MOST = 8192
"""Features beyond which an exact assignment takes too long: its time grows with their cube."""


def matched(first: Dictionary, second: Dictionary) -> tuple[np.ndarray, np.ndarray]:
    """The feature of `second` for each of `first`, and their cosine, both `[feature]`.

    Raises:
        WorkbenchError: dictionaries of other sites, or of other or too large widths.
    """
    ours, theirs = ((d.site, d.target, d.n_features, d.decoder.shape[1]) for d in (first, second))
    if ours != theirs or first.n_features > MOST:
        raise WorkbenchError(
            "sae.drift(second=...)",
            "the dictionaries cannot be matched one to one",
            expected=f"two of one site and one width, at most {MOST} features",
            got=f"{ours[2]} features at {ours[0]}, {theirs[2]} at {theirs[0]}",
            do="train both alike, or encode both models with one dictionary",
        )
    return assigned(first.decoder, second.decoder)


def assigned(
    first: Float[Tensor, "feature d"], second: Float[Tensor, "feature d"]
) -> tuple[np.ndarray, np.ndarray]:
    """The row of `second` for each of `first` that makes the sum of cosines largest, and the cosines."""
    from scipy.optimize import linear_sum_assignment

    units = [
        torch.nn.functional.normalize(d.detach().float().cpu(), dim=1) for d in (first, second)
    ]
    cosines = (units[0] @ units[1].T).numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return columns, cosines[rows, columns]


def by_chance(dictionary: Dictionary, seed: int) -> np.ndarray:
    """Cosines `[feature]` of `dictionary` matched with as many random directions."""
    draw = torch.Generator().manual_seed(derive(seed, "matching by chance"))
    return assigned(dictionary.decoder, torch.randn(dictionary.decoder.shape, generator=draw))[1]
