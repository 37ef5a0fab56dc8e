"""What a rule is: the change that an `adaptive` edit makes, as a function of the activation.

A rule is registered under the family `rules`; an intervention names it in `params["rule"]`. A rule
whose class says `around = True` is handed an `Around` as a last argument: where the columns stand, what
other sites hold in this forward, and a way to run the model again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from workbench.shapes import Float, Tensor


@dataclass(frozen=True)
class Around:
    """The forward that an edit stands in.

    Attributes:
        positions: `[batch, pos]` absolute positions of this forward's columns, negative on padding.
        ids, all_positions: `[batch, all pos]` every token so far, this forward's last.
        prompt_lengths: `[batch, 1]` tokens of each row's prompt.
        values: this forward's tensors at the sites that `params["reads"]` names; `{layer}` in a
            name is the edit's own layer.
        again: `again(site, columns, *, added=None, tangents=None, before=None)`, what a second run of
            the model on all tokens so far, without any edit, holds at the last `columns` positions of
            a site. `added` is added to parameters by name; along `tangents` the derivative comes back
            in place of the value; `before` is a block put before block 0. See
            `workbench.model.shadow.Shadow.values`.
    """

    positions: Tensor
    ids: Tensor
    all_positions: Tensor
    prompt_lengths: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)
    again: Callable[..., Any] | None = None


@runtime_checkable
class Rule(Protocol):
    """A class whose static `change` says what strength 1 adds."""

    around: ClassVar[bool] = False

    @staticmethod
    def change(
        h: Float[Tensor, "*batch d"], tensors: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> Float[Tensor, "*batch d"]:
        """What is added to `h` at strength 1. Pure: `h` and `tensors` stay as they were."""
        ...
