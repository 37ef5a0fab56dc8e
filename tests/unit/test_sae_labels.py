"""Labels from data: what is planted is said, what is chance is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from workbench.records import Prompt
from workbench.sae.dashboards import labels
from workbench.sae.dashboards.corpus import Corpus
from workbench.sae.dashboards.labels import UNLABELLED, Labels, describe

NO_EFFECTS = np.zeros((1, 0), np.int64)


def made(texts: list[str], split: int = 1) -> tuple[Corpus, dict[str, int]]:
    """A corpus whose tokens are runs of `split` characters."""
    pieces = [[t[i : i + split] for i in range(0, len(t), split)] for t in texts]
    ids = {piece: i for i, piece in enumerate(sorted({p for row in pieces for p in row}))}
    rows = [(ids[p], i, k) for i, row in enumerate(pieces) for k, p in enumerate(row)]
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return Corpus(*columns, {i: piece for piece, i in ids.items()}), ids


def sums(n: int = 120, seed: int = 0) -> list[Prompt]:
    """Sums and differences of random numbers, one line of steps each."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(n):
        a, b, c = draw.integers(10, 99, 3)
        task, sign = (("add", "+"), ("sub", "-"))[i % 2]
        found.append(Prompt(text=f"{task} {a}{sign}{b}?\n{a}{sign}{b}={c}\n#{c}", task=task))
    return found


def label(
    prompts: list[Prompt],
    where: np.ndarray,
    corpus: Corpus,
    promoted: np.ndarray = NO_EFFECTS,
) -> Labels:
    """The label of one feature with these codes."""
    codes = sparse.csr_array(where.astype(np.float32)[:, None]).tocsc()
    codes.eliminate_zeros()
    return describe(codes, corpus, prompts, corpus.texts, promoted)


PROMPTS = sums()
CORPUS, IDS = made([str(p.text) for p in PROMPTS])
PIECES = np.array(CORPUS.pieces)
TASKS = np.array([PROMPTS[p].task for p in CORPUS.prompts])
BEFORE = np.concatenate([["start"], PIECES[:-1]])
BEFORE[np.flatnonzero(np.diff(CORPUS.prompts, prepend=-1))] = "start"
AFTER = np.concatenate([PIECES[1:], ["end"]])
AFTER[np.flatnonzero(np.diff(CORPUS.prompts, append=-1))] = "end"
LINES = np.concatenate([np.cumsum(["\n" in c for c in " " + str(p.text)[:-1]]) for p in PROMPTS])
DIGIT = np.char.isdigit(PIECES)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (PIECES == "=", "token '='"),
        (DIGIT, "a digit"),
        (np.isin(PIECES, ["+", "-", "=", "?", "#"]), "a symbol"),
        (PIECES == "\n", "token '\\n'"),
        (BEFORE == "=", "after '='"),
        ((AFTER == "+"), "before '+'"),
        ((PIECES == "7") & (BEFORE == "="), "'7' after '='"),
        (DIGIT & (BEFORE == "\n"), "a digit after '\\n'"),
        (LINES == 1, "line 2"),
        ((PIECES == "1") & (LINES == 1), "'1' in line 2"),
        (TASKS == "sub", "task sub"),
        ((PIECES == "=") & (TASKS == "add"), "'=' in task add"),
    ],
)
def test_what_is_planted_is_said(where: np.ndarray, said: str) -> None:
    found = label(PROMPTS, where, CORPUS)
    assert found.texts == [f"{said} (F1 1.00)"]
    assert found.scores[0] == pytest.approx(1.0)
    assert found.controls[0] < 0.8


def test_places_in_a_line() -> None:
    third = np.concatenate(
        [
            [len(str(p.text)[:i].rpartition("\n")[2]) == 2 for i in range(len(str(p.text)))]
            for p in PROMPTS
        ]
    )
    assert label(PROMPTS, third, CORPUS).texts == ["token 3 of its line (F1 1.00)"]


def test_first_words_stand_in_for_tasks() -> None:
    plain = [Prompt(text=p.text) for p in PROMPTS]
    found = label(plain, TASKS == "sub", CORPUS)
    assert found.texts == ["text that begins with 'sub' (F1 1.00)"]


def test_f1_is_counted_over_tokens() -> None:
    where = (PIECES == "=") | ((PIECES == "#") & (CORPUS.prompts < 30))
    found = label(PROMPTS, where, CORPUS)
    both = 2 * (PIECES == "=").sum() / (where.sum() + (PIECES == "=").sum())
    assert found.scores[0] == pytest.approx(both)
    assert found.texts == [f"token '=' (F1 {both:.2f})"]


def test_peaks_are_above_half_of_the_largest() -> None:
    codes = 0.4 * np.ones(len(CORPUS)) + 0.6 * (PIECES == "=")
    assert label(PROMPTS, codes, CORPUS).texts == ["peaks: token '=' (F1 1.00)"]
    weaker = 0.6 * np.ones(len(CORPUS)) + 0.4 * (PIECES == "=")
    assert label(PROMPTS, weaker, CORPUS).texts == [UNLABELLED]


