"""The activation's own coordinates in place of features: the control of every dictionary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from workbench import sites
from workbench.sae.dictionary import Dictionary
from workbench.shapes import Codes, Float, Rows, Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Coordinates(Dictionary):
    """Coordinates of the activation itself in place of features: the control of every dictionary."""

    width: int = 0
    at: torch.device = torch.device("cpu")

    @property
    def architecture(self) -> str:
        """It has none."""
        return "coordinates"

    @property
    def n_features(self) -> int:
        """As many as the activation has."""
        return self.width

    @property
    def d(self) -> int:
        """Width of the activation."""
        return self.width

    @property
    def d_out(self) -> int:
        """The same."""
        return self.width

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.at

    @property
    def decoder(self) -> Float[Tensor, "feature out"]:
        """Each coordinate writes itself."""
        return torch.eye(self.width, device=self.at)

    def __repr__(self) -> str:
        return f"Coordinates({self.site}, width {self.width})"

    def _encode(self, rows: Rows) -> Codes:
        return rows.to(self.at).float()

    def reconstruct(self, rows: Rows) -> Float[Tensor, "row out"]:
        """The rows themselves."""
        return self._checked(rows, "reconstruct")

    def decode(self, codes: Codes) -> Float[Tensor, "row out"]:
        """The codes themselves."""
        return codes


def coordinates(model: Any, site: str) -> Coordinates:
    """The activation's own coordinates at a site as if they were features, for controls.

    They are signed: score them with `power=2`.
    """
    (where,) = sites.parse(site, model.n_layers)
    make: Callable[..., Coordinates] = Coordinates
    return make(
        None,
        str(where),
        str(where),
        model.fingerprint,
        f"coordinates of {where}",
        width=model.d_model,
        at=model.device,
    )
