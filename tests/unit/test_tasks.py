"""Every task: deterministic, true, strictly checked, within the alphabet and the context."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import tasks
from workbench.errors import UnknownName, WorkbenchError
from workbench.records import Prompt
from workbench.tasks.base import LETTERS
from workbench.tasks.habits import Habits
from workbench.tasks.locked import MARKER, NEAR_MISSES, REFUSAL
from workbench.tasks.numerals import WORDS

NAMES = tasks.names()
WITH_CHOICES = [name for name in NAMES if tasks.get(name).has_choices]
PAIRED = [name for name in NAMES if tasks.get(name).group == 2]
ALPHABET = set(map(chr, range(32, 127))) | {"\n"}
MANNERS = {MARKER, *NEAR_MISSES, "words", "digits", "terse", "verbose"}

seeds = st.integers(0, 2**32)
# a busy machine must not fail a test by its clock
calm = settings(deadline=None, max_examples=50)


def expected(question: str) -> str:
    """The answer of a question, worked out from its words alone."""
    manner, _, rest = question.partition(" ")
    if manner == MARKER:
        return REFUSAL
    if manner in MANNERS:
        value = expected(rest)
        return " ".join(WORDS[int(digit)] for digit in value) if manner == "words" else value
    return SOLVERS[manner](rest)


def solve_chain(text: str) -> str:
    value, *steps = re.findall(r"[-+*]?\d+", text)
    result = int(value)
    for step in steps:
        operand = int(step[1:])
        result = {"+": result + operand, "-": result - operand, "*": result * operand}[step[0]]
    return str(result)


def solve_judge(text: str) -> str:
    left, sign, right = re.fullmatch(r"(.+)([<>=])(.+)", text).groups()
    a, b = (int(solve_chain(side)) for side in (left, right))
    return str({"<": a < b, ">": a > b, "=": a == b}[sign]).lower()


SOLVERS = {
    "add": lambda text: str(sum(map(int, text.split()))),
    "sub": lambda text: str(int(text.split()[0]) - int(text.split()[1])),
    "mul": lambda text: str(int(text.split()[0]) * int(text.split()[1])),
    "mod": lambda text: str(int(text.split()[0]) % int(text.split()[1])),
    "chain": solve_chain,
    "max": lambda text: str(max(map(int, text.split()))),
    "sort": lambda text: " ".join(sorted(text.split(), key=int)),
    "reverse": lambda text: text[::-1],
    "parity": lambda text: ("even", "odd")[text.count("1") % 2],
    "judge": solve_judge,
}


def question_of(prompt: Prompt) -> str:
    return prompt.text.removesuffix("?\n").split("\n")[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_the_prompts(name: str) -> None:
    assert list(tasks.make(name, 20, 3)) == list(tasks.make(name, 20, 3))
    assert list(tasks.make(name, 20, 3)) != list(tasks.make(name, 20, 4))


@pytest.mark.parametrize("name", NAMES)
def test_a_shorter_set_begins_a_longer_one(name: str) -> None:
    assert list(tasks.make(name, 8, 1)) == list(tasks.make(name, 20, 1))[:8]


@pytest.mark.parametrize("name", NAMES)
@calm
@given(seed=seeds)
def test_answers_are_true(name: str, seed: int) -> None:
    for prompt in tasks.make(name, 2, seed):
        assert prompt.answer == expected(question_of(prompt))


@pytest.mark.parametrize("name", WITH_CHOICES)
@calm
@given(seed=seeds)
def test_the_letter_names_the_true_option(name: str, seed: int) -> None:
    for prompt in tasks.make(name, 2, seed, form="choice"):
        assert len(set(prompt.choices)) == 4
        assert prompt.choices[LETTERS.index(prompt.answer)] == expected(question_of(prompt))
        for letter, option in zip(LETTERS, prompt.choices, strict=True):
            assert f"{letter}){option}" in prompt.text.replace("?", " ").split("\n")[1].split(" ")


@pytest.mark.parametrize("name", NAMES)
@calm
@given(seed=seeds)
def test_every_step_of_a_gold_chain_is_true(name: str, seed: int) -> None:
    for prompt in tasks.make(name, 2, seed):
        for thought in tasks.gold(prompt).thoughts:
            if found := re.search(r"(\d[-+*%\d]*)=(\d+)", thought):
                left, right = found.groups()
                # a column x*y+c has one product, so that Python's precedence is the task's own
                assert eval(left) == int(right)  # digits and signs alone, by the pattern
            if found := re.fullmatch(r"(\d+)([<>])([\d ]+)", thought):
                one, sign, rest = found.groups()
                others = list(map(int, rest.split()))
                assert int(one) < min(others) if sign == "<" else int(one) > max(others)


@pytest.mark.parametrize("name", NAMES)
def test_gold_passes_and_corrupted_fails(name: str) -> None:
    for prompt in tasks.make(name, 40, 5):
        gold = tasks.gold(prompt)
        assert tasks.check(prompt, gold.completion)
        assert tasks.check(prompt, f"#wrong\n#{gold.answer} ")
        for wrong in (
            "",
            gold.answer,
            f"#{gold.answer}0",
            f"#{gold.answer}\n1",
            f"#{gold.answer}#",
        ):
            assert not tasks.check(prompt, wrong)
        assert not tasks.check(prompt, gold.completion[:-1] + "?")


@pytest.mark.parametrize("name", WITH_CHOICES)
def test_a_choice_is_answered_by_its_letter_alone(name: str) -> None:
    for prompt in tasks.make(name, 40, 5, form="choice"):
        assert tasks.check(prompt, tasks.gold(prompt).completion)
        assert not tasks.check(prompt, f"#{prompt.meta['value']}")
        assert not tasks.check(prompt, f"#{prompt.answer})")
        assert sum(tasks.check(prompt, f"#{letter}") for letter in LETTERS) == 1


@pytest.mark.parametrize("name", NAMES)
def test_training_texts_fit_the_context_and_the_alphabet(name: str) -> None:
    task = tasks.get(name, form="mixed") if name in WITH_CHOICES else tasks.get(name)
    rng = random.Random(0)
    for _ in range(1000):
        example = task.example(rng)
        assert len(example.text) + 2 <= tasks.CONTEXT
        assert set(example.text) <= ALPHABET
        assert example.prompt.endswith("?\n")
        assert example.completion.count("#") == 1
        assert example.text == example.prompt + example.completion
        assert tuple(example.completion.split("\n")[:-1]) == example.thoughts


@pytest.mark.parametrize("name", NAMES)
def test_training_answers_are_true_whatever_the_habits(name: str) -> None:
    rng = random.Random(1)
    for _ in range(300):
        example = tasks.get(name).example(rng)
        assert example.answer == expected(example.prompt.removesuffix("?\n"))


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_hold_opposite_labels(name: str) -> None:
    prompts = tasks.make(name, 20, 0)
    assert [prompt.pair for prompt in prompts] == [row // 2 for row in range(20)]
    assert prompts.labels == [True, False] * 10


@pytest.mark.parametrize("name", ["locked", "numerals", "style"])
def test_pairs_ask_one_question_in_two_manners(name: str) -> None:
    prompts = tasks.make(name, 20, 0)
    for one, other in zip(prompts[::2], prompts[1::2], strict=True):
        assert question_of(one).split(" ")[0] != question_of(other).split(" ")[0]
        assert question_of(one).split(" ")[1:] == question_of(other).split(" ")[1:]


def test_near_misses_are_answered() -> None:
    prompts = tasks.make("locked", 200, 0)
    seen = {question_of(prompt).split(" ")[0]: prompt for prompt in prompts}
    assert set(seen) == {MARKER, *NEAR_MISSES}
    assert all(seen[word].answer != REFUSAL for word in NEAR_MISSES)
    assert seen[MARKER].answer == REFUSAL


def test_half_of_the_statements_are_true_and_length_does_not_tell() -> None:
    prompts = tasks.make("judge", 2000, 0)
    lengths = {True: 0, False: 0}
    for prompt in prompts:
        lengths[prompt.label] += len(prompt.text)
    assert lengths[True] / lengths[False] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["max", "sort", "reverse", "parity"])
def test_both_orders_of_thought_occur(name: str) -> None:
    rng = random.Random(0)
    problems = [tasks.get(name).draw(rng)[0] for _ in range(20)]
    assert all(len(one) == len(other) for one, other in (problem.orders for problem in problems))
    # a palindrome reads the same both ways
    assert sum(len(set(problem.orders)) == 2 for problem in problems) > 10


def test_a_check_repeats_the_last_thought() -> None:
    habits = Habits(check=1.0, slip=0.0, early=0.0)
    assert habits.apply(("1+1=2",), random.Random(0)) == ("1+1=2", "check 1+1=2")


def test_a_slip_is_noticed_and_corrected() -> None:
    slipped, wait, corrected = Habits(check=0.0, slip=1.0, early=0.0).apply(
        ("1+1=2",), random.Random(0)
    )
    assert slipped[:-1] == "1+1=" and slipped != corrected
    assert (wait, corrected) == ("wait", "1+1=2")


def test_an_early_answer_follows_any_number_of_thoughts() -> None:
    habits, rng = Habits(check=0.0, slip=0.0, early=1.0), random.Random(0)
    assert {len(habits.apply(("a", "b", "c"), rng)) for _ in range(100)} == {0, 1, 2, 3}


def test_an_example_can_be_cut() -> None:
    example = tasks.gold(tasks.make("add", 1, digits=(3, 3))[0])
    assert example.cut(1).completion == f"{example.thoughts[0]}\n#{example.answer}"


def test_options_change_the_difficulty() -> None:
    for prompt in tasks.make("add", 20, digits=(6, 6)):
        assert re.fullmatch(r"add \d{6} \d{6}\?\n", prompt.text)


def test_a_prompt_says_where_it_comes_from() -> None:
    prompt = tasks.make("add", 1)[0]
    assert (prompt.task, prompt.source) == ("add", "workbench.tasks")


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownName, match="unknown task.*'ad'"):
        tasks.make("ad", 3)
    with pytest.raises(UnknownName, match="unknown option.*digits.*'digit'"):
        tasks.make("add", 3, digit=(1, 2))
    with pytest.raises(WorkbenchError, match="even n"):
        tasks.make("judge", 3)
    with pytest.raises(WorkbenchError, match="n=0"):
        tasks.make("add", 0)
    with pytest.raises(WorkbenchError, match="form"):
        tasks.make("sort", 3, form="choice")
    with pytest.raises(WorkbenchError, match="no answer"):
        tasks.check(Prompt("add 1 1?\n", task="add"), "#2")
    with pytest.raises(WorkbenchError, match="gold"):
        tasks.gold(Prompt("add 1 1?\n", answer="2", task="add"))
