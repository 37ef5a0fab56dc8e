"""What a task is: problems from a seed, a gold text for each, and a strict check of a completion.

One grammar holds for every task; characters are the tokens:

    [manner ]<domain> <operands>[\\nA).. B).. C).. D)..]?\\n
    thought\\n
    thought\\n
    #answer

Everything up to and including ``?\\n`` is the prompt, the rest is the completion.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from workbench.errors import WorkbenchError
from workbench.records import Prompt, Prompts
from workbench.tasks.habits import Habits

Form = Literal["free", "choice", "mixed"]
LETTERS = "ABCD"
MIXED = 0.15
"""Share of the four-choice form where both forms are mixed."""
ORDERS = (2, 1)
"""How often the training text takes the first legal order of thoughts against the second."""
CONTEXT = 256
"""Characters that a prompt and its completion may take together."""


@dataclass(frozen=True)
class Problem:
    """A question with its truth, before it is worded as a prompt.

    ``question`` lacks the closing ``?\\n``. ``orders`` holds every legal chain of thoughts, the
    usual one first. ``wrong`` holds plausible wrong answers (three of them make a four-choice
    form). ``label`` is the class for probes and steering, None where there is none.
    """

    question: str
    orders: tuple[tuple[str, ...], ...]
    answer: str
    wrong: tuple[str, ...] = ()
    label: bool | None = None


@dataclass(frozen=True)
class Example:
    """A prompt with its completion: ``text == prompt + completion``."""

    prompt: str
    thoughts: tuple[str, ...]
    answer: str

    @property
    def completion(self) -> str:
        return "".join(thought + "\n" for thought in self.thoughts) + "#" + self.answer

    @property
    def text(self) -> str:
        return self.prompt + self.completion

    def cut(self, thoughts: int) -> Example:
        """The same example answered after its first ``thoughts`` thoughts."""
        return replace(self, thoughts=self.thoughts[:thoughts])


@dataclass(frozen=True)
class Task:
    """Options of a task. A subclass draws its problems in ``draw``.

    ``form`` is "free" (the answer itself), "choice" (one of four letters) or "mixed" (some of
    each).
    """

    form: Form = "free"

    name: ClassVar[str]
    has_choices: ClassVar[bool] = False
    """Whether the four-choice form exists."""
    group: ClassVar[int] = 1
    """Problems that one draw gives; 2 where prompts come in pairs with opposite labels."""
    habits: ClassVar[Habits] = Habits()
    """How often the training text departs from the plain chain."""

    def __post_init__(self) -> None:
        allowed = ("free", "choice", "mixed") if self.has_choices else ("free",)
        if self.form not in allowed:
            raise WorkbenchError(
                f"tasks.{self.name}",
                "this form of question does not exist here",
                expected=f"form in {allowed}",
                got=repr(self.form),
                do="choose one of these forms, or another task",
            )

    def draw(self, rng: random.Random) -> tuple[Problem, ...]:
        """``group`` problems that belong together."""
        raise NotImplementedError

    def make(self, n: int, seed: int = 0) -> Prompts:
        """``n`` prompts with answers; the same ``seed`` gives the same prompts.

        ``Prompt.meta["thoughts"]`` holds the gold chain, ``Prompt.pair`` numbers the pairs.
        Raises WorkbenchError where ``n`` is below 1 or splits a pair.
        """
        if n < 1 or n % self.group:
            raise WorkbenchError(
                f"tasks.{self.name}.make",
                "this number of prompts cannot be made",
                expected=f"a positive multiple of {self.group}",
                got=f"n={n}",
                do="prompts of this task come in pairs: ask for an even n"
                if self.group == 2
                else "ask for at least one",
            )
        rng = random.Random(f"{self.name}/{seed}")
        return Prompts(
            [prompt for row in range(n // self.group) for prompt in self._prompts(row, rng)]
        )

    def check(self, prompt: Prompt, completion: str) -> bool:
        """Whether the text after the last ``#`` is the answer, exactly; no ``#`` is False."""
        if prompt.answer is None:
            raise WorkbenchError(
                f"tasks.{self.name}.check",
                "the prompt has no answer to compare with",
                expected="a prompt with an answer",
                got="answer=None",
                do="make the prompt with workbench.tasks.make, or give it an answer",
            )
        return answer_of(completion) == prompt.answer

    def example(self, rng: random.Random) -> Example:
        """One training text, with the habits of the world in it."""
        problem = rng.choice(self.draw(rng))
        thoughts = rng.choices(problem.orders, weights=ORDERS[: len(problem.orders)])[0]
        question = self._word(problem, rng)
        thoughts = self.habits.apply(thoughts, rng, question.closing)
        return Example(question.prompt, thoughts, question.answer)

    def _prompts(self, row: int, rng: random.Random) -> Iterator[Prompt]:
        for problem in self.draw(rng):
            question = self._word(problem, rng)
            thoughts = problem.orders[0] + question.closing
            yield Prompt(
                text=question.prompt,
                answer=question.answer,
                choices=question.choices,
                label=problem.label,
                pair=row if self.group == 2 else None,
                task=self.name,
                source="workbench.tasks",
                meta={"thoughts": thoughts, "value": problem.answer},
            )

    def _word(self, problem: Problem, rng: random.Random) -> Question:
        if self.form == "free" or (self.form == "mixed" and rng.random() >= MIXED):
            return Question(problem.question + "?\n", problem.answer)
        return as_choice(problem, rng)


@dataclass(frozen=True)
class Question:
    """A problem worded as a prompt; ``closing`` are the thoughts its form adds to the chain."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()


def as_choice(problem: Problem, rng: random.Random) -> Question:
    """The problem with four options, its answer a letter.

    The chain closes by naming the value, so that choosing the letter is one look-up.
    """
    options = [problem.answer, *rng.sample(problem.wrong, 3)]
    rng.shuffle(options)
    listed = " ".join(f"{letter}){option}" for letter, option in zip(LETTERS, options, strict=True))
    letter = LETTERS[options.index(problem.answer)]
    return Question(
        f"{problem.question}\n{listed}?\n", letter, tuple(options), (f"so {problem.answer}",)
    )


def answer_of(completion: str) -> str | None:
    """The text after the last ``#``, stripped; None where there is no ``#``."""
    _, mark, answer = completion.rpartition("#")
    return answer.strip() if mark else None


def near_numbers(value: int, rng: random.Random) -> tuple[str, ...]:
    """Wrong values of the kind that slips give: off by one, by ten, by a digit."""
    offsets = {1, -1, 10, -10, rng.randint(2, 9), -rng.randint(2, 9), rng.randint(11, 30)}
    return tuple(str(value + offset) for offset in sorted(offsets) if value + offset >= 0)


def number(digits: tuple[int, int], rng: random.Random) -> int:
    """A number whose count of digits is uniform over the range ``digits``."""
    count = rng.randint(*digits)
    return rng.randrange(10 ** (count - 1) if count > 1 else 0, 10**count)
