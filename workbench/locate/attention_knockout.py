"""What the answer loses when the last position may not attend to a part of the prompt, in some layers.

    score[q, k] -> score[q, k] - 10^4      q the last position, k in the span, layers l - w/2 to l + w/2
    change = metric(cut) - metric(whole)

After the softmax a cut key has weight 0 and the row still sums to 1, since what it had goes to the rest.

Shapes: `[case, layer, pos]`, or `[case, layer, span]` where the prompts name their spans; `layer` is the
    middle of the window, `pos` as in every map.
Units: the metric's; "logprob" by default, whose change is the log of the paper's relative change.
Source: Geva et al. (2023), Dissecting Recall of Factual Associations in Auto-Regressive Language Models,
    https://arxiv.org/abs/2304.14767.
Differs from the paper: scores are lowered by 10^4 in place of an infinity, which leaves 0 in every
    number format; without named spans every position is a span of its own; windows are as wide as its 9
    of 48 layers. `also["random span"]` cuts as many tokens elsewhere, drawn for each prompt.
    A position of `rows` that may see nothing but the span keeps its attention, which cannot go elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import PromptError, WorkbenchError, unknown
from workbench.locate.attending import part_of, pieces, span_in
from workbench.locate.base import (
    METRICS,
    Axis,
    Cases,
    Localiser,
    Need,
    Reads,
    Scores,
    layer_axis,
    pos_axis,
)
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.shapes import Float, Tensor
from workbench.tensors import Intervention, Tokens

CUT = -1e4
"""Added to a cut score: e^-10000 is 0 in every number format, and float16 still holds it."""
Span = tuple[int, int]


@register(
    "locate",
    Citation(
        "Geva et al.",
        "Dissecting Recall of Factual Associations in Auto-Regressive Language Models",
        2023,
        "https://arxiv.org/abs/2304.14767",
    ),
)
@dataclass(frozen=True)
class AttentionKnockout(Localiser):
    """What the answer loses when the last position may not attend to a span, in a window of layers.

    A prompt's `meta["spans"]`, {name: (start, stop)} in its own positions, names the spans; without it
    every position is one.

    Attributes:
        window: how many layers are cut at once, centred; a fifth of them where None.
        rows: the scope of the positions that may not attend, such as "span(4, 9)".
        metric: "logprob", "probability" or "logit_difference" of the answer.
        seed: of the random spans.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims", "decode")
    reads: ClassVar[tuple[Reads, ...]] = ("answer",)
    window: int | None = None
    rows: str = "last_prompt"
    metric: Literal["logprob", "probability", "logit_difference"] = "logprob"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown("AttentionKnockout(metric=)", "metric", self.metric, METRICS)
        Scope.parse(self.rows)
        if self.window is not None and self.window < 1:
            raise WorkbenchError(
                "AttentionKnockout(window=)",
                "cuts no layer",
                expected="at least 1, or None",
                got=self.window,
                do="choose a wider window",
            )

    def find(
        self, cases: Cases, *, run: Callable[..., Any], dims: Any, decode: Callable[[int], str]
    ) -> Scores:
        """Change of the metric for every window of layers and every span.

        Raises:
            PromptError: a span outside its prompt, or one that leaves the last position nothing.
            WorkbenchError: `rows` covers no position of any prompt.
        """
        named = _named(cases.clean)
        last = Axis("span", tuple(named)) if named else pos_axis(cases, decode)
        spans = [_spans(cases.clean, row, last) for row in range(len(cases))]
        read = partial(self._read, run=run)
        whole = torch.cat([read(some)[0] for _, some in _chunks(cases, dims)])
        found = self._changes(cases, spans, whole, read, dims)
        also = {}
        axes = (layer_axis(dims.n_layers), last)
        about = (
            f"{METRICS[self.metric]}, {len(cases)} prompts, windows of {self._wide(dims)} layers"
        )
        if named:
            others = [_elsewhere(cases.clean, row, own, self.seed) for row, own in enumerate(spans)]
            control = self._changes(cases, others, whole, read, dims)
            also["random span"] = self._scores(control, axes, f"Cut as much elsewhere: {about}.")
        edit = partial(self._edit_at, spans=spans, axis=last, dims=dims)
        return replace(
            self._scores(found, axes, f"Change without attention to each {last.name}: {about}."),
            reference={"whole": whole},
            edit=edit,
            also=also,
        )

    def _scores(self, found: Tensor, axes: tuple[Axis, ...], caption: str) -> Scores:
        return Scores({"change": found}, axes, {"change": METRICS[self.metric]}, caption=caption)

    def _read(
        self, cases: Cases, edits: Sequence[Intervention] = (), *, run: Callable[..., Any]
    ) -> tuple[Float[Tensor, " case"], int]:
        """The metric of each case with these cuts, and how many positions they covered."""
        trace = run(cases.clean, edits=edits, logits="last")
        covered = sum(receipt.positions for receipt in trace.receipts)
        return cases.metric(trace.logits[:, -1], self.metric).cpu(), covered

    def _changes(
        self,
        cases: Cases,
        spans: Sequence[Sequence[Span | None]],
        whole: Float[Tensor, " case"],
        read: Callable[..., tuple[Tensor, int]],
        dims: Any,
    ) -> Float[Tensor, "case layer span"]:
        """A forward for every layer and label, in which each case has its own span cut."""
        found = torch.full((len(cases), dims.n_layers, len(spans[0])), torch.nan)
        total = 0
        for rows, some in _chunks(cases, dims):
            for index in range(len(spans[0])):
                own = [spans[row][index] for row in range(rows.start, rows.stop)]
                has = torch.tensor([span is not None for span in own])
                for layer in range(dims.n_layers) if bool(has.any()) else ():
                    cut, covered = read(some, self._cuts(layer, own, dims))
                    found[rows, layer, index] = (cut - whole[rows]).masked_fill(~has, torch.nan)
                    total += covered
        if not total and not bool(found.isnan().all()):
            raise WorkbenchError(
                "AttentionKnockout(rows=)",
                "covers no position of these prompts",
                expected=f"positions inside prompts of at most {max(cases.clean.lengths)} tokens",
                got=self.rows,
                do="choose another scope",
            )
        return found

    def _cuts(self, layer: int, own: Sequence[Span | None], dims: Any) -> list[Intervention]:
        """An edit per span that a row has, at strength 1 in the rows that have it."""
        return [
            replace(
                self.cut(layer, span, dims),
                strength=torch.tensor([float(one == span) for one in own]),
                conditional=True,
            )
            for span in sorted({one for one in own if one is not None})
        ]

    def cut(self, layer: int, span: Span, dims: Any) -> Intervention:
        """The edit: no attention to the positions of `span` in the window around `layer`."""
        below = (self._wide(dims) - 1) // 2
        first = max(0, layer - below)
        last = min(dims.n_layers - 1, layer - below + self._wide(dims) - 1)
        bias = {"bias": torch.full((dims.n_heads,), CUT)}
        return Intervention(
            "attention_knockout",
            "score_bias",
            {f"L{i}.attn_scores": bias for i in range(first, last + 1)},
            unit=f"times {CUT:g} on the scores",
            scope=Scope.parse(self.rows),
            params={"keys": str(Scope.span(*span))},
            name=f"no attention to {span[0]}-{span[1] - 1} in layers {first}-{last}",
        )

    def _wide(self, dims: Any) -> int:
        return self.window or max(1, round(dims.n_layers * 9 / 48))

    def _edit_at(
        self,
        *,
        layer: int,
        spans: Sequence[Sequence[Span | None]],
        axis: Axis,
        dims: Any,
        **place: Any,
    ) -> Intervention:
        """The edit of a place: one for all prompts, so their spans must be the same positions."""
        label = place[axis.name]
        here = {own[axis.labels.index(label)] for own in spans} - {None}
        if len(here) != 1:
            raise PromptError(
                f"Map.edit({axis.name}={label!r})",
                "is not at the same positions in every prompt",
                expected="prompts of one length, or spans at one place",
                got=sorted(str(span) for span in here) or "no prompt with it",
                do="locate the prompts one length at a time",
            )
        return self.cut(layer, next(span for span in here if span), dims)


