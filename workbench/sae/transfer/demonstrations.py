"""Worked examples before a query, and where the query's own tokens then are.

    <demonstration 0> <its completion> <separator> ... <query> [<its completion>]

Texts are put one behind another in the model's own format; chat messages become turns of one
conversation, which the tokenizer's template renders.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench import tasks
from workbench.errors import PromptError, WorkbenchError, unknown
from workbench.model.tokens import as_prompts, encode
from workbench.prompts import chat
from workbench.records import Prompt, Prompts

COUNTED = ("prompt", "completion", "both")
JOINS = ("text", "ids")


@dataclass(frozen=True)
class Domain:
    """What stands for a domain.

    Attributes:
        queries: prompts of it, at least two.
        demonstrations: other prompts of it, with answers; `[]` for none, None where they are not given
            and the domain is a target only.
    """

    queries: Any
    demonstrations: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", as_prompts(self.queries))  # iterators are read once
        if self.demonstrations is not None:
            object.__setattr__(self, "demonstrations", as_demonstrations(self.demonstrations))


@dataclass(frozen=True)
class Sequences:
    """What the model reads, and what of it counts.

    Attributes:
        prompts: one per query.
        completions: ids read after each.
        last: how many tokens at each one's end are the query's; None where all count.
    """

    prompts: list[Prompt]
    completions: list[list[int]]
    last: list[int] | None

    def __len__(self) -> int:
        return len(self.prompts)

    def half(self, second: bool) -> Sequences:
        """The first or the second half of the queries."""
        middle = len(self) // 2
        part = slice(middle, None) if second else slice(0, middle)
        last = None if self.last is None else self.last[part]
        return Sequences(self.prompts[part], self.completions[part], last)


def completion_of(prompt: Prompt) -> str:
    """The completion that a prompt should get: `meta["completion"]`, its task's gold text, its answer.

    Raises:
        PromptError: it has none of them.
    """
    if "completion" in prompt.meta:
        return str(prompt.meta["completion"])
    if prompt.text is not None and prompt.answer is not None and "thoughts" in prompt.meta:
        return tasks.gold(prompt).completion
    if prompt.answer is None:
        raise PromptError(
            f"prompt {(prompt.text or str(prompt.messages))[:40]!r}",
            "has no completion to show",
            expected="meta['completion'], or an answer",
            got="neither",
            do="give it an answer, or meta={'completion': '...'}",
        )
    return prompt.answer


def with_demonstrations(
    prompts: Any, demonstrations: Any = (), *, separator: str = "\n"
) -> Prompts:
    """Every prompt behind the same worked examples.

    Args:
        prompts: what is asked, texts or chats; answers, labels and tasks stay with them.
        demonstrations: prompts with completions, see `completion_of`; texts for texts, chats for chats.
            None of them leaves the prompts as they are.
        separator: after each completion of a text; a chat has its turns instead.

    Raises:
        PromptError: a demonstration without completion, or of the other kind.
    """
    many, shown = as_prompts(prompts), as_demonstrations(demonstrations)
    return Prompts([_behind(prompt, shown, separator) for prompt in many] if shown else many)


def shuffled(model: Any, demonstrations: Any, seed: int) -> list[Prompt]:
    """The same demonstrations with the tokens of each text in a random order: as long, and no examples."""
    rng = random.Random(seed)

    def mixed(text: str) -> str:
        pieces = [model.tokenizer.decode([i]) for i in _plain(model, text)]
        rng.shuffle(pieces)
        return "".join(pieces)

    found = []
    for one in as_demonstrations(demonstrations):
        meta = {**one.meta, "completion": mixed(completion_of(one))}
        if one.messages is None:
            found.append(replace(one, text=mixed(one.text or ""), meta=meta))
        else:
            turns = tuple({**turn, "content": mixed(turn["content"])} for turn in one.messages)
            found.append(replace(one, messages=turns, meta=meta))
    return found


def sequences(
    model: Any,
    queries: Sequence[Prompt],
    demonstrations: Any = (),
    *,
    counted: str = "prompt",
    separator: str = "\n",
    join: str = "text",
) -> Sequences:
    """What is read of `queries` behind `demonstrations`, and how many tokens of it are the query's.

    Args:
        model: whose tokenizer and context.
        queries, demonstrations, separator: as in `with_demonstrations`.
        counted: whether a query is its prompt, its gold completion (which is then read as well), or both.
        join: "text" tokenises the whole text; "ids" puts the query's ids, as they are alone, behind those
            of the demonstrations, for tokenizers that merge across the border.

    Raises:
        PromptError: no room in the context, or the query has other tokens behind the demonstrations.
    """
    for option, known in ((counted, COUNTED), (join, JOINS)):
        if option not in known:
            raise unknown("demonstrations", "choice", option, known)
    shown = as_demonstrations(demonstrations)
    answers = [_plain(model, completion_of(q)) if counted != "prompt" else [] for q in queries]
    own = [_plain(model, _tail(model, query)) for query in queries]
    if shown and join == "ids":
        heads, tails = _joined_by_ids(model, queries, shown, separator)
        tails = [tail + answer for tail, answer in zip(tails, answers, strict=True)]
    else:
        heads = list(with_demonstrations(queries, shown, separator=separator))
        tails = answers
    _check_room(model, queries, shown, separator, answers)
    if shown and join == "text":
        for query, head, ids in zip(queries, heads, own, strict=True):
            _check_border(model, query, head, len(ids))
    last = {
        "prompt": [len(ids) for ids in own],
        "completion": [len(answer) for answer in answers],
        "both": [len(ids) + len(answer) for ids, answer in zip(own, answers, strict=True)],
    }[counted]
    return Sequences(heads, tails, last)


def as_demonstrations(demonstrations: Any) -> list[Prompt]:
    """One or many texts or prompts as a list of `Prompt`; none is none."""
    if isinstance(demonstrations, Iterable) and not isinstance(demonstrations, str | Mapping):
        demonstrations = list(demonstrations)
        return as_prompts(demonstrations) if demonstrations else []
    return as_prompts(demonstrations)


def _behind(prompt: Prompt, shown: Sequence[Prompt], separator: str) -> Prompt:
    if len({p.messages is None for p in (prompt, *shown)}) > 1:
        raise PromptError(
            "with_demonstrations",
            "texts and chats are mixed",
            expected="demonstrations of the same kind as the prompts",
            got="text and messages",
            do="write both as text, or both as messages",
        )
    if prompt.messages is None:
        before = "".join(f"{one.text}{completion_of(one)}{separator}" for one in shown)
        return replace(prompt, text=before + str(prompt.text))
    system = [turn for turn in prompt.messages if turn["role"] == "system"]
    turns = [turn for turn in prompt.messages if turn["role"] != "system"]
    examples = [
        turn
        for one in shown
        for turn in (
            *(turn for turn in one.messages or () if turn["role"] != "system"),
            {"role": "assistant", "content": completion_of(one)},
        )
    ]
    return replace(prompt, messages=(*system, *examples, *turns))


def _plain(model: Any, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _tail(model: Any, query: Prompt) -> str:
    """The part of a query that stays its end behind anything: a text, or a chat from its last turn on."""
    if query.messages is None:
        return str(query.text)
    text, content = chat.render(model.tokenizer, query.messages), query.messages[-1]["content"]
    # templates strip what a turn says
    return text[max(0, text.rfind(content.strip())) :]


def _joined_by_ids(
    model: Any, queries: Sequence[Prompt], shown: Sequence[Prompt], separator: str
) -> tuple[list[Prompt], list[list[int]]]:
    if queries[0].messages is not None:
        raise PromptError(
            "join='ids'",
            "a chat is rendered as a whole",
            expected="texts",
            got="messages",
            do="leave join out",
        )
    prefix = "".join(f"{one.text}{completion_of(one)}{separator}" for one in shown)
    return [replace(q, text=prefix) for q in queries], [_plain(model, str(q.text)) for q in queries]


def _check_border(model: Any, query: Prompt, head: Prompt, n: int) -> None:
    alone, behind = encode(model.tokenizer, query)[-n:], encode(model.tokenizer, head)[-n:]
    if alone != behind:
        raise PromptError(
            f"query {(query.text or str(query.messages))[:40]!r}",
            "has other tokens behind the demonstrations: the tokenizer merges across the border",
            expected=f"the same last {n} tokens",
            got=f"{sum(a != b for a, b in zip(alone, behind, strict=False))} others",
            do="choose another separator, or say join='ids'",
        )


def _check_room(
    model: Any,
    queries: Sequence[Prompt],
    shown: Sequence[Prompt],
    separator: str,
    answers: Sequence[Sequence[int]],
) -> None:
    room = model.dims.n_context
    if not room:
        return

    def longest(n: int) -> int:
        heads = with_demonstrations(queries, shown[:n], separator=separator)
        return max(
            len(encode(model.tokenizer, head)) + len(answer)
            for head, answer in zip(heads, answers, strict=True)
        )

    needed = longest(len(shown))
    if needed <= room:
        return
    fitting = max((n for n in range(len(shown)) if longest(n) <= room), default=0)
    raise PromptError(
        "demonstrations",
        f"{len(shown)} of them and the longest query are longer than the context",
        expected=f"at most {room} tokens",
        got=needed,
        do=f"the first {fitting} fit: pass demonstrations[:{fitting}]"
        if fitting
        else "none fits: take shorter demonstrations, or shorter queries",
    )


def refuse_one(where: str, queries: Sequence[Prompt]) -> None:
    """A domain of one prompt has no interval.

    Raises:
        WorkbenchError: fewer than two queries.
    """
    if len(queries) < 2:
        raise WorkbenchError(
            where,
            "one prompt is no domain: its scores have no interval",
            expected="at least two queries",
            got=len(queries),
            do="pass more prompts of the domain",
        )
