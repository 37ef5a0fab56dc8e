"""The linear algebra that methods share. In float64: rows are few, and bf16 means drift."""

from __future__ import annotations

import torch

from workbench.shapes import Float, Rows, Tensor, Vector


def unit(vector: Vector) -> Vector:
    """`vector` at length 1; a zero vector stays zero."""
    norm = vector.norm()
    return vector / norm if norm > 0 else torch.zeros_like(vector)


def mean_difference(positive: Rows, negative: Float[Tensor, "other d"]) -> Vector:
    """Mean of `positive` minus mean of `negative`, in float64."""
    return positive.double().mean(0) - negative.double().mean(0)


def first_component(rows: Rows, centred: bool = False) -> Vector:
    """Unit direction of the largest second moment of `rows` (of the variance, where `centred`).

    The sign is arbitrary. `centred=True` removes the rows' mean first: rows that all point the same
    way lose exactly that shared direction.
    """
    rows = rows.double()
    if centred:
        rows = rows - rows.mean(0)
    return torch.linalg.svd(rows, full_matrices=False).Vh[0]


def random_unit(d: int, seed: int) -> Vector:
    """A uniformly random unit vector of width `d` in float64; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(d, generator=generator, dtype=torch.float64))


def random_rotation_of(vectors: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n d"]:
    """`vectors` turned together into a random subspace: lengths and inner products stay.

    Only their span is turned, so the cost is `n^2 d`, never `d^3`.
    """
    rows = vectors.double()
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[singular > singular.max() * 1e-12]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows.shape[1], len(basis), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(noise)
    # QR alone prefers some signs; with R's diagonal positive the subspace is uniform
    target = (q * r.diagonal().sign()).mT
    return rows @ basis.mT @ target


def kl_divergence(
    log_p: Float[Tensor, "pos vocab"], log_q: Float[Tensor, "pos vocab"]
) -> Float[Tensor, " pos"]:
    """KL(p || q) in nats at each position, from log-probabilities; p = 0 contributes 0."""
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    return terms.sum(-1)


def logistic(
    positive: Rows,
    negative: Float[Tensor, "other d"],
    inverse_penalty: float | int = 1.0,
    standardised: bool = True,
) -> tuple[Vector, Float[Tensor, ""]]:
    """Weight and bias of a logistic regression that scores `positive` above 0: `w . h + b`.

    Coordinates are standardised inside, so that the penalty treats all alike, unless `standardised` is
    False; weight and bias are in the rows' own units. `inverse_penalty` is scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = torch.cat([positive, negative]).double().cpu().numpy()
    labels = [1] * len(positive) + [0] * len(negative)
    probe = make_pipeline(
        StandardScaler(with_std=standardised),
        LogisticRegression(C=inverse_penalty, max_iter=2000, tol=1e-6),
    ).fit(rows, labels)
    scaler, regression = probe[0], probe[1]
    weight = regression.coef_[0] / (scaler.scale_ if standardised else 1.0)
    bias = regression.intercept_[0] - weight @ scaler.mean_
    return torch.from_numpy(weight), torch.tensor(bias, dtype=torch.float64)


def projection_spread(
    positive: Rows, negative: Float[Tensor, "other d"], direction: Vector
) -> Float[Tensor, ""]:
    """Population standard deviation of all rows' projections on `direction`, in float64."""
    return (torch.cat([positive, negative]).double() @ direction.double()).std(correction=0)
