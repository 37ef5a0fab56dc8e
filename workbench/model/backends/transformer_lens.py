"""TransformerLens: a TransformerBridge on a shell clone of the model, spoken to in our sites.

Bridging rewires the module it is given, so it gets a clone that shares every parameter and buffer:
milliseconds, no memory, in-place weight edits seen by both, and the user's module stays as it is.
Weights are never processed, so numbers are Hugging Face's up to the order of floating-point sums.
Where a hook name does not mean what the site promises (`hook_resid_mid`, `mlp.gate.hook_out`), this file
does what the site promises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma3 import modeling_gemma3

from workbench.errors import WorkbenchError
from workbench.model.backends import expert_tap
from workbench.model.backends.base import Carry, Step, Tap, unavailable
from workbench.model.backends.hooks import Transformers
from workbench.model.layouts.base import Dims, Layout
from workbench.sites import Site

Fn = Callable[[Tensor], Tensor]

HOOKS = {
    "embed": "embed.hook_out",
    "resid_pre": "hook_in",
    "attn_norm_out": "ln1.hook_out",
    "q": "attn.q.hook_out",
    "k": "attn.k.hook_out",
    "v": "attn.v.hook_out",
    "attn_scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "z": "attn.o.hook_in",
    "attn_out": "hook_attn_out",
    "resid_mid": "ln2.hook_in",
    "mlp_norm_out": "ln2.hook_out",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_out",
    "final_norm": "ln_final.hook_out",
}
"""Part -> hook name, below `blocks.{layer}` where the part is inside a block."""

_CACHES = ("k_cache", "v_cache")


class TransformerLens:
    """Runs a TransformerBridge that shares the Hugging Face module's weights."""

    name = "transformer_lens"

    def __init__(self, hf: nn.Module, layout: Layout, dims: Dims, tokenizer: Any):
        self.hf, self.layout, self.dims = hf, layout, dims
        self._reference = Transformers(hf, layout, dims)
        self.clone = shell_clone(hf)
        self.bridge = _bridge(self.clone, tokenizer)
        shared = {id(p) for p in hf.parameters()}
        for p in self.clone.parameters():
            if id(p) not in shared:  # a bias of the unembedding, a cut of a joint projection
                p.requires_grad_(False)
        self._points: dict[str, Any] = dict(self.bridge.hook_dict)
        self._copied = list(self._copies())
        self._shape = (0, 0)

    def unwrap(self) -> TransformerBridge:
        """The bridge, for `run_with_cache`, `run_with_hooks` and the rest of TransformerLens."""
        return self.bridge

    def new_cache(self) -> Any:
        """An empty dynamic cache of this model's layer kinds."""
        return self._reference.new_cache()

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: Any,
        use_cache: bool,
        keep: int,
    ) -> Step:
        """See `Backend.forward`."""
        self._shape = (ids.shape[0], ids.shape[1])
        self._refresh()
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits, cache = self.bridge(
            ids,
            return_type="logits_and_cache",
            use_cache=use_cache,
            logits_to_keep=keep,
            **{k: v for k, v in given.items() if v is not None},
        )
        return Step(logits, cache if use_cache else None)

    def check(self, site: Site, *, write: bool) -> None:
        """Raise where the model has no such site, or the bridge no hook there."""
        if site.part.startswith("hf:"):
            why = "a bridge rewires the module tree that hf: paths name"
            raise unavailable(site, self.name, why, "transformers")
        self._reference.check(site, write=write)
        if not self._has(site):
            why = f"the bridge of {self.hf.config.model_type} has no hook there"
            raise unavailable(site, self.name, why, "transformers")

    @contextmanager
    def attach(self, taps: Sequence[Tap]) -> Iterator[None]:
        """Hooks for the taps, gone again on leaving; hooks the user put on the bridge stay."""
        with ExitStack() as stack:
            caches: dict[int, dict[str, Fn]] = {}
            # a resid_mid write reaches the block's output, so its hook must run before resid_post's
            for tap in sorted(taps, key=lambda t: t.site.part == "resid_post"):
                self.check(tap.site, write=tap.writes)
                if tap.site.part in _CACHES:
                    caches.setdefault(tap.site.layer or 0, {})[tap.site.part] = tap.fn
                else:
                    self._attach(stack, tap)
            for layer, fns in caches.items():
                stack.enter_context(_cache_tapped(self._attention(layer), fns))
            yield

    def _attach(self, stack: ExitStack, tap: Tap) -> None:
        part, layer = tap.site.part, tap.site.layer or 0
        if part == "logits":
            hook = self.clone.register_forward_hook(partial(_on_logits, tap.fn))
            stack.callback(hook.remove)
        elif part == "router_logits":
            gate = self._native(layer, "router_logits")
            hook = expert_tap.hook_router(gate, tap.fn, lambda: self._shape)
            stack.callback(hook.remove)
        elif part == "expert":
            experts = self._native(layer, "expert")
            stack.enter_context(expert_tap.tapped(experts, tap.fn, lambda: self._shape))
        elif part == "resid_mid" and tap.writes:
            carry = Carry(tap.fn)
            stack.enter_context(_hooked(self._point(tap.site), carry.before))
            stack.enter_context(_hooked(self._point(Site(layer, "resid_post")), carry.after))
        else:
            stack.enter_context(_hooked(self._point(tap.site), tap.fn))

    def _has(self, site: Site) -> bool:
        if site.part == "logits":
            return True
        if site.part in _CACHES:
            return hasattr(self._attention(site.layer or 0), "_update_kv_cache")
        if site.part in ("router_logits", "expert"):
            return self._native(site.layer or 0, site.part) is not None
        return site.part in HOOKS and self._hook_name(site) in self._points

    def _hook_name(self, site: Site) -> str:
        block = "" if site.layer is None else f"blocks.{site.layer}."
        return block + HOOKS[site.part]

    def _point(self, site: Site) -> Any:
        return self._points[self._hook_name(site)]

    def _attention(self, layer: int) -> Any:
        return self.bridge.blocks[layer].attn

    def _native(self, layer: int, part: str) -> Any:
        """The clone's own module behind a part, below whatever components the bridge put around it."""
        module = _innermost(self.bridge.blocks[layer])
        for name in self.layout.inside[part].module.split("."):
            module = _innermost(getattr(module, name, None))
        return module

    def _copies(self) -> Iterator[tuple[nn.Module, nn.Module, str]]:
        """Projections the bridge cut out of a joint one by copying: (copy, joint, part)."""
        for block in self.bridge.blocks:
            if not hasattr(block.attn, "qkv"):
                continue
            joint = _innermost(block.attn.qkv)
            for part in ("q", "k", "v"):
                cut = _innermost(getattr(block.attn, part))
                if _storage(cut.weight) != _storage(joint.weight):
                    yield cut, joint, part

    @torch.no_grad()
    def _refresh(self) -> None:
        """Bring the copies up to date, so that an in-place edit of the joint weight is seen."""
        for cut, joint, part in self._copied:
            read = self.layout.inside[part].view.read
            cut.weight.copy_(read(joint.weight.mT, self.dims).flatten(-2).mT)
            if cut.bias is not None:
                cut.bias.copy_(read(joint.bias, self.dims).flatten(-2))


