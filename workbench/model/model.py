"""The model a user holds: one Hugging Face module, its tokenizer, its sites and the verbs on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from workbench import sites
from workbench.errors import SiteUnavailable, WorkbenchError, unknown
from workbench.model import tokens as tokenising
from workbench.model.backends.base import Backend
from workbench.model.backends.turn import turn
from workbench.model.layouts.base import Dims, Layout
from workbench.model.session import Session
from workbench.records import Generation, Prompt
from workbench.sites import Site
from workbench.tensors import Activations, Fingerprint, Intervention, Tokens, Trace


@dataclass(eq=False)
class Model:
    """A loaded model. Made by `wb.load`; holds the Hugging Face module itself, never a copy.

    Attributes:
        hf, tokenizer: the module, in eval mode, and its tokenizer.
        layout, dims: its architecture family and sizes.
        backend: how it is run.
        name: as it was asked for.
        source: what `wb.load` takes to load it again; None for a module that was made in memory.
    """

    hf: nn.Module
    tokenizer: Any
    layout: Layout
    dims: Dims
    backend: Backend
    name: str
    source: str | None = None
    proof: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        d = self.dims
        return (
            f"Model({self.name}: {self.hf.config.model_type}, {d.n_layers} layers, d_model {d.d_model}, "
            f"{d.n_heads} heads, {sum(p.numel() for p in self.hf.parameters()):,} parameters, "
            f"{self.dtype}, {self.device}, backend {self.backend.name})"
        )

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.dims.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.dims.d_model

    @property
    def n_heads(self) -> int:
        """Attention heads per block."""
        return self.dims.n_heads

    @property
    def device(self) -> torch.device:
        """Where token ids have to be: the embedding's device."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's dtype."""
        return self.hf.get_input_embeddings().weight.dtype

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        config = getattr(self.hf, "generation_config", None)
        found: set[int] = set()
        for ids in (getattr(config, "eos_token_id", None), self.tokenizer.eos_token_id):
            found |= set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
        return frozenset(found)

    @property
    def fingerprint(self) -> Fingerprint:
        """Which model this is. Computed anew, so that it tells a fine-tuned model from its start."""
        digest = hashlib.blake2b(self.hf.config.to_json_string().encode(), digest_size=8)
        for name, p in self.hf.named_parameters():
            digest.update(f"{name}{tuple(p.shape)}{_sums(p.detach())}".encode())
        family = self.hf.config.model_type
        return Fingerprint(self.name, family, self.d_model, self.n_layers, digest.hexdigest())

    def to(self, device: str) -> Model:
        """Move the module itself, and with it every run from now on; returns this same model.

        Raises:
            DeviceUnavailable: this machine does not have it.
            WorkbenchError: the model is spread over several devices, its backend holds a part of its
                own, or a run is under way here.
        """
        from workbench.model.load import checked_device

        target = checked_device(device)
        if hasattr(self.hf, "hf_device_map"):
            raise WorkbenchError(
                f"model.to({device!r})",
                "the model is spread over several devices",
                expected="a model on one device",
                got=sorted({str(d) for d in self.hf.hf_device_map.values()}),
                do="load it again with device=",
            )
        if self.backend.name == "transformer_lens":
            raise WorkbenchError(
                f"model.to({device!r})",
                "TransformerLens keeps a bridge of its own where it is",
                expected="backend 'transformers' or 'nnsight'",
                got=self.backend.name,
                do="load it again with device=",
            )
        before = self.device
        with turn(self.backend):
            try:
                self.hf.to(target)
            except BaseException:  # out of memory half-way: never on two devices
                self.hf.to(before)
                raise
        return self

    def unwrap(self) -> Any:
        """The backend's native object: HF module, TransformerBridge, or nnsight model."""
        return self.backend.unwrap()

    def sites(self, *, write: bool = False) -> list[str]:
        """Every site this model and backend can read (or write), in forward order."""
        found = []
        for site in _every_site(self.n_layers):
            try:
                self.backend.check(site, write=write)
            except SiteUnavailable:
                continue
            found.append(str(site))
        return found

    def tokens(
        self, prompts: Any, completions: Sequence[Iterable[int]] | None = None, *, room: int = 0
    ) -> Tokens:
        """The left-padded batch the model reads. `room` asks for that many more positions."""
        return tokenising.batch(
            self.tokenizer,
            prompts,
            n_context=self.dims.n_context,
            n_vocab=self.dims.n_vocab,
            device=self.device,
            completions=completions,
            room=room,
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def run(
        self,
        prompts: Any,
        record: Iterable[str | Site] = (),
        edits: Intervention | Iterable[Intervention] = (),
        *,
        completions: Sequence[Iterable[int]] | None = None,
        logits: Literal["all", "last", "none"] = "all",
        grad: bool = False,
    ) -> Trace:
        """One forward pass over all prompts as one batch.

        Args:
            prompts: text, Prompt, a list of either, or Tokens.
            record: sites whose values the trace holds, after any edit there.
            edits: applied in order.
            completions: ids put after each prompt; scopes treat them as generated. What `generate`
                produced can be read again this way, at every site.
            logits: which positions are unembedded. With "none" the run also ends after the highest
                site that is recorded or edited.
            grad: keep the autograd graph.

        Raises:
            WorkbenchError: see `workbench.errors`; the model is left as it was.
        """
        from workbench.model.run import run

        if logits not in ("all", "last", "none"):
            raise unknown("model.run(logits=)", "choice", logits, ("all", "last", "none"))
        one = [record] if isinstance(record, str) else record
        edits = [edits] if isinstance(edits, Intervention) else edits
        return run(self, prompts, one, edits, completions=completions, logits=logits, grad=grad)

    def record(
        self, prompts: Any, sites: str | Iterable[str], pool: str = "last", **options: Any
    ) -> Activations:
        """Activations of many prompts, a row each (or a row per position), see `activations.record`."""
        from workbench.activations.record import record

        return record(self, prompts, sites, pool=pool, **options)

    def generate(
        self, prompts: Any, edits: Intervention | Iterable[Intervention] = (), **options: Any
    ) -> list[Generation]:
        """Continue every prompt with edits at every step.

        Args:
            prompts: text, Prompt, or a list of either.
            edits: applied in every forward, in order; scopes count absolute positions.
            decoder: greedy by default, or `wb.decoding.Sample(...)`.
            max_new_tokens: at most this many.
            seed: each row draws from its own stream, so a row's draws do not depend on its batch.
            stop: texts that end a continuation.
            batch_size: rows at once; sized to memory by default. Bit-for-bit equality is promised
                at equal batch composition, and to about 1e-5 in the logits otherwise.
            use_cache: False recomputes every prefix (slow; what the cache is tested against).
            on_token: called with (step, rows still running, their new ids) as tokens appear.
            progress: show a progress bar.

        Returns:
            A list of Generation with `.receipts`, what the edits did in each batch.
        """
        from workbench.model.generate import generate

        return generate(self, prompts, edits, **options)

    def session(
        self, tokens: Tokens, edits: Iterable[Intervention], record: Iterable[str | Site]
    ) -> Session:
        """Edits and recordings bound to this model for one call; the seam `run` and `generate` share."""
        return Session(
            self.backend,
            self.dims,
            self.fingerprint_shape,
            tokens,
            edits,
            record,
            self._bos_id,
            lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"],
        )

    @cached_property
    def _bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

    @cached_property
    def fingerprint_shape(self) -> Fingerprint:
        """The fingerprint without its weight hash: what fitting an edit needs, at no cost."""
        return Fingerprint(self.name, self.hf.config.model_type, self.d_model, self.n_layers, "")

    def generation(
        self, prompt: Prompt, arm: str, seed: int, ids: list[int], logprobs: list[float], stop: str
    ) -> Generation:
        """A finished row as a record."""
        return Generation(prompt, arm, seed, tuple(ids), self.decode(ids), tuple(logprobs), stop)

    def fitting_batch(self, prompts: list[Prompt], new_tokens: int) -> int:
        """Rows of a batch whose cache, logits and activations stay within a quarter of free memory."""
        longest = max(len(tokenising.encode(self.tokenizer, p)) for p in prompts) + new_tokens
        d, size = self.dims, torch.finfo(self.dtype).bits // 8
        cache = 2 * d.n_layers * d.n_kv_heads * d.d_head * longest * size
        activations = longest * (8 * d.d_model + 3 * d.d_mlp + d.n_heads * longest) * size
        row = cache + activations + 8 * d.n_vocab
        return max(1, min(64, int(free_bytes(self.device) / 4 // row)))


def _sums(weight: torch.Tensor) -> list[int | float]:
    """Two sums and a few weights: one number changed anywhere changes them.

    The sums are of the numbers' bits, as integers: sums of floats depend on their order, and so on
    the device and on how many threads there are.
    """
    if weight.is_meta:  # offloaded: its values are on disk
        return []
    flat = weight.flatten().float()
    bits = flat.view(torch.int32)
    sums = torch.stack([part.sum(dtype=torch.int64) for part in (bits, bits[::3])])
    return [*sums.tolist(), *torch.cat([flat[:4], flat[-4:]]).tolist()]


def free_bytes(device: torch.device) -> int:
    """Memory that is free where the model is: the GPU's own, or the machine's."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # torch keeps what it freed
    import psutil

    return psutil.virtual_memory().available


def _every_site(n_layers: int) -> list[Site]:
    named = [
        Site(layer, part)
        for part, about in sites.PARTS.items()
        for layer in (range(n_layers) if about.in_block else [None])
    ]
    return sorted(named, key=lambda s: s.depth)
