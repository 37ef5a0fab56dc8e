"""What a step along a direction in parameter space does to the activation.

    h' = h + s J_h(x) u          u a direction for every parameter below the site
    h' = h + s (h(theta + e u) - h(theta)) / e          with `epsilon` e

Shapes: h `[batch, pos, ...]`; tensors `tangent.<parameter>` u, each of that parameter's shape.
Units: strength counts steps u, to first order; `params["site"]` is the edit's own site.
Source: Sharma and Trivedi (2026), COLD-Steer: Steering Large Language Models via In-Context
    One-step Learning Dynamics, https://arxiv.org/abs/2603.06495.
Differs from the paper: the change is taken on the model without edits, from all tokens so far, also
    at a step of generation; that costs a second reading of the prefix and does not depend on a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from workbench.registry import Citation, register
from workbench.rules.base import Around
from workbench.shapes import Float, Tensor


@register(
    "rules",
    Citation(
        "Sharma, Trivedi",
        "COLD-Steer: Steering Large Language Models via In-Context One-step Learning Dynamics",
        2026,
        "https://arxiv.org/abs/2603.06495",
    ),
)
class Tangent:
    """Move as a step along a direction in parameter space would."""

    around: ClassVar[bool] = True

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"],
        tensors: Mapping[str, Tensor],
        params: Mapping[str, Any],
        around: Around,
    ) -> Float[Tensor, "*batch d"]:
        """The derivative of `h` along the tangents, or its finite difference."""
        assert around.again is not None
        u = {name.removeprefix("tangent."): t for name, t in tensors.items()}
        site, columns, epsilon = params["site"], h.shape[1], params.get("epsilon")
        if epsilon is None:
            return around.again(site, columns, tangents=u)
        moved = around.again(site, columns, added={k: epsilon * t for k, t in u.items()})
        return (moved - around.again(site, columns)) / epsilon
