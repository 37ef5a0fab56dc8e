"""From prompts to cases: answers as single tokens, columns side by side, and refusals in words."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests import tiny
from workbench.locate.base import Cases
from workbench.patching.cases import cases_of

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
stories_only = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="stories260K is not in ../shared/data"
)


def made(clean: Any, corrupted: Any = None, answers: Any = "a", **options: Any) -> Cases:
    corrupted = clean if corrupted is None else corrupted
    prompts = wb.prompts.counterfactuals(
        clean=clean, corrupted=corrupted, answers=answers, **options
    )
    return cases_of(tiny.model(), prompts)


def letters(*texts: str) -> list[int]:
    return [tiny.tokenizer().convert_tokens_to_ids(text) for text in texts]


# which column stands against which


def test_equally_long_sides_stand_column_by_column_whatever_the_padding() -> None:
    cases = made(["abcd", "ab"], ["xbcd", "xb"])
    assert cases.columns is not None
    assert cases.columns.tolist() == [[0, 1, 2, 3, 4], [-1, -1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("align", "wanted"),
    [
        # beginning of sequence and "abcd" against "xy"; "ab" against "wxyz", in batches of width 5
        ("start", [[2, 3, 4, -1, -1], [-1, -1, 0, 1, 2]]),
        ("end", [[-1, -1, 2, 3, 4], [-1, -1, 2, 3, 4]]),
    ],
)
def test_different_lengths_are_matched_from_the_start_or_from_the_end(
    align: Any, wanted: list[list[int]]
) -> None:
    # the third pair only makes both batches five wide
    cases = made(["abcd", "ab", "cccc"], ["xy", "wxyz", "cccc"], align=align)
    assert cases.columns is not None and cases.columns[:2].tolist() == wanted
    longer = made(["ab"], ["wxyz"], align=align).columns
    assert longer is not None
    assert longer.tolist() == ([[0, 1, 2]] if align == "start" else [[2, 3, 4]])


def test_different_lengths_are_refused_where_nobody_says_how() -> None:
    with pytest.raises(wb.WorkbenchError, match="different lengths") as caught:
        made(["abc", "ab"], ["abd", "abcd"])
    assert "align=" in str(caught.value) and "'ab'" in str(caught.value)
    with pytest.raises(wb.WorkbenchError, match="no way to match"):
        made(["ab"], ["abcd"], align="middle")


texts = st.text("abcdef", min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.sampled_from(["start", "end"]))
def test_swapped_twice_is_the_same_and_values_come_back(
    pairs: list[tuple[str, str]], align: str
) -> None:
    clean, corrupted = map(list, zip(*pairs, strict=True))
    cases = made(clean, corrupted, answers="x", foils="y", align=align)
    assert cases.columns is not None and cases.corrupted is not None
    back = cases.swapped
    assert back.clean is cases.corrupted and back.corrupted is cases.clean
    assert back.answer is cases.foil and back.foil is cases.answer
    assert back.columns is not None and back.columns.shape == cases.corrupted.ids.shape
    again = back.swapped
    assert again.columns is not None and torch.equal(again.columns, cases.columns)
    paired = cases.columns >= 0
    assert (paired.sum(1) == torch.tensor([1 + min(map(len, pair)) for pair in pairs])).all()
    # a value put on the other side's columns and back is itself, and 0 where it has no counterpart
    values = torch.arange(1.0, 1.0 + cases.clean.ids.numel()).reshape(*cases.clean.ids.shape, 1)
    there = back.aligned(values)
    torch.testing.assert_close(cases.aligned(there)[..., 0], values[..., 0] * paired)
    assert torch.equal(there[..., 0] != 0, back.columns >= 0)
    # only tokens stand against tokens
    assert cases.corrupted.mask[(back.columns >= 0)].all() and cases.clean.mask[paired].all()


def test_without_a_corrupted_side_nothing_is_swapped() -> None:
    cases = cases_of(tiny.model(), ["abc"])
    assert (cases.corrupted, cases.columns, cases.answer, cases.foil) == (None,) * 4
    with pytest.raises(wb.WorkbenchError, match="no corrupted side"):
        _ = cases.swapped


# answers


def test_answers_are_texts_or_ids_one_for_all_or_one_each() -> None:
    for given_, wanted in (
        ("a", letters("a", "a")),
        (["a", "b"], letters("a", "b")),
        (7, [7, 7]),
        (["a", 7], [*letters("a"), 7]),
        (np.array([5, 6]), [5, 6]),
        (np.int64(5), [5, 5]),
        (torch.tensor([5, 6]), [5, 6]),
    ):
        cases = made(["abc", "abd"], answers=given_, foils="z")
        assert cases.answer is not None and cases.answer.tolist() == wanted
        assert cases.foil is not None and cases.foil.tolist() == letters("z", "z")


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ("ab", "not one token"),
        ("", "not one token"),
        ("é", "not one token"),  # which the vocabulary cannot spell
        (tiny.N_VOCAB, "no token"),
        (-1, "no token"),
        (None, "neither text nor a token id"),
        (1.5, "neither text nor a token id"),
    ],
)
def test_an_answer_that_is_not_one_token_is_refused(answer: Any, match: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=match):
        made(["abc", "abd"], answers=["a", answer])


def test_as_many_answers_as_pairs() -> None:
    with pytest.raises(wb.WorkbenchError, match="one per pair"):
        made(["abc", "abd"], answers=["a", "b", "c"])


def test_an_answer_that_is_its_foil_is_refused() -> None:
    with pytest.raises(wb.WorkbenchError, match="as answer and as foil") as caught:
        made(["abc", "abd"], answers=["a", "b"], foils=["c", "b"])
    assert "'abd'" in str(caught.value)


@cache
def stories() -> wb.Model:
    return wb.load(FOLDER)


@stories_only
@pytest.mark.parametrize(
    ("prompt", "answer", "wanted"),
    [
        ("There was a girl.", " She", "▁She"),
        ("There was a gir", "l", "l"),  # goes on inside a word: not "▁l"
        ("There was a girl named Lil", "y", "y"),  # "Lily" is one token: read behind a line's end
        ("Once upon a", "\n", "<0x0A>"),
        ("Once", " upon", "▁upon"),
    ],
)
def test_sentencepiece_spells_an_answer_as_the_text_goes_on(
    prompt: str, answer: str, wanted: str
) -> None:
    given_ = wb.prompts.counterfactuals(clean=[prompt], corrupted=[prompt], answers=answer)
    found = cases_of(stories(), given_).answer
    assert found is not None
    assert stories().tokenizer.convert_ids_to_tokens(found.tolist()) == [wanted]


@stories_only
@pytest.mark.parametrize("answer", ["She", " girl", " upon a time"])
def test_sentencepiece_words_of_several_pieces_are_refused(answer: str) -> None:
    """ "She" without its space goes on inside a word, and is two pieces there."""
    prompt = "There was a girl."
    given_ = wb.prompts.counterfactuals(clean=[prompt], corrupted=[prompt], answers=answer)
    with pytest.raises(wb.WorkbenchError, match="not one token"):
        cases_of(stories(), given_)


def test_a_chats_answer_is_read_behind_its_template() -> None:
    import copy

    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}="
    model = wb.load(tiny.module("llama"), tokenizer)
    chat = [[{"role": "user", "content": "ab"}]]
    cases = cases_of(
        model, wb.prompts.counterfactuals(clean=chat, corrupted=chat, answers="c", foils="d")
    )
    assert cases.answer is not None and cases.answer.tolist() == letters("c")
    with pytest.raises(wb.WorkbenchError, match="not one token"):
        cases_of(model, wb.prompts.counterfactuals(clean=chat, corrupted=chat, answers="cd"))


# what has to be there


@pytest.mark.parametrize("need", ["answer", "foil", "corrupted"])
def test_a_missing_need_is_said(need: Any) -> None:
    with pytest.raises(wb.WorkbenchError, match=f"no {need}"):
        cases_of(tiny.model(), ["abc"], [need])


def test_a_tasks_own_answer_counts_only_where_one_is_read() -> None:
    prompts = [wb.Prompt("abc", answer="d")]
    assert cases_of(tiny.model(), prompts).answer is None
    answer = cases_of(tiny.model(), prompts, ["answer"]).answer
    assert answer is not None and answer.tolist() == letters("d")


def test_sides_that_do_not_match_are_refused_and_cases_are_taken_as_they_are() -> None:
    prompts = wb.prompts.counterfactuals(clean=["ab", "cd"], corrupted=["ax", "cx"], answers="a")
    with pytest.raises(wb.WorkbenchError, match="do not match"):
        cases_of(tiny.model(), prompts[:3])
    cases = cases_of(tiny.model(), prompts)
    assert cases_of(tiny.model(), cases, ["answer"]) is cases


# what is read off the last position


@pytest.mark.parametrize("foils", [None, "b"])
def test_metrics_by_hand_also_where_cases_are_repeated(foils: Any) -> None:
    cases = made(["abc", "abd"], answers=["a", "c"], foils=foils)
    logits = torch.randn(6, tiny.N_VOCAB)
    rows, answer = torch.arange(6), torch.tensor(letters("a", "c") * 3)
    other = logits.mean(-1) if foils is None else logits[rows, letters("b")[0]]
    logp = logits.double().log_softmax(-1)[rows, answer].float()
    for kind, wanted in (
        ("logit_difference", logits[rows, answer] - other),
        ("logprob", logp),
        ("probability", logp.exp()),
    ):
        torch.testing.assert_close(cases.metric(logits, kind), wanted)
    with pytest.raises(wb.WorkbenchError, match="metric"):
        cases.metric(logits, "accuracy")
