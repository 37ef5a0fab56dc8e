"""The records without tensors: what goes in (Prompt), what comes out (Generation), what is compared.

Table and Figure live beside their code in `comparison/table.py`; they hold no tensors either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from workbench.errors import PromptError


@dataclass(frozen=True)
class Prompt:
    """One thing to ask a model: plain `text`, or chat `messages` that the tokenizer's template renders.

    Attributes:
        text: the exact text the model reads, without the beginning-of-sequence token.
        messages: chat turns `{"role", "content"}`; exclusive with `text`.
        answer: the right answer as the task's checker wants it.
        choices: the options of a multiple-choice prompt, in order.
        label: class or number for probes and contrasts.
        pair: prompts with equal `pair` form a contrast pair.
        task: registry name of the task whose checker judges a completion.
        source: where the prompt comes from.
        meta: anything else, e.g. the gold chain of thought.
    """

    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    label: bool | int | float | str | None = None
    pair: int | None = None
    task: str | None = None
    source: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise PromptError(
                "Prompt",
                "needs exactly one of text and messages",
                expected="one of them",
                got="both" if self.text is not None else "neither",
                do="pass text='...' or messages=[{'role': 'user', 'content': '...'}]",
            )
        if self.text == "":
            raise PromptError("Prompt", "is empty", expected="text", got="''", do="pass some text")


class Prompts(Sequence[Prompt]):
    """An immutable list of prompts that reads well."""

    def __init__(self, items: Iterable[Prompt]):
        self._items = tuple(items)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | Prompts:
        if isinstance(index, slice):
            return Prompts(self._items[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._items)

    def __add__(self, other: Iterable[Prompt]) -> Prompts:
        return Prompts((*self._items, *other))

    def __repr__(self) -> str:
        first = repr((self._items[0].text or self._items[0].messages) if self._items else "")
        return f"Prompts(n={len(self)}, first={first[:60]})"

    @property
    def labels(self) -> list[bool | int | float | str | None]:
        """The label of each prompt."""
        return [p.label for p in self._items]

    def with_task(self, task: str) -> Prompts:
        """The same prompts, judged by `task`'s checker."""
        return Prompts(replace(p, task=task) for p in self._items)


@dataclass(frozen=True)
class Receipt:
    """What one edit did in one call, so that nothing is ever silently a no-op.

    Attributes:
        edit: name of the intervention.
        site: where it acted.
        fired: forwards in which the site was reached.
        positions: token positions (over rows and forwards) that the scope covered.
        change: Euclidean size of everything it changed at the site, in the site's own units.
    """

    edit: str
    site: str
    fired: int
    positions: int
    change: float


@dataclass(frozen=True)
class Generation:
    """One continuation of one prompt.

    Attributes:
        prompt: what was asked.
        arm: name of the compared arm, "" outside a comparison.
        seed: the seed of the call.
        ids: generated token ids, the stop token included when one was drawn.
        text: the decoded continuation, special tokens left out.
        logprobs: log-probability in nats of each drawn token under the edited, *undecoded* model
            (before temperature and truncation).
        stop: why it ended: "eos", "text" (a stop string) or "length".
    """

    prompt: Prompt
    arm: str
    seed: int
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    stop: str
