"""nnsight: the untouched Hugging Face module, run inside one trace in which every tap is a step.

nnsight serves values in the order the forward reaches them and silently gives wrong ones otherwise, so
steps are sorted by a measured order. It is single-threaded: one lock for the whole process. A served
`.output` is the value before the user's own torch forward hooks. Importing nnsight gives every Python
object a `.save`, and wrapping a model leaves an inert controller on each module's `forward`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import nnsight
import torch
from nnsight import TransformersModel
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.model.backends import attention_tap, expert_tap
from workbench.model.backends.base import Carry, Step, Tap, unavailable
from workbench.model.backends.hooks import Transformers
from workbench.model.layouts.base import Dims, Layout, Point, View
from workbench.sites import Site

Fn = Callable[[Tensor], Tensor]
Call = Callable[[], None]
Order = tuple[int, int]
"""When a step happens: the module event it belongs to, and its place among steps of that event."""

EAGER = {"attn_scores", "pattern"}
"""Parts that only the eager attention function computes."""

_LOCK = threading.RLock()


class Nnsight:
    """Runs the Hugging Face module inside nnsight traces."""

    name = "nnsight"

    def __init__(self, hf: nn.Module, layout: Layout, dims: Dims, tokenizer: Any):
        self.hf, self.layout, self.dims, self.tokenizer = hf, layout, dims, tokenizer
        self._reference = Transformers(hf, layout, dims)
        self._model: TransformersModel | None = None
        self._paths: dict[int, str] = {}
        self._order: dict[tuple[int, str], int] = {}
        self._taps: list[Tap] = []
        self._steps: list[Call] = []
        self._shape = (0, 0)
        self._running = False

    def unwrap(self) -> TransformersModel:
        """nnsight's own model around the same module, for `with lm.trace(...)`."""
        with _LOCK:
            if self._model is None:
                # a copy, since nnsight sets the padding side of the one it gets
                tokenizer = copy.deepcopy(self.tokenizer)
                self._model = TransformersModel(
                    self.hf, task="text-generation", tokenizer=tokenizer
                )
            return self._model

    def new_cache(self) -> Any:
        """An empty dynamic cache of this model's layer kinds."""
        return self._reference.new_cache()

    def check(self, site: Site, *, write: bool) -> None:
        """Raise where the model has no such site, or its code hides it from nnsight."""
        self._reference.check(site, write=write)
        point = self.layout.inside.get(site.part)
        bypassed = getattr(self.hf.config, "reorder_and_upcast_attn", False)
        if bypassed and point and point.via == "attention":
            why = "reorder_and_upcast_attn bypasses the attention function"
            raise unavailable(site, self.name, why, "transformers")

    @contextmanager
    def attach(self, taps: Sequence[Tap]) -> Iterator[None]:
        """While open, this thread's forwards are traced; other threads wait for their turn."""
        for tap in taps:
            self.check(tap.site, write=tap.writes)
        with _LOCK, ExitStack() as stack:
            before = self._taps, self._steps
            self._taps = [*self._taps, *taps]
            self._steps = self._make_steps(stack)
            try:
                yield
            finally:
                self._taps, self._steps = before

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
        """See `Backend.forward`. Not from inside a tap: nnsight cannot nest traces."""
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        call = {k: v for k, v in given.items() if v is not None}
        call |= {"input_ids": ids, "use_cache": use_cache, "logits_to_keep": keep}
        with self._turn():
            self._shape = (ids.shape[0], ids.shape[1])
            if self._steps:
                out = _traced(self.unwrap(), self._steps, lambda _: self.hf(**call))
            else:
                out = self.hf(**call)
        return Step(out.logits, out.past_key_values if use_cache else None)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with _LOCK:
            if self._running:
                raise WorkbenchError(
                    "backend nnsight",
                    "was run from inside one of its own forwards",
                    expected="one forward at a time",
                    got="a forward from inside a tap or an edit",
                    do="compute what the edit needs beforehand, or use backend='transformers'",
                )
            self._running = True
            try:
                yield
            finally:
                self._running = False

    def _make_steps(self, stack: ExitStack) -> list[Call]:
        """The taps as calls, in the order the forward reaches them."""
        steps: list[tuple[Order, Call]] = []
        attention: dict[int, dict[str, Fn]] = {}
        for tap in self._taps:
            module, point = self._reference.place(tap.site)
            if point.via == "attention":
                fns = attention.setdefault(tap.site.layer or 0, {})
                fns[tap.site.part] = _after(fns.get(tap.site.part), tap.fn)
            elif point.via == "resid_mid" and tap.writes:
                steps += self._resid_mid(module, tap)
            else:
                steps.append(self._step(module, point, tap))
        for layer, fns in attention.items():
            steps.append(self._attention(stack, layer, fns))
        return [step for _, step in sorted(steps, key=lambda item: item[0])]

    def _step(self, module: nn.Module, point: Point, tap: Tap) -> tuple[Order, Call]:
        envoy = self._envoy(module)
        if tap.site.part == "logits":
            return self._when(module, "out"), lambda: _logits(envoy, tap.fn)
        if point.via == "router":
            source = envoy.source  # asked for before the module runs, or it would come too late
            return self._when(module, "in", 1), lambda: _router(source, tap.fn, self._shape)
        if point.via == "experts":
            when = self._when(module, "in", 1)
            return when, lambda: _experts(module, envoy, tap.fn, self._shape)
        change = partial(_through, point.view, self.dims, tap.fn)
        step = _input if point.side == "in" else _output
        return self._when(module, point.side), lambda: step(envoy, change)

    def _resid_mid(self, norm: nn.Module, tap: Tap) -> list[tuple[Order, Call]]:
        """The norm's input misses the skip connection: carry the change to the block's output."""
        block = self._reference.blocks[tap.site.layer or 0]
        carry = Carry(tap.fn)
        at_norm, at_block = self._envoy(norm), self._envoy(block)
        return [
            (self._when(norm, "in"), lambda: _input(at_norm, carry.before)),
            # ahead of a resid_post tap of the same block
            (self._when(block, "out", -1), lambda: _output(at_block, carry.after)),
        ]

    def _attention(self, stack: ExitStack, layer: int, fns: dict[str, Fn]) -> tuple[Order, Call]:
        module = self._reference.blocks[layer].get_submodule(self.layout.attention)
        projection, _ = self._reference.place(Site(layer, "z"))
        source, eager = self._envoy(module).source, bool(EAGER & fns.keys())
        if eager:
            stack.enter_context(attention_tap.implementation(module, "eager"))
        return self._when(projection, "in", -1), lambda: _attention(source, fns, eager)

    def _envoy(self, module: nn.Module) -> Any:
        if id(module) not in self._paths:
            self._paths = {id(one): name for name, one in self.hf.named_modules()}
        path = self._paths[id(module)]
        return self.unwrap().get(path) if path else self.unwrap()

    def _when(self, module: nn.Module, side: str, place: int = 0) -> Order:
        if (id(module), side) not in self._order:
            self._order = _measured_order(self.hf)
        return self._order[id(module), side], place


