"""Pass@k: the chance that at least one of k samples of a prompt is right, from n >= k samples.

    1 - C(n - c, k) / C(n, k),   c of the n samples right

Shapes: `[prompt, sample]` of 0 and 1 -> `[prompt]`.
Units: fraction; its mean over prompts is pass@k.
Source: Chen et al. (2021), Evaluating Large Language Models Trained on Code,
    https://arxiv.org/abs/2107.03374, equation 1.
Differs from the paper: nothing. It is a number about several continuations of a prompt, so it is no
    `Metric`, and it is not in the registry.
"""

from __future__ import annotations

from math import comb

import numpy as np

from workbench.errors import WorkbenchError


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate for each prompt.

    Args:
        right: `[prompt, sample]`, 1 where the sample is right. Samples of a prompt are exchangeable.
        k: how many samples somebody would draw.

    Raises:
        WorkbenchError: `k` is below 1 or above the number of samples.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise WorkbenchError(
            "pass@k",
            "cannot be estimated from so few samples",
            expected=f"1 <= k <= {n}, the number of seeds",
            got=f"k={k}",
            do="add seeds or lower k",
        )
    counts = np.asarray(right, int).sum(1)
    return np.array([1 - comb(n - int(c), k) / comb(n, k) for c in counts], float)
