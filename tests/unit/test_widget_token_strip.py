"""TokenStrip: its numbers, its alignment, its spelling, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import WorkbenchError
from workbench_widgets import TokenStrip
from workbench_widgets.align import align
from workbench_widgets.spelling import spell, spell_text
from workbench_widgets.stills import intervals, words

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
HOSTILE = "<img src=x onerror=alert(1)></script>"


def models() -> list:
    found = [lambda: wb.load("reasoner"), lambda: tiny.model("gpt2")]
    names = ["reasoner", "gpt2"]
    if STORIES.is_dir():
        found.append(lambda: wb.load(str(STORIES)))
        names.append("stories260K")
    return [pytest.param(make, id=name) for make, name in zip(found, names, strict=True)]


def byte_level():
    """A tokenizer of bytes without merges but one, which joins a space with half a character."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = Tokenizer(kinds.BPE(vocab={**vocab, "Ġð": 256, "<s>": 257}, merges=[("Ġ", "ð")]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>")


@pytest.mark.parametrize("make", models())
def test_log_probabilities_of_a_generation_are_the_models_own(make):
    model = make()
    (generation,) = model.generate(
        ["12+7=" if model.name == "reasoner" else "Once"], max_new_tokens=9
    )
    strip = TokenStrip.of(generation, model)
    trace = model.run([generation.prompt], completions=[generation.ids])
    n = len(generation.ids)
    logits = trace.logits[0, -n - 1 : -1].double()
    want = logits.log_softmax(-1)[torch.arange(n), list(generation.ids)]
    np.testing.assert_allclose(strip.frame["values"][0], want, atol=2e-5)
    (summary,) = strip.frame["summaries"][0]
    assert summary["n"] == n and summary["mean"] == pytest.approx(float(want.mean()), abs=2e-5)
    side = strip.frame["sides"][0]
    assert side["first"] == trace.tokens.prompt_lengths[0]
    assert generation.text.strip() == "".join(side["text"]).strip()
    assert strip.meta["complete"] and strip.status["state"] == "idle"


def test_rows_have_their_scales_and_summaries():
    strip = TokenStrip(
        ["a", "b", "c"],
        {"p": [0.0, 2.0, None], "d": torch.tensor([-1.0, 0.5, 4.0])},
        unit={"d": "logits"},
    )
    frame = strip.frame
    assert [s["kind"] for s in frame["scales"]] == ["sequential", "diverging"]
    assert (frame["scales"][1]["lo"], frame["scales"][1]["hi"]) == (-1, 4)
    assert [s["unit"] for s in frame["scales"]] == ["", "logits"]
    assert frame["summaries"][0] == [{"n": 2, "mean": 1.0, "min": 0.0, "max": 2.0}]
    assert np.isnan(frame["values"][0, 2])
    assert repr(strip) == "TokenStrip(3 tokens, mean p 1)"
    strip.ask(row="d")
    assert repr(strip) == "TokenStrip(3 tokens, mean d 1.167 logits)"
    assert TokenStrip(["a"], [1.0], diverging=True).frame["scales"][0]["kind"] == "diverging"
    strip.ask(row="nothing")
    assert strip.status["state"] == "error" and "unknown row of values" in strip.status["msg"]


def test_two_texts_are_aligned_by_token():
    strip = TokenStrip(
        list("abcd"), [1, 2, 3, 4], other=list("axcde"), other_values=[5, 6, 7, 8, 9]
    )
    assert strip.frame["pairs"].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [-1, 4]]
    table = strip.table()
    assert table["kind"].tolist() == ["same", "changed", "same", "same", "added"]
    assert table["other value"].tolist() == [5, 6, 7, 8, 9]
    assert repr(strip) == "TokenStrip(4 tokens against 5, 2 differ, mean value 2.5)"


def test_the_table_holds_every_number():
    table = TokenStrip(["a", "b"], {"p": [0.125, None]}).to_record()
    assert table["token"].tolist() == ["a", "b"] and table["position"].tolist() == [0, 1]
    assert table["p"][0] == 0.125 and np.isnan(table["p"][1])


