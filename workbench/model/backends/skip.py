"""Running only the upper blocks of a model, from what a lower block gave before. Two ways:

`skipped`  stand-ins take the lower blocks' places and the model's own forward does the rest. It needs
           nothing but the block list, for any batch.
`Upper`    the upper blocks are called one after the other with the arguments they had in an earlier
           forward of the same batch, and the model's own head on top. It spares the masks, the rotary
           positions and the layers of wrappers of a forward: a sixth of a small model's time. It is
           tried against the first way once, to the bit, and not used where it differs.

Blocks themselves are untouched by both: their hooks do not fire twice and nothing is left on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.model.backends.hooks import Transformers
from workbench.sites import Site

Fn = Callable[[Tensor], Tensor]


class StandIn(nn.Module):
    """Stands where a module stood and returns `output`; any other attribute is that module's."""

    def __init__(self, module: nn.Module, output: Any):
        super().__init__()
        # set past nn.Module, or the module would become this one's child
        object.__setattr__(self, "replaced", module)
        self.gives(output)

    def gives(self, output: Any) -> None:
        """Return this from now on."""
        object.__setattr__(self, "_output", output)

    def forward(self, *_args: Any, **_options: Any) -> Any:
        """The kept output, whatever comes in."""
        return self._output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.replaced, name)


@contextmanager
def skipped(blocks: nn.Module, count: int, output: Tensor | None) -> Iterator[None]:
    """While open, the first `count` blocks do not run and the last of them gives `output`."""
    kept = dict(list(blocks._modules.items())[:count]) if output is not None else {}
    try:
        for name, block in kept.items():
            blocks._modules[name] = StandIn(block, output)
        yield
    finally:
        blocks._modules.update(kept)


class Upper:
    """The blocks above a kept output, and the head, called directly; see the module's docstring.

    `entered` is what entered the first block in the forward that was listened to.
    """

    def __init__(self, backend: Transformers):
        self.backend = backend
        self._calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._result: type | None = None
        # the base model holds blocks and norm; its name is the first of both paths
        self._base = backend.layout.blocks.partition(".")[0]
        self._exact: bool | None = None
        self._stand_in: StandIn | None = None
        self.entered: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Remember what blocks are called with in the forward inside."""
        handles = [
            block.register_forward_pre_hook(self._remember(layer), with_kwargs=True)
            for layer, block in enumerate(self.backend.blocks)
        ]
        base = self.backend.hf.get_submodule(self._base)
        handles.append(base.register_forward_hook(self._remember_result))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(
        self,
        ids: Tensor,
        h: Tensor,
        count: int,
        keep: int,
        before: Mapping[int, Fn] | None = None,
        after: Mapping[int, Fn] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits from `h`, what enters block `count` before edits between the blocks.

        Args:
            ids: the batch, as in the forward that was listened to.
            keep: as in `Backend.forward`.
            before, after: what to do to the stream before or after a block: such taps need no hook.

        Returns:
            The logits, and what each block gave before `after`.
        """
        before, after, outputs = before or {}, after or {}, []
        self.backend.entering(ids)
        h = after[count - 1](h) if count - 1 in after else h
        for layer, block in enumerate(self.backend.blocks):
            if layer < count:
                continue
            args, options = self._calls[layer]
            h = block(before[layer](h) if layer in before else h, *args, **options)
            outputs.append(h)
            h = after[layer](h) if layer in after else h
        return self._head(ids, h, keep), outputs

    def _head(self, ids: Tensor, h: Tensor, keep: int) -> Tensor:
        hf, result = self.backend.hf, self._result
        norm, _ = self.backend.place(Site(None, "final_norm"))
        base = hf._modules[self._base]
        assert result is not None and base is not None
        if self._stand_in is None or self._stand_in.replaced is not base:
            self._stand_in = StandIn(base, None)
        self._stand_in.gives(result(last_hidden_state=norm(h)))
        hf._modules[self._base] = self._stand_in
        try:
            return hf(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        finally:
            hf._modules[self._base] = base
            self._stand_in.gives(None)

    def exact(self, ids: Tensor, h: Tensor, forward: Callable[[], Tensor]) -> bool:
        """Whether the last block and the head give the bits of the model's own `forward`.

        `h` is what the last block but one gave for `ids`. Tried once; no taps may be attached.
        """
        if self._exact is None:
            count = len(self.backend.blocks) - 1
            with skipped(self.backend.blocks, count, h):
                logits = forward()
            try:
                self._exact = torch.equal(logits, self.run(ids, h, count, 1)[0])
            except (TypeError, AttributeError, KeyError, RuntimeError):
                self._exact = False
        return bool(self._exact)

    def _remember(self, layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            # the residual stream comes first or by name; a block takes it first either way
            rest = {k: v for k, v in options.items() if k != "hidden_states"}
            self._calls[layer] = args[1:], rest
            if layer == 0:
                self.entered = args[0] if args else options["hidden_states"]

        return hook

    def _remember_result(self, _module: nn.Module, _args: Any, out: Any) -> None:
        self._result = type(out)
