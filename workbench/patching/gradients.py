"""Gradients of a number per case with respect to what a run holds at sites.

    values[s] = h_s            grads[s] = d(sum over cases of loss) / d h_s

A tapped value is put back as a tensor of its own that asks for gradients, so no parameter has to, and
sites that are views of a wider tensor (heads, one of three joined projections) lie on the path. A row of
a batch does not see the others, so the gradient of the sum is each case's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from tqdm.auto import tqdm

from workbench import sites as site_names
from workbench.errors import WorkbenchError
from workbench.model.backends.base import Tap
from workbench.model.backends.turn import turn
from workbench.model.model import Model, free_bytes
from workbench.model.run import padding
from workbench.shapes import Tensor
from workbench.sites import Site
from workbench.tensors import Tokens

Loss = Callable[..., Tensor]
Taken = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]

CPU_TOKENS = 384
"""Tokens of a forward on a CPU, where larger ones fall out of its caches."""
KEPT_PER_TOKEN = 40
"""What a block keeps per token for the way back, in multiples of its width."""


class Gradients:
    """Called with a batch, sites and a loss: values, gradients and losses of every case.

    Args:
        model: parameters may ask for gradients or not; what they hold as `.grad` stays as it was.
        progress: show a bar where the cases need more than one forward.
    """

    def __init__(self, model: Model, progress: bool = True):
        self.model, self.progress = model, progress

    def __call__(
        self,
        tokens: Tokens,
        sites: str | Site | Iterable[str | Site],
        loss: Loss,
        inputs: Tensor | None = None,
        *,
        put: Mapping[str, Tensor] | None = None,
        keep: int = 1,
    ) -> Taken:
        """One forward and one backward; more of both where the cases do not fit into one.

        Args:
            tokens: the batch, a row per case.
            sites: whole sites (no selectors); `L*.z` names one per block.
            loss: logits of the last position `[case, vocab]` to `[case]`, where a case's number
                depends on its own row alone: of cases that run in another forward it sees zeros.
                With another `keep` than 1 it is called as `loss(logits, rows)`.
            inputs: embeddings `[case, pos, d]` that the run takes in place of its own.
            put: values `[case, *the site's axes]` that the run takes at other sites.
            keep: how many last positions `loss` gets, 0 for all of them. With another number than
                1 they come as `[case, pos, vocab]`, of those cases that run together: a slice.

        Returns:
            Values and gradients by site text `[case, *the site's axes]`, and losses `[case]`.

        Raises:
            SiteUnavailable: the model or its backend cannot write at a site.
            WorkbenchError: a selector, values of another shape, a loss that is not one per case, or a
                loss or gradient that is no finite number.
        """
        given = dict(put or {}) | ({} if inputs is None else {"embed": inputs})
        places = self._places(sites)
        for site in {*places, *self._places(given)}:
            self.model.backend.check(site, write=True)
        chunks = self._chunks(tokens, keep)
        parts: list[Taken] = []
        with turn(self.model.backend), torch.inference_mode(False), torch.enable_grad():
            bar = tqdm(chunks, desc="gradient", disable=not self.progress or len(chunks) == 1)
            for rows in bar:
                own = {text: value[rows] for text, value in given.items()}
                read = (
                    for_rows(loss, rows, len(tokens)) if keep == 1 else partial(_called, loss, rows)
                )
                parts.append(self._one(some(tokens, rows), places, read, own, keep))
        names = [str(site) for site in places]
        values = {name: torch.cat([v[name] for v, _, _ in parts]) for name in names}
        grads = {name: torch.cat([g[name] for _, g, _ in parts]) for name in names}
        return values, grads, torch.cat([losses for _, _, losses in parts])

    def _one(
        self,
        tokens: Tokens,
        places: list[Site],
        loss: Loss,
        given: Mapping[str, Tensor],
        keep: int,
    ) -> Taken:
        found: dict[str, Tensor] = {}
        with self.model.backend.attach(self._taps(places, given, found)):
            logits = self.model.backend.forward(
                tokens.ids.clone(), **padding(tokens), cache=None, use_cache=False, keep=keep
            ).logits
        losses = loss(logits[:, -1] if keep == 1 else logits)
        if losses.shape != (len(tokens),):
            raise _not_per_case(len(tokens), losses)
        got: dict[str, Tensor | None] = {}
        if found and losses.requires_grad:
            taken = torch.autograd.grad(losses.sum(), list(found.values()), allow_unused=True)
            got = dict(zip(found, taken, strict=True))
        grads = {n: _or_zeros(got.get(n), found[n]) for n in found}
        _finite({"the loss": losses} | grads)
        return {n: v.detach() for n, v in found.items()}, grads, losses.detach()

    def _taps(
        self, places: list[Site], given: Mapping[str, Tensor], found: dict[str, Tensor]
    ) -> list[Tap]:
        put = {self._places(text)[0]: value for text, value in given.items()}
        every = sorted({*places, *put}, key=lambda site: site.depth)
        kept = [found if site in places else None for site in every]
        fns = [
            partial(_tapped, site, put.get(site), k) for site, k in zip(every, kept, strict=True)
        ]
        return [Tap(site, fn) for site, fn in zip(every, fns, strict=True)]

    def _places(self, texts: str | Site | Iterable[str | Site]) -> list[Site]:
        one = [texts] if isinstance(texts, str | Site) else texts
        found = site_names.parse_all(list(one), self.model.n_layers)
        for site in found:
            if site.selectors:
                raise WorkbenchError(
                    f"gradient at {str(site)!r}",
                    "has selectors",
                    expected="a whole site, such as L3.z",
                    got=str(site),
                    do="take the part you need out of the gradient",
                )
        return found

    def _chunks(self, tokens: Tokens, keep: int) -> list[slice]:
        width = tokens.ids.shape[1]
        size = max(1, CPU_TOKENS // width)
        if self.model.device.type != "cpu":
            d, item = self.model.dims, torch.finfo(self.model.dtype).bits // 8
            block = KEPT_PER_TOKEN * d.d_model + 2 * d.n_heads * width
            # logits, the same in float32, and their gradient
            row = width * item * d.n_layers * block + 12 * (keep or width) * d.n_vocab
            size = max(1, min(4096, int(free_bytes(self.model.device) / 4 // row)))
        return [slice(i, min(i + size, len(tokens))) for i in range(0, len(tokens), size)]


def some(tokens: Tokens, rows: slice) -> Tokens:
    """Some rows of a batch, in its own columns."""
    return Tokens(
        tokens.ids[rows], tokens.mask[rows], tokens.prompts[rows], tokens.prompt_lengths[rows]
    )


def for_rows(loss: Loss, rows: slice, n: int) -> Loss:
    """A loss of `n` cases as one of these rows alone; the other cases' logits are zeros."""
    return loss if rows.stop - rows.start == n else partial(_of_rows, loss, rows, n)


