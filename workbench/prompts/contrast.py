"""Two sides of a contrast: labelled True and False, matched one to one or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from workbench.errors import PromptError
from workbench.records import Prompt, Prompts

Turns = Sequence[Mapping[str, str]]
AnyPrompt = str | Prompt | Turns


def pairs(*, positive: Iterable[AnyPrompt], negative: Iterable[AnyPrompt]) -> Prompts:
    """Contrast pairs: `positive[i]` and `negative[i]` differ in what is contrasted and little else.

    Each side is texts, prompts or lists of chat messages. The result holds the positive prompts,
    then the negative ones, labelled True and False, with equal `pair` for the two of a pair.

    Raises:
        PromptError: a side is empty, or the sides differ in number.
    """
    plus, minus = _side("positive", positive), _side("negative", negative)
    if len(plus) != len(minus):
        raise PromptError(
            "prompts.pairs",
            "the sides differ in number",
            expected="one negative for each positive",
            got=f"{len(plus)} positive and {len(minus)} negative",
            do="match them, or use prompts.classes for sides that are not paired",
        )
    return Prompts(
        replace(prompt, label=label, pair=i)
        for label, side in ((True, plus), (False, minus))
        for i, prompt in enumerate(side)
    )


def classes(*, positive: Iterable[AnyPrompt], negative: Iterable[AnyPrompt]) -> Prompts:
    """Two sets of prompts that are not matched, labelled True and False.

    Raises:
        PromptError: a side is empty.
    """
    plus, minus = _side("positive", positive), _side("negative", negative)
    return Prompts(
        replace(prompt, label=label, pair=None)
        for label, side in ((True, plus), (False, minus))
        for prompt in side
    )


def completions(
    prompts: Iterable[AnyPrompt], *, positive: Iterable[str], negative: Iterable[str]
) -> Prompts:
    """Contrast pairs of continuations: each prompt with a wanted and an unwanted completion.

    What is read is the prompt and then the completion, so a row's last position is the completion's
    last token. The texts are in `meta["completion"]`, labelled True (wanted) and False.

    Raises:
        PromptError: a side is empty, or the three differ in number.
    """
    asked, plus, minus = _side("prompts", prompts), list(positive), list(negative)
    if not len(asked) == len(plus) == len(minus):
        raise PromptError(
            "prompts.completions",
            "the sides differ in number",
            expected="one positive and one negative completion for each prompt",
            got=f"{len(asked)} prompts, {len(plus)} positive and {len(minus)} negative",
            do="match them",
        )
    return Prompts(
        replace(prompt, label=label, pair=i, meta={**prompt.meta, "completion": text})
        for label, side in ((True, plus), (False, minus))
        for i, (prompt, text) in enumerate(zip(asked, side, strict=True))
    )


def _side(name: str, prompts: Iterable[AnyPrompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        raise PromptError(
            "prompts",
            f"{name} is one text",
            expected="a list",
            got=repr(prompts)[:40],
            do="use [...]",
        )
    side = [_prompt(p) for p in prompts]
    if not side:
        raise PromptError(
            "prompts", f"{name} is empty", expected="at least one prompt", got="0", do="add some"
        )
    return side


def _prompt(prompt: AnyPrompt) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    return Prompt(messages=tuple(prompt))