def _named(tokens: Tokens) -> list[str]:
    """Names of spans in the order in which prompts give them; empty where none does."""
    return list(dict.fromkeys(name for prompt in tokens.prompts for name in _given(prompt)))


def _given(prompt: Prompt) -> Mapping[str, Any]:
    """The prompt's own spans by name."""
    given = prompt.meta.get("spans", {})
    if isinstance(given, Mapping):
        return given
    raise PromptError(
        f"prompt {(prompt.text or '')[:40]!r}",
        "has spans without names",
        expected="{name: (start, stop)}",
        got=given,
        do="correct meta['spans']",
    )


def _spans(tokens: Tokens, row: int, axis: Axis) -> list[Span | None]:
    """The positions of each label in one prompt; None where it has none."""
    prompt, length = tokens.prompts[row], tokens.lengths[row]
    if axis.name == "pos":
        pad = tokens.ids.shape[1] - length
        starts = [i - pad for i in range(tokens.ids.shape[1])]
        return [(s, s + 1) if s >= 0 and length > 1 else None for s in starts]
    given = _given(prompt)
    return [
        span_in(prompt, f"span {name!r}", given[name], length, whole=False)
        if name in given
        else None
        for name in axis.labels
    ]


def _elsewhere(
    tokens: Tokens, row: int, spans: Sequence[Span | None], seed: int
) -> list[Span | None]:
    """For each span a random one of its length that shares nothing with it, between first and last.

    Drawn by the prompt's own tokens: neither the order of prompts nor the others change it.
    """
    length = tokens.lengths[row]
    ids = tokens.ids[row, -length:].tolist()
    own = sum(place * token for place, token in enumerate(ids, start=1))
    found: list[Span | None] = []
    for index, span in enumerate(spans):
        draw = torch.Generator().manual_seed(seed + 1000003 * index + own)
        size = 0 if span is None else span[1] - span[0]
        free = [
            s
            for s in range(1, length - size)
            if span is not None and (s + size <= span[0] or s >= span[1])
        ]
        at = free[int(torch.randint(len(free), (), generator=draw))] if free else None
        found.append(None if at is None else (at, at + size))
    return found


def _chunks(cases: Cases, dims: Any) -> Iterator[tuple[slice, Cases]]:
    """A few cases at a time, as far as a metric and a run read them."""
    width = cases.clean.ids.shape[1]
    for rows in pieces(len(cases), width * (dims.n_heads * width + 4 * dims.d_model)):
        answer, foil = (None if ids is None else ids[rows] for ids in (cases.answer, cases.foil))
        yield rows, Cases(part_of(cases.clean, rows), None, answer, foil)
