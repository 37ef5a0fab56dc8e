"""Whether a continuation is a text of the shipped world: thoughts, one a line, then `#answer`."""

from __future__ import annotations

import re

from workbench.records import Prompt

SOURCE = "workbench.tasks"
"""`Prompt.source` of the prompts that this grammar is for."""
_SUM = r"-?\d+(?:[-+*%]\d+)+=-?\d+"
_ORDER = r"\d+>\d+|\d+<\d+(?: \d+)*"
_THOUGHT = re.compile(rf"wait|so [^#]+|(?:(?:first|then|check) )?(?:{_SUM}|{_ORDER}|[a-z]{{1,2}})")
_ANSWER = re.compile(r"#-?[0-9A-Za-z]+(?: [0-9a-z]+)*")


def of_the_world(prompt: Prompt, text: str) -> bool:  # noqa: ARG001
    """Whether every line is a thought and the last an answer; not whether any of it is true."""
    *thoughts, answer = text.split("\n")
    said = all(_THOUGHT.fullmatch(thought) for thought in thoughts)
    return said and bool(_ANSWER.fullmatch(answer))
