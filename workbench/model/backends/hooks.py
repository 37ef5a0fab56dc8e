"""The reference backend: torch hooks on the untouched Hugging Face module, and three taps beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import SiteUnavailable, WorkbenchError, nearest
from workbench.model.backends import attention_tap, expert_tap
from workbench.model.backends.base import Carry, Step, Tap
from workbench.model.layouts.base import Dims, Layout, Point, Side
from workbench.sites import Site


class Transformers:
    """Runs the Hugging Face module itself: its numbers, its weights, its speed."""

    name = "transformers"

    def __init__(self, hf: nn.Module, layout: Layout, dims: Dims, tokenizer: Any = None):
        self.hf, self.layout, self.dims = hf, layout, dims
        self.blocks: Sequence[nn.Module] = hf.get_submodule(layout.blocks)
        self._shape = (0, 0)
        # which sites exist follows from the architecture, so it is looked up once
        self._existing: set[Site] = set()

    def unwrap(self) -> nn.Module:
        """The Hugging Face module."""
        return self.hf

    def new_cache(self) -> Any:
        """An empty dynamic cache of this model's layer kinds."""
        from transformers import DynamicCache

        return DynamicCache(config=self.hf.config)

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | dict[str, Tensor] | None,
        positions: Tensor | None,
        cache: Any,
        use_cache: bool,
        keep: int | Tensor,
    ) -> Step:
        """See `Backend.forward`. For packed branches also a 4-D `mask`, or one per kind of layer, that
        the model takes as it is, and `keep` as the columns that get logits."""
        self.entering(ids)
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        out = self.hf(
            input_ids=ids,
            use_cache=use_cache,
            logits_to_keep=keep,
            **{k: v for k, v in given.items() if v is not None},
        )
        return Step(out.logits, out.past_key_values if use_cache else None)

    def entering(self, ids: Tensor) -> None:
        """Say which batch the taps are about to see: routers and experts see it flattened."""
        self._shape = (ids.shape[0], ids.shape[1])

    def check(self, site: Site, *, write: bool) -> None:
        """Raise where this model has no such site; whatever it has can be read and written."""
        if site not in self._existing:
            self.place(site)

    @contextmanager
    def attach(self, taps: Sequence[Tap]) -> Iterator[None]:
        """Hooks for the taps, gone again on leaving."""
        handles: list[Any] = []
        with ExitStack() as stack:
            stack.callback(_remove, handles)
            attention: dict[int, dict[str, Any]] = {}
            # a resid_mid write reaches the block's output, so its hook must run before resid_post's
            for tap in sorted(taps, key=_is_resid_post) if len(taps) > 1 else taps:
                if tap.site.part == "logits":
                    handles.append(self._hook_logits(tap))
                    continue
                module, point = self.place(tap.site)
                if point.via == "attention":
                    attention.setdefault(tap.site.layer or 0, {})[tap.site.part] = tap.fn
                elif point.via == "experts":
                    stack.enter_context(expert_tap.tapped(module, tap.fn, lambda: self._shape))
                else:
                    handles += self._hook(module, point, tap)
            for layer, fns in attention.items():
                module = self.blocks[layer].get_submodule(self.layout.attention)
                stack.enter_context(attention_tap.tapped(module, fns))
            yield

    def _hook(self, module: nn.Module, point: Point, tap: Tap) -> tuple[Any, ...]:
        if point.via == "router":
            return (expert_tap.hook_router(module, tap.fn, lambda: self._shape),)
        if point.via == "resid_mid" and tap.writes:
            return self._hook_resid_mid(module, self.blocks[tap.site.layer or 0], tap)
        return (self._hook_plain(module, point, tap),)

    def _hook_plain(self, module: nn.Module, point: Point, tap: Tap) -> Any:
        fn, view, dims = tap.fn, point.view, self.dims

        def change(raw: Tensor) -> Tensor | None:
            h = view.read(raw, dims)
            new = fn(h)
            # with a graph the forward goes on from what was recorded, so that gradients reach it
            if new is h and (h is raw or not torch.is_grad_enabled()):
                return None
            return view.write(raw, new, dims)

        if point.side == "in":
            return _pre_hook(module, change)

        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            new = change(out[0] if isinstance(out, tuple) else out)
            if new is None:
                return None
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return module.register_forward_hook(after)

    def _hook_resid_mid(self, norm: nn.Module, block: nn.Module, tap: Tap) -> tuple[Any, Any]:
        carry = Carry(tap.fn)

        def before(raw: Tensor) -> Tensor | None:
            new = carry.before(raw)
            return None if new is raw else new

        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            raw = out[0] if isinstance(out, tuple) else out
            new = carry.after(raw)
            if new is raw:
                return None
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return _pre_hook(norm, before), block.register_forward_hook(after)

    def _hook_logits(self, tap: Tap) -> Any:
        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            new = tap.fn(out.logits)
            if new is not out.logits:
                out.logits = new
            return out

        return self.hf.register_forward_hook(after)

    def place(self, site: Site) -> tuple[nn.Module, Point]:
        """The module and point of a site, or `SiteUnavailable` with the reason."""
        if site.part == "logits":
            return self.hf, Point("")
        if site.part.startswith("hf:"):
            return self._any_module(site)
        root = self.hf if site.layer is None else self.blocks[site.layer]
        point = (self.layout.outside if site.layer is None else self.layout.inside).get(site.part)
        if point is not None and site in self._existing:
            return _below(root, point.module), point
        reason = self._lacking(site, point, root)
        if reason or point is None:
            raise SiteUnavailable(
                f"site {site}",
                f"{self.hf.config.model_type} has none: {reason}",
                expected="a site from model.sites()",
                got=str(site),
                do="no backend can offer it on this model",
            )
        self._existing.add(site)
        return _below(root, point.module), point

    def _lacking(self, site: Site, point: Point | None, root: nn.Module) -> str:
        """Why the site does not exist here, or ''."""
        if point is None:
            return f"the {self.layout.name} layout has no {site.part}"
        if site.part == "resid_mid" and self.layout.parallel(self.hf.config):
            return "attention and MLP run in parallel"
        routed = hasattr(getattr(root, "mlp", None), "experts")
        if routed and site.part in ("mlp_pre", "mlp_post"):
            return "an MoE block has neurons per expert: use expert"
        try:
            module = root.get_submodule(point.module)
        except AttributeError:
            return f"block has no module {point.module!r}"
        if point.via == "attention" and not attention_tap.supported(module):
            return "its attention does not go through transformers' attention interface"
        if site.part in ("attn_scores", "pattern") and hasattr(module, "sinks"):
            return "its attention has sinks, a column of the softmax that is no position"
        if point.via == "experts" and not expert_tap.supported(module):
            return "its experts are not fused, gated and without bias"
        return ""

    def _any_module(self, site: Site) -> tuple[nn.Module, Point]:
        path, side = site.part.removeprefix("hf:").rsplit(":", 1)
        names = [name for name, _ in self.hf.named_modules()]
        if path not in names:
            raise WorkbenchError(
                f"site {site}",
                "no such module",
                expected=f"a module path, nearest: {nearest(path, names)}",
                got=path,
                do="model.hf.named_modules() lists them",
            )
        picked: Side = "in" if side == "in" else "out"
        return self.hf.get_submodule(path), Point(path, picked)


def _pre_hook(module: nn.Module, change: Any) -> Any:
    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            new = change(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = change(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _is_resid_post(tap: Tap) -> bool:
    return tap.site.part == "resid_post"


def _below(root: nn.Module, path: str) -> nn.Module:
    """`root.get_submodule(path)`, in a third of its time: some recordings ask a hundred times a run."""
    for name in path.split(".") if path else ():
        child = root._modules[name]
        assert child is not None
        root = child
    return root


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
