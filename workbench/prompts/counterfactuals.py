"""Clean prompts beside corrupted ones that differ in what matters, with the answers that tell them apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from operator import index
from typing import Any, SupportsIndex

from workbench.errors import PromptError
from workbench.prompts.contrast import AnyPrompt, pairs
from workbench.records import Prompt, Prompts

Answers = str | SupportsIndex | Iterable[Any]
"""One text or token id for all pairs, or one each."""


def counterfactuals(
    *,
    clean: Iterable[AnyPrompt],
    corrupted: Iterable[AnyPrompt],
    answers: Answers,
    foils: Answers | None = None,
    align: str | None = None,
) -> Prompts:
    """Cases for patching: what goes through the model on `clean[i]`, put into the run of `corrupted[i]`.

    Args:
        clean, corrupted: texts, prompts or lists of chat messages, matched one to one.
        answers: what each clean prompt is followed by, as text or token id; one for all, or one each.
        foils: the same for the corrupted prompts; the logit difference is answer minus foil.
        align: how positions are matched where the two differ in length: counted from the start or from
            the end, "start" or "end". Without it such cases are refused.

    Returns:
        The clean prompts, then the corrupted ones, whose answer is the foil.

    Raises:
        PromptError: sides or answers differ in number, a side is empty, an answer is neither text nor
            a token id, or `align` is no way to align.
    """
    if align not in (None, "start", "end"):
        raise PromptError(
            "prompts.counterfactuals(align=)",
            "is no way to match positions",
            expected="'start', 'end' or None",
            got=repr(align),
            do="choose one of them",
        )
    many = pairs(positive=clean, negative=corrupted)
    n = len(many) // 2
    right = _each("answers", answers, n)
    wrong = [None] * n if foils is None else _each("foils", foils, n)
    both = zip(many, [*right, *wrong], [*wrong, *right], strict=True)
    return Prompts(_asked(prompt, a, f, align) for prompt, a, f in both)


def _each(name: str, given: Answers, n: int) -> list[Any]:
    many = [given] * n if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    many = [_text_or_id(name, one) for one in many]
    if len(many) != n:
        raise PromptError(
            "prompts.counterfactuals",
            f"{name} are not one per pair",
            expected=f"{n} of them, or one for all",
            got=len(many),
            do="match them",
        )
    return many


def _text_or_id(name: str, given: Any) -> str | int:
    """What was given as text or as a plain int, since prompts are kept as JSON."""
    if isinstance(given, str):
        return given
    try:
        return index(given)
    except TypeError:
        raise PromptError(
            "prompts.counterfactuals",
            f"{name} hold something that is neither text nor a token id",
            expected="text or a token id for every pair",
            got=repr(given),
            do="say them all",
        ) from None


def _asked(prompt: Prompt, answer: Any, foil: Any, align: str | None) -> Prompt:
    about = {"role": "clean" if prompt.label is True else "corrupted", "align": align}
    about |= {"answer": answer} if answer is not None else {}
    about |= {"foil": foil} if foil is not None else {}
    said = answer if isinstance(answer, str) else prompt.answer
    return replace(prompt, answer=said, meta={**prompt.meta, **about})
