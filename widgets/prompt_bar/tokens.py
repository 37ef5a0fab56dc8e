"""A prompt as chips: the ids that the model reads, what each spells, and whose turn it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import PromptError
from workbench.model.model import Model
from workbench.records import Prompt
from workbench_widgets.prompt_bar import turns
from workbench_widgets.spelling import spell_prompt


def as_prompt(prompt: Any, where: str = "PromptBar") -> Prompt:
    """A text, a Prompt or a list of chat messages as a Prompt.

    Raises:
        PromptError: none of these, or empty.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    many = list(prompt) if isinstance(prompt, Sequence) else []
    wrong = [t for t in many if not isinstance(t, Mapping) or not {"role", "content"} <= set(t)]
    if not many or wrong:
        raise PromptError(
            where,
            "is no prompt",
            expected="a text, a Prompt, or messages such as {'role': 'user', 'content': '...'}",
            got=repr((wrong or [prompt])[0])[:60],
            do="pass one of these",
        )
    return Prompt(messages=tuple({k: str(v) for k, v in turn.items()} for turn in many))


def plain(prompt: Prompt) -> dict[str, Any]:
    """What the browser edits: the text, or the messages."""
    if prompt.messages is not None:
        return {"messages": [dict(m) for m in prompt.messages]}
    return {"text": prompt.text}


def chips(model: Model, prompt: Prompt) -> dict[str, Any]:
    """Ids, texts, turns and whether the tokens joined give the text back.

    Raises:
        PromptError: empty, longer than the context, or not spelled by this vocabulary.
    """
    ids, text, pieces = spell_prompt(model, prompt)
    joined = "".join(piece.text for piece in pieces)
    spans = turns.spans(model.tokenizer, prompt.messages or (), text)
    return {
        "ids": ids,
        "text": [piece.text for piece in pieces],
        "shown": [piece.shown for piece in pieces],
        "special": [piece.special for piece in pieces],
        "turn": turns.of_pieces(spans, text, pieces),
        "roles": [str(m["role"]) for m in prompt.messages or ()],
        "joined": joined,
        # a beginning-of-sequence token that the text writes out may count as text or not
        "exact": joined in (text, text.removeprefix(model.tokenizer.bos_token or "")),
        "n_context": model.dims.n_context,
    }
