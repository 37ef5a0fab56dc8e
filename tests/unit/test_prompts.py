"""Contrast pairs and files of prompts."""

from __future__ import annotations

import pytest

from workbench.errors import FileRefused, PromptError
from workbench.prompts import classes, pairs, read, write
from workbench.records import Prompt, Prompts


def test_pairs_are_labelled_and_matched() -> None:
    prompts = pairs(positive=["good", "fine"], negative=["bad", "poor"])
    assert [p.text for p in prompts] == ["good", "fine", "bad", "poor"]
    assert prompts.labels == [True, True, False, False]
    assert [p.pair for p in prompts] == [0, 1, 0, 1]


def test_pairs_take_prompts_and_chat_turns_and_leave_them_alone() -> None:
    turns = [{"role": "user", "content": "hi"}]
    given = Prompt(text="x", task="add", label="old")
    prompts = pairs(positive=[given], negative=[turns])
    assert prompts[0].task == "add" and prompts[0].label is True
    assert prompts[1].messages == ({"role": "user", "content": "hi"},)
    assert given.label == "old"


def test_classes_need_not_match() -> None:
    prompts = classes(positive=["a"], negative=["b", "c"])
    assert prompts.labels == [True, False, False]
    assert {p.pair for p in prompts} == {None}


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ({"positive": ["a"], "negative": ["b", "c"]}, "1 positive and 2 negative"),
        ({"positive": [], "negative": []}, "positive is empty"),
        ({"positive": "a", "negative": ["b"]}, "positive is one text"),
        ({"positive": [""], "negative": ["b"]}, "is empty"),
    ],
)
def test_sides_that_do_not_match_are_refused(sides, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        pairs(**sides)


def test_json_lines_come_back_as_written(tmp_path) -> None:
    prompts = Prompts(
        [
            Prompt(
                text="é 1+1=",
                answer="2",
                task="add",
                label=3,
                pair=1,
                meta={"thoughts": ("a", "b")},
            ),
            Prompt(text="x?", choices=("A", "B"), label=True, source="here"),
            Prompt(messages=({"role": "user", "content": "hi"},), label=0.5),
        ]
    )
    assert list(read(write(prompts, tmp_path / "p.jsonl"))) == list(prompts)


def test_json_lines_with_other_names_and_more_columns(tmp_path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        '\ufeff{"question": "2+2=", "answer": 4, "level": "easy"}\n\n', encoding="utf-8"
    )
    [prompt] = read(file, columns={"text": "question"})
    assert (prompt.text, prompt.answer, prompt.meta) == ("2+2=", "4", {"level": "easy"})


def test_csv_cells_become_fields(tmp_path) -> None:
    file = tmp_path / "p.csv"
    lines = [
        "text,label,pair,choices,answer,note",
        '"a, ""b""\nc",TRUE,3,"[""x"", ""y""]",007,n',
        "d,spam,,,,",
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    first, second = read(file)
    assert first == Prompt(
        text='a, "b"\nc', label=True, pair=3, choices=("x", "y"), answer="007", meta={"note": "n"}
    )
    assert second == Prompt(text="d", label="spam")


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("p.jsonl", b'{"text": "a"}\n{half\n', PromptError, "p.jsonl, line 2: is not JSON"),
        ("p.jsonl", b'["a"]\n', PromptError, "line 1: is not an object"),
        ("p.jsonl", b'{"question": "a"}\n', PromptError, "columns="),
        ("p.jsonl", b'{"text": ""}\n', PromptError, "line 1: is no prompt"),
        ("p.jsonl", b"\n", PromptError, "holds none"),
        ("p.jsonl", b'{"text": "\xff"}', FileRefused, "not UTF-8.*0xff"),
        ("p.csv", b"text,label\na,1,2\n", PromptError, "line 2: has another number of cells"),
        ("p.csv", b"text,label\na\n", PromptError, "line 2: has another number of cells"),
        ("p.txt", b"a", FileRefused, "no file of prompts.*got .txt"),
    ],
)
def test_files_that_are_not_prompts_are_refused(tmp_path, name, content, error, said) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        read(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(FileRefused, match="no such file"):
        read(tmp_path / "nowhere.jsonl")
