"""What a controller of a step-by-step edit is: asked at every step, it decides where its edit acts.

An intervention names its controller in `params["stepwise"]`; its operation and tensors say what is
done, the controller says in which rows and layers and how strongly, at each generated token. One
controller lives as long as one batch of `model.generate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from workbench.shapes import Float, Tensor

Factors = float | Tensor | Mapping[int, Tensor]
"""Multiples of the edit's own strength: one for all rows, `[batch]`, or `[batch]` by layer, where a
layer that is not named does not act. 0 does not act at all."""


@runtime_checkable
class Step(Protocol):
    """One token of every row that still runs.

    Attributes:
        number: 0 reads the prompt and decides the first generated token.
        layers: those the edit has sites in, ascending.
        prompts: ids of each row's prompt.
        ids: ids generated so far, per row.
        confidences: largest probability in the softmax of the logits each of them was drawn from,
            whatever the decoder's temperature.
        positions: `[batch, column]` absolute position of every column so far, negative on padding.
        values: what `record` asked for, from the last forward.
    """

    number: int
    layers: tuple[int, ...]
    prompts: list[list[int]]
    ids: list[list[int]]
    confidences: list[list[float]]

    @property
    def positions(self) -> Tensor: ...

    @property
    def values(self) -> Mapping[str, Tensor]: ...

    def forward(
        self, factors: Factors, *, commit: bool = True, told: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """Next-token logits with the edit at `factors`, from where this step began.

        Args:
            commit: later steps see this forward's keys and values. Exactly one per step does.
            told: put into `Around.values` of the edit's rule.
        """
        ...


@runtime_checkable
class Controller(Protocol):
    """Decides, for one batch. Made as `Controller(params, n_rows)`.

    Attributes:
        on_prompt: the edit acts on prompts by itself, in `model.run` too.
        greedy: only greedy decoding means anything with it.
    """

    on_prompt: ClassVar[bool]
    greedy: ClassVar[bool]

    @staticmethod
    def record(layers: Sequence[int]) -> tuple[str, ...]:
        """Sites that `Step.values` shall hold, for an edit in these layers."""
        ...

    def step(self, step: Step) -> Float[Tensor, "batch vocab"]:
        """The logits the next tokens are drawn from."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        ...


def fields(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Some of an intervention's parameters."""
    return {name: params[name] for name in names}
