"""What a rule is: the change that an `adaptive` edit makes, as a function of the activation.

A rule is registered under the family `rules`; an intervention names it in `params["rule"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from workbench.shapes import Float, Tensor


@runtime_checkable
class Rule(Protocol):
    """A class whose static `change` says what strength 1 adds."""

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"], tensors: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> Float[Tensor, "*batch d"]:
        """What is added to `h` at strength 1. Pure: `h` and `tensors` stay as they were."""
        ...
