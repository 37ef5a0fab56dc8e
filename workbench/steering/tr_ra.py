"""A student of two models' mixed logits, as a low-rank edit of the residual stream (TrRa).

    teacher = softmax(lam l_aligned + (1 - lam) l_reference)
    student = the model with h' = h + s (U^T (D h) + c) at every site, trained to the teacher

The log-odds of any two tokens are linear in lam: 0 is the reference, 1 the aligned model, more than 1
goes on past it.

Shapes: `down` D and `up` U `[rank, d]`, `shift` c `[d]`; logits `[position, vocab]` per example.
Units: strength is multiples of the trained edit: 1 is the student, 0 the model itself.
Source: Zhu, Xie, Zhang and Wang (2025), Flexible Realignment of Language Models,
    https://arxiv.org/abs/2506.12704.
Differs from the paper: its student is all weights of the reference; here it is a low-rank edit, so that
    the result is an edit like any other, and steps and rate have defaults for dozens of prompts. The
    aligned model is a second model, as in the paper, where one is handed over. Our reading where none
    is: the model itself behind the positive prompt of each pair is the aligned one, behind the negative
    prompt it is the reference, and the student reads the negative prompt. Where both share their
    completion all its tokens are learned from; where not, completions count as part of the prompts, and
    what is learned is what comes next. The released code takes the softmax over positions, uses one
    element of the batch and no padding mask; those are faults and left out. Its divergence, the other
    way round than the paper's, is an option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.seeds import derive
from workbench.shapes import Float, Tensor
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.steering.training import Example, train
from workbench.tensors import Contrast, Intervention, finite

DIRECTIONS = ("student_teacher", "teacher_student")
Run, Encode = Callable[..., Any], Callable[[str], Sequence[int]]


@register(
    "steering",
    Citation(
        "Zhu, Xie, Zhang, Wang",
        "Flexible Realignment of Language Models",
        2025,
        "https://arxiv.org/abs/2506.12704",
    ),
)
@dataclass(frozen=True)
class TrRa(SteeringMethod):
    """Train a low-rank edit to the mixed logits of an aligned and a reference model.

    Attributes:
        lam: share of the aligned model in the teacher; beyond 1 it is extrapolated.
        rank: of the edit at each site.
        divergence: "student_teacher" is the paper's KL(student || teacher), "teacher_student" the
            released code's.
        steps, lr, batch, weight_decay: of AdamW; lr per step, batch in prompts.
        seed: of the start and of the order of the prompts.
        progress: show a bar.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "encode")

    lam: float | int = 1.0
    rank: int = 4
    divergence: Literal["student_teacher", "teacher_student"] = "student_teacher"
    steps: int = 100
    lr: float | int = 5e-3
    batch: int = 8
    weight_decay: float | int = 0.0
    seed: int = 0
    progress: bool = True

    def fit(
        self, contrast: Contrast, *, run: Run, encode: Encode, aligned: Any = None
    ) -> Intervention:
        """The student, as an affine edit at every recorded site.

        Args:
            aligned: the aligned model, with the same vocabulary, where there is a second one; then
                prompts of both classes are read, each before its own completion.

        Raises:
            WorkbenchError: options out of range, unpaired prompts without `aligned`, or a teacher that
                is the reference.
        """
        widths = {
            site: rows.shape[1] for site, rows, _ in sites_of(contrast, "TrRa", aligned is None)
        }
        self._check(min(widths.values()))
        if aligned is None:
            examples = self._of_pairs(contrast, run, encode)
        else:
            examples = self._of_models(contrast, run, encode, aligned)
        trained = train(
            lambda tensors: self._edit(tensors, contrast),
            self._start(widths),
            examples,
            run,
            steps=self.steps,
            lr=self.lr,
            batch=self.batch,
            seed=self.seed,
            weight_decay=self.weight_decay,
            loss=self._loss,
            progress=self.progress,
            name="TrRa",
        )
        return self._edit(trained.tensors, contrast)

    def _start(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """An edit that changes nothing, with directions to read along already drawn."""
        start = {}
        for site, d in widths.items():
            generator = torch.Generator().manual_seed(derive(self.seed, "tr_ra", site))
            start[f"{site}::down"] = torch.randn(self.rank, d, generator=generator) / d**0.5
            start[f"{site}::up"] = torch.zeros(self.rank, d)
            start[f"{site}::shift"] = torch.zeros(d)
        return start

    def _edit(self, tensors: Mapping[str, Tensor], contrast: Contrast) -> Intervention:
        by_site: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            site, _, name = key.rpartition("::")
            by_site.setdefault(site, {})[name] = tensor
        return Intervention(
            "tr_ra",
            "affine",
            by_site,
            unit="multiples of the trained edit",
            params={"lam": float(self.lam), "rank": self.rank},
            model=contrast.model,
        )

    def _of_pairs(self, contrast: Contrast, run: Run, encode: Encode) -> list[Example]:
        """The negative side of every pair, with the teacher's log-probabilities there."""
        examples = []
        for p, n in zip(*(contrast.prompts or ((), ())), strict=True):
            ids = [tuple(encode(side.meta.get("completion") or "")) for side in (p, n)]
            count = len(ids[1]) + 1 if ids[0] == ids[1] else 1
            logits = [_logits(run, *side, count) for side in zip((p, n), ids, strict=True)]
            examples.append(Example(n, ids[1], self._teacher(*logits)))
        return _some(examples)

    def _of_models(
        self, contrast: Contrast, run: Run, encode: Encode, aligned: Any
    ) -> list[Example]:
        examples = []
        for prompt in [p for side in contrast.prompts or () for p in side]:
            ids = tuple(encode(prompt.meta.get("completion") or ""))
            logits = [_logits(of, prompt, ids, len(ids) + 1) for of in (aligned.run, run)]
            examples.append(Example(prompt, ids, self._teacher(*logits)))
        return _some(examples)

    def _teacher(
        self, aligned: Float[Tensor, "position vocab"], reference: Float[Tensor, "position other"]
    ) -> Tensor:
        if aligned.shape[-1] != reference.shape[-1]:
            raise WorkbenchError(
                "TrRa.fit(aligned=)",
                "has another vocabulary",
                expected=f"{reference.shape[-1]} tokens",
                got=aligned.shape[-1],
                do="take a model of the same family",
            )
        return mixed(aligned, reference.to(aligned), self.lam)

    def _loss(self, trace: Any, examples: Sequence[Example]) -> Tensor:
        """The divergence in nats, averaged over the learned positions of the batch.

        Rows are padded on the left, so a row's learned positions are its last ones and no padding is
        among them.
        """
        told = [trace.logits[i, -len(e.extra) :] for i, e in enumerate(examples)]
        student = torch.cat(told).float().log_softmax(-1)
        teacher = torch.cat([e.extra for e in examples]).to(student)
        if self.divergence == "teacher_student":
            student, teacher = teacher, student
        return (student.exp() * (student - teacher)).sum(-1).mean()

    def _check(self, width: int) -> None:
        if self.divergence not in DIRECTIONS:
            raise unknown("TrRa(divergence=)", "direction", self.divergence, DIRECTIONS)
        if finite("TrRa(lam)", float(self.lam)) == 0:
            raise WorkbenchError(
                "TrRa(lam)",
                "makes the teacher the reference, which is what the student starts as",
                expected="a number other than 0",
                got=self.lam,
                do="use strength 0 for no edit",
            )
        if not 1 <= self.rank <= width:
            raise WorkbenchError(
                "TrRa(rank)",
                "is out of range",
                expected=f"1 to {width}, the width of the narrowest site",
                got=self.rank,
                do="correct it",
            )


def mixed(
    aligned: Float[Tensor, "*batch vocab"],
    reference: Float[Tensor, "*batch vocab"],
    lam: float | int,
) -> Float[Tensor, "*batch vocab"]:
    """Log-probabilities of `softmax(lam aligned + (1 - lam) reference)`."""
    return (lam * aligned + (1 - lam) * reference).log_softmax(-1)


def _logits(
    run: Run, prompt: Prompt, ids: Sequence[int], count: int
) -> Float[Tensor, "position vocab"]:
    """Logits at the last `count` positions of a prompt with its completion."""
    trace = run([prompt], completions=[list(ids)] if ids else None, logits="all")
    return trace.logits[0, -count:].float().cpu()


def _some(examples: list[Example]) -> list[Example]:
    if examples:
        return examples
    raise WorkbenchError(
        "TrRa.fit",
        "has no prompts to learn on",
        expected="a contrast that came from prompts",
        got="rows alone",
        do="use workbench.steering.fit, or pass prompts to the Contrast",
    )
