"""A prompt as chips: the ids that the model reads, what each spells, and whose turn it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import PromptError
from workbench.model.model import Model
from workbench.prompts import chat
from workbench.records import Prompt
from workbench_widgets.spelling import Spelled, spell_text


def as_prompt(prompt: Any, where: str = "PromptBar") -> Prompt:
    """A text, a Prompt or a list of chat messages as a Prompt.

    Raises:
        PromptError: none of these, or empty.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    turns = list(prompt) if isinstance(prompt, Sequence) else []
    wrong = [t for t in turns if not isinstance(t, Mapping) or not {"role", "content"} <= set(t)]
    if not turns or wrong:
        raise PromptError(
            where,
            "is no prompt",
            expected="a text, a Prompt, or messages such as {'role': 'user', 'content': '...'}",
            got=repr((wrong or [prompt])[0])[:60],
            do="pass one of these",
        )
    return Prompt(messages=tuple({k: str(v) for k, v in turn.items()} for turn in turns))


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
    ids = model.tokens([prompt]).ids[0].tolist()
    text = prompt.text or ""
    if prompt.messages is not None:
        text = chat.render(model.tokenizer, prompt.messages)
    pieces = spell_text(model.tokenizer, text, ids, special=prompt.messages is None)
    joined = "".join(piece.text for piece in pieces)
    return {
        "ids": ids,
        "text": [piece.text for piece in pieces],
        "shown": [piece.shown for piece in pieces],
        "special": [piece.special for piece in pieces],
        "turn": _turns(prompt.messages or (), text, pieces),
        "roles": [str(m["role"]) for m in prompt.messages or ()],
        "joined": joined,
        "exact": joined == _read(model.tokenizer, text),
        "n_context": model.dims.n_context,
    }


def _read(tokenizer: Any, text: str) -> str:
    """The text without a beginning-of-sequence token that the user wrote out: it adds no text."""
    bos = tokenizer.bos_token
    return text[len(bos) :] if bos and text.startswith(bos) else text


def _turns(
    messages: Sequence[Mapping[str, str]], text: str, pieces: Sequence[Spelled]
) -> list[int]:
    """For each token the message that it writes, -1 for what the template adds."""
    spans, at = [], 0
    for message in messages:
        content = str(message["content"]).strip()
        start = text.find(content, at) if content else -1
        spans.append((start, start + len(content)) if start >= 0 else (0, 0))
        at = max(at, spans[-1][1])
    out, place = [], 0
    for piece in pieces:
        end = place + len(piece.text)
        holds = (k for k, (a, b) in enumerate(spans) if max(a, place) < min(b, max(end, place + 1)))
        out.append(next(holds, -1))
        place = end
    return out
