"""Continuations as arrays: ids, log-probabilities and verdicts, so that a page can show them alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from workbench import tasks
from workbench.model.model import Model
from workbench.records import Generation, Prompt
from workbench_widgets.pieces import alternatives

WRONG, RIGHT, UNJUDGED = 0, 1, 2


def verdict(text: Generation) -> int:
    """What the checker of the prompt's task says."""
    if text.prompt.task is None or text.prompt.answer is None:
        return UNJUDGED
    return int(bool(tasks.check(text.prompt, text.text)))


def packed(model: Model, texts: Sequence[Generation]) -> dict[str, Any]:
    """Texts in order: `text_ids` and `text_logprobs` (nats) one after the other, `text_ends` `[text + 1]`
    where each ends, `text_right` (0, 1, or 2 for no checker), `text_stop`, and `pieces`, the text of
    every id that occurs.
    """
    ends = np.cumsum([0, *(len(text.ids) for text in texts)])
    ids = [i for text in texts for i in text.ids]
    used = sorted(set(ids))
    narrow = np.uint16 if max(used, default=0) < 2**16 else np.int32
    return {
        "text_ids": np.array(ids, narrow),
        "text_logprobs": np.array([p for text in texts for p in text.logprobs], np.float32),
        "text_ends": ends.astype(np.int32),
        "text_right": np.array([verdict(text) for text in texts], np.uint8),
        "text_stop": [text.stop for text in texts],
        "pieces": dict(zip(map(str, used), alternatives(model.tokenizer, used, ids), strict=True)),
    }


def shown(prompt: Prompt) -> str:
    """A prompt as people read it: its text, or its turns with their roles."""
    if prompt.text is not None:
        return prompt.text
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.messages or ())


def affordable(texts: Iterable[Sequence[Generation]], budget: int) -> int:
    """For how many prompts, the first ones, all texts together stay within `budget` tokens; at least 1."""
    groups = [list(group) for group in texts]
    total, n = 0, 0
    for same_prompt in zip(*groups, strict=True):
        total += sum(len(text.ids) for text in same_prompt)
        if total > budget and n:
            break
        n += 1
    return n
