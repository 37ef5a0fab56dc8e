"""Habits of reasoning in the training text: redundant checks, corrected slips, early answers."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """Shares of the training text that show each habit, in [0, 1].

    ``check`` repeats the last thought behind the word ``check``. ``slip`` writes one thought with
    a wrong end, then ``wait``, then the thought as it should be. ``early`` answers after a random
    number of thoughts, so that an answer forced at any boundary has been seen in training.
    """

    check: float = 0.1
    slip: float = 0.08
    early: float = 0.12

    def apply(
        self, thoughts: tuple[str, ...], rng: random.Random, closing: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        """A chain with these habits and then ``closing``; no thoughts at all stay none."""
        if thoughts and rng.random() < self.check:
            thoughts = (*thoughts, "check " + thoughts[-1])
        thoughts += closing
        if not thoughts:
            return thoughts
        if rng.random() < self.slip:
            thoughts = with_slip(thoughts, rng)
        if rng.random() < self.early:
            thoughts = thoughts[: rng.randrange(len(thoughts) + 1)]
        return thoughts


def with_slip(thoughts: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """The chain with one thought slipped, noticed (``wait``) and written again."""
    at = rng.randrange(len(thoughts))
    return (*thoughts[:at], slipped(thoughts[at], rng), "wait", *thoughts[at:])


def slipped(thought: str, rng: random.Random) -> str:
    """The thought with another last character of the same kind."""
    kind = "0123456789" if thought[-1].isdigit() else "abcdefgh"
    return thought[:-1] + rng.choice([c for c in kind if c != thought[-1]])
