"""Stand-ins for what a method is handed and this project does not train yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.shapes import Float, Rows, Tensor, Vector


@dataclass(frozen=True)
class FakeDictionary:
    """A sparse autoencoder with random weights and an input bias, as `sae_feature.Dictionary`.

    Attributes:
        site: where it acts.
        encoder, decoder: `[feature, d]`; decoder rows have length 1.
        bias: `[feature]`; input_bias `[d]` is subtracted before encoding.
        threshold: `[feature]`, for "jumprelu".
    """

    site: str
    encoder: Float[Tensor, "feature d"]
    decoder: Float[Tensor, "feature d"]
    bias: Vector
    input_bias: Vector
    activation: str = "relu"
    threshold: Vector | None = None

    def encode(self, rows: Rows) -> Float[Tensor, "row feature"]:
        score = (rows - self.input_bias) @ self.encoder.mT + self.bias
        floor = torch.zeros(()) if self.threshold is None else self.threshold
        return torch.where(score > floor, score, 0.0)

    def encoder_row(self, feature: int) -> tuple[Vector, Float[Tensor, ""]]:
        weight = self.encoder[feature]
        return weight, self.bias[feature] - weight @ self.input_bias


def fake_dictionary(
    d: int, site: str, n_features: int | None = None, threshold: float | None = None, seed: int = 0
) -> FakeDictionary:
    """A dictionary of `n_features` (twice the width by default), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    n = n_features or 2 * d

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = torch.nn.functional.normalize(draw(n, d), dim=1)
    return FakeDictionary(
        site,
        decoder + 0.1 * draw(n, d) / d**0.5,
        decoder,
        0.1 * draw(n),
        0.1 * draw(d),
        "relu" if threshold is None else "jumprelu",
        None if threshold is None else torch.full((n,), threshold),
    )
