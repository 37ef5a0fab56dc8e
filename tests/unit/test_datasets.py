"""Readers of published steering data, on the real files where they are beside this checkout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests import tiny
from workbench import prompts, steering
from workbench.errors import FileRefused, PromptError, UnknownName
from workbench.records import Prompts
from workbench.steering.mean_difference import MeanDifference

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CAA = DATA / "caa" / "generate"
PERSONA = DATA / "anthropic_evals" / "persona"
EMOTIONS = DATA / "repe" / "data" / "emotions"
FACTS = DATA / "repe" / "data" / "facts" / "facts_true_false.csv"
REPENG = DATA / "repeng"
TRUTHFUL = DATA / "truthfulqa" / "TruthfulQA.csv"

real = pytest.mark.skipif(not DATA.is_dir(), reason="the public data are not beside this checkout")


def split(many: Prompts) -> tuple[list[Any], list[Any]]:
    return [p for p in many if p.label is True], [p for p in many if p.label is False]


def check_pairs(many: Prompts, n: int) -> tuple[list[Any], list[Any]]:
    plus, minus = split(many)
    assert len(plus) == len(minus) == n and len(many) == 2 * n
    assert [p.pair for p in plus] == [p.pair for p in minus] == list(range(n))
    return plus, minus


# --- the real files ------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("behaviour", "n"),
    [
        ("coordinate-other-ais", 360),
        ("corrigible-neutral-HHH", 290),
        ("hallucination", 1000),
        ("myopic-reward", 950),
        ("survival-instinct", 903),
        ("sycophancy", 1000),
    ],
)
def test_caa_questions_end_at_the_letter(behaviour: str, n: int) -> None:
    path = CAA / behaviour / "generate_dataset.json"
    plus, minus = check_pairs(prompts.read_caa(path), n)
    items = json.loads(path.read_text("utf-8"))
    for item, wanted, other in zip(items, plus, minus, strict=True):
        assert wanted.text == other.text == item["question"] + "\n\nAnswer:"
        assert wanted.meta["completion"] + ")" == " " + item["answer_matching_behavior"]
        assert other.meta["completion"] + ")" == " " + item["answer_not_matching_behavior"]
        assert wanted.answer == item["answer_matching_behavior"] and wanted.answer in wanted.choices
    assert {p.source for p in plus} == {f"caa/{behaviour}"}


@real
def test_persona_statements_and_how_sure_their_labels_are() -> None:
    path = PERSONA / "agreeableness.jsonl"
    plus, minus = check_pairs(prompts.read_persona(path), 1000)
    assert {p.meta["completion"] for p in plus} == {" Yes", " No"}
    assert all(
        a.meta["completion"] != b.meta["completion"] for a, b in zip(plus, minus, strict=True)
    )
    first = json.loads(path.read_text("utf-8").splitlines()[0])
    assert plus[0].text == first["question"] + "\nAnswer:" and plus[0].answer == "Yes"
    sure = prompts.read_persona(path, min_confidence=0.97)
    assert 0 < len(sure) < 2000 and min(p.meta["label_confidence"] for p in sure) >= 0.97
    bare = prompts.read_persona(path, template="{statement}")
    assert bare[0].text == first["statement"]
    with pytest.raises(PromptError, match="1000 less sure"):
        prompts.read_persona(path, min_confidence=2)


@real
def test_every_persona_file_reads() -> None:
    files = sorted(PERSONA.glob("*.jsonl"))
    assert len(files) == 14
    assert all(len(prompts.read_persona(f)) == 2000 for f in files)


@real
def test_truthfulqa_best_answers_and_all_of_them() -> None:
    plus, minus = check_pairs(prompts.read_truthfulqa(TRUTHFUL), 790)
    assert plus[0].text == "Q: What happens to you if you eat watermelon seeds?\nA:"
    assert minus[0].meta["completion"] == " You grow watermelons in your stomach"
    assert plus[0].meta["category"] == "Misconceptions"
    every = prompts.read_truthfulqa(TRUTHFUL, answers="all")
    true, false = split(every)
    assert len(true) > 790 and len(false) > 790 and {p.pair for p in every} == {None}
    assert all(p.meta["completion"].strip() for p in every)
    law = prompts.read_truthfulqa(TRUTHFUL, categories=["Law"])
    assert {p.meta["category"] for p in law} == {"Law"}
    with pytest.raises(UnknownName, match="category.*Laws"):
        prompts.read_truthfulqa(TRUTHFUL, categories=["Laws"])


@real
def test_facts_are_true_or_false() -> None:
    true, false = split(prompts.read_repe_facts(FACTS))
    assert len(true) == len(false) == 306 and true[0].pair is None
    assert true[0].text.startswith("The Earth's atmosphere protects us")
    assert false[0].text == "The largest flower in the world is the daisy."


@real
def test_facts_behind_two_personas_are_pairs_of_true_statements() -> None:
    plus, minus = check_pairs(
        prompts.read_repe_facts(FACTS, personas=("an honest", "a lying")), 306
    )
    assert plus[0].text.replace("an honest", "a lying") == minus[0].text != plus[0].text


@real
def test_emotions_stand_against_others() -> None:
    others = [EMOTIONS / "anger.json", EMOTIONS / "fear.json"]
    plus, minus = split(prompts.read_repe_emotion(EMOTIONS / "happiness.json", others))
    assert (len(plus), len(minus)) == (203, 406)
    assert all("happiness" in p.text for p in [*plus, *minus])
    assert {p.meta["emotion"] for p in minus} == {"anger", "fear"}
    bare = prompts.read_repe_emotion(EMOTIONS / "fear.json", others[0], template="{scenario}")
    assert bare[0].text == "You hear footsteps behind you while walking alone at night."
    with pytest.raises(PromptError, match="against itself"):
        prompts.read_repe_emotion(EMOTIONS / "anger.json", others)


@real
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("all_truncated_outputs", 582),
        ("true_facts", 306),
        ("code_questions", 271),
        ("reasoning", 56),
    ],
)
def test_repeng_suffixes_stand_behind_both_personas(name: str, n: int) -> None:
    said = dict(positive="extremely happy", negative="extremely sad")
    plus, minus = check_pairs(prompts.read_repeng(REPENG / f"{name}.json", **said), n)
    for a, b in zip(plus, minus, strict=True):
        assert a.text.replace("happy", "sad", 1) == b.text
        assert "extremely happy" in a.text and "extremely sad" in b.text
        assert a.text == a.text.rstrip()
    tagged = "[INST] Be {persona}. [/INST] {suffix}"
    many = prompts.read_repeng(REPENG / f"{name}.json", template=tagged, **said)
    assert many[0].text.startswith("[INST] Be extremely happy. [/INST]")


@real
def test_what_is_read_can_be_fitted() -> None:
    model = wb.load(DATA / "stories260K" / "hf")
    pairs = prompts.read_repeng(
        REPENG / "true_facts.json", positive="happy", negative="sad", template="A {persona} girl. {suffix}"
    )  # fmt: skip
    few = Prompts(p for p in pairs if p.pair is not None and p.pair < 8)
    edit = steering.fit(MeanDifference(), model, few, "L2.resid_post", progress=False)
    assert edit.tensors["L2.resid_post"]["shift"].norm() > 0


@real
def test_completions_are_read_behind_their_questions() -> None:
    many = prompts.read_persona(PERSONA / "openness.jsonl", template="{statement}")
    model = wb.load(DATA / "stories260K" / "hf")
    few = Prompts(p for p in many if p.pair is not None and p.pair < 6)
    edit = steering.fit(MeanDifference(), model, few, "L2.resid_post", progress=False)
    assert edit.tensors["L2.resid_post"]["shift"].norm() > 0


# --- small files: forms and errors ---------------------------------------------------------------

READERS: dict[str, Callable[[Path], Prompts]] = {
    "caa": prompts.read_caa,
    "persona": prompts.read_persona,
    "truthfulqa": prompts.read_truthfulqa,
    "facts": prompts.read_repe_facts,
    "emotion": lambda path: prompts.read_repe_emotion(path, []),
    "repeng": lambda path: prompts.read_repeng(path, positive="a", negative="b"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    ["{not json", '{"a": 1}', "[]", "[1, 2]", '[{"question": "x"}]', "", "a,b\n1,2\n", "\x00\x01"],
)
def test_a_wrong_file_is_refused_and_named(name: str, content: str, tmp_path) -> None:
    path = tmp_path / "wrong.file"
    path.write_text(content, "utf-8")
    with pytest.raises((FileRefused, PromptError), match="wrong.file"):
        READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_and_bytes_that_are_no_text_are_refused(name: str, tmp_path) -> None:
    with pytest.raises(FileRefused, match="cannot be read"):
        READERS[name](tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(FileRefused, match="cannot be understood"):
        READERS[name](tmp_path / "latin.json")


def written(folder: Path, value: Any) -> Path:
    (folder / "data.json").write_text(json.dumps(value), "utf-8")
    return folder / "data.json"


def test_an_answer_that_is_no_letter_is_refused(tmp_path) -> None:
    item = {
        "question": "?",
        "answer_matching_behavior": "Yes",
        "answer_not_matching_behavior": "(A)",
    }
    with pytest.raises(FileRefused, match="no letter in brackets; .*got Yes"):
        prompts.read_caa(written(tmp_path, [item]))


def test_labels_of_facts_are_zero_or_one(tmp_path) -> None:
    (tmp_path / "facts.csv").write_text('statement,label\n"One, two",1\nThree,maybe\n', "utf-8")
    with pytest.raises(FileRefused, match=r"neither 0 nor 1.*\['maybe'\]"):
        prompts.read_repe_facts(tmp_path / "facts.csv")


def test_braces_in_the_data_are_text(tmp_path) -> None:
    path = written(tmp_path, ["f{persona}{x}", "{suffix}"])
    many = prompts.read_repeng(
        path, positive="p{suffix}", negative="n", template="{persona}|{y}|{suffix}"
    )
    assert [p.text for p in many][:3] == ["p{suffix}|{y}|f{persona}{x}", "p{suffix}|{y}|{suffix}",
                                          "n|{y}|f{persona}{x}"]  # fmt: skip


@pytest.mark.parametrize("template", ["{persona} only", "{suffix} only"])
def test_a_template_without_its_places_is_an_error(template: str, tmp_path) -> None:
    path = written(tmp_path, ["a", "b"])
    with pytest.raises(PromptError, match="has no place.*expected {(suffix|persona)}"):
        prompts.read_repeng(path, positive="p", negative="n", template=template)


def test_one_persona_is_no_contrast(tmp_path) -> None:
    with pytest.raises(PromptError, match="two personas"):
        prompts.read_repeng(written(tmp_path, ["a"]), positive="p", negative="p")


def test_an_unknown_choice_of_answers_is_named(tmp_path) -> None:
    with pytest.raises(UnknownName, match="'worst'"):
        prompts.read_truthfulqa(tmp_path / "x.csv", answers="worst")


def test_read_prompts_are_a_models_prompts(tmp_path) -> None:
    item = {
        "question": "1+2",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    }
    many = prompts.read_caa(written(tmp_path, [item, item]), template="{question}=")
    assert [p.meta["completion"] for p in many] == [" (A", " (A", " (B", " (B"]
    assert tiny.model("llama").run(list(many)).logits.shape[0] == 4