def test_the_cell_shows_the_same():
    strip = TokenStrip(
        ["a", HOSTILE, "\n"],
        {"p": [0.1, None, 3]},
        unit="nats",
        title="t",
        other=["a"],
        other_values={"p": [7]},
    )
    space: dict = {}
    code = strip.to_code()
    head, _, call = code.rpartition("\n\n")
    exec(head, space)  # noqa: S102
    again = eval(call, space)  # noqa: S307
    np.testing.assert_array_equal(again.frame["values"], strip.frame["values"])
    assert again.frame["sides"] == strip.frame["sides"] and again.meta == strip.meta
    assert again.to_code() == code


def again(code: str):
    """The widget that a cell makes."""
    space: dict = {}
    head, _, call = code.rpartition("\n\n")
    exec(head, space)  # noqa: S102
    return eval(call, space)  # noqa: S307


def test_the_cell_keeps_names_and_numbers_that_are_not_finite():
    inf = float("inf")
    rows = {"infinite information": [inf, -inf, None, 1e-7], "nan": [1, 2, 3, 4]}
    strip = TokenStrip(list("abcd"), rows, unit={"nan": "inf"})
    copied = again(strip.to_code())
    assert copied.meta == strip.meta and copied.frame["scales"] == strip.frame["scales"]
    np.testing.assert_array_equal(copied.frame["values"], strip.frame["values"])


def test_the_cell_keeps_absolute_positions():
    model = wb.load("reasoner")
    one, other = (model.generate([p], max_new_tokens=4)[0] for p in ("12+7=", "9-4="))
    strip = TokenStrip.of(one, model, other)
    copied = again(strip.to_code())
    firsts = [side["first"] for side in strip.frame["sides"]]
    assert [side["first"] for side in copied.frame["sides"]] == firsts == [6, 5]
    assert copied.table()["position"].dropna().tolist()[:2] == [6, 7]
    placed = TokenStrip(["a", "b"], first=3, other=["a"], other_first=8)
    assert placed.table()["position"].tolist() == [3, 4]
    assert again(placed.to_code()).frame["sides"] == placed.frame["sides"]
    for wrong in (-1, 0.5, "3"):
        with pytest.raises(WorkbenchError, match="is no position"):
            TokenStrip(["a"], first=wrong)
    with pytest.raises(WorkbenchError, match="belongs to no text"):
        TokenStrip(["a"], other_first=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], []), "has no tokens"),
        ((["a"], [1, 2]), "are not one number per token"),
        ((["a"], 3.0), "are not one number per token"),
        ((["a"], ["x"]), "are not one number per token"),
        (([1, 2], [1, 2]), "a token that is no text"),
        (("a text", [1.0]), "no tokenizer to cut it"),
        ((7, None), "a token that is no text"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments, words):
    with pytest.raises(WorkbenchError, match=words):
        TokenStrip(*arguments)


def test_other_values_have_to_belong_to_the_other_text():
    with pytest.raises(WorkbenchError, match="belong to no text"):
        TokenStrip(["a"], [1], other_values=[1])
    with pytest.raises(WorkbenchError, match="other rows than values"):
        TokenStrip(["a"], {"p": [1]}, other=["b"], other_values={"q": [1]})


def test_numbers_that_are_not_finite_do_not_break_the_scale():
    strip = TokenStrip(list("abc"), [float("nan"), float("inf"), 2.0])
    assert strip.frame["scales"][0]["lo"] == strip.frame["scales"][0]["hi"] == 2.0
    assert strip.frame["summaries"][0][0]["n"] == 1
    nothing = TokenStrip(["a"], [float("nan")])
    assert nothing.frame["summaries"][0][0]["mean"] is None
    assert "–" in nothing._still()


def test_stills_are_small_and_escaped():
    long = TokenStrip([f" {HOSTILE}{i}" for i in range(4000)], np.arange(4000.0), title=HOSTILE)
    both = TokenStrip([HOSTILE] * 2000, other=["<b>"] * 1500)
    for strip in (long, both):
        still = strip._still()
        assert len(still.encode()) < 20_000
        assert "<img" not in still and "</script" not in still and "more</i>" in still
    assert TokenStrip(["a", "b"], [0.0, 1.0])._still().count("background:#") == 2


@pytest.mark.parametrize("long", ["x" * 30_000, '"' * 30_000, "\U0001f600" * 9_000])
def test_stills_stay_small_where_names_are_long(long):
    tokens = [f" {i}" for i in range(4000)]
    values = {long: np.arange(4000.0)}
    both = TokenStrip(
        tokens, values, title=long, unit=long, other=tokens, other_values=values, first=10
    )
    alone = TokenStrip(tokens, values, title=long)
    for strip in (both, alone):
        still = strip._still()
        assert len(still.encode()) < 20_000
        assert (
            still.count("more</i>") == len(strip.frame["sides"])
            and "3,999" in still
            or "4e+03" in still
        )


