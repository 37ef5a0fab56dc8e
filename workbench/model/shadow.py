"""The model run once more beside a forward that is under way, with something changed in it.

Some edits are not a function of the activation alone: they say what a step along a gradient would do to
it, or what the model would answer with a block more. They read that off a second run, the *shadow*: all
tokens so far go through a twin of the module, which shares every weight and has no hook, so that no edit
and no recording acts on it and the model itself is not touched.

The twin keeps no cache of its own: each step of a generation reads the whole prefix again. That is slower
(a generation costs the square of its length) and makes runs with and without a KV cache agree.

Scopes, strengths and receipts know nothing of this; rules reach it as `Around.again`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench import sites
from workbench.errors import EditError
from workbench.model.backends.base import Tap
from workbench.model.backends.hooks import Transformers
from workbench.model.backends.skip import StandIn
from workbench.model.layouts.base import Dims, Layout
from workbench.model.positions import Frame
from workbench.records import Prompt
from workbench.shapes import Float, Ids, Mask
from workbench.sites import Site
from workbench.tensors import Tokens

Parameters = Mapping[str, Tensor]
"""Tensors by the name of a parameter of the model."""
Loss = Callable[[Sequence[Tensor]], Tensor]
"""From the log-probabilities of every completion of a group, `[token]` each, to one number."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Shadow:
    """A second run of a model; `again` makes one of the tokens that a forward has read.

    Raises:
        EditError: a backend other than "transformers", or a model spread over several devices.
    """

    backend: Any

    def __post_init__(self) -> None:
        name = getattr(self.backend, "name", None)
        if name == "transformers" and not hasattr(self.backend.hf, "hf_device_map"):
            return
        raise EditError(
            "a second run of the model",
            "cannot be made here",
            expected="backend 'transformers', the whole model on one device",
            got=f"backend {name!r}" if name != "transformers" else "a model on several devices",
            do="load it with wb.load(..., backend='transformers', device=...)",
        )

    def values(
        self,
        site: str,
        ids: Ids,
        mask: Mask,
        *,
        columns: int | None = None,
        added: Parameters | None = None,
        tangents: Parameters | None = None,
        before: Parameters | None = None,
    ) -> Float[Tensor, "batch columns ..."]:
        """What a run of `ids` holds at a site, or its derivative.

        Args:
            site: one site, without selectors.
            mask: False on padding, which stands on the left.
            columns: how many last positions; None for all.
            added: what to add to the model's parameters.
            tangents: a direction in parameter space; what comes back is then the derivative of the
                value along it (forward mode), not the value.
            before: parameters of a block that stands before block 0, named as in block 0. Gradients
                reach them where they are on.

        Raises:
            EditError: parameters that the model lacks, or of another shape.
        """
        one = sites.parse(site, len(self.backend.blocks))[0]
        read = [one, ids, mask, columns]
        if before is not None:
            return self._forward(self._with_block(before), *read)
        if tangents is None:
            with torch.no_grad():
                own = self._own(added or {})
                moved = {k: own[k] + t.to(own[k]) for k, t in (added or {}).items()}
                return self._forward(self._twin(moved), *read)
        with torch.inference_mode(False), torch.no_grad(), forward_ad.dual_level():
            # the fused attention kernels have no forward derivative
            with sdpa_kernel(SDPBackend.MATH):
                own = self._own(tangents)
                # tensors made in inference mode have no tangents
                along = {k: t.to(own[k], copy=t.is_inference()) for k, t in tangents.items()}
                with warnings.catch_warnings():
                    # torch loads its own derivatives at the first call, through what it deprecates
                    warnings.simplefilter("ignore", DeprecationWarning)
                    duals = {k: forward_ad.make_dual(own[k], t) for k, t in along.items()}
                value = self._forward(self._twin(duals, slow=True), *read)
            tangent = forward_ad.unpack_dual(value).tangent
        return torch.zeros_like(value) if tangent is None else tangent

    def _parameters(self) -> dict[str, Tensor]:
        """Parameters by name; a twin has them all, where stand-ins hide some of the model's."""
        return dict(twin(self.backend.hf).named_parameters())

    def _own(self, named: Parameters) -> dict[str, Tensor]:
        """The model's parameters of these names, after a check of the names and shapes."""
        have = self._parameters()
        wrong = [k for k, t in named.items() if k not in have or have[k].shape != t.shape]
        if wrong:
            raise EditError(
                "a second run of the model",
                "is asked for with parameters that do not fit it",
                expected=f"names and shapes of this model's {len(have)} parameters",
                got=[f"{k} {tuple(named[k].shape)}" for k in wrong[:3]],
                do="fit the edit on this model",
            )
        return {name: have[name].detach() for name in named}

    def _twin(self, tensors: Parameters, *, slow: bool = False) -> nn.Module:
        have = self._parameters()
        swapped = {id(have[name]): tensor for name, tensor in tensors.items()}
        return twin(self.backend.hf, swapped, slow=slow)

    def _with_block(self, tensors: Parameters) -> nn.Module:
        """A twin with a block more: block 0's own module over other parameters."""
        whole = twin(self.backend.hf)
        blocks = whole.get_submodule(self.backend.layout.blocks)
        first = _plain(self.backend.hf.get_submodule(self.backend.layout.blocks)[0])  # pyright: ignore
        own = dict(first.named_parameters())
        if own.keys() != tensors.keys() or any(own[k].shape != t.shape for k, t in tensors.items()):
            raise EditError(
                "a block before block 0",
                "has other parameters than this model's blocks",
                expected=sorted(own)[:4],
                got=sorted(tensors)[:4],
                do="fit the edit on this model",
            )
        kernel = self.backend.hf.config._attn_implementation
        inserted = _Twins({id(own[k]): t for k, t in tensors.items()}, kernel, False).of(first)
        # a block list that is one longer would shift what the model looks up by layer
        blocks._modules["0"] = Two(inserted, blocks._modules["0"])
        return whole

    def _forward(
        self, hf: nn.Module, site: Site, ids: Ids, mask: Mask, columns: int | None
    ) -> Tensor:
        """The value at a site; blocks above it do not run."""
        layout: Layout = self.backend.layout
        backend = Transformers(hf, layout, self.backend.dims)
        if site.layer is not None:
            _cut(hf.get_submodule(layout.blocks), site.layer + 1)
        found: list[Tensor] = []
        # a tensor made in inference mode may not enter a run with gradients
        ids, mask = ids.clone().to(_device(hf)), mask.clone().to(_device(hf))
        pads = None if bool(mask.all()) else mask
        positions = None if pads is None else (pads.long().cumsum(-1) - 1).clamp(min=0)
        keep = (columns or 0) if site.part == "logits" else 1
        with backend.attach([Tap(site, _keeper(found), writes=False)]):
            backend.forward(
                ids,
                mask=None if pads is None else pads.long(),
                positions=positions,
                cache=None,
                use_cache=False,
                keep=keep,
            )
        return found[0] if columns is None else found[0][:, -columns:]