def _traced(lm: TransformersModel, steps: list[Call], call: Callable) -> Any:
    """The model's output, with the steps carried out on the way."""
    # nnsight pads and re-derives positions of token inputs; a float input it passes on as it is
    with lm.trace(torch.zeros(1), fn=call) as tracer:
        for step in steps:
            step()
        out = nnsight.save(tracer.result)
    return out  # noqa: RET504 - nnsight binds the name when the block ends


def _through(view: View, dims: Dims, fn: Fn, raw: Tensor) -> Tensor:
    h = view.read(raw, dims)
    new = fn(h)
    return raw if new is h else view.write(raw, new, dims)


def _output(envoy: Any, change: Fn) -> None:
    out = envoy.output
    raw = out[0] if isinstance(out, tuple) else out
    new = change(raw)
    if new is not raw:
        envoy.output = (new, *out[1:]) if isinstance(out, tuple) else new


def _input(envoy: Any, change: Fn) -> None:
    raw = envoy.input
    new = change(raw)
    if new is not raw:
        envoy.input = new


def _logits(envoy: Any, fn: Fn) -> None:
    out = envoy.output
    new = fn(out.logits)
    if new is not out.logits:
        out.logits = new
        envoy.output = out


def _router(source: Any, fn: Fn, shape: tuple[int, int]) -> None:
    """The router's own output[0] is read by nobody; the linear map's result decides."""
    linear = source.F_linear_0
    logits = linear.output.unflatten(0, shape)
    new = fn(logits)
    if new is not logits:
        linear.output = new.flatten(0, 1)


def _experts(experts: nn.Module, envoy: Any, fn: Fn, shape: tuple[int, int]) -> None:
    """The experts are fused: compute the ones that are hit here, and skip the module's own forward."""
    args, kwargs = envoy.inputs
    envoy.skip(expert_tap.computed(experts, fn, shape, *args, **kwargs))


def _attention(source: Any, fns: dict[str, Fn], eager: bool) -> None:
    """Keys and values are arguments of the attention function, scores and pattern the softmax in it."""
    call = [op for op in source if op.name.startswith("attention_interface_")][-1]
    (module, query, key, value, mask), options = call.inputs
    new = [fns[part](h) if part in fns else h for part, h in (("k_cache", key), ("v_cache", value))]
    if eager:
        mask = attention_tap.additive(mask, query, new[0])
    call.inputs = (module, query, *new, mask), options
    if not eager:
        return
    softmax = _softmax(call)
    if "attn_scores" in fns:
        _input(softmax, fns["attn_scores"])
    if "pattern" in fns:
        _output(softmax, fns["pattern"])


def _softmax(call: Any) -> Any:
    names = [op.name for op in call.source]
    for name in names:
        if "softmax" in name:
            return getattr(call.source, name)
    raise WorkbenchError(
        "backend nnsight",
        "finds no softmax in the attention function, which another library may have replaced",
        expected="the model's own eager_attention_forward",
        got=f"operations {names}",
        do="read attention scores and pattern with backend='transformers'",
    )


def _after(first: Fn | None, second: Fn) -> Fn:
    return second if first is None else lambda h: second(first(h))


@torch.no_grad()
def _measured_order(hf: nn.Module) -> dict[tuple[int, str], int]:
    """When each module's input and output are reached, seen in one forward of one token."""
    order: dict[tuple[int, str], int] = {}
    handles = []

    for module in hf.modules():
        handles.append(module.register_forward_pre_hook(partial(_note, order, "in")))
        handles.append(module.register_forward_hook(partial(_note, order, "out")))
    try:
        ids = torch.ones(1, 1, dtype=torch.long, device=hf.get_input_embeddings().weight.device)
        hf(input_ids=ids, attention_mask=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _note(order: dict[tuple[int, str], int], side: str, module: nn.Module, *_: Any) -> None:
    order.setdefault((id(module), side), len(order))
