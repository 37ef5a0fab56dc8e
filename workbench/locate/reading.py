"""What lenses share: the streams they read, what they say of a layer's prediction, and where it goes.

A target is the answer of a case where there is one, else the model's own first choice at that place.
KL is KL(the model's own distribution || the layer's); rank 1 means that the layer's first choice is
the target.

Shapes: streams `[layer, row, d]`, statistics `[row, layer]`; a row is a case, or a case and position.
Units: logits, nats, and the rank as a count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import unknown
from workbench.linalg import kl_divergence
from workbench.locate.base import Axis, Cases, layer_axis, pos_axis
from workbench.shapes import Float, Int, Mask, Tensor
from workbench.tensors import Tokens

UNITS = {
    "logit_difference": "logits",
    "logit": "logits",
    "probability": "fraction",
    "rank": "rank",
    "kl": "nats",
    "entropy": "nats",
}


@dataclass(frozen=True)
class Streams:
    """The residual stream behind every block at the places that are read.

    Attributes:
        rows: `[layer, row, d]`.
        mask: `[case, pos]`, which places the rows are, in order; None for the last of each case.
        answer, foil: `[row]`, or None.
    """

    rows: Float[Tensor, "layer row d"]
    mask: Mask | None
    answer: Int[Tensor, " row"] | None
    foil: Int[Tensor, " row"] | None

    def placed(self, values: Float[Tensor, "row layer"]) -> Tensor:
        """`[case, layer]`, or `[case, layer, pos]` with NaN on padding."""
        if self.mask is None:
            return values.cpu()
        found = values.new_full((*self.mask.shape, values.shape[-1]), float("nan"))
        found[self.mask] = values
        return found.mT.cpu()


def read_streams(cases: Cases, run: Callable[..., Any], positions: str) -> Streams:
    """The clean prompts' streams at their last position or at all of them.

    Raises:
        UnknownName: no such choice of positions.
    """
    if positions not in ("last", "all"):
        raise unknown("lens(positions=)", "choice", positions, ("last", "all"))
    ids = cases.answer, (cases.foil if cases.answer is not None else None)
    if positions == "last":
        part = "resid_post[pos=-1]"
        return Streams(run(cases.clean, record=[f"L*.{part}"]).stack(part), None, *ids)
    rows = rows_of(cases.clean, run)
    mask = cases.clean.mask
    case = mask.nonzero()[:, 0]
    return Streams(rows, mask, *(None if i is None else i.to(case.device)[case] for i in ids))


def rows_of(prompts: Any, run: Callable[..., Any]) -> Float[Tensor, "layer row d"]:
    """Every block's output at every position that is no padding."""
    trace = run(prompts, record=["L*.resid_post"])
    return torch.stack([trace[key][trace.tokens.mask] for key in trace.values])


def lens_axes(cases: Cases, n_layers: int, positions: str, decode: Any) -> tuple[Axis, ...]:
    """Layers, and positions where they are read."""
    found = (layer_axis(n_layers),)
    return found if positions == "last" else (*found, pos_axis(cases, decode))


@torch.no_grad()
def statistics(
    read: Streams,
    head: Any,
    lenses: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> dict[str, Float[Tensor, "row layer"]]:
    """What every layer says of the target, a few rows at a time; the model's own comes from the last.

    Args:
        lenses: per layer, what its rows go through before the head; None for nothing.
    """
    parts = []
    for rows in head.chunks(read.rows.shape[1]):
        own = head.unembed(read.rows[-1, rows]).float()
        plus = own.argmax(-1) if read.answer is None else read.answer[rows].to(own.device)
        minus = None if read.foil is None else read.foil[rows].to(own.device)
        layers = []
        for layer, values in enumerate(read.rows[:, rows]):
            seen = values if lenses is None else lenses[layer](values)
            layers.append(_said(head.unembed(seen).float(), own.log_softmax(-1), plus, minus))
        parts.append({name: torch.stack([s[name] for s in layers], -1) for name in layers[0]})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def divergence_from(
    read: Streams, head: Any, logp: Float[Tensor, " vocab"]
) -> Float[Tensor, "row layer"]:
    """KL of one prediction for all places from the model's own, the same at every layer."""
    parts = []
    for rows in head.chunks(read.rows.shape[1]):
        own = head.unembed(read.rows[-1, rows]).float().log_softmax(-1)
        parts.append(kl_divergence(own, logp.to(own.device)))
    return torch.cat(parts)[:, None].expand(-1, len(read.rows))


@torch.no_grad()
def mean_prediction(final: Float[Tensor, "row d"], head: Any) -> Float[Tensor, " vocab"]:
    """Log of the mean of the model's own distributions: the best prediction that reads nothing."""
    parts = [
        head.unembed(final[rows]).float().softmax(-1).sum(0) for rows in head.chunks(len(final))
    ]
    return (sum(parts[1:], parts[0]) / len(final)).log()


def _said(z: Tensor, own: Tensor, plus: Tensor, minus: Tensor | None) -> dict[str, Tensor]:
    """One layer, logits `[row, vocab]` beside the model's own log-probabilities."""
    target = z.gather(-1, plus[:, None])
    first, value = "logit", target[:, 0]
    if minus is not None:
        first, value = "logit_difference", value - z.gather(-1, minus[:, None])[:, 0]
    logp = z.log_softmax(-1)
    return {
        first: value,
        "probability": logp.gather(-1, plus[:, None])[:, 0].exp(),
        "rank": (z > target).sum(-1).float() + 1,
        "kl": kl_divergence(own, logp),
        "entropy": torch.special.entr(logp.exp()).sum(-1),
    }


def target_of(cases: Cases) -> str:
    """What the target is, in words."""
    if cases.answer is None:
        return "the model's own first choice"
    return "the answer" if cases.foil is None else "the answer against the foil"


def some_rows(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """Some rows of a batch, as wide as it was."""
    chosen = torch.tensor(list(rows), device=tokens.ids.device)
    of = lambda many: tuple(many[i] for i in rows)  # noqa: E731
    return Tokens(
        tokens.ids[chosen], tokens.mask[chosen], of(tokens.prompts), of(tokens.prompt_lengths)
    )
