"""Heads that, when a token is about to be copied or translated, attend to the token it comes from.

    TS_h = g / m
    m = steps of the continuation whose token has a gold source in the prompt
    g = those where the largest attention of head h, in the row that predicts that token and over the
        input, lies on the gold source (an exact tie counts as its share)

The token of step t stands at position n + t (n tokens of prompt) and is predicted at n + t - 1.

Shapes: `[case, layer, head]`; `also["steps"]` `[case, layer, head, step]`; NaN where nothing has a gold.
Units: share of steps; chance, 1 / len(input) with one gold, is what even attention scores.
Source: Liu et al. (2026), Token Alignment Heads: Unveiling Attention's Role in LLM Multilingual
    Translation, known from its abstract and notes alone, https://openreview.net/forum?id=q8fTgw8e5E.
Differs from the paper: gold alignments come with the prompts, or are exact copies, where the paper asks
    a language model; ties are shared, so that even attention scores chance. `also["one row late"]` is
    the same score in the row that the token itself stands in, which must fall to chance for a head that
    is found for the right reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import PromptError, WorkbenchError, unknown
from workbench.locate.attending import part_of, patterns, pieces, silenced, span_in
from workbench.locate.base import Axis, Cases, Localiser, Need, Scores, head_axis, layer_axis
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor
from workbench.tensors import Intervention, Tokens

DRAWS = 4
"""How many random sets of heads stand beside the best ones."""
COPIES, REPLACED = ("unique", "any"), ("zero", "mean")
UNITS = {
    "score": "share of steps",
    "over chance": "share of steps above chance",
    "attention": "mean attention to the gold source",
}


@register(
    "locate",
    Citation(
        "Liu et al.",
        "Token Alignment Heads: Unveiling Attention's Role in LLM Multilingual Translation",
        2026,
        "https://openreview.net/forum?id=q8fTgw8e5E",
    ),
)
@dataclass(frozen=True)
class TokenAlignmentHeads(Localiser):
    """How often each head attends most to the token that the next one is copied from.

    A prompt's `meta` may hold "completion" (token ids; else the model's own greedy continuation),
    "alignment" ({step: position in the prompt}; else exact copies) and "source" ((start, stop), the
    input that is attended over; else the whole prompt).

    Attributes:
        max_new_tokens: longest greedy continuation.
        copies: without an alignment, a token counts where it stands in the input once ("unique"), or
            at all ("any"; each of its occurrences is then gold).
        masked: how many of the best heads are put out of action, all at once, beside as many random
            ones (the mean of a few draws); at most a quarter of all. 0 leaves this out.
        replace_by: what an edit of a place puts for the head's output: "zero", or its "mean" over all
            positions.
        seed: of the random heads.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims", "generate")
    max_new_tokens: int = 24
    copies: Literal["unique", "any"] = "unique"
    masked: int = 20
    replace_by: Literal["zero", "mean"] = "zero"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.copies not in COPIES:
            raise unknown("TokenAlignmentHeads(copies=)", "kind of copy", self.copies, COPIES)
        if self.replace_by not in REPLACED:
            raise unknown(
                "TokenAlignmentHeads(replace_by=)", "replacement", self.replace_by, REPLACED
            )
        if self.masked < 0 or self.max_new_tokens < 1:
            raise WorkbenchError(
                "TokenAlignmentHeads",
                "masks or generates less than nothing",
                expected="masked of at least 0, max_new_tokens of at least 1",
                got=f"masked={self.masked}, max_new_tokens={self.max_new_tokens}",
                do="choose larger ones",
            )

    def find(
        self, cases: Cases, *, run: Callable[..., Any], dims: Any, generate: Callable[..., Any]
    ) -> Scores:
        """Scores of every head, per step and on average, and what masking the best ones costs.

        Raises:
            PromptError: an alignment or an input span outside the prompt.
            WorkbenchError: no token of any continuation has a gold source.
        """
        tokens = self._continued(cases.clean, run, generate)
        gold, source = self._gold(tokens)
        right, late = _hits(run, tokens, dims, gold, source)
        chance = _chance(gold, source)
        axes = (layer_axis(dims.n_layers), head_axis(dims.n_heads))
        about = f"{int(chance.isfinite().sum())} prompts; chance is {float(chance.nanmean()):.3g}."
        steps = Scores(
            {"score": right["steps"]},
            (*axes, Axis("step", tuple(range(gold.shape[1])))),
            {"score": "share of prompts"},
            caption=f"Prompts whose step attends most to its gold source, {about}",
        )
        wrong = _summed(late, chance, axes, f"One row late, a control: {about}")
        asked = self.masked > 0 or self.replace_by == "mean"
        means = _mean_outputs(run, tokens, dims) if asked else None
        also = {"steps": steps, "one row late": wrong}
        if means is not None and self.masked > 0:
            also["masked"] = self._masked(right["score"], tokens, gold, means, run, dims)
        return _summed(
            right,
            chance,
            axes,
            f"Steps that attend most to their gold source, {about}",
            edit=lambda layer, head: silenced(
                layer,
                head,
                dims.d_head,
                means[layer, head] if means is not None and self.replace_by == "mean" else None,
            ),
            also=also,
        )

    def _continued(self, tokens: Tokens, run: Callable[..., Any], generate: Any) -> Tokens:
        """Prompts with their completions: given with the batch, in `meta`, or generated greedily."""
        prompts = list(tokens.prompts)
        tails = [
            ids[mask][length:].tolist()
            for ids, mask, length in zip(
                tokens.ids, tokens.mask, tokens.prompt_lengths, strict=True
            )
        ]
        tails = [
            tail or _ids(p.meta.get("completion", ()), p)
            for tail, p in zip(tails, prompts, strict=True)
        ]
        open_ = [i for i, tail in enumerate(tails) if not tail]
        if open_:
            made = generate([prompts[i] for i in open_], max_new_tokens=self.max_new_tokens)
            for i, one in zip(open_, made, strict=True):
                tails[i] = list(one.ids)
        return run(prompts, completions=tails).tokens

    def _gold(self, tokens: Tokens) -> tuple[Bool[Tensor, "case step k"], Bool[Tensor, "case k"]]:
        """Which columns each step comes from, and which are the input. Both in columns of the batch."""
        width = tokens.ids.shape[1]
        lengths = zip(tokens.lengths, tokens.prompt_lengths, strict=True)
        n_steps = max(1, *(n - p for n, p in lengths), 1)
        gold = torch.zeros(len(tokens), n_steps, width, dtype=torch.bool)
        source = torch.zeros(len(tokens), width, dtype=torch.bool)
        for row, prompt in enumerate(tokens.prompts):
            n, length = tokens.lengths[row], tokens.prompt_lengths[row]
            pad = width - n
            span = prompt.meta.get("source", (0, length))
            start, stop = span_in(prompt, "source", span, length)
            source[row, pad + start : pad + stop] = True
            ids = tokens.ids[row, pad:].tolist()
            for step, positions in self._sources(prompt, ids, length, (start, stop)).items():
                gold[row, step, [pad + p for p in positions]] = True
        if not bool(gold.any()):
            raise WorkbenchError(
                "locate.find",
                "no token of any continuation has a gold source",
                expected="continuations that copy from the prompt, or prompts with an alignment",
                got=f"{len(tokens)} prompts without",
                do="give meta={'alignment': {step: position}} or TokenAlignmentHeads(copies='any')",
            )
        return gold.to(tokens.ids.device), source.to(tokens.ids.device)

    def _sources(
        self, prompt: Prompt, ids: Sequence[int], length: int, span: tuple[int, int]
    ) -> dict[int, list[int]]:
        """Positions in the prompt that each step comes from; steps without one are left out."""
        given = prompt.meta.get("alignment")
        if given is not None:
            return _given(prompt, given, len(ids) - length, span)
        found = {}
        for step, token in enumerate(ids[length:]):
            at = [p for p in range(*span) if ids[p] == token]
            if at and (self.copies == "any" or len(at) == 1):
                found[step] = at
        return found

    def _masked(
        self,
        score: Tensor,
        tokens: Tokens,
        gold: Tensor,
        means: Tensor,
        run: Callable[..., Any],
        dims: Any,
    ) -> Scores:
        """What the gold tokens lose in nats without the best heads, and without as many random ones."""
        n = min(self.masked, max(1, dims.n_layers * dims.n_heads // 4))
        order = score.nanmean(0).flatten().nan_to_num(-1).argsort(descending=True, stable=True)
        order = [divmod(int(flat), dims.n_heads) for flat in order]
        draw = torch.Generator().manual_seed(self.seed)
        others = [torch.randperm(len(order) - n, generator=draw)[:n] + n for _ in range(DRAWS)]
        before = _logprob(run, tokens, gold, dims)

        def lost(heads: Iterable[int], name: str) -> Tensor:
            # a head that writes nothing loses nothing, which is no error here
            edits = [
                replace(
                    silenced(i, j, dims.d_head, means[i, j] if name == "mean" else None),
                    conditional=True,
                )
                for i, j in (order[x] for x in heads)
            ]
            return _logprob(run, tokens, gold, dims, edits) - before

        values = {
            name: torch.stack(
                [
                    lost(range(n), name),
                    torch.stack([lost(x.tolist(), name) for x in others]).mean(0),
                ],
                1,
            )
            for name in REPLACED
        }
        return Scores(
            values,
            (Axis("heads", ("best", "random")),),
            dict.fromkeys(REPLACED, "nats per gold token"),
            "lines",
            f"Change of the gold tokens' log-probability without {n} heads, "
            f"{int(gold.any(-1).any(-1).sum())} prompts; "
            f"random: mean of {DRAWS} draws among the other heads.",
        )


def _summed(
    found: Mapping[str, Tensor], chance: Tensor, axes: Any, caption: str, **more: Any
) -> Scores:
    level = chance.to(found["score"])[:, None, None]
    values = {
        "score": found["score"],
        "over chance": found["score"] - level,
        "attention": found["attention"],
    }
    return Scores(values, axes, UNITS, caption=caption, reference={"chance": chance}, **more)


def _hits(
    run: Callable[..., Any],
    tokens: Tokens,
    dims: Any,
    gold: Bool[Tensor, "case step k"],
    source: Bool[Tensor, "case k"],
) -> list[dict[str, Tensor]]:
    """Per step and on average: in the rows that predict, and in the rows after them."""
    columns = [_columns(tokens, gold.shape[1], late) for late in (0, 1)]
    found: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for rows, pattern in patterns(run, tokens, dims):
        here = gold[rows].to(pattern.device), source[rows].to(pattern.device)
        for at, made in zip(columns, found, strict=True):
            which = at[rows].to(pattern.device)[:, None, None, :, None]
            which = which.expand(*pattern.shape[:3], -1, pattern.shape[-1])
            made.append(alignment(pattern.gather(3, which), *here))
    both = [[torch.cat(part) for part in zip(*made, strict=True)] for made in found]
    return [
        {"steps": hit, "score": hit.nanmean(-1), "attention": held.nanmean(-1)}
        for hit, held in both
    ]


def alignment(
    rows: Float[Tensor, "case layer head step k"],
    gold: Bool[Tensor, "case step k"],
    source: Bool[Tensor, "case k"],
) -> tuple[Float[Tensor, "case layer head step"], Float[Tensor, "case layer head step"]]:
    """Whether the largest attention over the input lies on gold, and how much attention gold has.

    Ties are shared: of n equal largest keys of which g are gold, g / n. NaN for a step without gold.
    """
    inside = rows.masked_fill(~source[:, None, None, None], -1.0)
    best = inside == inside.amax(-1, keepdim=True)
    wide = gold[:, None, None]
    hit = (best & wide).sum(-1) / best.sum(-1)
    held = (rows * wide).sum(-1)
    without = ~gold.any(-1)[:, None, None]
    return hit.masked_fill(without, torch.nan), held.masked_fill(without, torch.nan)


def _columns(tokens: Tokens, n_steps: int, late: int) -> Tensor:
    """`[case, step]`, the column of the row that predicts each step's token, `late` after it."""
    width = tokens.ids.shape[1]
    lengths = zip(tokens.lengths, tokens.prompt_lengths, strict=True)
    first = torch.tensor([width - n + p - 1 for n, p in lengths], device=tokens.ids.device)
    steps = torch.arange(n_steps, device=tokens.ids.device)
    return (first[:, None] + steps + late).clamp(max=width - 1)


def _chance(gold: Bool[Tensor, "case step k"], source: Bool[Tensor, "case k"]) -> Tensor:
    """`[case]`, what even attention over the input scores."""
    shares = gold.sum(-1) / source.sum(-1)[:, None]
    return shares.where(gold.any(-1), torch.nan).nanmean(-1)


def _mean_outputs(
    run: Callable[..., Any], tokens: Tokens, dims: Any
) -> Float[Tensor, "layer head d_head"]:
    """Each head's output, mean over all real positions."""
    each = tokens.ids.shape[1] * dims.n_layers * dims.n_heads * dims.d_head
    total: Any = 0
    for rows in pieces(len(tokens), each):
        outputs = run(part_of(tokens, rows), record=["L*.z"]).stack("z")
        total = total + outputs[:, tokens.mask[rows].to(outputs.device)].float().sum(1)
    return (total / sum(tokens.lengths)).cpu()  # an edit is data, on no device


def _logprob(
    run: Callable[..., Any],
    tokens: Tokens,
    gold: Bool[Tensor, "case step k"],
    dims: Any,
    edits: Sequence[Intervention] = (),
) -> Float[Tensor, " case"]:
    """Mean log-probability in nats of the tokens with a gold source; NaN where there is none."""
    at = _columns(tokens, gold.shape[1], 0)
    targets = tokens.ids.gather(1, (at + 1).clamp(max=tokens.ids.shape[1] - 1))
    means = []
    for rows in pieces(len(tokens), tokens.ids.shape[1] * dims.n_vocab):
        logits = run(part_of(tokens, rows), edits=edits, logits="all").logits
        here, ids = at[rows].to(logits.device), targets[rows].to(logits.device)
        chosen = logits[torch.arange(len(here), device=logits.device)[:, None], here]
        logs = chosen.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        means.append(logs.where(gold[rows].any(-1).to(logits.device), torch.nan).nanmean(-1))
    return torch.cat(means)


def _ids(given: Any, prompt: Prompt) -> list[int]:
    try:
        return [index(i) for i in given]
    except TypeError:
        raise _misfit(prompt, "completion", "a list of token ids", given) from None


def _given(prompt: Prompt, given: Any, n_steps: int, span: tuple[int, int]) -> dict[int, list[int]]:
    """The prompt's own alignment, checked."""
    wanted = f"{{step: position}}, positions {span[0]} to {span[1] - 1} of the prompt"
    if not isinstance(given, Mapping):
        raise _misfit(prompt, "alignment", wanted, given)
    found = {}
    for key, position in given.items():
        try:  # a file of prompts has texts for keys
            step = int(key)
            many = [index(p) for p in (position if isinstance(position, Iterable) else [position])]
        except (TypeError, ValueError):
            raise _misfit(prompt, "alignment", wanted, f"{key}: {position}") from None
        if step < 0 or not all(span[0] <= p < span[1] for p in many):
            raise _misfit(prompt, "alignment", wanted, f"{step}: {position}")
        if step < n_steps and many:  # a greedy continuation may have ended earlier
            found[step] = many
    return found


def _misfit(prompt: Prompt, what: str, expected: object, got: object) -> PromptError:
    return PromptError(
        f"prompt {(prompt.text or '')[:40]!r}",
        f"has a {what} that does not fit",
        expected=expected,
        got=got,
        do=f"correct meta[{what!r}]",
    )