def again(frame: Frame, site: str, columns: int, **how: Any) -> Tensor:
    """`Around.again`: see `Shadow.values`; the tokens are those that this forward's rows have read.

    Raises:
        EditError: see `Shadow`, or branches packed into one row.
    """
    if frame.visible is not None:
        raise EditError(
            "a second run of the model",
            "cannot be made of branches packed into one row",
            expected="each branch as a row of its own",
            got="packed branches",
            do="score_branches(..., pack=False)",
        )
    mask = frame.all_positions >= 0
    return Shadow(frame.backend).values(site, frame.all_ids, mask, columns=columns, **how)


def gradient(
    model: Any,
    groups: Sequence[Sequence[Prompt]],
    loss: Loss,
    site: str,
    *,
    batch_size: int = 8,
) -> dict[str, Tensor]:
    """Mean gradient over groups of `loss` with respect to the parameters that a site depends on.

    Args:
        groups: prompts whose loss is one number together (one each, or the two of a pair), each with
            `meta["completion"]`.
        loss: gets the log-probabilities in nats of a group's completion tokens.
        site: parameters of blocks above it, and of the head, are left out.

    Returns:
        Tensors in float32 on the CPU, by parameter name. The model's own gradients stay as they were.

    Raises:
        EditError: see `Shadow`.
    """
    shadow, width = Shadow(model.backend), max(len(group) for group in groups)
    many = max(1, batch_size // width)
    with torch.inference_mode(False), torch.enable_grad():
        have = dict(model.hf.named_parameters())
        leaves = {
            name: have[name].detach().requires_grad_()
            for name in reaching(model.hf, model.backend.layout, site, model.dims)
        }
        hf = shadow._twin(leaves)
        total = {name: torch.zeros_like(t, dtype=_fine(t)) for name, t in leaves.items()}
        for start in range(0, len(groups), many):
            some = groups[start : start + many]
            logprobs = iter(_completion_logprobs(model, hf, [p for group in some for p in group]))
            value = torch.stack([loss([next(logprobs) for _ in group]) for group in some]).sum()
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            for name, part in zip(leaves, found, strict=True):
                if part is not None:
                    total[name] += part
    return {name: (t / len(groups)).float().cpu() for name, t in total.items()}


def reaching(hf: nn.Module, layout: Layout, site: str, dims: Dims) -> list[str]:
    """Names of the parameters below a site: embeddings and blocks up to its own."""
    one = sites.parse(site, dims.n_layers)[0]
    names = [name for name, p in hf.named_parameters() if p.is_floating_point()]
    if one.part in ("logits", "final_norm"):
        return names
    last = -1 if one.layer is None else one.layer
    head = hf.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    tied = head is not None and head.weight is hf.get_input_embeddings().weight  # pyright: ignore
    heads = [n for n, m in hf.named_modules() if m is head] if not tied else []
    above = [*heads, layout.outside["final_norm"].module]
    above += [f"{layout.blocks}.{i}" for i in range(last + 1, dims.n_layers)]
    return [n for n in names if not any(n.startswith(f"{path}.") for path in above)]


def twin(
    module: nn.Module, swapped: Mapping[int, Tensor] | None = None, *, slow: bool = False
) -> nn.Module:
    """A model of the same structure over the same weights, without hooks.

    Args:
        swapped: tensors to hold in place of parameters, by the parameter's `id`; every place that
            shares a parameter gets the same tensor.
        slow: with kernels that have forward derivatives.
    """
    kernel = module.config._attn_implementation  # pyright: ignore
    return _Twins(swapped or {}, kernel, slow).of(module)


class _Twins:
    """One twin being made: what occurs twice in the module, occurs twice in the twin."""

    def __init__(self, swapped: Mapping[int, Tensor], kernel: str, slow: bool):
        self.swapped, self.slow = swapped, slow
        self.kernel = "sdpa" if slow and kernel not in ("eager", "sdpa") else kernel
        self.made: dict[int, nn.Module] = {}
        self.configs: dict[int, Any] = {}

    def of(self, module: nn.Module) -> nn.Module:
        module = _plain(module)
        if id(module) in self.made:
            return self.made[id(module)]
        new = self.made[id(module)] = type(module).__new__(type(module))
        new.__dict__.update(module.__dict__)
        # a tap of the experts lives there
        new.__dict__.pop("forward", None)
        for name in _HOOKS:
            new.__dict__[name] = type(module.__dict__[name])()
        new._buffers = dict(module._buffers)
        new._parameters = {
            name: self.swapped.get(id(p), p)  # pyright: ignore[reportAttributeAccessIssue]
            for name, p in module._parameters.items()
        }
        new._modules = {
            name: child if child is None else self.of(child)
            for name, child in module._modules.items()
        }
        if "config" in new.__dict__:
            new.config = self._config(module.config)
        return new

    def _config(self, config: Any) -> Any:
        """The configuration without taps; one and the same for all who share it."""
        taps = config.__dict__.get("workbench_taps")
        if taps is None and not self.slow:
            return config
        if id(config) not in self.configs:
            made = copy.copy(config)
            made.__dict__.pop("workbench_taps", None)
            made._attn_implementation_internal = self.kernel
            if self.slow and hasattr(made, "_experts_implementation_internal"):
                made._experts_implementation_internal = "eager"
            self.configs[id(config)] = made
        return self.configs[id(config)]


class Two(nn.Module):
    """Two blocks in the place of one; any other attribute is the second's."""

    def __init__(self, first: nn.Module, second: nn.Module | None):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, h: Tensor, *args: Any, **options: Any) -> Any:
        """What the second block makes of what the first one gives."""
        assert self.second is not None
        out = self.first(h, *args, **options)
        return self.second(out[0] if isinstance(out, tuple) else out, *args, **options)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("second"), name)


