"""The one place where chat messages become text: the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import PromptError


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The text an instruct model reads for `messages`, ending where its answer begins.

    The template writes the special tokens itself, so the text is tokenised without adding any.

    Raises:
        PromptError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "Prompt(messages=...)",
            "this model has no chat template",
            expected="an instruct model's tokenizer",
            got="a tokenizer without chat_template",
            do="use Prompt(text=...), or set tokenizer.chat_template",
        )
    return tokenizer.apply_chat_template(
        [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
    )
