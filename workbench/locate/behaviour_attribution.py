"""Behaviour attribution: which modules write what sets one behaviour of a text apart.

    mu_c  = mean over responses with c of the mean of a over its tokens of c (segments begin 5 tokens early)
    u     = mu_c - mu_all,  mu_all = mean over responses of the mean of a;   u' = u ||a_mean|| / ||u||
    I     = (1/S) sum over segments of | u' . mean over the segment's tokens of dL/da |
    L     = cross-entropy of the segment given what stands before it;   share = I / sum of I over modules

Shapes: module outputs a `[case, pos, n]`, heads side by side; importance `[case, behaviour, part, layer]`.
Units: nats, to first order: how the loss moves when u' is added at one of the segment's tokens.
Source: Zhang, Kwek, Zhang, Nguyen, Mitra and Zhang (2025), When Reasoning Meets Compression,
    https://arxiv.org/abs/2504.02010, and its released code, psunlpgroup/Compression-Effects at dd5ed49.
Differs from the paper: the paper takes the absolute value after the sum over segments, its code before
    it, which is the default here (`abs`). Both read all seven linear modules of a block, here six by
    default: up_proj has no site, `parts` takes it by its module's name. The code's sums over the four
    behaviours are one tensor, so that each mu_c has the sum over all behaviours above its own count:
    `compat="released"` reproduces it.
    L is the mean over a segment's tokens, our reading. Each behaviour is a row of its own; modules are
    compared within it by their share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.locate.base import Axis, Cases, Localiser, Need, Scores, layer_axis
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.tensors import Intervention, Tokens

Segment = tuple[str, int, int]
"""A behaviour, the position of its first token, and the one after its last."""

Sums = tuple[Tensor, Tensor, Tensor]
"""Sums of one module: of means per behaviour `[behaviour, n]`, of means `[n]`, of tokens `[n]`."""

TOKENS = 2048
"""Of how many tokens the values of all modules are held at once; a text is never cut."""
ABS = ("per_segment", "after_sum")
COMPAT = ("paper", "released")


@register(
    "locate",
    Citation(
        "Zhang, Kwek, Zhang, Nguyen, Mitra, Zhang",
        "When Reasoning Meets Compression",
        2025,
        "https://arxiv.org/abs/2504.02010",
    ),
)
@dataclass(frozen=True)
class BehaviourAttribution(Localiser):
    """Modules that write what sets a behaviour, such as backtracking, apart from the rest.

    Each prompt is a whole text, question and response; `meta["segments"]` lists `(behaviour, start,
    stop)`, positions counted in the prompt's tokens from 0, `stop` not included. Or `segments=` is handed
    to `locate.find`, a function from a prompt to such a list.

    Attributes:
        parts: outputs that are read: site parts, or any module's with the layer left open, such as
            "hf:model.layers.{layer}.mlp.up_proj:out".
        extend: how many tokens before a segment count as its own for u, not for the gradient.
        abs: absolute values "per_segment", or "after_sum" over the segments.
        compat: "paper", or "released" for the shared sums of the published code.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "gradients", "dims")
    parts: tuple[str, ...] = ("q", "k", "v", "attn_out", "mlp_pre", "mlp_out")
    extend: int = 5
    abs: Literal["per_segment", "after_sum"] = "per_segment"
    compat: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        for name, given, known in (("abs", self.abs, ABS), ("compat", self.compat, COMPAT)):
            if given not in known:
                raise unknown("BehaviourAttribution", name, given, known)
        if self.extend < 0 or not self.parts:
            raise WorkbenchError(
                "BehaviourAttribution",
                "has nothing to read" if not self.parts else "extends segments the wrong way",
                expected="parts, and extend of 0 or more",
                got=(self.parts, self.extend),
                do="name a part, such as mlp_out",
            )

    def find(
        self,
        cases: Cases,
        *,
        run: Callable[..., Any],
        gradients: Callable[..., Any],
        dims: Any,
        segments: Callable[[Prompt], Sequence[Segment]] | None = None,
    ) -> Scores:
        """Importance of every module for every behaviour."""
        spans = _spans(cases.clean, segments)
        names = tuple(sorted({name for row in spans for name, _, _ in row}))
        sites = {(p, i): _site(p, i) for p in self.parts for i in range(dims.n_layers)}
        directions = self._directions(cases.clean, spans, names, list(sites.values()), run)
        slopes = self._slopes(cases.clean, spans, gradients, directions, names)
        each = [
            torch.stack([slopes[_site(p, i)] for i in range(dims.n_layers)], -1) for p in self.parts
        ]
        importance = _importance(torch.stack(each, -2), spans, names, self.abs)
        total = importance.nanmean(0).sum((-1, -2))
        return Scores(
            {"importance": importance, "share": importance / total[:, None, None]},
            (Axis("behaviour", names), Axis("part", self.parts), layer_axis(dims.n_layers)),
            {"importance": "nats", "share": "share of all modules"},
            caption=f"How far a step towards each behaviour at a module moves its loss, over "
            f"{sum(map(len, spans))} segments of {len(cases)} texts.",
            edit=_edits(directions, names),
        )

    def _directions(
        self,
        tokens: Tokens,
        spans: Sequence[Sequence[Segment]],
        names: Sequence[str],
        sites: Sequence[str],
        run: Callable[..., Any],
    ) -> dict[str, Tensor]:
        """u' of each behaviour at each site, `[behaviour, n]`."""
        marked = torch.stack([self._marked(tokens, spans, name) for name in names])
        total: dict[str, list[Sums]] = {site: [] for site in sites}
        for rows in _some(range(len(tokens)), tokens):
            some = _picked(tokens, rows)
            trace = run(some, record=sites)
            for site in sites:
                total[site].append(_sums(some.mask, marked[:, rows], _flat(trace[site])))
        present = marked.any(-1).sum(1, keepdim=True)
        joined = {
            site: [sum(each) for each in zip(*parts, strict=True)] for site, parts in total.items()
        }
        return {site: self._direction(sums, present, tokens) for site, sums in joined.items()}

    def _direction(self, sums: Sequence[Any], present: Tensor, tokens: Tokens) -> Tensor:
        """u' at one module from its sums over all texts; `present` texts have each behaviour."""
        own, texts, every = sums
        if self.compat == "released":
            own = own.sum(0, keepdim=True).expand_as(own)
        u = own / present.to(own.device) - texts / len(tokens)
        overall = every / int(tokens.mask.sum())
        return u * overall.norm() / u.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _marked(self, tokens: Tokens, spans: Sequence[Sequence[Segment]], name: str) -> Tensor:
        """`[case, pos]`, the tokens of a behaviour and those just before."""
        marked = torch.zeros(tokens.ids.shape, dtype=torch.bool)
        for row, own in enumerate(spans):
            for behaviour, start, stop in own:
                if behaviour == name:
                    marked[row, max(0, start - self.extend) : stop] = True
        return marked & tokens.mask.cpu()

    def _slopes(
        self,
        tokens: Tokens,
        spans: Sequence[Sequence[Segment]],
        gradients: Any,
        directions: Mapping[str, Tensor],
        names: Sequence[str],
    ) -> dict[str, Tensor]:
        """`u' . mean gradient` of each segment, `[case, segment]` per site."""
        found = {site: torch.zeros(len(spans), max(map(len, spans))) for site in directions}
        every = [(row, which) for row, own in enumerate(spans) for which in range(len(own))]
        for some in _some(every, tokens):
            rows, own = [row for row, _ in some], [spans[row][which] for row, which in some]
            picked = _picked(tokens, rows)
            inside = _inside(picked, own)
            _, grads, _ = gradients(picked, list(directions), _loss(picked, inside), keep=0)
            kind = torch.tensor([names.index(name) for name, _, _ in own])
            for site, u in directions.items():
                g = _flat(grads[site])
                weight = (inside / inside.sum(-1, keepdim=True)).to(g)
                mean = torch.einsum("cp,cpn->cn", weight, g)
                slopes = (mean * u[kind.to(u.device)]).sum(-1).cpu()
                found[site][rows, [which for _, which in some]] = slopes
        return found


