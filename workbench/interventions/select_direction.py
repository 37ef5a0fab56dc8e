"""Choose one direction for a directional ablation: candidates over layers and end positions, judged.

    found = select_direction(model, pairs, refusal="I", progress=False)
    found.edit             the ablation at every write of every layer
    found.candidates       what each candidate did

A candidate is `mean(positive) - mean(negative)` of a block's input at one of the prompts' last
positions. With the refusal score, the log-odds of the refusal tokens at the last prompt position:

    ablated    mean score of the positive class with the candidate projected out everywhere
    induced    mean score of the negative class with the candidate added at its own layer
    kl_nats    mean KL(base || ablated) of the negative class's next token

Dropped are candidates of the last layers, those that change harmless prompts (`kl_nats` above its
limit), and those that induce no refusal (`induced` below its limit); the lowest `ablated` wins.

Source: Arditi, Obeso, Syed, Paleka, Panickssery, Gurnee and Nanda (2024), Refusal in Language Models
    Is Mediated by a Single Direction, https://arxiv.org/abs/2406.11717.
Differs from the source: the positions looked at are the tokens that all prompts end in, where the
    source lists a template's; every fifth prompt of a class judges, where the source has sets of its
    own (128 to fit, 32 to judge). Probabilities are compared as log-odds without a small constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from tqdm.auto import tqdm

from workbench.errors import PromptError, WorkbenchError
from workbench.linalg import kl_divergence, unit
from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.shapes import Float, Tensor, Vector
from workbench.tensors import Intervention

WRITES = ("resid_pre", "attn_out", "mlp_out")
MOST_POSITIONS = 8
_WHERE = "select_direction"


@dataclass(frozen=True)
class Candidate:
    """One direction and what it did on the judging prompts.

    Attributes:
        layer: whose input it was read at.
        position: counted back from the prompt's end, -1 the last token.
        ablated: refusal score of the positive class without the direction, in nats of log-odds.
        induced: refusal score of the negative class with the direction added at its layer.
        kl_nats: what its ablation does to the negative class's next token.
        dropped: why it is out, "" where it is not.
    """

    layer: int
    position: int
    ablated: float
    induced: float
    kl_nats: float
    dropped: str = ""


@dataclass(frozen=True)
class Selection:
    """The chosen direction with everything it was compared with.

    Attributes:
        edit: its ablation at every layer's input, attention output and MLP output.
        addition: the same direction added at its own layer, at its own length.
        chosen: its row of the table.
        candidates: all rows, by layer, then position.
        positive, negative: refusal scores of both classes without any edit.
    """

    edit: Intervention
    addition: Intervention
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    positive: float
    negative: float


def select_direction(
    model: Any,
    prompts: Sequence[Prompt],
    refusal: str | int | Iterable[str | int],
    *,
    positions: int | None = None,
    drop_layers: float | int = 0.2,
    max_kl_nats: float | int = 0.1,
    least_induced: float | int = 0.0,
    positive: Any = True,
    negative: Any = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> Selection:
    """The direction whose removal lowers refusal most and disturbs other prompts least.

    Args:
        prompts: labelled; `positive` ones are refused, `negative` ones answered.
        refusal: texts or token ids a refusal begins with; of a text, its first token counts.
        positions: how many of the last tokens to try; by default as many as all prompts share at
            their end, at most 8.
        drop_layers: the share of layers, from the top, that is not considered.
        max_kl_nats, least_induced: limits on what a candidate may do to the negative class.

    Raises:
        PromptError: a class with fewer than two prompts, or prompts shorter than `positions`.
        WorkbenchError: no refusal token, limits that make no sense, or no candidate within them.
    """
    if not 0 <= drop_layers < 1:
        raise _wrong("drop_layers is not a share", "0 up to 1", drop_layers, "leave some layers")
    if positions is not None and positions < 1:
        raise _wrong("positions is no number of tokens", "1 or more", positions, "leave it at None")
    asked = as_prompts(prompts)
    sides = [_split(asked, label) for label in (positive, negative)]
    judge = _Judge(model, sides[0][1], sides[1][1], _tokens(model, refusal), batch_size)
    ends = positions or _shared_end(model, asked)
    directions = _directions(model, sides[0][0], sides[1][0], ends, batch_size)
    layers = model.n_layers - int(drop_layers * model.n_layers + 1e-9)
    many = [(layer, p) for layer, p in directions if layer < layers]
    table = []
    for layer, position in tqdm(many, desc="directions", disable=not progress):
        row = judge.score(layer, position, directions[layer, position])
        table.append(_with_reason(row, max_kl_nats, least_induced))
    chosen = _lowest(table)
    direction = directions[chosen.layer, chosen.position]
    return Selection(
        ablation(model, direction, chosen),
        addition(model, direction, chosen.layer),
        chosen,
        tuple(table),
        judge.refusal(judge.positive, ()),
        judge.refusal(judge.negative, ()),
    )


def ablation(model: Any, direction: Vector, chosen: Candidate | None = None) -> Intervention:
    """`direction` projected out of every write of every layer."""
    down = unit(direction.double()).float()[None]
    sites = [f"L{layer}.{part}" for layer in range(model.n_layers) for part in WRITES]
    params: dict[str, Any] = {"max_strength": 1.0}
    if chosen is not None:
        params |= {"source": f"L{chosen.layer}.resid_pre", "position": chosen.position}
    return Intervention(
        "directional_ablation",
        "affine",
        {site: {"down": down.clone(), "up": -down} for site in sites},
        unit="fraction of the component removed",
        params=params,
        model=model.fingerprint,
    )


def addition(model: Any, direction: Vector, layer: int) -> Intervention:
    """`direction` added to the input of `layer`, at its own length."""
    return Intervention(
        "mean_difference",
        "affine",
        {f"L{layer}.resid_pre": {"shift": direction.float()}},
        unit="multiples of the class difference",
        model=model.fingerprint,
    )


@dataclass(frozen=True)
class _Judge:
    """The judging prompts of both classes, and the tokens that count as refusal."""

    model: Any
    positive: list[Prompt]
    negative: list[Prompt]
    tokens: list[int]
    batch_size: int | None

    @cached_property
    def _base(self) -> Float[Tensor, "row vocab"]:
        return self._next(self.negative, ())

    def score(self, layer: int, position: int, direction: Vector) -> Candidate:
        """What removing and adding this direction does."""
        without = ablation(self.model, direction)
        more = addition(self.model, direction, layer)
        kl = kl_divergence(self._base, self._next(self.negative, (without,)))
        return Candidate(
            layer,
            position,
            self.refusal(self.positive, (without,)),
            self.refusal(self.negative, (more,)),
            float(kl.mean()),
        )

    def refusal(self, prompts: list[Prompt], edits: Iterable[Intervention]) -> float:
        """Mean log-odds, in nats, that the next token begins a refusal."""
        log_p = self._next(prompts, edits)
        refused = torch.zeros(log_p.shape[-1], dtype=torch.bool)
        refused[self.tokens] = True
        return float((log_p[:, refused].logsumexp(-1) - log_p[:, ~refused].logsumexp(-1)).mean())

    @torch.no_grad()
    def _next(
        self, prompts: list[Prompt], edits: Iterable[Intervention]
    ) -> Float[Tensor, "row vocab"]:
        """Log-probabilities of the token after each prompt."""
        edits = tuple(edits)
        found = [
            self.model.run(part, (), edits, logits="last").logits[:, -1].double().cpu()
            for part in _batches(self.model, prompts, self.batch_size)
        ]
        return torch.cat(found).log_softmax(-1)


@torch.no_grad()
def _directions(
    model: Any, positive: list[Prompt], negative: list[Prompt], ends: int, batch_size: int | None
) -> dict[tuple[int, int], Vector]:
    """Class differences by layer and end position; where the classes are one, there is none."""
    means = [_means(model, side, ends, batch_size) for side in (positive, negative)]
    found = {}
    for layer, (plus, minus) in enumerate(zip(*means, strict=True)):
        for i in range(ends):
            difference = plus[i] - minus[i]
            if difference.norm() > 1e-6 * plus[i].norm():
                found[layer, i - ends] = difference
    return found


def _means(
    model: Any, prompts: list[Prompt], ends: int, batch_size: int | None
) -> Float[Tensor, "layer end d"]:
    total = None
    for part in _batches(model, prompts, batch_size):
        trace = model.run(part, ["L*.resid_pre"], logits="none")
        if min(trace.tokens.lengths) < ends:
            raise PromptError(
                _WHERE,
                "a prompt is shorter than the positions looked at",
                expected=f"at least {ends} tokens",
                got=min(trace.tokens.lengths),
                do="lower positions=",
            )
        summed = trace.stack("resid_pre")[:, :, -ends:].double().sum(1).cpu()
        total = summed if total is None else total + summed
    assert total is not None
    return total / len(prompts)


def _batches(model: Any, prompts: list[Prompt], size: int | None) -> Iterator[list[Prompt]]:
    size = size or model.fitting_batch(prompts, 0)
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _split(prompts: list[Prompt], label: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of one class to fit on and to judge with: every fifth judges, at least one."""
    side = [p for p in prompts if p.label == label]
    if len(side) < 2:
        raise PromptError(
            _WHERE,
            f"the class labelled {label!r} is too small",
            expected="at least two prompts of each class, one of them to judge with",
            got=len(side),
            do="add prompts, or name the labels with positive= and negative=",
        )
    judging = set(range(4, len(side), 5)) or {len(side) - 1}
    return (
        [p for i, p in enumerate(side) if i not in judging],
        [p for i, p in enumerate(side) if i in judging],
    )


