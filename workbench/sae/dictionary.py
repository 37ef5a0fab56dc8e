"""A dictionary of features: one of SAELens' autoencoders, and the place of the model it reads.

    f = encode(h) [feature]        h' = decode(f) [d]        error = h - h'

The arithmetic is SAELens' own; this record adds what it does not know: the site under our names, the
model it belongs to, bounded memory, and each feature's encoder as it acts on the activation itself.

Shapes: rows `[row, d]`, codes `[row, feature]`, `decoder` `[feature, d]`, `threshold` `[feature]`.
Units: activations of a feature count lengths of its decoder row.
Source: Cunningham et al. (2023), Sparse Autoencoders Find Highly Interpretable Features in Language
    Models, https://arxiv.org/abs/2309.08600; SAELens, https://github.com/decoderesearch/SAELens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import WorkbenchError
from workbench.shapes import Codes, Float, Rows, Tensor, Vector
from workbench.tensors import Fingerprint

if TYPE_CHECKING:
    import pandas as pd

HISTORY = ("tokens", "loss", "fvu", "l0", "dead")

CODE_BYTES = 64 * 2**20
"""Codes in float32 that are held at once while rows are encoded for their reconstruction."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Sparse features of the activations at one site.

    Attributes:
        sae: the SAELens module, for inference.
        site: what it reads, such as "L3.resid_post".
        target: what it reconstructs; the same site, or another one for a transcoder.
        model: the model it was trained on; None where its file does not say.
        name: what tables call it.
    """

    sae: Any
    site: str
    target: str
    model: Fingerprint | None = None
    name: str = ""

    def __repr__(self) -> str:
        of = f" of {self.model.name}" if self.model else ""
        to = "" if self.target == self.site else f" -> {self.target}"
        return (
            f"Dictionary({self.name}: {self.architecture}, {self.site}{to}{of}, "
            f"{self.n_features} features of width {self.d})"
        )

    @property
    def architecture(self) -> str:
        """SAELens' word for it: "standard", "topk", "jumprelu", "gated", ..."""
        return self.sae.cfg.architecture()

    @property
    def n_features(self) -> int:
        """How many features it has."""
        return int(self.sae.cfg.d_sae)

    @property
    def d(self) -> int:
        """Width of the activations that it reads."""
        return int(self.sae.cfg.d_in)

    @property
    def d_out(self) -> int:
        """Width of what it writes; `d` but for transcoders."""
        return int(self.sae.W_dec.shape[-1])

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of its training here: tokens, seed, options, `history`; empty if elsewhere."""
        ours = self.sae.cfg.metadata.get("workbench")
        return dict(ours.get("training") or {}) if isinstance(ours, dict) else {}

    @property
    def history(self) -> pd.DataFrame:
        """Its training in rows: `tokens` seen, `loss`, `fvu` and `l0` of that batch, `dead` share.

        Empty where it was not trained here.
        """
        import pandas as pd

        return pd.DataFrame(self.facts.get("history") or {}, columns=list(HISTORY))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.sae.W_dec.device

    @property
    def decoder(self) -> Float[Tensor, "feature out"]:
        """What each feature writes per unit of activation; of a dictionary that `rescales`, per unit
        of the normalised row.
        """
        rows = self.sae.W_dec.detach()
        # such features count what they write, whatever the length of the row that is stored
        counted = getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False)
        return rows / rows.norm(dim=-1, keepdim=True) if counted else rows

    @property
    def rescales(self) -> bool:
        """Whether each row is normalised by its own size, so that what a feature writes depends on it."""
        return self.sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale")

    @property
    def activation(self) -> str:
        """How a feature comes from its own score: "relu", "jumprelu", or the architecture's name where
        features depend on one another or on the row's length.
        """
        normed = self.sae.cfg.normalize_activations != "none"
        known = {"standard": "relu", "jumprelu": "jumprelu", "gated": "jumprelu"}
        return self.architecture if normed else known.get(self.architecture, self.architecture)

    @cached_property
    def threshold(self) -> Vector:
        """The score above which each feature is on; zeros where that is any positive one."""
        if self.architecture == "gated":
            return (self.sae.b_mag - self.sae.r_mag.exp() * self.sae.b_gate).detach()
        if hasattr(self.sae, "threshold"):
            return self.sae.threshold.detach()
        return self.decoder.new_zeros(self.n_features)

    def encoder_row(self, feature: int) -> tuple[Vector, Float[Tensor, ""]]:
        """Weight and bias of one feature's score, as they act on the activation itself.

        Raises:
            WorkbenchError: no such feature; or features have no score of their own, see `activation`.
        """
        if not 0 <= feature < self.n_features:
            raise WorkbenchError(
                f"{self.name or 'dictionary'}.encoder_row({feature})",
                "there is no such feature",
                expected=f"0 to {self.n_features - 1}",
                got=feature,
                do="choose another one",
            )
        if self.activation not in ("relu", "jumprelu"):
            raise WorkbenchError(
                f"{self.name or 'dictionary'}.encoder_row({feature})",
                "features of this architecture have no encoder of their own",
                expected="standard, jumprelu or gated, with no normalisation at run time",
                got=f"{self.architecture}, normalisation {self.sae.cfg.normalize_activations!r}",
                do="add the feature's decoder row instead of clamping it",
            )
        weight = self.sae.W_enc[:, feature].detach()
        bias = -(self.sae.b_dec @ weight) * self.sae.cfg.apply_b_dec_to_input
        if self.architecture == "gated":
            size = self.sae.r_mag[feature].exp()
            return (weight * size).detach(), (bias * size + self.sae.b_mag[feature]).detach()
        return weight, (bias + self.sae.b_enc[feature]).detach()

    @torch.no_grad()
    def encode(self, rows: Rows) -> Codes:
        """Activations of all features.

        Raises:
            WorkbenchError: rows of another width, or with NaN in them.
        """
        return self._encode(self._checked(rows, "encode"))

    @torch.no_grad()
    def decode(self, codes: Codes) -> Float[Tensor, "row out"]:
        """The reconstruction from activations.

        Raises:
            WorkbenchError: another number of features, or a dictionary whose codes are not all: it
                normalises each row, or carries a part of it past the features.
        """
        if codes.shape[-1] != self.n_features:
            raise _misfit("decode", "codes", self.n_features, codes)
        if self.rescales or hasattr(self.sae, "W_skip"):
            raise WorkbenchError(
                "Dictionary.decode",
                "what this dictionary gives back depends on the row as well as on its codes",
                expected="rows",
                got=f"{self.architecture}, normalisation {self.sae.cfg.normalize_activations!r}",
                do="use reconstruct(rows)",
            )
        return self.sae.decode(codes.to(self.device, self.sae.dtype))

    @torch.no_grad()
    def reconstruct(self, rows: Rows) -> Float[Tensor, "row out"]:
        """What the features say the activations (at `target`) are; codes are held in parts only."""
        # the module itself, not decode(encode(...)): some transcoders add a part of the input
        return torch.cat(
            [self.sae(part.to(self.device, self.sae.dtype)) for part in self._parts(rows)]
        )

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Dictionary:
        """A dictionary elsewhere; this one stays where it is."""
        import copy

        moved = copy.deepcopy(self.sae).to(
            device=torch.device(device), dtype=dtype or self.sae.dtype
        )
        return replace(self, sae=moved)

    def _encode(self, rows: Rows) -> Codes:
        codes = self.sae.encode(rows.to(self.device))
        return codes.to_dense() if codes.is_sparse else codes

    def _parts(self, rows: Rows) -> Iterator[Rows]:
        size = max(1, CODE_BYTES // (4 * self.n_features))
        for start in range(0, max(1, len(rows)), size):
            yield self._checked(rows[start : start + size], "reconstruct")

    def _checked(self, rows: Rows, verb: str) -> Rows:
        if rows.shape[-1] != self.d:
            raise _misfit(verb, f"rows at {self.site}", self.d, rows)
        check_finite(f"Dictionary.{verb}", rows)
        return rows


def check_finite(where: str, rows: Rows) -> None:
    """Refuse activations with NaN or infinity in them."""
    if not bool(rows.isfinite().all()):
        raise WorkbenchError(
            where,
            "the activations hold NaN or infinity",
            expected="finite numbers",
            got=f"{int((~rows.isfinite()).any(-1).sum())} of {len(rows)} rows",
            do="load the model in bfloat16 or float32, and look at its activations",
        )


def _misfit(verb: str, what: str, expected: int, got: Tensor) -> WorkbenchError:
    return WorkbenchError(
        f"Dictionary.{verb}",
        f"{what} have another width than the dictionary",
        expected=f"[row, {expected}]",
        got=tuple(got.shape),
        do="take a dictionary of this model and site",
    )
