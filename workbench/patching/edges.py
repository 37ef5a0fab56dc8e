"""Edges between components: scores of all of them from gradients, and runs that keep only some.

A pre-norm block only adds to the residual stream, so what a component reads is a sum of what the ones
below it wrote:

    input(receiver) = sum over senders s below of  w_s            senders: embed, heads, MLPs
    with a set of edges kept:  input(r) = sum of w_s,  w_s from the corrupted run where s -> r is cut
                                        = stream + sum over cut s of (w_s(corrupted) - w_s(now))
    score(s -> r) = sum over positions of (w_s(source) - w_s(base)) . d metric / d input(r)

Receivers are the queries of each head, the keys and values of each key-value head, each MLP, and the
logits. Each has its own input: it goes through that receiver's norm (and projection) alone, here
and not in the model's own modules, whose hooks stay silent. The embedding is what enters block 0.

Sources: Syed, Rager and Conmy (2023), https://arxiv.org/abs/2310.10348; Hanna, Pezzelle and Belinkov
(2024), https://arxiv.org/abs/2403.17806; both score edges so. Cut edges carry corrupted writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError
from workbench.model.backends.base import Tap
from workbench.model.backends.turn import turn
from workbench.model.model import Model, free_bytes
from workbench.model.run import gradients_off, padding, usable
from workbench.patching.gradients import CPU_TOKENS, Gradients, Loss, for_rows, some
from workbench.shapes import Bool, Float, Int, Tensor
from workbench.sites import Site
from workbench.tensors import Tokens

INPUTS = {"q": "resid_pre", "k": "resid_pre", "v": "resid_pre", "mlp_norm_out": "resid_mid"}
"""Part where a receiver's value is put, and where its input is read."""
NORMS = {"q": "attn_norm_out", "k": "attn_norm_out", "v": "attn_norm_out"}
POST_NORMS = ("gemma",)
"""Layouts whose halves end in a norm: what attention adds is not a sum over heads there."""


