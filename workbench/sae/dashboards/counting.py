"""What each feature does on a corpus, counted from its sparse codes: all features at once, no loop over them.

Shapes: codes `[row, feature]` sparse by feature; results `[feature]`, `[feature, k]`.
Every function takes codes whose rows are in corpus order within each feature (`tocsc` of sorted rows).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.sae.dashboards.corpus import Sparse, blocks_of
from workbench.shapes import Float, Int

NOBODY = -1
"""Where there are fewer examples or relatives than were asked for."""


@dataclass(frozen=True, eq=False)
class Activity:
    """How often and how much features are active.

    Attributes:
        count: tokens that each is active on.
        density: their share of all tokens.
        mean: mean code on the tokens it is active on; 0 where it never is.
        largest: largest code.
    """

    count: Int[np.ndarray, " feature"]
    density: Float[np.ndarray, " feature"]
    mean: Float[np.ndarray, " feature"]
    largest: Float[np.ndarray, " feature"]


def activity(codes: Sparse) -> Activity:
    """Counts, means and largest codes."""
    count = np.diff(codes.indptr).astype(np.int64)
    total = np.bincount(owner(codes), codes.data, minlength=codes.shape[1])
    largest = np.zeros(codes.shape[1], np.float32)
    alive = count > 0
    if alive.any():
        largest[alive] = np.maximum.reduceat(codes.data, codes.indptr[:-1][alive])
    mean = (total / np.maximum(count, 1)).astype(np.float32)
    return Activity(count, count / codes.shape[0], mean, largest)


def histogram(
    codes: Sparse, largest: Float[np.ndarray, " feature"], bins: int
) -> Int[np.ndarray, "feature bins"]:
    """Active tokens per equal step between 0 and each feature's largest code."""
    feature = owner(codes)
    place = codes.data / largest[feature].astype(float) * bins
    place = np.minimum(place.astype(np.int64), bins - 1)
    counts = np.bincount(feature * bins + place, minlength=codes.shape[1] * bins)
    return counts.reshape(-1, bins)


def top(
    codes: Sparse, prompts: Int[np.ndarray, " row"], k: int, *, diverse: bool = True
) -> tuple[Int[np.ndarray, "feature k"], Float[np.ndarray, "feature k"]]:
    """Rows and codes of each feature's largest activations, largest first; equal ones in corpus order.

    Args:
        codes, prompts: codes, and which prompt each row belongs to.
        k: how many; `NOBODY` and 0 fill up where there are fewer.
        diverse: at most one of each prompt.
    """
    feature, row, value = owner(codes), codes.indices.astype(np.int64), codes.data
    if diverse:
        kept = _peaks(feature, prompts[row], value)
        feature, row, value = feature[kept], row[kept], value[kept]
    order = np.lexsort((row, -value, feature))
    counts = np.bincount(feature, minlength=codes.shape[1])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order, rank = order[rank < k], rank[rank < k]
    rows = np.full((codes.shape[1], k), NOBODY, np.int64)
    values = np.zeros((codes.shape[1], k), np.float32)
    rows[feature[order], rank], values[feature[order], rank] = row[order], value[order]
    return rows, values


def correlated(
    codes: Sparse, features: Int[np.ndarray, " described"], k: int
) -> tuple[Int[np.ndarray, "described k"], Float[np.ndarray, "described k"]]:
    """The features whose codes go along with each of `features`: ids and Pearson r over all tokens.

    `NOBODY` and 0 where fewer features vary; a feature that does not vary correlates with none.
    """
    n = codes.shape[0]
    exact = codes.astype(np.float64)
    mean = np.asarray(exact.sum(0)).ravel() / n
    square = np.bincount(owner(codes), exact.data**2, minlength=codes.shape[1]) / n
    variance = square - mean**2
    by_row, spread = exact.tocsr(), np.sqrt(np.where(variance > 1e-9 * square, variance, 0.0))
    found = []
    for part in blocks_of(len(features), codes.shape[1]):
        chosen = features[part]
        product = (exact[:, chosen].T @ by_row).toarray() / n
        covariance = product - mean[chosen, None] * mean
        scale = spread[chosen, None] * spread
        r = np.divide(covariance, scale, out=np.full_like(scale, -np.inf), where=scale > 0)
        found.append(_largest(r, chosen, k))
    return _joined(found, k)


def neighbours(
    decoder: Float[torch.Tensor, "feature d"], features: Int[np.ndarray, " described"], k: int
) -> tuple[Int[np.ndarray, "described k"], Float[np.ndarray, "described k"]]:
    """The features that write in most nearly the same direction: ids and cosine of decoder rows."""
    unit = decoder.float()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-12)
    found = []
    for part in blocks_of(len(features), len(unit)):
        chosen = features[part]
        cosine = (unit[torch.from_numpy(chosen).to(unit.device)] @ unit.T).cpu().double().numpy()
        found.append(_largest(cosine, chosen, k))
    return _joined(found, k)


def owner(codes: Sparse) -> Int[np.ndarray, " active"]:
    """The feature of each stored code."""
    return np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))


def _peaks(
    feature: Int[np.ndarray, " active"],
    prompt: Int[np.ndarray, " active"],
    value: Float[np.ndarray, " active"],
) -> Int[np.ndarray, " peak"]:
    """Of every run of one feature in one prompt, where its first largest value stands."""
    if not len(value):
        return np.zeros(0, np.int64)
    new = np.ones(len(value), bool)
    new[1:] = (feature[1:] != feature[:-1]) | (prompt[1:] != prompt[:-1])
    starts = np.flatnonzero(new)
    largest = np.maximum.reduceat(value, starts)
    run = np.cumsum(new) - 1
    hits = np.flatnonzero(value == largest[run])
    return hits[np.diff(run[hits], prepend=-1) > 0]


def _largest(
    score: Float[np.ndarray, "described feature"], own: Int[np.ndarray, " described"], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the k largest of each row, itself left out."""
    score[np.arange(len(own)), own] = -np.inf
    k = min(k, score.shape[1])
    ids = np.argpartition(-score, k - 1, axis=1)[:, :k] if k else np.zeros((len(own), 0), np.int64)
    values = np.take_along_axis(score, ids, 1)
    order = np.lexsort((ids, -values), axis=1)
    ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    there = np.isfinite(values)
    return np.where(there, ids, NOBODY), np.where(there, values, 0.0)


def _joined(
    parts: list[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[Int[np.ndarray, "described k"], Float[np.ndarray, "described k"]]:
    """Parts below each other, filled up to k columns."""
    ids, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    missing = ((0, 0), (0, k - ids.shape[1]))
    ids = np.pad(ids, missing, constant_values=NOBODY).astype(np.int64)
    return ids, np.pad(values, missing).astype(np.float32)
