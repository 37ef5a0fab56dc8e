"""The linear algebra that methods share. In float64: rows are few, and bf16 means drift."""

from __future__ import annotations

import math
import warnings

import torch

from workbench.errors import WorkbenchError
from workbench.shapes import Bool, Float, Rows, Tensor, Vector


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


def kl_divergence(log_p: Float[Tensor, "*p vocab"], log_q: Float[Tensor, "*q vocab"]) -> Tensor:
    """KL(p || q) in nats at each position, from log-probabilities that broadcast; p = 0 contributes 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def logistic(
    positive: Rows,
    negative: Float[Tensor, "other d"],
    inverse_penalty: float | int = 1.0,
    standardised: bool = True,
) -> tuple[Vector, Float[Tensor, ""]]:
    """Weight and bias of a logistic regression that scores `positive` above 0: `w . h + b`.

    Coordinates are standardised inside, so that the penalty treats all alike, unless `standardised` is
    False; weight and bias are in the rows' own units. `inverse_penalty` is scikit-learn's C.
    In float64 on the CPU.
    """
    rows = torch.cat([positive, negative]).double().cpu()
    targets = torch.arange(len(rows)) < len(positive)
    weight, bias = logistic_many(rows[None], targets[None], inverse_penalty, standardised)
    return weight[0], bias[0]


def logistic_many(
    rows: Float[Tensor, "site row d"],
    targets: Bool[Tensor, "site row"],
    inverse_penalty: float | int = 1.0,
    standardised: bool = True,
) -> tuple[Float[Tensor, "site d"], Float[Tensor, " site"]]:
    """Weights and biases of one L2 logistic regression per site, all at once where the rows are.

    Minimises `mean log(1 + exp(-y m)) + |w|^2 / (2 C n)` by L-BFGS (Liu and Nocedal 1989); where that takes
    long, the Hessian's Cholesky factor is its first guess. A line search sees margins alone, so that a
    step costs two passes over the rows. It stops where the gradient is a share of 1e-4 of the penalty's,
    so that weights are right whatever the strength of the penalty, or is rounding.

    Args:
        rows: float32 or float64; that is also the precision of the passes.
        inverse_penalty: scikit-learn's C.
        standardised: penalise coordinates at unit variance. Coordinates that never vary get weight 0.

    Returns:
        `[site, d]` and `[site]` in the rows' own units, in float64.

    Warns:
        UserWarning: after the last step, an entry of a gradient is above 1e-6 (1e-9 for float64 rows)
            times the size of the largest column.
    """
    if not 0 < inverse_penalty < math.inf:
        raise WorkbenchError(
            "logistic(inverse_penalty)",
            "is not a strength of a penalty",
            expected="a finite number above 0",
            got=inverse_penalty,
            do="larger is a weaker penalty; 1.0 is the usual value",
        )
    z, mean, scale = standardise(rows, standardised)
    penalty = torch.full((z.shape[-1],), 1 / (inverse_penalty * z.shape[1]), device=z.device)
    penalty[-1] = 0  # the last column holds ones: the bias
    w = _descend(z, torch.where(targets, 1, -1).to(z.device, z.dtype), penalty.double())
    weight = w[:, :-1] / scale
    return weight, w[:, -1] - (weight * mean).sum(-1)


PLAIN, REFRESH, LONGEST = 25, 12, 400
"""Steps from a scaled identity before the Hessian is first factored; steps that one factor serves; steps
in all."""
WIDEST = 8192
"""Most coordinates for which the Hessian is factored: 0.5 GB in float64."""


def standardise(
    rows: Float[Tensor, "site row d"], standardised: bool
) -> tuple[Float[Tensor, "site row p"], Float[Tensor, "site d"], Float[Tensor, "site d"]]:
    """Centred rows with a column of ones behind, and the mean and scale that were taken out.

    Scales are 1 where `standardised` is False. A coordinate that varies by no more than the rounding of
    its mean has an infinite one: its column is 0 and so is what divides by its scale.
    """
    n = rows.shape[1]
    mean = rows.mean(1)
    z = rows.new_ones(rows.shape[0], n, rows.shape[2] + 1)
    centred = torch.sub(rows, mean[:, None], out=z[..., :-1])
    scale = torch.linalg.vector_norm(centred, dim=1) / n**0.5
    still = scale <= 16 * torch.finfo(rows.dtype).eps * mean.abs()  # rounding, not variance
    scale = torch.where(still, math.inf, scale if standardised else 1.0)
    centred *= (1 / scale)[:, None]
    return z, mean.double(), scale.double()


def _descend(
    z: Float[Tensor, "site row p"], y: Float[Tensor, "site row"], penalty: Float[Tensor, " p"]
) -> Float[Tensor, "site p"]:
    """The minimum, by L-BFGS; in float64 but for the passes over `z`."""
    n = z.shape[1]
    size = torch.linalg.vector_norm(z, dim=1).amax(-1).double() / n**0.5  # of the largest column
    most = size * (1e-6 if z.dtype == torch.float32 else 1e-9)
    # with few rows for their width, a factor costs more than the steps it saves
    factored = z.shape[2] <= min(WIDEST, 2 * n)
    w = torch.zeros(z.shape[0], z.shape[2], device=z.device, dtype=torch.float64)
    margins, factor = y * 0, None
    steps, changes = [], []
    gradient = _gradient(z, y, penalty, w, margins)
    for step in range(LONGEST):
        enough = torch.minimum(most, _small(penalty * w, margins, size))
        if bool((gradient.abs().amax(-1) <= enough).all()):
            break
        if factored and step >= PLAIN and (step - PLAIN) % REFRESH == 0:
            margins = y * _times(z, w)
            factor, steps, changes = _factor(z, margins, penalty), [], []
        direction = _direction(gradient, steps, changes, factor)
        along = y * _times(z, direction)
        start = (gradient * direction).sum(-1, keepdim=True)
        t = _line(margins, along, penalty, w, direction, start)
        w, margins = w + t * direction, margins + t.to(z.dtype) * along
        before, gradient = gradient, _gradient(z, y, penalty, w, margins)
        steps = [*steps[-9:], t * direction]
        changes = [*changes[-9:], gradient - before]
    left = gradient.abs().amax(-1)
    if bool((left > most).any()):
        warnings.warn(
            f"a logistic regression on {n} rows did not converge in {LONGEST} steps: the gradient is still "
            f"{float((left / size).max()):.1e}; penalise more (a smaller inverse_penalty) or standardise",
            UserWarning,
            stacklevel=4,
        )
    return w


def _times(z: Float[Tensor, "site row p"], v: Float[Tensor, "site p"]) -> Float[Tensor, "site row"]:
    """`z v` at each site."""
    v = v.to(z.dtype)
    return (z[0] @ v[0])[None] if len(z) == 1 else (z @ v[..., None])[..., 0]


def _gradient(
    z: Float[Tensor, "site row p"],
    y: Float[Tensor, "site row"],
    penalty: Float[Tensor, " p"],
    w: Float[Tensor, "site p"],
    margins: Float[Tensor, "site row"],
) -> Float[Tensor, "site p"]:
    pull = y * torch.sigmoid(-margins) / z.shape[1]
    summed = (pull[0] @ z[0])[None] if len(z) == 1 else (pull[:, None] @ z)[:, 0]
    return penalty * w - summed.double()


def _small(
    pull: Float[Tensor, "site p"], margins: Float[Tensor, "site row"], size: Float[Tensor, " site"]
) -> Float[Tensor, " site"]:
    """A gradient that no longer matters: small beside the penalty's pull, which at the optimum holds
    the balance, but no smaller than the rounding of a mean over rows."""
    rounding = size * torch.finfo(margins.dtype).eps * torch.sigmoid(-margins).mean(-1).double()
    return torch.maximum(1e-4 * pull.abs().amax(-1), rounding)


def _factor(
    z: Float[Tensor, "site row p"],
    margins: Float[Tensor, "site row"],
    penalty: Float[Tensor, " p"],
) -> Float[Tensor, "site p p"]:
    """Cholesky factor of the Hessian, lifted a little where rounding leaves it indefinite."""
    spread = (torch.sigmoid(margins) * torch.sigmoid(-margins) / z.shape[1]).sqrt()
    weighted = z * spread[..., None]
    hessian = weighted.mT @ weighted
    hessian.diagonal(dim1=1, dim2=2).add_(penalty.to(z.dtype))
    lift = 1e-7 * hessian.diagonal(dim1=1, dim2=2).mean()
    for _ in range(8):
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not bool(failed.any()):
            break
        hessian.diagonal(dim1=1, dim2=2).add_(lift)
        lift = lift * 10
    return factor


def _direction(
    gradient: Float[Tensor, "site p"],
    steps: list[Tensor],
    changes: list[Tensor],
    factor: Float[Tensor, "site p p"] | None,
) -> Float[Tensor, "site p"]:
    """The quasi-Newton direction, by the two loops of L-BFGS over the last steps and the changes of the
    gradient that they made."""
    rest, history = gradient, []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        bend = (s * y).sum(-1, keepdim=True)
        inverse = torch.where(bend > 0, 1 / bend, 0.0)  # a site that has arrived takes no step
        share = inverse * (s * rest).sum(-1, keepdim=True)
        rest = rest - share * y
        history.append((s, y, inverse, share))
    if factor is not None:
        rest = torch.cholesky_solve(rest[..., None].to(factor.dtype), factor)[..., 0].double()
    elif history:
        _, y, inverse, _ = history[0]
        size = inverse * y.square().sum(-1, keepdim=True)
        rest = rest / torch.where(size > 0, size, 1.0)
    for s, y, inverse, share in reversed(history):
        rest = rest + s * (share - inverse * (y * rest).sum(-1, keepdim=True))
    return -rest


def _line(
    margins: Float[Tensor, "site row"],
    along: Float[Tensor, "site row"],
    penalty: Float[Tensor, " p"],
    w: Float[Tensor, "site p"],
    direction: Float[Tensor, "site p"],
    start: Float[Tensor, "site 1"],
) -> Float[Tensor, "site 1"]:
    """Step lengths at which the slope is half of `start`, its first value, or less: Newton on a convex
    line."""
    n = margins.shape[1]
    pull = (penalty * w * direction).sum(-1, keepdim=True)
    bend = (penalty * direction * direction).sum(-1, keepdim=True)
    t, low = torch.ones_like(pull), torch.zeros_like(pull)
    high = torch.full_like(pull, math.inf)
    for _ in range(30):
        p = torch.sigmoid(-(margins + t.to(along.dtype) * along))
        slope = pull + t * bend - (p * along).sum(-1, keepdim=True).double() / n
        fits = slope.abs() <= start.abs() / 2
        if bool(fits.all()):
            break
        curve = bend + (p * (1 - p) * along.square()).sum(-1, keepdim=True).double() / n
        low, high = torch.where(slope < 0, t, low), torch.where(slope < 0, high, t)
        new = t - slope / curve.clamp(min=1e-300)
        outside = (new <= low) | (new >= high)
        halfway = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        t = torch.where(fits, t, torch.where(outside, halfway, new))
    return t


def projection_spread(
    positive: Rows, negative: Float[Tensor, "other d"], direction: Vector
) -> Float[Tensor, ""]:
    """Population standard deviation of all rows' projections on `direction`, in float64."""
    return (torch.cat([positive, negative]).double() @ direction.double()).std(correction=0)
