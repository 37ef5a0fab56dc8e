"""What a scorer of features is handed: codes of chosen positions, slopes, ablations, directions, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.locate.base import Cases, Patch
from workbench.model.positions import Frame
from workbench.model.tokens import encode, is_special
from workbench.patching.cases import cases_of
from workbench.patching.gradients import Gradients, some
from workbench.patching.head import Head
from workbench.patching.patcher import Patched
from workbench.prompts import chat
from workbench.records import Prompt
from workbench.sae.dictionary import Dictionary
from workbench.sae.reading import PART_BYTES, stream
from workbench.sae.scorers.base import Block, Labels, Metric, Reads, Spelled
from workbench.sae.scorers.cases import nothing_to_read
from workbench.scopes import Scope
from workbench.seeds import derive
from workbench.shapes import Bool, Codes, Float, Tensor
from workbench.tensors import Tokens

AT_ONCE = 8
"""Ablated copies of a batch whose activations are held at once."""


@dataclass
class Seen:
    """What the codes that were handed out were like, over all chosen positions.

    Attributes:
        rows: how many tokens.
        active: on how many each feature is active; None before any was read.
        largest: the largest activation of each feature.
    """

    rows: int = 0
    active: Tensor | None = None
    largest: Tensor | None = None

    def add(self, codes: Codes) -> None:
        """Count in some tokens."""
        if not len(codes):
            return
        active, largest = (codes != 0).sum(0).cpu(), codes.amax(0).float().cpu()
        self.rows += len(codes)
        self.active = active if self.active is None else self.active + active
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)


@dataclass(frozen=True)
class Asked:
    """One question to a dictionary on a model.

    Attributes:
        prompts: the cases, in order.
        scope: which positions of each count.
        reads: what each case must have, "label" or "answer".
        special: whether special tokens count.
        seed: of the random tokens that a control compares.
    """

    dictionary: Dictionary
    model: Any
    prompts: list[Prompt]
    scope: Scope
    reads: tuple[Reads, ...] = ()
    special: bool = False
    force: bool = False
    progress: bool = True
    seed: int = 0
    seen: Seen = field(default_factory=Seen)

    @property
    def n_cases(self) -> int:
        """How many."""
        return len(self.prompts)

    @cached_property
    def decoder(self) -> Float[Tensor, "feature d"]:
        """What each feature writes.

        Raises:
            WorkbenchError: that depends on the row.
        """
        if self.dictionary.rescales:
            raise WorkbenchError(
                "sae.search",
                "this dictionary normalises each row, so that what a feature writes depends on the row",
                expected="a dictionary without normalisation at run time",
                got=repr(self.dictionary),
                do="search with activation_difference, auroc or token_match, which read codes alone",
            )
        return self.dictionary.decoder.float()

    def codes(self) -> Iterator[Block]:
        """Activations at the chosen positions."""
        covers = [self._cover(self.model.tokens(prompt))[0].cpu() for prompt in self.prompts]
        self._some_cover(covers)
        parts = stream(
            self.dictionary,
            self.model,
            self.prompts,
            special=True,
            force=self.force,
            progress=self.progress,
        )
        self._restart()
        for part in parts:
            rows = zip(part.prompts.tolist(), part.positions.tolist(), strict=True)
            keep = torch.tensor([bool(covers[case][at]) for case, at in rows])
            codes = part.codes[keep.to(part.codes.device)]
            self.seen.add(codes)
            yield Block(codes, part.prompts[keep], part.positions[keep])

    def slopes(
        self, metric: Metric = "logit_difference", steps: int = 0, tokens: str = "asked"
    ) -> Iterator[Block]:
        """Activations at the chosen positions, and what a unit of each does to the metric there."""
        if tokens == "asked":
            self._restart()
        for start, batch in self._batches():
            cover = self._cover(batch.clean)
            read = partial(_measured, metric, self._compared(batch, tokens), start)
            values, slopes = self._gradients(batch, cover, read, steps)
            case, column = cover.nonzero(as_tuple=True)
            where = batch.clean.positions[case, column].cpu()
            for at in self._pieces(len(case)):
                codes = self.dictionary.encode(values[at])
                if tokens == "asked":
                    self.seen.add(codes)
                product = slopes[at].to(codes.device).float() @ self.decoder.mT
                yield Block(codes, case[at].cpu() + start, where[at], product)

    def switched_off(
        self, metric: Metric, features: Sequence[int], along: Sequence[int] | None = None
    ) -> Float[Tensor, "case f"]:
        """The metric less what it is with one of `features` taken out at all chosen positions.

        Args:
            metric: of the logits behind each case.
            features: one forward each.
            along: features along whose decoder rows the same amount is taken out instead, one each.
        """
        patched, found = Patched(self.model, self.progress), []
        writes = self.decoder[list(features)]
        if along is not None:
            others = torch.nn.functional.normalize(self.decoder[list(along)], dim=1)
            writes = writes.norm(dim=1, keepdim=True) * others
        for start, batch in self._batches():
            cover = self._cover(batch.clean)
            read = partial(_measured, metric, batch, start)
            codes, values = self._own(batch, cover, list(features))
            effects = []
            for few in range(0, len(writes), AT_ONCE):
                numbers = range(few, min(few + AT_ONCE, len(writes)))
                variants = [self._without(values, cover, codes[i], writes[i]) for i in numbers]
                metrics = patched(batch.clean, [[], *variants], read)
                effects.append((metrics[0] - metrics[1:]).mT.float().cpu())
            found.append(torch.cat(effects, 1))
        return torch.cat(found)

    def toward(
        self, token: str | int | None = None, tokens: str = "asked"
    ) -> Float[Tensor, "case d"]:
        """Direction of each case's logit difference at the end of the residual stream."""
        head, found = Head(self.model), []
        last = f"L{self.model.n_layers - 1}.resid_post"
        if self.dictionary.d != self.model.d_model or not self._in_stream:
            raise self._not_in_stream()
        for _, batch in self._batches(named=token):
            batch = self._compared(batch, tokens)
            assert batch.answer is not None
            stream_out = self.model.run(batch.clean, [last], logits="none")[last][:, -1]
            found.append(head.readout(stream_out, batch.answer, batch.foil)[0].float().cpu())
        return torch.cat(found)

    @cached_property
    def spelled(self) -> tuple[Spelled, ...]:
        """Every case as text, with the place of each token in it."""
        return tuple(_spelled(self.model.tokenizer, prompt) for prompt in self.prompts)

    def labels(self, positive: Any, negative: Any, given: Sequence[Any] | None) -> Labels:
        """The class of each case.

        Raises:
            WorkbenchError: labels are not one per prompt, or a class has no case.
        """
        labels = [p.label for p in self.prompts] if given is None else list(given)
        if len(labels) != self.n_cases:
            raise _unlabelled("labels are not one per prompt", self.n_cases, len(labels))
        classes = torch.tensor(
            [1.0 if y == positive else 0.0 if y == negative else float("nan") for y in labels]
        )
        for kind, value in ((positive, 1), (negative, 0)):
            if not bool((classes == value).any()):
                said = sorted({repr(y) for y in labels})[:6]
                raise _unlabelled(
                    f"no prompt is labelled {kind!r}", f"{positive!r}, {negative!r}", said
                )
        return Labels(classes, _pairs([p.pair for p in self.prompts], classes))

    # positions

    def _cover(self, tokens: Tokens) -> Bool[Tensor, "case pos"]:
        """Where a batch counts."""
        tokenizer = self.model.tokenizer
        spell = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        frame = Frame(tokens.prompt_lengths, tokenizer.bos_token_id, spell)
        frame.advance(tokens.ids, tokens.positions)
        mask = frame.mask(self.scope)
        cover = tokens.mask if mask is None else tokens.mask & mask.to(tokens.mask.device)
        if not self.special:
            cover = cover & ~is_special(tokenizer, tokens.ids)
        return cover

    def _some_cover(self, covers: Sequence[Tensor]) -> None:
        if not any(bool(cover.any()) for cover in covers):
            raise nothing_to_read(f"positions={str(self.scope)!r}")

    def _restart(self) -> None:
        self.seen.rows, self.seen.active, self.seen.largest = 0, None, None

    # batches

    @cached_property
    def _cases(self) -> Cases:
        wanted = ["answer"] if "answer" in self.reads else []
        cases = cases_of(self.model, self.prompts, wanted)
        self._some_cover([self._cover(cases.clean)])
        return cases

    def _batches(self, named: str | int | None = None) -> Iterator[tuple[int, Cases]]:
        """Some cases at a time, whose activations stay within the budget, and where they start."""
        cases = self._cases if named is None else self._about(named)
        width = cases.clean.ids.shape[1] * max(self.dictionary.d, self.dictionary.decoder.shape[1])
        size = max(1, PART_BYTES // (4 * AT_ONCE * width))
        for start in range(0, len(cases), size):
            rows = slice(start, min(len(cases), start + size))
            pick = lambda ids, rows=rows: None if ids is None else ids[rows]  # noqa: E731
            yield (
                start,
                Cases(some(cases.clean, rows), None, pick(cases.answer), pick(cases.foil)),
            )

    def _about(self, token: str | int) -> Cases:
        """The cases asked about one token, against the mean logit."""
        named = [Prompt(p.text, p.messages, meta={"answer": token}) for p in self.prompts]
        return cases_of(self.model, named, ("answer",))

    def _compared(self, batch: Cases, tokens: str) -> Cases:
        """The tokens that a metric compares: the cases' own, or two drawn at random."""
        if tokens == "asked" or batch.answer is None:
            return batch
        n = self.model.dims.n_vocab
        generator = torch.Generator().manual_seed(derive(self.seed, "tokens"))
        drawn = torch.randperm(n, generator=generator)
        taken = [batch.answer] if batch.foil is None else [batch.answer, batch.foil]
        free = drawn[~torch.isin(drawn, torch.cat(taken).cpu())][:2].to(batch.answer.device)
        answer = free[:1].expand(len(batch))
        foil = None if batch.foil is None else free[-1:].expand(len(batch))
        return Cases(batch.clean, None, answer, foil)

    def _pieces(self, n: int) -> Iterator[slice]:
        """Slices of rows whose codes and slopes stay within the budget."""
        step = max(1, PART_BYTES // (8 * self.dictionary.n_features))
        for start in range(0, n, step):
            yield slice(start, min(n, start + step))

    # gradients and ablations

    def _gradients(
        self, batch: Cases, cover: Tensor, read: Any, steps: int
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row out"]]:
        """Activations read and mean slopes at what is written, both at the rows of `cover`."""
        gradients = Gradients(self.model, self.progress)
        reads, writes = self.dictionary.site, self.dictionary.target
        sites = list(dict.fromkeys([reads, writes]))
        values, grads, _ = gradients(batch.clean, sites, read)
        rows, slope = values[reads][cover].flatten(1), grads[writes][cover].flatten(1)
        if not steps:
            return rows, slope
        whole = self._contribution(values[writes], rows, cover)
        slope = torch.zeros_like(slope, dtype=torch.float32)
        for step in range(steps):
            put = values[writes] - (1 - (step + 0.5) / steps) * whole
            _, found, _ = gradients(batch.clean, [writes], read, put={writes: put})
            slope += found[writes][cover].flatten(1).float() / steps
        return rows, slope

    def _contribution(self, like: Tensor, rows: Tensor, cover: Tensor) -> Tensor:
        """What all features write at the chosen positions, 0 elsewhere; shaped as the site."""
        parts = [self.dictionary.encode(rows[at]) @ self.decoder for at in self._pieces(len(rows))]
        whole = torch.zeros_like(like)
        whole[cover] = torch.cat(parts).to(like).reshape(-1, *like.shape[2:])
        return whole

    def _own(
        self, batch: Cases, cover: Tensor, features: list[int]
    ) -> tuple[Float[Tensor, "f row"], Tensor]:
        """Activations of some features at the chosen positions, and the values that are written to."""
        reads, writes = self.dictionary.site, self.dictionary.target
        trace = self.model.run(batch.clean, list(dict.fromkeys([reads, writes])), logits="none")
        rows = trace[reads][cover].flatten(1)
        parts = [self.dictionary.encode(rows[at])[:, features] for at in self._pieces(len(rows))]
        return torch.cat(parts).mT, trace[writes]

    def _without(
        self,
        values: Tensor,
        cover: Tensor,
        codes: Float[Tensor, " row"],
        write: Float[Tensor, " d"],
    ) -> list[Patch]:
        """The values less `codes` times `write` at the chosen positions."""
        out = values.clone()
        change = codes[:, None] * write
        out[cover] -= change.to(out).reshape(-1, *out.shape[2:])
        return [Patch(self.dictionary.target, out)]

    @property
    def _in_stream(self) -> bool:
        part = self.dictionary.target.partition(".")[2]
        return part in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

    def _not_in_stream(self) -> WorkbenchError:
        return WorkbenchError(
            "sae.search(logit_effect)",
            "the dictionary does not write into the residual stream",
            expected="a dictionary of resid_pre, resid_mid, resid_post, attn_out or mlp_out",
            got=self.dictionary.target,
            do="search with attribution, which goes through the layers above",
        )


def _measured(metric: Metric, cases: Cases, start: int, logits: Tensor) -> Tensor:
    """A metric of `[copies * case, vocab]`, the case running fastest."""
    if isinstance(metric, str):
        return cases.metric(logits, metric)
    n = len(cases)
    numbers = torch.arange(start, start + n, device=logits.device)
    return torch.cat([metric(part, numbers) for part in logits.split(n)])


def _spelled(tokenizer: Any, prompt: Prompt) -> Spelled:
    """Text and places of the tokens; a tokenizer that cannot tell places has its tokens spelt alone."""
    ids = encode(tokenizer, prompt)
    if not getattr(tokenizer, "is_fast", False):
        words = [tokenizer.decode([i], skip_special_tokens=True) for i in ids]
        ends = torch.tensor([len(w) for w in words]).cumsum(0).tolist()
        spans = [(end - len(w), end) for w, end in zip(words, ends, strict=True)]
        return Spelled("".join(words), tuple(spans))
    told = prompt.messages is None
    text = (prompt.text or "") if told else chat.render(tokenizer, prompt.messages)
    read = tokenizer(text, add_special_tokens=told, return_offsets_mapping=True)
    spans = [(int(a), int(b)) for a, b in read["offset_mapping"]]
    # a text that begins with the beginning-of-sequence token is read with one of it
    return Spelled(text, tuple(spans[len(spans) - len(ids) :]))


def _pairs(numbers: list[int | None], classes: Tensor) -> Tensor | None:
    """`[2, pair]`: the positive and the negative case of each pair, where every case is of one."""
    sides: dict[int, dict[int, int]] = {}
    for i, number in enumerate(numbers):
        if classes[i].isnan():
            continue
        if number is None or int(classes[i]) in sides.setdefault(number, {}):
            return None
        sides[number][int(classes[i])] = i
    if not sides or any(len(side) < 2 for side in sides.values()):
        return None
    return torch.tensor([[side[1], side[0]] for side in sides.values()]).T


def _unlabelled(wrong: str, expected: object, got: object) -> WorkbenchError:
    return WorkbenchError(
        "sae.search",
        wrong,
        expected=expected,
        got=got,
        do="give labels=, or positive= and negative= as the prompts' labels say",
    )
