"""Follow a barrier uphill for a given path length: the change of an ODE steering step.

    da/dt = g(a) / (|g(a)| + 1e-10)      g the gradient of the barrier b(a^), a^ = a / |a|
    g(a) = (I - a^ a^^T) / |a| . db/da^

The barrier is quadratic, and is kept in one of two forms that hold the same function:

    folded     b = a^^T Q a^ + l . a^      Q = up^T diag(curvature) up, l = shift
    sketched   b = w . phi(x), x = (sqrt(gamma) a^, sqrt(coef0)), phi the degree-2 count sketch: two
               hashed copies of x convolved around a circle as long as w

Shapes: h `[*batch, d]`; `up` `[d, d]`, `curvature` and `shift` `[d]`; or `factor` (w) `[component]`,
    `sign` `[2, d + 1]` and `at` `[2, 2, d + 1]`, component indices as (high, low) in base 256, which
    half precision keeps exactly.
Units: `path` is a length in the activation's own units; time is path length, since the field is unit.
Source: Zhao, Sun, Kong, Li, Wang, Jiang, Zhu, Abdelzaher, Choi, Li and Shao (2026), ODESteer: A
    Unified ODE-Based Steering Framework for LLM Alignment, https://arxiv.org/abs/2602.17560.
Differs from the paper: the gradient is written out, not differentiated; the folded form is exact.
    Everything is computed in float32 at least, whatever the model's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from workbench.errors import unknown
from workbench.registry import Citation, register
from workbench.shapes import Float, Int, Tensor

Activation = Float[Tensor, "*batch d"]
Field = Callable[[Tensor], Tensor]
BASE = 256
"""Of the digits of component indices; integers up to here are exact in bfloat16."""


@register(
    "rules",
    Citation(
        "Zhao, Sun, Kong, Li, Wang, Jiang, Zhu, Abdelzaher, Choi, Li, Shao",
        "ODESteer: A Unified ODE-Based Steering Framework for LLM Alignment",
        2026,
        "https://arxiv.org/abs/2602.17560",
    ),
)
class Ode:
    """Where a walk along the barrier's gradient ends, less where it started."""

    @staticmethod
    def change(
        h: Activation, tensors: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> Activation:
        """The walk of length `path` in `steps` steps of `solver`.

        Raises:
            UnknownName: no such solver.
        """
        if params["solver"] not in SOLVERS:
            raise unknown("rule 'ode'", "solver", params["solver"], SOLVERS)
        start = _exact(h)
        weights = {name: tensor.to(start.dtype) for name, tensor in tensors.items()}
        step = SOLVERS[params["solver"]]
        size = float(params["path"]) / int(params["steps"])

        def field(a: Tensor) -> Tensor:
            return direction(a, weights, params)

        a = start
        for _ in range(int(params["steps"])):
            a = a + size * step(field, a, size)
        return (a - start).to(h.dtype)


def direction(a: Activation, w: Mapping[str, Tensor], params: Mapping[str, Any]) -> Activation:
    """The unit field: uphill for the barrier. Its norm falls below 1 only where the barrier is flat."""
    if not params["normalised"]:
        gradient = _gradient(a, w, params)
    else:
        size = a.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        unit = a / size
        along = _gradient(unit, w, params)
        gradient = (along - unit * (unit * along).sum(-1, keepdim=True)) / size
    return gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-10)


def barrier(
    h: Activation, tensors: Mapping[str, Tensor], params: Mapping[str, Any]
) -> Float[Tensor, "*batch"]:
    """The barrier itself: the fitted log-odds of the positive class."""
    a = _exact(h)
    w = {name: tensor.to(a.dtype) for name, tensor in tensors.items()}
    if params["normalised"]:
        a = a / a.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    if "factor" in w:
        sketches = _sketches(_augmented(a, params), w)
        product = torch.fft.rfft(sketches[0]) * torch.fft.rfft(sketches[1])
        value = torch.fft.irfft(product, n=len(w["factor"])) @ w["factor"]
    else:
        value = a @ w["shift"]
        if "up" in w:
            value = value + ((a @ w["up"].mT) ** 2) @ w["curvature"]
    return value + w["intercept"]


def _gradient(a: Activation, w: Mapping[str, Tensor], params: Mapping[str, Any]) -> Activation:
    if "factor" in w:
        return _sketch_gradient(a, w, params)
    if "up" not in w:
        return w["shift"].expand_as(a)
    return 2 * ((a @ w["up"].mT) * w["curvature"]) @ w["up"] + w["shift"]


def _sketch_gradient(
    a: Activation, w: Mapping[str, Tensor], params: Mapping[str, Any]
) -> Activation:
    """Each copy's gradient is the correlation of w with the other copy, read where it was hashed."""
    index, weights = _index(w), torch.fft.rfft(w["factor"])
    sketches = _sketches(_augmented(a, params), w)
    total = torch.zeros_like(a)
    for own, other in ((0, 1), (1, 0)):
        correlation = weights * torch.fft.rfft(sketches[other]).conj()
        back = torch.fft.irfft(correlation, n=len(w["factor"]))
        total = total + (back[..., index[own]] * w["sign"][own])[..., :-1]
    return params["gamma"] ** 0.5 * total


def _augmented(a: Activation, params: Mapping[str, Any]) -> Float[Tensor, "*batch more"]:
    constant = torch.full_like(a[..., :1], params["coef0"] ** 0.5)
    return torch.cat([params["gamma"] ** 0.5 * a, constant], -1)


def _sketches(x: Float[Tensor, "*batch more"], w: Mapping[str, Tensor]) -> list[Tensor]:
    empty = x.new_zeros(*x.shape[:-1], len(w["factor"]))
    return [
        empty.index_add(-1, at, x * sign) for at, sign in zip(_index(w), w["sign"], strict=True)
    ]


def _index(w: Mapping[str, Tensor]) -> Int[Tensor, "degree more"]:
    return (w["at"][:, 0] * BASE + w["at"][:, 1]).long()


def _exact(h: Tensor) -> Tensor:
    return h if h.dtype == torch.float64 else h.float()


def _euler(field: Field, a: Tensor, _: float) -> Tensor:
    return field(a)


def _midpoint(field: Field, a: Tensor, size: float) -> Tensor:
    return field(a + size / 2 * field(a))


def _rk4(field: Field, a: Tensor, size: float) -> Tensor:
    k1 = field(a)
    k2 = field(a + size / 2 * k1)
    k3 = field(a + size / 2 * k2)
    return (k1 + 2 * k2 + 2 * k3 + field(a + size * k3)) / 6


SOLVERS: dict[str, Callable[[Field, Tensor, float], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "rk4": _rk4,
}
"""Per name, the mean field over one step."""
