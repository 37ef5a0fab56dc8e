"""CSV files of statements with truth labels."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import workbench as wb
from workbench.errors import FileRefused, PromptError, WorkbenchError
from workbench.prompts import read_statements

CITIES = (
    "statement,label,city,country\n"
    '"Paris is in France, not Spain.",1,Paris,France\n'
    "Paris is in Spain.,0,Paris,Spain\n"
    "Rome is in Italy.,TRUE,Rome,Italy\n"
)


def written(folder: Path, text: str, name: str = "cities.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_statements_labels_and_other_columns_are_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_statements(written(tmp_path, "\ufeff" + CITIES))
    assert found.labels == [True, False, True]
    assert found[0].text == "Paris is in France, not Spain."
    assert found[0].meta == {"city": "Paris", "country": "France"} and found[0].source == "cities"
    assert [p.pair for p in found] == [None] * 3


def test_a_column_can_group(tmp_path: Path) -> None:
    found = wb.prompts.read_statements(written(tmp_path, CITIES), group="city")
    assert [p.meta["group"] for p in found] == ["Paris", "Paris", "Rome"]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    path = written(tmp_path, "claim,truth\nWater is wet.,0.0\nIce is warm,false\n")
    assert read_statements(path, statement="claim", label="truth").labels == [False, False]


def test_copies_are_said_and_grouped(tmp_path: Path) -> None:
    more = "paris is in  spain,1,Paris,Spain\nRome is in Italy.,1,Rome,Italy\n"
    with pytest.warns(
        UserWarning, match="1 statements repeat another and 1 do so but.* 1 of them with"
    ):
        found = read_statements(written(tmp_path, CITIES + more))
    groups = [p.meta.get("group") for p in found]
    assert groups[1] == groups[3] != groups[2] == groups[4] is not None
    assert groups[0] is None and len(found) == 5


def test_copies_stay_in_the_group_of_a_column_of_that_name(tmp_path: Path) -> None:
    text = "statement,label,group\nA is B.,1,x\nA is B,1,x\nC is D.,0,x\n"
    with pytest.warns(UserWarning, match="1 do so but"):
        found = read_statements(written(tmp_path, text))
    assert [p.meta["group"] for p in found] == ["x"] * 3


def test_a_quote_that_never_closes_is_refused(tmp_path: Path) -> None:
    long = 'statement,label\n"A is B.,1\n' + "C is D.,0\n" * 20_000
    with pytest.raises(FileRefused, match="closed quotes"):
        read_statements(written(tmp_path, long))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("statement,label\nA is B.,1\nC is D.,maybe\n", "line 3: has a label"),
        ("statement,label\nA is B, or C.,1\n", "line 2: has another number of cells"),
        ("statement,label\nA is B.\n", "line 2: has another number of cells"),
        ("statement,label\n ,1\n", "line 2: has no statement"),
        ("text,label\nA is B.,1\n", "line 1: has no column 'statement'"),
        ("statement,label\n", "holds no statements"),
        ("", "has no column"),
    ],
)
def test_bad_rows_are_refused_with_their_number(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        read_statements(written(tmp_path, text))


def test_a_group_that_is_no_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="no column 'town'"):
        read_statements(written(tmp_path, CITIES), group="town")


def test_other_files_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.csv"
    latin.write_bytes("statement,label\nMünchen is in Germany.,1\n".encode("latin-1"))
    for path in (tmp_path / "none.csv", written(tmp_path, CITIES, "cities.txt"), latin):
        with pytest.raises(FileRefused, match="no file of statements"):
            read_statements(path)
