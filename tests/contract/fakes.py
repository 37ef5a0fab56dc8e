"""Stand-ins for trained dictionaries: random ones of our own form and of SAELens'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.sae.dictionary import Dictionary
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


def lens_dictionary(
    d: int,
    site: str,
    n_features: int | None = None,
    architecture: str = "standard",
    target: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Dictionary:
    """One of SAELens' own with random weights, biases and thresholds, so that forgotten terms show.

    Decoder rows are of unequal lengths.
    """
    from workbench.sae.library import sae_lens

    names = {"standard": "Standard", "jumprelu": "JumpReLU", "gated": "Gated", "topk": "TopK"}
    kind = names.get(architecture, "Transcoder")
    name = kind if kind == "Transcoder" else f"{kind}SAE"
    n = n_features or 2 * d
    if architecture == "topk":
        options = {"k": 6} | options
    if kind == "Transcoder":
        options = {"d_out": d, "apply_b_dec_to_input": False} | options
    lens = sae_lens()
    config = getattr(lens, f"{name}Config")(d_in=d, d_sae=n, **options)
    sae = getattr(lens, name)(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for key, p in sae.named_parameters():
        drawn = torch.randn(p.shape, generator=generator)
        p.copy_(drawn / d**0.5 if key.startswith("W_") else 0.1 * drawn)
    if architecture == "jumprelu":
        sae.threshold.copy_(0.3 + sae.threshold.abs())
    return Dictionary(sae, site, target or site, name=f"{architecture} {seed}")