def _some(many: Sequence[Any], tokens: Tokens) -> Iterator[list[Any]]:
    """A few at a time, whose rows of the batch are no more than `TOKENS` tokens."""
    size = max(1, TOKENS // tokens.ids.shape[1])
    for start in range(0, len(many), size):
        yield list(many[start : start + size])


def _sums(mask: Tensor, marked: Tensor, a: Tensor) -> Sums:
    """What u is made of at one module.

    Args:
        mask: `[case, pos]`, False on padding.
        marked: `[behaviour, case, pos]`, tokens of each behaviour.
        a: the module's output, `[case, pos, n]`.
    """
    mask, marked = mask.to(a), marked.to(a)
    share = marked / marked.sum(-1, keepdim=True).clamp(min=1)  # of absent ones 0
    means = torch.einsum("bcp,cpn->bn", share, a)
    texts = torch.einsum("cp,cpn->n", mask / mask.sum(-1, keepdim=True), a)
    return means, texts, torch.einsum("cp,cpn->n", mask, a)


def _importance(
    slopes: Tensor, spans: Sequence[Sequence[Segment]], names: Sequence[str], how: str
) -> Tensor:
    """Per text, so that the mean over the texts with a behaviour is the mean over its segments.

    Args:
        slopes: `[case, segment, part, layer]`.

    Returns:
        `[case, behaviour, part, layer]`, NaN where a text has no such segment.
    """
    out = torch.full((slopes.shape[0], len(names), *slopes.shape[2:]), float("nan"))
    for b, name in enumerate(names):
        of = {row: [i for i, s in enumerate(own) if s[0] == name] for row, own in enumerate(spans)}
        of = {row: which for row, which in of.items() if which}
        weight = len(of) / sum(map(len, of.values()))
        picked = {row: slopes[row, which] for row, which in of.items()}
        if how == "per_segment":
            sums = {row: s.abs().sum(0) for row, s in picked.items()}
        else:
            signs = torch.stack([s.sum(0) for s in picked.values()]).sum(0).sign()
            sums = {row: signs * s.sum(0) for row, s in picked.items()}
        for row, value in sums.items():
            out[row, b] = weight * value
    return out


def _spans(
    tokens: Tokens, segments: Callable[[Prompt], Sequence[Segment]] | None
) -> list[list[Segment]]:
    """The segments of each text as columns of the padded batch."""
    pads = (~tokens.mask).sum(-1).tolist()
    spans: list[list[Segment]] = []
    for prompt, pad, n in zip(tokens.prompts, pads, tokens.lengths, strict=True):
        given = segments(prompt) if segments else prompt.meta.get("segments", ())
        for one in given:
            if len(one) != 3 or not 1 <= one[1] < one[2] <= n:
                raise WorkbenchError(
                    f"segment {tuple(one)!r} of {(prompt.text or '')[:40]!r}",
                    "is no span of its tokens that has something before it",
                    expected=f"(behaviour, start, stop) with 1 <= start < stop <= {n}",
                    got=tuple(one),
                    do="count the prompt's tokens from 0, a beginning-of-sequence token included",
                )
        spans.append([(str(name), start + pad, stop + pad) for name, start, stop in given])
    if not any(spans):
        raise WorkbenchError(
            "BehaviourAttribution",
            "no text has a segment",
            expected='prompts with meta["segments"] = [(behaviour, start, stop), ...]',
            got=f"{len(spans)} texts without",
            do="label them, or pass segments= to locate.find, a function of a prompt",
        )
    return spans


def _picked(tokens: Tokens, rows: list[int]) -> Tokens:
    return Tokens(
        tokens.ids[rows],
        tokens.mask[rows],
        tuple(tokens.prompts[row] for row in rows),
        tuple(tokens.prompt_lengths[row] for row in rows),
    )


def _inside(tokens: Tokens, segments: Sequence[Segment]) -> Tensor:
    columns = torch.arange(tokens.ids.shape[1])
    return torch.stack([(columns >= start) & (columns < stop) for _, start, stop in segments])


def _loss(tokens: Tokens, inside: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """Mean cross-entropy in nats of each row's segment."""

    def loss(logits: Tensor, rows: slice) -> Tensor:
        wanted = inside[rows, 1:].to(logits.device).float()
        ids = tokens.ids[rows, 1:].to(logits.device)
        told = logits[:, :-1].float()
        logprob = told.gather(-1, ids[..., None])[..., 0] - told.logsumexp(-1)
        return -(logprob * wanted).sum(-1) / wanted.sum(-1)

    return loss


def _edits(directions: Mapping[str, Tensor], names: Sequence[str]) -> Callable[..., Intervention]:
    def edit(behaviour: str, part: str, layer: int) -> Intervention:
        site = _site(part, layer)
        shift = directions[site][names.index(behaviour)].cpu().clone()
        name = f"{behaviour} at {site}"
        return Intervention(
            "behaviour_attribution",
            "affine",
            {site: {"shift": shift}},
            unit="multiples of u', as long as the module's mean output",
            name=name,
        )

    return edit


def _site(part: str, layer: int) -> str:
    return part.format(layer=layer) if "{layer}" in part else f"L{layer}.{part}"


def _flat(values: Tensor) -> Tensor:
    return values.float().flatten(2)