def test_tokens_that_a_feature_raises() -> None:
    raised = ["3", "4", "5"]
    where = np.isin(AFTER, raised)
    promoted = np.array([[IDS[t] for t in raised]])
    found = label(PROMPTS, where, CORPUS, promoted)
    assert found.texts == ["before a token that it promotes (F1 1.00)"]
    other = label(PROMPTS, where, CORPUS, np.array([[IDS[t] for t in ("a", "s", "u")]]))
    assert "promotes" not in other.texts[0]


def test_chance_gets_no_label() -> None:
    draw = np.random.default_rng(3)
    sizes = np.geomspace(0.002, 0.9, 200)
    codes = sparse.csr_array((draw.random((len(CORPUS), 200)) < sizes).astype(np.float32)).tocsc()
    found = describe(codes, CORPUS, PROMPTS, CORPUS.texts, np.zeros((200, 0), np.int64))
    assert sum(text != UNLABELLED for text in found.texts) <= 2
    assert np.median(found.scores / np.maximum(found.controls, 1e-9)) == pytest.approx(1, abs=0.1)


def test_chance_over_whole_prompts_gets_no_task() -> None:
    draw = np.random.default_rng(4)
    on = draw.random((len(PROMPTS), 100)) < draw.uniform(0.05, 0.7, 100)
    codes = sparse.csr_array(on[CORPUS.prompts].astype(np.float32)).tocsc()
    found = describe(codes, CORPUS, PROMPTS, CORPUS.texts, np.zeros((100, 0), np.int64))
    assert sum("task" in text or "begins" in text for text in found.texts) <= 1


def test_few_tokens_are_no_evidence() -> None:
    prompts = [*PROMPTS, *[Prompt(text="1z+")] * 5]
    corpus, _ = made([str(p.text) for p in prompts])
    where = np.array(corpus.pieces) == "z"
    assert label(prompts, where, corpus).texts == ["token 'z' (F1 1.00)"]
    where[np.flatnonzero(where)[0]] = False
    assert label(prompts, where, corpus).texts == [UNLABELLED]


def test_a_feature_that_never_fires_has_no_label() -> None:
    never = label(PROMPTS, np.zeros(len(CORPUS)), CORPUS)
    assert never.texts == [UNLABELLED]
    assert never.scores[0] == 0


def test_pieces_of_several_characters() -> None:
    draw = np.random.default_rng(0)
    words = [" the", " cat", " 12\n", "sat,", " 345"]
    texts = ["".join(words[i] for i in draw.integers(0, 5, 12)) for _ in range(40)]
    corpus, _ = made(texts, 4)
    pieces = np.array(corpus.pieces)
    prompts = [Prompt(text=t) for t in texts]
    assert label(prompts, pieces == " the", corpus).texts == ["token ' the' (F1 1.00)"]
    numbers = np.isin(pieces, [" 12\n", " 345"])
    assert label(prompts, numbers, corpus).texts == ["a digit (F1 1.00)"]
    start = np.concatenate([[True], (pieces[:-1] == " 12\n") | (np.diff(corpus.prompts) > 0)])
    assert label(prompts, start, corpus).texts == ["token 1 of its line (F1 1.00)"]


def test_no_token_stands_beside_another_prompts() -> None:
    corpus, ids = made(["ab", "c", "de"])
    names = {i: piece for piece, i in ids.items()} | {labels.NONE: "-"}
    ahead, behind = (labels._shifted(corpus, by).tolist() for by in (1, -1))
    assert "".join(names[i] for i in ahead) == "b--e-"
    assert "".join(names[i] for i in behind) == "-a--d"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", 0),
        (" 12", 0),
        ("a", 1),
        (" the", 1),
        (" ", 2),
        ("\n", 3),
        (" \n ", 3),
        ("+", 4),
        ("a1", 5),
    ],
)
def test_classes(text: str, kind: int) -> None:
    assert labels._class_of(text) == kind


def test_features_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on = np.stack([PIECES == "=", DIGIT, np.zeros(len(PIECES)), TASKS == "sub"], 1)
    codes = sparse.csr_array(on.astype(np.float32)).tocsc()
    promoted = np.zeros((4, 0), np.int64)
    whole = describe(codes, CORPUS, PROMPTS, CORPUS.texts, promoted)
    assert [t.rpartition(" (")[0] for t in whole.texts[:2]] == ["token '='", "a digit"]
    monkeypatch.setattr(labels, "blocks_of", lambda n, _: (slice(i, i + 1) for i in range(n)))
    parts = describe(codes, CORPUS, PROMPTS, CORPUS.texts, promoted)
    assert parts.texts == whole.texts
    np.testing.assert_array_equal(parts.controls, whole.controls)