def _called(loss: Loss, rows: slice, logits: Tensor) -> Tensor:
    return loss(logits, rows)


def _of_rows(loss: Loss, rows: slice, n: int, logits: Tensor) -> Tensor:
    before = logits.new_zeros(rows.start, *logits.shape[1:])
    after = logits.new_zeros(n - rows.stop, *logits.shape[1:])
    return loss(torch.cat([before, logits, after]))[rows]


def _tapped(site: Site, put: Tensor | None, found: dict[str, Tensor] | None, h: Tensor) -> Tensor:
    """What a site goes on with: `put` where it is given, and kept in `found` as a tensor of its own."""
    text = str(site)
    if put is not None:
        if put.shape != h.shape:
            raise _misfit(text, h, put)
        h = put.detach().clone().to(h.device, h.dtype)
    if found is None:
        return h
    found[text] = (h + 0).requires_grad_()
    # OLMoE clamps its projections in place after the tap, which a leaf refuses
    return found[text].clone() if site.part in ("q", "k", "v") else found[text]


def _or_zeros(grad: Tensor | None, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if grad is None else grad.detach()


def _finite(values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise WorkbenchError(
                "gradient",
                f"{name} is NaN or infinite",
                expected="finite numbers, so that no case is lost from the means",
                got=f"{int((~value.isfinite()).sum())} of {value.numel()} numbers",
                do="load the model in bfloat16 or float32, and look at its logits",
            )


def _misfit(site: str, h: Tensor, put: Tensor) -> WorkbenchError:
    return WorkbenchError(
        f"gradient with values put at {site!r}",
        "the values have another shape than the site",
        expected=tuple(h.shape),
        got=tuple(put.shape),
        do="record them on a batch of the same columns",
    )


def _not_per_case(n: int, losses: Tensor) -> WorkbenchError:
    return WorkbenchError(
        "gradient",
        "the loss is not one number per case",
        expected=f"[{n}]",
        got=tuple(losses.shape),
        do="return a number per row of the logits",
    )