def _plain(module: nn.Module) -> nn.Module:
    """The module itself, where a run of upper blocks alone has put something in its place."""
    return module.replaced if isinstance(module, StandIn) else module


def _cut(blocks: nn.Module, count: int) -> None:
    for name in list(blocks._modules)[count:]:
        del blocks._modules[name]


def _keeper(found: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(h: Tensor) -> Tensor:
        found.append(h)
        return h

    return keep


def _device(hf: nn.Module) -> torch.device:
    return next(iter(hf.parameters())).device


def _completion_logprobs(model: Any, hf: nn.Module, prompts: list[Prompt]) -> Iterator[Tensor]:
    """Log-probabilities `[token]` of each prompt's completion, with the graph to `hf`'s parameters."""
    tails = [_ids(model, p.meta.get("completion", "")) for p in prompts]
    tokens: Tokens = model.tokens(prompts, tails)
    backend = Transformers(hf, model.backend.layout, model.dims)
    padded = not bool(tokens.mask.all())
    logits = backend.forward(
        tokens.ids,
        mask=tokens.mask.long() if padded else None,
        positions=tokens.positions.clamp(min=0) if padded else None,
        cache=None,
        use_cache=False,
        keep=max(map(len, tails)) + 1,
    ).logits
    for row, ids in zip(logits, tails, strict=True):
        told = row[-len(ids) - 1 : -1]
        told = told.to(_fine(told)).log_softmax(-1)
        yield told.gather(1, torch.tensor(ids, device=told.device)[:, None])[:, 0]


def _fine(tensor: Tensor) -> torch.dtype:
    """A type that sums well: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _ids(model: Any, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