def shell_clone(hf: nn.Module) -> nn.Module:
    """New module objects around the same parameters and buffers."""
    shared = {id(t): t for t in (*hf.parameters(), *hf.buffers())}
    clone = copy.deepcopy(hf, shared)
    clone.config.architectures = [type(hf).__name__]
    return clone


def _bridge(clone: nn.Module, tokenizer: Any) -> TransformerBridge:
    where = f"wb.load({clone.config.model_type!r}, backend='transformer_lens')"
    advice = dict(expected="a text model with an adapter", do="load it with backend='transformers'")
    if hasattr(clone.config, "vision_config") or hasattr(clone.config, "audio_config"):
        # booting one may run pip in a subprocess
        raise WorkbenchError(where, "is multimodal", got=type(clone).__name__, **advice)
    device = str(clone.get_input_embeddings().weight.device)
    try:
        with _attention_kept():
            return TransformerBridge.boot_transformers(
                "local/model",  # a real name could send it to the hub
                hf_model=clone,
                tokenizer=_private(tokenizer),
                device=device,
                dtype=clone.get_input_embeddings().weight.dtype,
            )
    except (ValueError, NotImplementedError, AttributeError) as failed:
        why = "TransformerLens cannot bridge this model"
        raise WorkbenchError(where, why, got=str(failed), **advice) from failed


def _private(tokenizer: Any) -> Any:
    """A copy that TransformerLens may change, marked so that it is used as it is, not loaded anew."""
    if tokenizer is None:
        return None
    mine = copy.deepcopy(tokenizer)
    mine.init_kwargs.setdefault("name_or_path", "")
    mine.init_kwargs["add_bos_token"] = True
    return mine


@contextmanager
def _attention_kept() -> Iterator[None]:
    """Booting a Gemma replaces the attention of every Gemma in the process; no bridge needs it to."""
    modules = [modeling_gemma2, modeling_gemma3]
    before = [module.eager_attention_forward for module in modules]
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.eager_attention_forward = own


def _storage(weight: Tensor) -> int:
    return weight.untyped_storage().data_ptr()


def _innermost(module: Any) -> Any:
    while isinstance(inner := getattr(module, "original_component", None), nn.Module):
        module = inner
    return module


@contextmanager
def _hooked(point: Any, fn: Fn) -> Iterator[None]:
    """`fn` on a hook point; of the hooks there only this one is removed again."""
    point.add_hook(partial(_changed, fn))
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


def _changed(fn: Fn, h: Tensor, **_hook: Any) -> Tensor | None:
    new = fn(h)
    return None if new is h else new


@contextmanager
def _cache_tapped(attention: Any, fns: dict[str, Fn]) -> Iterator[None]:
    """Sees all keys and values attended to: no hook point does, so the cache update is wrapped."""
    attention._update_kv_cache = partial(_updated, attention._update_kv_cache, fns)
    try:
        yield
    finally:
        del attention._update_kv_cache


def _updated(
    update: Callable[..., tuple[Tensor, Tensor]],
    fns: dict[str, Fn],
    k: Tensor,
    v: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    k, v = update(k, v, **options)
    return fns.get("k_cache", _same)(k), fns.get("v_cache", _same)(v)


def _same(h: Tensor) -> Tensor:
    return h


def _on_logits(fn: Fn, _module: nn.Module, _args: Any, out: Any) -> Any:
    new = fn(out.logits)
    if new is not out.logits:
        out.logits = new
    return out