class Edges:
    """The edges of a model with serial pre-norm blocks.

    Args:
        model: attention and MLP of a block one after the other, each behind a norm of its own.
        progress: show bars with the time left.

    Raises:
        WorkbenchError: the model's blocks are not so.
    """

    def __init__(self, model: Model, progress: bool = True):
        self.model, self.progress, self.dims = model, progress, model.dims
        _check(model)
        backend = model.backend
        for site in (Site(0, "z"), Site(0, "mlp_out"), Site(0, "resid_mid")):
            backend.check(site, write=False)
        for site in (*(Site(0, part) for part in INPUTS), Site(None, "final_norm")):
            backend.check(site, write=True)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """What writes to the stream, in the order of a forward pass."""
        names = ["embed"]
        for layer in range(self.dims.n_layers):
            names += [f"L{layer}.h{head}" for head in range(self.dims.n_heads)] + [f"L{layer}.mlp"]
        return tuple(names)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """What reads the stream, in the order of a forward pass; `kv` counts key-value heads."""
        names = []
        for layer in range(self.dims.n_layers):
            for part in "qkv":
                names += [f"L{layer}.{self._head(part)}{i}.{part}" for i in range(self._n(part))]
            names.append(f"L{layer}.mlp")
        return (*names, "logits")

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Index of sender and receiver of every edge."""
        return tuple(
            (s, r) for r in range(len(self.receivers)) for s in range(self._senders_below(r))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """`"L0.h1 -> L2.h3.q"` of every edge, in the order of `pairs`."""
        return tuple(f"{self.senders[s]} -> {self.receivers[r]}" for s, r in self.pairs)

    def scores(
        self, base: Tokens, source: Tokens, loss: Loss, steps: int = 0
    ) -> Float[Tensor, "case edge"]:
        """First-order effect on `loss` of every edge, were it to carry the source run's write.

        Args:
            base: the batch at which gradients are taken.
            source: the batch whose writes go in, in the same columns.
            loss: logits of the last position `[case, vocab]` to `[case]`.
            steps: 0 for gradients of the base run; else their mean over this many midpoints of the
                way of the embeddings from base to source.
        """
        _check_columns(base, source)
        chunks = self._chunks(base)
        bar = tqdm(chunks, desc="edges", disable=not self.progress or len(chunks) == 1)
        found = []
        for rows in bar:
            read = for_rows(loss, rows, len(base))
            found.append(self._scored(some(base, rows), some(source, rows), read, steps))
        return torch.cat(found)

    def kept(
        self,
        clean: Tokens,
        corrupted: Tokens,
        keep: Bool[Tensor, "circuit edge"],
        read: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "circuit case"]:
        """What `read` makes of the clean run's last logits while all other edges are cut.

        Args:
            keep: which edges carry what the run writes; the others carry the corrupted run's writes.
            read: logits `[case, vocab]` to `[case]`.
        """
        _check_columns(clean, corrupted)
        if keep.shape[1:] != (len(self.pairs),):
            raise WorkbenchError(
                "Edges.kept",
                "the circuits are not over this model's edges",
                expected=f"[circuit, {len(self.pairs)}]",
                got=tuple(keep.shape),
                do="make a column per edge, in the order of Edges.names",
            )
        chunks, many = self._chunks(clean), self._rows(clean)
        cuts = torch.stack([self._cut(circuit) for circuit in keep])
        total = len(chunks) * len(keep)
        found = []
        with tqdm(total=total, desc="circuits", disable=not self.progress) as bar:
            for rows in chunks:
                one, own = some(clean, rows), for_rows(read, rows, len(clean))
                writes, out = self._writes(some(corrupted, rows)), []
                for some_cuts in cuts.split(max(1, many // len(one))):
                    out += [own(logits) for logits in self._run(one, writes, some_cuts)]
                    bar.update(len(some_cuts))
                found.append(torch.stack(out))
        return torch.cat(found, 1)

    # --- scores ---------------------------------------------------------------------------------

    def _scored(self, base: Tokens, source: Tokens, loss: Loss, steps: int) -> Tensor:
        difference = self._writes(source) - self._writes(base)
        sites = self._receiving()
        take = Gradients(self.model, progress=False)
        if steps == 0:
            values, grads, _ = take(base, sites, loss)
            slopes = self._slopes(values, grads)
        else:
            ends = [self._recorded(t, [Site(None, "embed")])["embed"] for t in (base, source)]
            slopes = torch.zeros(())
            for step in range(steps):
                between = torch.lerp(*ends, (step + 0.5) / steps)
                values, grads, _ = take(base, sites, loss, inputs=between)
                slopes = slopes + self._slopes(values, grads) / steps
        products = torch.einsum("scpd,rcpd->csr", difference, slopes.to(difference))
        senders, receivers = self._ends.to(products.device)
        return products[:, senders, receivers]

    def _receiving(self) -> list[str]:
        inside = ("resid_pre", "resid_mid", *INPUTS)
        last = self.dims.n_layers - 1
        return [*(f"L*.{part}" for part in inside), f"L{last}.resid_post", "final_norm"]

    def _slopes(self, values: Any, grads: Any) -> Float[Tensor, "receiver case pos d"]:
        """Gradients at receivers' values, taken back through their norms to their inputs."""
        found = []
        for layer in range(self.dims.n_layers):
            for part, entry in INPUTS.items():
                x = values[f"L{layer}.{entry}"]
                copies = self._n(part)
                slope = grads[f"L{layer}.{part}"]
                found.append(self._back(layer, part, x.expand(copies, *x.shape), slope))
        x = values[f"L{self.dims.n_layers - 1}.resid_post"]
        found.append(self._back(None, "final_norm", x[None], grads["final_norm"]))
        return torch.cat(found).float()

    def _back(self, layer: int | None, part: str, x: Tensor, slope: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            value = self._value(layer, part, x)
            (found,) = torch.autograd.grad(value, x, slope)
        return found

    # --- one run with some edges cut ------------------------------------------------------------

    def _run(
        self,
        tokens: Tokens,
        corrupted: Float[Tensor, "sender case pos d"],
        cuts: Float[Tensor, "circuit receiver sender"],
    ) -> Float[Tensor, "circuit case vocab"]:
        """Logits of the last position while circuits' edges are cut (1) or kept (0)."""
        running, backend, copies = _Running(self, corrupted, cuts), self.model.backend, len(cuts)
        pads = {k: None if v is None else v.repeat(copies, 1) for k, v in padding(tokens).items()}
        with turn(backend), backend.attach(running.taps()), gradients_off(self.model):
            logits = backend.forward(
                tokens.ids.repeat(copies, 1), **pads, cache=None, use_cache=False, keep=1
            ).logits[:, -1]
        return usable(logits).unflatten(0, (copies, -1))

    def _writes(self, tokens: Tokens) -> Float[Tensor, "sender case pos d"]:
        n = range(self.dims.n_layers)
        sites = [Site(0, "resid_pre")]
        sites += [Site(layer, part) for layer in n for part in ("z", "mlp_out")]
        values = self._recorded(tokens, sites)
        parts = [values["L0.resid_pre"][None]]
        for layer in n:
            parts += [self._of_heads(layer, values[f"L{layer}.z"])]
            parts += [values[f"L{layer}.mlp_out"][None]]
        return torch.cat([part.float() for part in parts])

    def _recorded(self, tokens: Tokens, sites: list[Site]) -> dict[str, Tensor]:
        return dict(self.model.run(tokens, record=sites, logits="last").values)

    def _of_heads(self, layer: int, z: Tensor) -> Float[Tensor, "head case pos d"]:
        """What each head adds, without the projection's bias, which no run changes."""
        return torch.einsum("cphe,hed->hcpd", z.float(), self._projection(layer).to(z.device))

    def _projection(self, layer: int) -> Float[Tensor, "head d_head d"]:
        """The output projection's answer to each unit vector, whichever kind of module it is."""
        if layer not in self._projections:
            module, n = self._module(layer, "z"), self.dims.n_heads
            # a quantised weight has no dtype to compute in
            own: Any = {"dtype": self.model.dtype, "device": next(module.parameters()).device}
            with torch.inference_mode(False), torch.no_grad():
                eye = torch.eye(n * self.dims.d_head, **own)
                made = _plainly(module, eye) - _plainly(module, torch.zeros_like(eye[:1]))
            self._projections[layer] = made.float().unflatten(0, (n, -1))
        return self._projections[layer]

    @cached_property
    def _projections(self) -> dict[int, Tensor]:
        return {}

    def _value(self, layer: int | None, part: str, x: Tensor) -> Tensor:
        """A receiver's value from inputs `[copy, case, pos, d]`, a copy per head."""
        like = next(self._module(layer, NORMS.get(part, part)).parameters(), x)
        entered = _plainly(self._module(layer, NORMS.get(part, part)), x.to(like.dtype))
        if part not in NORMS:
            return entered[0]
        view = self.model.layout.inside[part].view
        # a head's copy counts for that head alone
        every = view.read(_plainly(self._module(layer, part), entered), self.dims)
        return torch.stack([every[i, :, :, i] for i in range(every.shape[0])], 2)

    def _module(self, layer: int | None, part: str) -> nn.Module:
        layout, hf = self.model.layout, self.model.hf
        if layer is None:
            return hf.get_submodule(layout.outside[part].module)
        blocks: Any = hf.get_submodule(layout.blocks)
        return blocks[layer].get_submodule(layout.inside[part].module)

    def _cut(self, keep: Tensor) -> Float[Tensor, "receiver sender"]:
        cut = torch.zeros(len(self.receivers), len(self.senders))
        senders, receivers = self._ends
        cut[receivers, senders] = (~keep).float().cpu()
        return cut.to(self.model.device)

    @cached_property
    def _ends(self) -> Int[Tensor, "2 edge"]:
        """`pairs` as indices."""
        return torch.tensor(self.pairs).T

    def _n(self, part: str) -> int:
        """Receivers of a part in one block."""
        return {"q": self.dims.n_heads, "mlp_norm_out": 1}.get(part, self.dims.n_kv_heads)

    def _head(self, part: str) -> str:
        return "h" if part == "q" or self.dims.n_kv_heads == self.dims.n_heads else "kv"

    def _senders_below(self, receiver: int) -> int:
        """How many of the senders stand below a receiver."""
        layer, place = divmod(receiver, self._per_block)
        below = 1 + layer * (self.dims.n_heads + 1)
        is_mlp = place == self._per_block - 1 and layer < self.dims.n_layers
        return below + (self.dims.n_heads if is_mlp else 0)

    @property
    def _per_block(self) -> int:
        return self.dims.n_heads + 2 * self.dims.n_kv_heads + 1

    def _first(self, layer: int, part: str) -> int:
        """Index of the first receiver of a part in a block."""
        q, kv = self.dims.n_heads, self.dims.n_kv_heads
        before = {"q": 0, "k": q, "v": q + kv, "mlp_norm_out": q + 2 * kv}
        return layer * self._per_block + before[part]

    def _chunks(self, tokens: Tokens) -> list[slice]:
        size = self._rows(tokens)
        return [slice(i, min(i + size, len(tokens))) for i in range(0, len(tokens), size)]

    def _rows(self, tokens: Tokens) -> int:
        """Rows of one forward."""
        width = tokens.ids.shape[1]
        if self.model.device.type == "cpu":
            return max(1, CPU_TOKENS // width)
        held = 4 * len(self.senders) + 3 * len(self.receivers)
        row = width * 4 * self.dims.d_model * held + 8 * self.dims.n_vocab
        return max(1, min(4096, int(free_bytes(self.model.device) / 4 // row)))


class _Running:
    """One forward in which every receiver's input is made anew from its edges, circuit by circuit.

    The rows of the forward are circuits x cases, case fastest.
    """

    def __init__(self, edges: Edges, corrupted: Tensor, cuts: Tensor):
        self.edges, self.corrupted, self.cuts = edges, corrupted[:, None], cuts
        # corrupted minus current, of the senders that have written so far
        self.differences = corrupted.new_empty(len(corrupted), len(cuts), *corrupted.shape[1:])
        self.count = 0
        self.stream: Tensor | None = None

    def taps(self) -> list[Tap]:
        """All of them, in the order of a forward pass."""
        n = self.edges.dims.n_layers
        taps = []
        for layer in range(n):
            entered, heads = partial(self._entered, layer), partial(self._heads, layer)
            taps += [
                Tap(Site(layer, "resid_pre"), entered, writes=False),
                *(Tap(Site(layer, p), partial(self._given, layer, p)) for p in "qkv"),
                Tap(Site(layer, "z"), heads, writes=False),
                Tap(Site(layer, "resid_mid"), self._seen, writes=False),
                Tap(Site(layer, "mlp_norm_out"), partial(self._given, layer, "mlp_norm_out")),
                Tap(Site(layer, "mlp_out"), self._mlp, writes=False),
            ]
        taps.append(Tap(Site(n - 1, "resid_post"), self._seen, writes=False))
        return [*taps, Tap(Site(None, "final_norm"), partial(self._given, None, "final_norm"))]

    def _entered(self, layer: int, h: Tensor) -> Tensor:
        if layer == 0:
            self.count = 0
            self._wrote(h[None])
        return self._seen(h)

    def _seen(self, h: Tensor) -> Tensor:
        self.stream = h
        return h

    def _heads(self, layer: int, z: Tensor) -> Tensor:
        self._wrote(self.edges._of_heads(layer, z))
        return z

    def _mlp(self, h: Tensor) -> Tensor:
        self._wrote(h[None])
        return h

    def _wrote(self, writes: Tensor) -> None:
        which = slice(self.count, self.count + len(writes))
        now = writes.to(self.corrupted).unflatten(1, (len(self.cuts), -1))
        self.differences[which] = self.corrupted[which] - now
        self.count += len(writes)

    def _given(self, layer: int | None, part: str, h: Tensor) -> Tensor:
        """What a part's receivers make of their own inputs, in place of the stream."""
        assert self.stream is not None
        which = slice(-1, None)
        if layer is not None:
            first = self.edges._first(layer, part)
            which = slice(first, first + self.edges._n(part))
        cut = self.cuts[:, which, : self.count]
        if not bool(cut.any()):
            return h
        change = torch.einsum("crs,scnpd->rcnpd", cut, self.differences[: self.count])
        x = (self.stream + change.flatten(1, 2)).to(self.stream)  # half precision is rounded once
        return self.edges._value(layer, part, x).to(h)


def _plainly(module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of `x`, past its hooks and whatever wraps its forward."""
    return type(module).forward(module, x)


def _check(model: Model) -> None:
    config, name = model.hf.config, model.layout.name
    wrong = ""
    if name in POST_NORMS:
        wrong = "has a norm after attention, so that its heads do not add up"
    elif model.layout.parallel(config):
        wrong = "has attention and MLP side by side, reading the same stream"
    elif model.dims.n_experts:
        wrong = "has experts, among which an edge would choose anew"
    if wrong:
        raise WorkbenchError(
            f"edges of {model.name}",
            wrong,
            expected="serial blocks with one norm before each half, such as GPT-2's or Llama's",
            got=config.model_type,
            do="use attribution_patching or path_patching there",
        )


def _check_columns(one: Tokens, other: Tokens) -> None:
    same = one.mask.shape == other.mask.shape and torch.equal(one.mask, other.mask)
    if not same:
        raise WorkbenchError(
            "edges",
            "clean and corrupted prompts have different lengths",
            expected="pairs of equally long prompts, since an edge carries a write per position",
            got=(one.lengths, other.lengths),
            do="make each pair equally long",
        )


__all__: Sequence[str] = ["Edges"]