def test_infinities_are_said_as_the_browser_says_them():
    still = TokenStrip(["a", "b"], [float("inf"), 2.0])._still()
    assert "inf" not in still
    assert intervals.number is words.number
    told = [words.number(v) for v in (float("inf"), float("-inf"), float("nan"), None, -0.5)]
    assert told == ["∞", "−∞", "–", "–", "−0.5"]


def test_tokens_read_the_same_in_the_browser():
    if shutil.which("node") is None:
        pytest.skip("no node (tests/SKIPS.md)")
    # every character but halves of a pair, which no text of Python's can be written with
    cases = ["", " a b ", "\r\n\t", "a\u202eb\u2066c", *map(chr, range(0xD800)), "\U000e0001"]
    source = (Path(__file__).parents[2] / "widgets" / "js" / "dom.js").as_uri()
    code = (
        f"import {{ visible }} from '{source}'; import {{ readFileSync }} from 'node:fs';"
        "console.log(JSON.stringify(JSON.parse(readFileSync(0, 'utf8')).map(visible)))"
    )
    said = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) == [words.visible(c) for c in cases]


@pytest.mark.parametrize("make", models())
def test_tokens_of_a_prompt_joined_give_the_text_back(make):
    model = make()
    text = "12+7=\n ab  c" if model.name == "reasoner" else "Once upon\n a"
    strip = TokenStrip(text, np.zeros(model.tokens([text]).ids.shape[1]), model=model)
    side = strip.frame["sides"][0]
    assert "".join(side["text"]) == text
    assert side["shown"][0] == model.tokenizer.bos_token and side["text"][0] == ""


def test_characters_cut_in_bytes_are_neither_lost_nor_twice():
    tok, text = byte_level(), "aé \U0001f600z"
    ids = tok(text)["input_ids"]
    placed, decoded = spell_text(tok, text, ids, special=True), spell(tok, ids)
    for pieces in (placed, decoded):
        assert "".join(p.text for p in pieces) == text
        assert [p.shown for p in pieces] == [
            "",
            "⟨C3⟩",
            "⟨A9⟩",
            "·⟨F0⟩",
            "⟨9F⟩",
            "⟨98⟩",
            "⟨80⟩",
            "",
        ]
    half = spell(tok, ids[:-2])
    assert "".join(p.text for p in half) == tok.decode(ids[:-2])
    assert spell(tok, ids[2:], before=ids[:2])[-1].text == "z"
    with_special = spell(tok, [*ids[:1], 257, *ids[1:]])
    assert with_special[1].special and "".join(p.text for p in with_special) == text


def distance(a, b):
    """Levenshtein's, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return distance(a[1:], b[1:])
    return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))


def test_alignment_is_the_shortest_and_the_browsers_too():
    rng = np.random.default_rng(0)
    cases = [[rng.integers(0, 3, rng.integers(0, 7)).tolist() for _ in "ab"] for _ in range(150)]
    ours = [align(a, b) for a, b in cases]
    for (a, b), pairs in zip(cases, ours, strict=True):
        assert [i for i, _ in pairs.tolist() if i >= 0] == list(range(len(a)))
        assert [j for _, j in pairs.tolist() if j >= 0] == list(range(len(b)))
        steps = sum(i < 0 or j < 0 or a[i] != b[j] for i, j in pairs.tolist())
        assert steps == distance(a, b)
    if shutil.which("node") is None:
        return
    source = (Path(__file__).parents[2] / "widgets" / "js" / "align.js").as_uri()
    code = (
        f"import {{ align }} from '{source}'; console.log(JSON.stringify({json.dumps(cases)}"
        ".map(([a, b]) => align(a, b).map((s) => [s.a ?? -1, s.b ?? -1]))))"
    )
    said = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout) == [pairs.tolist() for pairs in ours]


def test_alignment_of_texts_too_long_for_a_table_pairs_place_by_place(monkeypatch):
    monkeypatch.setattr("workbench_widgets.align.CELLS", 3)
    assert align([1, 2, 3, 9], [4, 5, 9]).tolist() == [[0, 0], [1, 1], [2, -1], [3, 2]]
