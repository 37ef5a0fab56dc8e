"""The proof at load: every site holds what its name promises, or loading fails and says which.

Read: every site has its shape, attention rows sum to 1, residual parts add up. Null: identity taps
change nothing. Write: a real change at each part moves the logits. A wrong module path is found here,
once, instead of in a plot later.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import ProofFailed, SiteUnavailable
from workbench.model.backends.base import Backend, Tap
from workbench.model.layouts.base import Dims
from workbench.sites import PARTS, Site

N_TOKENS = 5
Values = dict[Site, Tensor]


@dataclass(frozen=True)
class Proof:
    """What was proved: sites read, parts written, and the largest deviation of identity taps."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    null_difference: float


@torch.no_grad()
def prove(backend: Backend, dims: Dims, device: torch.device, model_type: str) -> Proof:
    """Run the proof with arbitrary tokens.

    Raises:
        ProofFailed: naming the first site that does not hold.
    """
    ids = torch.arange(3, 3 + 2 * N_TOKENS, device=device).reshape(2, N_TOKENS) % dims.n_vocab
    prover = _Prover(backend, dims, ids, model_type)
    plain = prover.forward([])
    values, null = prover.read_all(plain)
    prover.check_sums(values)
    written = tuple(site.part for site in _one_per_part(values) if prover.moves(site, plain))
    return Proof(tuple(map(str, values)), written, null)


class _Prover:
    def __init__(self, backend: Backend, dims: Dims, ids: Tensor, model_type: str):
        self.backend, self.dims, self.ids, self.model_type = backend, dims, ids, model_type

    def forward(self, taps: list[Tap]) -> Tensor:
        with self.backend.attach(taps):
            step = self.backend.forward(
                self.ids, mask=None, positions=None, cache=None, use_cache=False, keep=0
            )
        return step.logits.float()

    def read_all(self, plain: Tensor) -> tuple[Values, float]:
        values: Values = {}

        def keep(site: Site) -> Callable[[Tensor], Tensor]:
            return lambda h: values.setdefault(site, h)

        taps = [Tap(site, keep(site), writes=False) for site in self._readable()]
        null = float((self._tapped(taps) - plain).abs().max())
        self._require(null <= self._tolerance(plain), "identity taps", "no change", null)
        for tap in taps:
            self._require(tap.site in values, str(tap.site), "a value", "never reached")
            self._check_shape(tap.site, values[tap.site])
        return {s: values[s] for s in sorted(values, key=lambda s: s.depth)}, null

    def _tapped(self, taps: list[Tap]) -> Tensor:
        try:
            return self.forward(taps)
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            self._require(False, "all sites at once", "a forward that runs", error)
            raise

    def check_sums(self, values: Values) -> None:
        get = lambda layer, part: values.get(Site(layer, part))  # noqa: E731
        for layer in range(self.dims.n_layers):
            pattern = get(layer, "pattern")
            if pattern is not None:
                error = float((pattern.float().sum(-1) - 1).abs().max())
                self._require(
                    error < 1e-2, f"L{layer}.pattern", "rows that sum to 1", f"off by {error:.2g}"
                )
            parts = [get(layer, p) for p in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
            if all(p is not None for p in parts):
                self._adds_up(f"L{layer}.resid_post", parts[:3], parts[3])
            mid = get(layer, "resid_mid")
            if mid is not None:
                self._adds_up(f"L{layer}.resid_mid", parts[:2], mid)

    def moves(self, site: Site, plain: Tensor) -> bool:
        """Whether a real change at the site moves the logits; False where it is read-only."""
        with suppress(SiteUnavailable):
            self.backend.check(site, write=True)
            difference = float((self.forward([Tap(site, _disturb)]) - plain).abs().max())
            self._require(
                difference > 0, str(site), "a change there to move the logits", "no effect"
            )
            return True
        return False

    def _readable(self) -> list[Site]:
        found = []
        for part, about in PARTS.items():
            for layer in range(self.dims.n_layers) if about.in_block else [None]:
                with suppress(SiteUnavailable):
                    self.backend.check(Site(layer, part), write=False)
                    found.append(Site(layer, part))
        return found

    def _check_shape(self, site: Site, value: Tensor) -> None:
        d = self.dims
        sizes = {"pos": N_TOKENS, "q": N_TOKENS, "k": N_TOKENS, "d": d.d_model, "d_head": d.d_head}
        sizes |= {"expert": d.n_experts, "vocab": d.n_vocab}
        kv = site.part in ("k", "v", "k_cache", "v_cache")
        sizes["head"] = d.n_kv_heads if kv else d.n_heads
        want = [2, *(sizes.get(axis, 0) for axis in site.axes)]
        # the vocabulary may be padded and a neuron width is the model's own business
        ok = value.dim() == len(want) and all(
            w in (0, g) or axis == "vocab"
            for w, g, axis in zip(want, value.shape, ("batch", *site.axes), strict=True)
        )
        self._require(
            ok, str(site), f"shape {want} (batch {' '.join(site.axes)})", list(value.shape)
        )

    def _adds_up(self, name: str, parts: list[Tensor | None], total: Tensor | None) -> None:
        assert total is not None
        summed = sum(p.float() for p in parts if p is not None)
        error = float((summed - total.float()).abs().max())
        self._require(
            error <= self._tolerance(total), name, "the sum of its parts", f"off by {error:.2g}"
        )

    def _tolerance(self, value: Tensor) -> float:
        # eager attention takes its softmax in float32 even where the model is float64
        eps = max(torch.finfo(self._dtype()).eps, torch.finfo(torch.float32).eps)
        return 64 * eps * max(1.0, float(value.float().abs().max()))

    def _dtype(self) -> torch.dtype:
        hf = getattr(self.backend, "hf", None)
        return next(hf.parameters()).dtype if hf is not None else torch.float32

    def _require(self, holds: bool, site: str, expected: str, got: object) -> None:
        if not holds:
            raise ProofFailed(
                f"proof of {self.model_type} on {self.backend.name}, {site}",
                "does not hold what its name promises",
                expected=expected,
                got=got,
                do="report the architecture; wb.load(..., proof=False) loads it unproved",
            )


def _one_per_part(values: Values) -> list[Site]:
    first: dict[str, Site] = {}
    for site in values:
        first.setdefault(site.part, site)
    return list(first.values())


def _disturb(h: Tensor) -> Tensor:
    """A change no model is blind to: uneven over every axis, as large as the activation."""
    wave = torch.arange(h.numel(), device=h.device, dtype=torch.float32).reshape(h.shape).sin()
    scale = h.float().nan_to_num(neginf=0.0).clamp(min=-1e4).std() + 1.0
    return h + (wave * scale).to(h.dtype)
