"""The interface of a decoder: from next-token logits to the chosen ids."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from workbench.shapes import Float, Int, Tensor


@runtime_checkable
class Decoder(Protocol):
    """Chooses one token per row. Stateless, so rows may be dropped between steps."""

    random: ClassVar[bool]
    """Whether `choose` needs noise."""

    def choose(
        self, logits: Float[Tensor, "batch vocab"], noise: Float[Tensor, "batch vocab"] | None
    ) -> Int[Tensor, " batch"]:
        """The chosen ids. `noise` is standard exponential, drawn per row from its own seed."""
        ...