def _tokens(model: Any, refusal: str | int | Iterable[str | int]) -> list[int]:
    many = [refusal] if isinstance(refusal, str | int) else list(refusal)
    ids = []
    for one in many:
        read = [one] if isinstance(one, int) else _ids(model, one)
        if not read or not 0 <= read[0] < model.dims.n_vocab:
            raise _wrong("a refusal is no token", "texts or token ids", repr(one), "correct it")
        ids.append(read[0])
    if not ids:
        raise _wrong("no refusal is given", "texts or token ids", many, "say how a refusal begins")
    return sorted(set(ids))


def _ids(model: Any, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _shared_end(model: Any, prompts: list[Prompt]) -> int:
    """How many last tokens all prompts share, from 1 to 8."""
    ids = [model.tokens(p).ids[0].tolist() for p in prompts]
    shared = 0
    for column in zip(*(reversed(row) for row in ids), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return min(max(shared, 1), MOST_POSITIONS)


def _with_reason(row: Candidate, max_kl_nats: float, least_induced: float) -> Candidate:
    why = []
    if not row.kl_nats <= max_kl_nats:
        why.append("changes the negative class")
    if not row.induced >= least_induced:
        why.append("induces no refusal")
    return replace(row, dropped=" and ".join(why))


def _lowest(table: list[Candidate]) -> Candidate:
    left = [row for row in table if not row.dropped]
    if not left:
        nearest = min(table, key=lambda row: row.kl_nats, default=None)
        raise _wrong(
            "no candidate is within the limits",
            "a direction that induces refusal and leaves the negative class alone",
            f"{len(table)} candidates, the gentlest {nearest}",
            "loosen max_kl_nats or least_induced, or look at more positions",
        )
    return min(left, key=lambda row: row.ablated)


def _wrong(wrong: str, expected: str, got: object, do: str) -> WorkbenchError:
    return WorkbenchError(_WHERE, wrong, expected=expected, got=got, do=do)
