"""Clean prompts beside corrupted ones that differ in what matters, with the answers that tell them apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from workbench.errors import PromptError
from workbench.prompts.contrast import AnyPrompt, pairs
from workbench.records import Prompt, Prompts

Answers = str | int | Sequence[str | int]


def counterfactuals(
    *,
    clean: Iterable[AnyPrompt],
    corrupted: Iterable[AnyPrompt],
    answers: Answers,
    foils: Answers | None = None,
    align: Literal["start", "end"] | None = None,
) -> Prompts:
    """Cases for patching: what goes through the model on `clean[i]`, put into the run of `corrupted[i]`.

    Args:
        clean, corrupted: texts, prompts or lists of chat messages, matched one to one.
        answers: what each clean prompt is followed by, as text or token id; one for all, or one each.
        foils: the same for the corrupted prompts; the logit difference is answer minus foil.
        align: how positions are matched where the two differ in length: counted from the start or from
            the end. Without it such cases are refused.

    Returns:
        The clean prompts, then the corrupted ones, whose answer is the foil.

    Raises:
        PromptError: sides or answers differ in number, or a side is empty.
    """
    many = pairs(positive=clean, negative=corrupted)
    n = len(many) // 2
    right = _each("answers", answers, n)
    wrong = [None] * n if foils is None else _each("foils", foils, n)
    both = zip(many, [*right, *wrong], [*wrong, *right], strict=True)
    return Prompts(_asked(prompt, a, f, align) for prompt, a, f in both)


def _each(name: str, given: Answers, n: int) -> list[Any]:
    many = [given] * n if isinstance(given, str | int) else list(given)
    if len(many) != n:
        raise PromptError(
            "prompts.counterfactuals",
            f"{name} are not one per pair",
            expected=f"{n} of them, or one for all",
            got=len(many),
            do="match them",
        )
    return many


def _asked(prompt: Prompt, answer: Any, foil: Any, align: str | None) -> Prompt:
    about = {"role": "clean" if prompt.label is True else "corrupted", "align": align}
    about |= {"answer": answer} if answer is not None else {}
    about |= {"foil": foil} if foil is not None else {}
    said = answer if isinstance(answer, str) else prompt.answer
    return replace(prompt, answer=said, meta={**prompt.meta, **about})
