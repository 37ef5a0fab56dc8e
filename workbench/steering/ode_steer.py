"""Walk uphill on the log-odds of the positive class, in many short steps (ODESteer).

    b(a) = w . phi(a / |a|) + b0           phi a degree-2 polynomial count sketch, w by logistic regression
    da/dt = grad b / (|grad b| + 1e-10)    from a(0) = h to a(T)
    h' = h + s (a(T) - h)

Shapes: rows `[row, d]` per class and site. Tensors as in `workbench.rules.ode`: the sketch (w
    `[component]` with its hashes), or, where that takes less room, the same quadratic form as `[d, d]`.
Units: `path` (T) is the length of the walk in the activation's own units, at any norm of the
    activation; strength s is the fraction of the whole walk that is added, on a straight line, so
    that s < 0 leads away from where the walk ends, not down the barrier.
Source: Zhao, Sun, Kong, Li, Wang, Jiang, Zhu, Abdelzaher, Choi, Li and Shao (2026), ODESteer: A
    Unified ODE-Based Steering Framework for LLM Alignment, https://arxiv.org/abs/2602.17560.
Differs from the paper: the dose of the paper is T, here fixed at fit time, and s scales the change.
    The released hook edits the last position of each forward, which depends on the cache; here the
    scope is the same positions said absolutely, the last prompt position and every generated one.
    The sketch's hashes are in the edit, which therefore loads without the library that drew them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.kernel_approximation import PolynomialCountSketch
from sklearn.linear_model import LogisticRegression

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.seeds import derive
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention, finite

SOLVERS = ("euler", "midpoint", "rk4")
BASE = 256
"""Component indices are kept as two digits in this base, which bfloat16 holds exactly."""


@register(
    "steering",
    Citation(
        "Zhao, Sun, Kong, Li, Wang, Jiang, Zhu, Abdelzaher, Choi, Li, Shao",
        "ODESteer: A Unified ODE-Based Steering Framework for LLM Alignment",
        2026,
        "https://arxiv.org/abs/2602.17560",
    ),
)
@dataclass(frozen=True)
class OdeSteer(SteeringMethod):
    """Walk up the gradient of a quadratic class boundary, a given length in many steps.

    Attributes:
        path: length of the walk, in the activation's own units.
        steps: steps of the solver.
        solver: "euler", "midpoint" or "rk4".
        components: width of the count sketch.
        gamma, coef0: the kernel is (gamma x . y + coef0)^2.
        normalised: let the barrier see a / |a|, so that the walk is at right angles to a.
        seed: draws the hashes; each site has its own.
    """

    path: float | int = 5.0
    steps: int = 10
    solver: Literal["euler", "midpoint", "rk4"] = "euler"
    components: int = 8000
    gamma: float | int = 0.1
    coef0: float | int = 1.0
    normalised: bool = True
    seed: int = 0

    def fit(self, contrast: Contrast) -> Intervention:
        """The walk at every recorded site.

        Raises:
            WorkbenchError: rows that cannot be fitted, or options without a meaning.
        """
        self._check()
        tensors = {s: self._tensors(s, p, n) for s, p, n in sites_of(contrast, "OdeSteer")}
        params: dict[str, Any] = {"rule": "ode", "path": self.path, "steps": self.steps}
        params |= {"solver": self.solver, "normalised": self.normalised}
        params |= {"gamma": self.gamma, "coef0": self.coef0, "seed": self.seed}
        return Intervention(
            "ode_steer",
            "adaptive",
            tensors,
            unit=f"fraction of a walk of length {self.path:g}",
            scope=Scope.last_prompt() | Scope.generated(),
            params=params,
            model=contrast.model,
        )

    def _check(self) -> None:
        for name in ("path", "gamma", "coef0"):
            finite(f"OdeSteer({name})", float(getattr(self, name)))
        if self.solver not in SOLVERS:
            raise unknown("OdeSteer(solver)", "solver", self.solver, SOLVERS)
        limits = {
            "path": self.path > 0,
            "steps": self.steps >= 1,
            "components": 2 <= self.components <= BASE**2,
            "gamma": self.gamma > 0,
            "coef0": self.coef0 > 0,
        }
        for name, fits in limits.items():
            if not fits:
                raise WorkbenchError(
                    f"OdeSteer({name})",
                    "is out of range",
                    expected=f"components from 2 to {BASE**2}, all others above 0",
                    got=getattr(self, name),
                    do="correct it",
                )

    def _tensors(
        self, site: str, positive: Rows, negative: Float[Tensor, "other d"]
    ) -> dict[str, Float[Tensor, ...]]:
        rows = torch.cat([positive, negative]).double()
        if self.normalised:
            rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        sketch = PolynomialCountSketch(
            gamma=self.gamma,
            degree=2,
            coef0=self.coef0,
            n_components=self.components,
            random_state=derive(self.seed, "ode_steer", site) % 2**32,
        )
        labels = np.repeat([1, 0], [len(positive), len(negative)])
        probe = LogisticRegression(max_iter=1000).fit(sketch.fit_transform(rows.numpy()), labels)
        weights = torch.from_numpy(probe.coef_[0].copy())
        index, sign = torch.from_numpy(sketch.indexHash_), torch.from_numpy(sketch.bitHash_)
        intercept = float(probe.intercept_[0])
        if index.shape[1] ** 2 <= self.components:
            return self._folded(weights, index, sign.double(), intercept)
        return {
            "factor": weights.float(),
            "at": torch.stack([index // BASE, index % BASE], 1).float(),
            "sign": sign.float(),
            "intercept": torch.tensor(intercept),
        }

    def _folded(
        self,
        weights: Float[Tensor, " component"],
        index: torch.Tensor,
        sign: Float[Tensor, "degree more"],
        intercept: float,
    ) -> dict[str, Float[Tensor, ...]]:
        """w . phi(x) is sum_ij x_i x_j s_i s'_j w[(k_i + k'_j) mod m]: a matrix, kept by eigenvectors."""
        place = (index[0][:, None] + index[1][None]) % len(weights)
        form = sign[0][:, None] * sign[1][None] * weights[place]
        form = (form + form.mT) / 2
        values, vectors = torch.linalg.eigh(self.gamma * form[:-1, :-1])
        return {
            "up": vectors.mT.float().contiguous(),
            "curvature": values.float(),
            "shift": (2 * (self.gamma * self.coef0) ** 0.5 * form[:-1, -1]).float(),
            "intercept": torch.tensor(float(intercept + self.coef0 * form[-1, -1])),
        }
