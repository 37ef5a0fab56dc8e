"""What the files on attention heads share: patterns a few cases at a time, matches, silenced heads, spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import index
from typing import Any

import torch

from workbench.errors import PromptError, WorkbenchError
from workbench.locate.base import Scores, head_axis, layer_axis
from workbench.records import Prompt
from workbench.shapes import Bool, Float, Tensor
from workbench.tensors import Intervention, Tokens

ROOM = 2**26
"""Numbers of attention held at once: 256 MB in float32."""


def part_of(tokens: Tokens, rows: slice) -> Tokens:
    """Some rows of a batch, still padded to its width."""
    return Tokens(
        tokens.ids[rows], tokens.mask[rows], tokens.prompts[rows], tokens.prompt_lengths[rows]
    )


def pieces(n_rows: int, each: int) -> Iterator[slice]:
    """Slices of rows that together hold at most `ROOM` numbers, `each` a row; at least one row."""
    step = max(1, ROOM // max(1, each))
    return (slice(i, min(n_rows, i + step)) for i in range(0, n_rows, step))


def patterns(
    run: Callable[..., Any], tokens: Tokens, dims: Any
) -> Iterator[tuple[slice, Float[Tensor, "case layer head q k"]]]:
    """Attention of every head, with the rows it belongs to; 0 where the query is padding."""
    width = tokens.ids.shape[1]
    for rows in pieces(len(tokens), dims.n_layers * dims.n_heads * width**2):
        trace = run(part_of(tokens, rows), record=["L*.pattern"])
        found = trace.stack("pattern").float().transpose(0, 1)
        real = tokens.mask[rows][:, None, None, :, None].to(found.device)
        # in the rows of padding a backend may hold anything, not-a-number too, which 0 times is no 0
        yield rows, found.masked_fill(~real, 0.0)


def visible(mask: Bool[Tensor, "case pos"]) -> Bool[Tensor, "case q k"]:
    """Which keys each query may see: itself and what comes before, padding left out."""
    causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    return causal & mask[:, None, :] & mask[:, :, None]


def matched(
    run: Callable[..., Any], tokens: Tokens, dims: Any, keys: Bool[Tensor, "case q k"], what: str
) -> tuple[dict[str, Tensor], Float[Tensor, " case"]]:
    """How much every head attends to `keys`, and the chance level.

    Returns:
        Three measures `[case, layer, head]`: "attention", the mean over the queries that have such a
        key; "over chance", what is left of it above the chance level; "share", of the attention of
        all queries. And the chance level `[case]`: attention spread evenly over what is visible.

    Raises:
        WorkbenchError: no query of any case has such a key; `what` says which.
    """
    keys = keys & visible(tokens.mask)
    asked = keys.any(-1)
    if not bool(asked.any()):
        raise WorkbenchError(
            "locate.find",
            f"no prompt has {what}",
            expected=f"a prompt with {what}",
            got=f"{len(tokens)} prompts without",
            do="choose other prompts",
        )
    n_asked = asked.sum(-1).float()
    n_asked = n_asked.where(n_asked > 0, torch.nan)
    seen = visible(tokens.mask).sum(-1).clamp(min=1)
    chance = (keys.sum(-1) / seen).sum(-1) / n_asked
    sums = torch.cat(
        [
            torch.einsum("clhqk,cqk->clh", found, keys[rows].to(found))
            for rows, found in patterns(run, tokens, dims)
        ]
    )
    wide = lambda values: values.to(sums)[:, None, None]  # noqa: E731
    attention = sums / wide(n_asked)
    share = torch.where(attention.isnan(), torch.nan, sums / wide(tokens.mask.sum(-1)))
    measures = {"attention": attention, "over chance": attention - wide(chance), "share": share}
    return measures, chance


def head_scores(
    measures: dict[str, Tensor], chance: Float[Tensor, " case"], dims: Any, caption: str
) -> Scores:
    """The measures of `matched` over layers and heads; an edit of a place silences the head."""
    units = {
        "attention": "mean attention",
        "over chance": "mean attention above chance",
        "share": "share of all attention",
    }
    level = float(chance.double().nanmean())
    return Scores(
        measures,
        (layer_axis(dims.n_layers), head_axis(dims.n_heads)),
        units,
        caption=f"{caption}; chance is {level:.3g}.",
        reference={"chance": chance},
        edit=lambda layer, head: silenced(layer, head, dims.d_head),
    )


def silenced(
    layer: int, head: int, d_head: int, value: Float[Tensor, " d_head"] | None = None
) -> Intervention:
    """The edit that replaces a head's output by 0, or by `value`, at every position."""
    site = f"L{layer}.z[head={head}]"
    if value is None:
        return Intervention(
            "custom",
            "affine",
            {site: {"scale": -torch.ones(d_head)}},
            unit="of the way to no output",
            name=f"head {layer}.{head} to zero",
        )
    return Intervention(
        "custom",
        "set",
        {site: {"value": value}},
        unit="of the way to its mean",
        name=f"head {layer}.{head} to its mean",
    )


def span_in(
    prompt: Prompt, what: str, given: Any, length: int, *, whole: bool = True
) -> tuple[int, int]:
    """(start, stop) of a prompt of `length` tokens as its meta gives them; all of it only if `whole`.

    Raises:
        PromptError: `given` is no such pair.
    """
    try:
        start, stop = (index(end) for end in given)
    except (TypeError, ValueError):
        start = stop = 0
    if 0 <= start < stop <= length and (whole or stop - start < length):
        return start, stop
    raise PromptError(
        f"{what} of prompt {(prompt.text or '')[:40]!r}",
        "is no part of the prompt",
        expected=f"0 <= start < stop <= {length}" + ("" if whole else ", and not all of it"),
        got=given,
        do="correct the prompt's meta",
    )
