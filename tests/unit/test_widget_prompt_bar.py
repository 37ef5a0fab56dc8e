"""PromptBar: what the model reads, spans and scopes, pairs, edits, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

import workbench as wb
from tests import tiny
from workbench.errors import PromptError, WorkbenchError
from workbench_widgets import PromptBar
from workbench_widgets.frames import pack, unpack
from workbench_widgets.prompt_bar import turns
from workbench_widgets.spelling import Spelled

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
HOSTILE = "<img src=x onerror=alert(1)></script>"
TEMPLATE = "{% for m in messages %}#{{ m['role'] }}# {{ m['content'] }}\n{% endfor %}#assistant# "


def models() -> list:
    found = [lambda: wb.load("reasoner"), lambda: tiny.model("gpt2")]
    names = ["reasoner", "gpt2"]
    if STORIES.is_dir():
        found.append(lambda: wb.load(str(STORIES)))
        names.append("stories260K")
    return [pytest.param(make, id=name) for make, name in zip(found, names, strict=True)]


def chat_model(template: str = TEMPLATE):
    """The tiny model with a chat template of its own; the shared one stays as it is."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    return wb.load(tiny.module("gpt2"), tokenizer)


@pytest.mark.parametrize("make", models())
def test_chips_are_what_the_model_reads_and_spell_the_text(make):
    model = make()
    text = "12+7=\n a  b"
    bar = PromptBar(model, text)
    (side,) = bar.frame["sides"]
    assert side["ids"] == model.tokens([text]).ids[0].tolist()
    assert "".join(side["text"]) == text and side["exact"]
    assert side["special"][0] and side["shown"][0] == model.tokenizer.bos_token
    assert not any(side["special"][1:])
    assert repr(bar) == f"PromptBar({len(side['ids'])} tokens)"


def test_bytes_of_one_character_are_said_to_be_bytes():
    if not STORIES.is_dir():
        pytest.skip("stories260K is not here")
    (side,) = PromptBar(wb.load(str(STORIES)), "a \U0001f600b").frame["sides"]
    assert "".join(side["text"]) == "a \U0001f600b"
    assert [s for s in side["shown"] if s.startswith("⟨")] == ["⟨F0⟩", "⟨9F⟩", "⟨98⟩", "⟨80⟩"]


def test_a_written_bos_is_read_once():
    model = tiny.model("gpt2")
    (side,) = PromptBar(model, "<bos>").frame["sides"]
    assert side["ids"] == [1] and side["exact"]
    (side,) = PromptBar(model, "<bos>12+3=").frame["sides"]
    assert side["ids"] == model.tokens(["12+3="]).ids[0].tolist() and side["exact"]


def test_a_template_that_writes_the_bos_is_exact():
    messages = [{"role": "user", "content": "2+2"}]
    (side,) = PromptBar(chat_model("{{ bos_token }}" + TEMPLATE), messages).frame["sides"]
    assert side["exact"] and side["ids"][0] == 1
    assert side["turn"][: len("<#user# ") + 1] == [-1] * (len("<#user# ")) + [0]


def test_a_text_that_the_tokenizer_changes_is_not_exact():
    from tokenizers import normalizers

    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("7", "")
    (side,) = PromptBar(wb.load(tiny.module("gpt2"), tokenizer), "17").frame["sides"]
    assert len(side["ids"]) == 2 and not side["exact"]


def test_a_span_is_a_scope_of_absolute_positions():
    model = tiny.model("gpt2")
    bar = PromptBar(model, "12+7=")
    assert bar.span is None and str(bar.scope) == "prompt"
    bar.select(2, 4)
    assert bar.span == (2, 4) and str(bar.scope) == "span(2, 4)"
    assert repr(bar) == "PromptBar(6 tokens, span(2, 4))"
    (side,) = bar.frame["sides"]
    assert side["text"][2:4] == ["2", "+"]
    for wrong in [(4, 4), (-1, 2), (0, 7)]:
        with pytest.raises(WorkbenchError, match="outside the prompt"):
            bar.select(*wrong)
    assert bar.span == (2, 4)


def test_an_edited_text_is_cut_anew_and_loses_the_answer():
    model = tiny.model("gpt2")
    given = wb.Prompt(text="12+7=", answer="19")
    bar = PromptBar(model, given)
    assert bar.to_record() is given
    bar.ask(prompt={"text": "12+8="}, span=None)
    assert bar.to_record() == wb.Prompt(text="12+8=")
    assert bar.frame["sides"][0]["ids"] == model.tokens(["12+8="]).ids[0].tolist()


def test_another_text_has_no_span():
    bar = PromptBar(tiny.model("gpt2"), "12+7=88", "12+7=89")
    bar.select(5, 8)
    bar.ask(prompt=dict(bar.spec["prompt"]))
    assert bar.span == (5, 8) and bar.other_span == (5, 8)
    bar.ask(prompt={"text": "1+"})
    assert bar.span is None and bar.other_span is None and str(bar.scope) == "prompt"
    bar.select(1, 3)
    bar.ask(other={"text": "1"})
    assert bar.span is None and bar.other_span is None
    bar.ask(prompt={"text": "9+9="}, span=[1, 3])
    assert bar.span == (1, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is empty"), ("a" * 4000, "longer than the context"), ("é", "outside the vocabulary")],
)
def test_bad_texts_are_said_in_words_and_the_bar_stays_usable(text, words):
    model = tiny.model("gpt2")
    with pytest.raises(PromptError, match=words):
        PromptBar(model, text)
    bar = PromptBar(model, "12+7=")
    seq = bar.seq
    bar.ask(prompt={"text": text})
    assert bar.status["state"] == "error" and words in bar.status["msg"]
    assert bar.seq == seq == bar.status["requested_seq"]
    bar.ask(prompt={"text": "1+1="})
    assert bar.status["state"] == "idle" and len(bar.frame["sides"][0]["ids"]) == 5


def test_4000_tokens_fit_where_the_model_reads_as_many():
    model = wb.load(tiny.module("gpt2", n_positions=4096), tiny.tokenizer())
    bar = PromptBar(model, "ab" * 2000, "ab" * 1999 + "ac")
    assert repr(bar) == "PromptBar(4001 against 4001 tokens)"
    assert bar.pair.same_length and len(bar.pair.differing) == 1
    assert len(bar._still().encode()) < 20_000


@pytest.mark.parametrize("wrong", [7, [], ["a"], [{"role": "user"}]])
def test_what_is_no_prompt_is_refused(wrong):
    with pytest.raises(PromptError, match="is no prompt"):
        PromptBar(tiny.model("gpt2"), wrong)


def test_messages_go_through_the_template_and_keep_their_roles():
    model = chat_model()
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2"}]
    bar = PromptBar(model, messages)
    (side,) = bar.frame["sides"]
    prompt = wb.Prompt(messages=tuple(messages))
    assert side["ids"] == model.tokens([prompt]).ids[0].tolist()
    whose = {-1: "", 0: "", 1: ""}
    for text, turn in zip(side["text"], side["turn"], strict=True):
        whose[turn] += text
    assert whose == {-1: "#system# \n#user# \n#assistant# ", 0: "be brief", 1: "2+2"}
    assert side["roles"] == ["system", "user"] and bar.to_record() == prompt
    with pytest.raises(PromptError, match="no chat template"):
        PromptBar(tiny.model("gpt2"), messages)


LOOP = "{% for m in messages %}"
TURNS = {
    "plain": LOOP + "{{ m.role }}.{{ m.content }}={% endfor %}",
    "trimmed": LOOP + "{{ m.role }}.{{ m.content | trim }}={% endfor %}",
    "reordered": "{% for m in messages | reverse %}{{ m.role }}.{{ m.content }}={% endfor %}",
    "twice": LOOP + "{{ m.content }}.{{ m.role }}.{{ m.content }}={% endfor %}",
    "picky": LOOP + "{% if m.content | length > 2 %}{{ raise_exception('long') }}{% endif %}"
    "{{ m.role }}.{{ m.content }}={% endfor %}",
    "upper": LOOP + "{{ m.role }}.{{ m.content | upper }}={% endfor %}",
}


@pytest.mark.parametrize(
    ("name", "contents", "whose"),
    [
        ("plain", ["e", "s"], "-----0------1-"),
        ("plain", ["", "user."], "-----" + "------11111-"),
        ("plain", [" e ", "r"], "-----000------1-"),
        ("trimmed", [" e ", "r"], "-----0------1-"),
        ("reordered", ["e", "12"], "-----11------0-"),
        ("twice", ["e", "s"], "0------0-1------1-"),
        ("picky", ["1", "2"], "-----0------1-"),  # marks do not survive: by search
        ("upper", ["2+2", "3+3"], "-----000------111-"),
    ],
)
def test_turns_are_the_contents_and_never_the_templates_own_words(name, contents, whose):
    messages = [{"role": "user", "content": c} for c in contents]
    (side,) = PromptBar(chat_model(TURNS[name]), messages).frame["sides"]
    told = "".join("-" if t < 0 else str(t) for t in side["turn"])
    assert told == "-" + whose if side["special"][0] else told == whose


def test_turns_stay_in_place_where_special_tokens_are_spelled_without_their_text():
    text = "<s>user.e<s>e"
    pieces = [Spelled("", "<s>", True), *map(Spelled, "user.e"), Spelled("", "<s>", True)]
    found = turns.of_pieces([(8, 9, 0), (12, 13, 1)], text, [*pieces, Spelled("e")])
    assert found == [-1] * 6 + [0, -1, 1]


def test_a_pair_matches_positions():
    model = tiny.model("gpt2")
    bar = PromptBar(model, "12+7=", "112+8=")
    pair = bar.pair
    a, b = (side["text"] for side in bar.frame["sides"])
    assert pair.differing == ((4, 5),) and not pair.same_length
    assert all((a[i] == b[j]) == ((i, j) not in pair.differing) for i, j in pair.positions)
    assert len(pair.positions) == len(a)
    bar.select(3, 5)
    assert bar.other_span == (4, 6)
    straight = PromptBar(model, "12+7=", "12+8=").pair
    assert straight.same_length and straight.positions == tuple((i, i) for i in range(6))
    with pytest.raises(WorkbenchError, match="has one prompt"):
        _ = PromptBar(model, "12+7=").pair


def test_the_cell_gives_the_same_tokens_and_scope():
    model = wb.load("reasoner")
    bar = PromptBar(model, wb.Prompt(text="a\"\n'" + HOSTILE, answer="7"), "b")
    bar.select(1, 4)
    code = bar.to_code()
    space: dict = {}
    exec(code, space)  # noqa: S102
    assert space["prompt"] == bar.to_record() and space["other"] == bar.other
    assert space["scope"] == bar.scope
    assert space["tokens"].ids[0].tolist() == bar.frame["sides"][0]["ids"]


def test_a_span_edits_those_positions_alone():
    import torch

    from workbench import Intervention

    model = tiny.model("gpt2")
    bar = PromptBar(model, "12+7=")
    bar.select(2, 4)
    shift = Intervention("custom", "affine", {"L1.resid_post": {"shift": torch.ones(32)}})
    site = "L1.resid_post"
    base = model.run([bar.prompt], [site])[site][0]
    edited = model.run([bar.prompt], [site], shift.within(bar.scope))[site][0]
    moved = (edited - base).abs().amax(-1) > 0.5
    assert moved.tolist() == [False, False, True, True, False, False]


def test_precomputed_prompts_are_frames_of_their_own():
    model = tiny.model("gpt2")
    bar = PromptBar(model, "12+7=").precompute(["12+7=", "9-4="])
    sweep = unpack(bar.sweep)
    assert sweep["grid"] == [{"text": "12+7="}, {"text": "9-4="}]
    assert [f["sides"][0]["ids"] for f in sweep["frames"]] == [
        model.tokens([t]).ids[0].tolist() for t in ("12+7=", "9-4=")
    ]


def test_the_still_is_escaped():
    still = PromptBar(wb.load("reasoner"), HOSTILE, HOSTILE + "!")._still()
    assert "<img" not in still and "</script" not in still and "underline" in still


def test_the_still_stays_small_with_many_ids_of_six_digits():
    bar = PromptBar(tiny.model("gpt2"), "12+7=", "12+8=")
    side = {k: v * 700 for k, v in bar.frame["sides"][0].items() if isinstance(v, list)}
    side |= {"ids": [999_999] * len(side["ids"])}
    pairs = [[i, i] for i in range(len(side["ids"]))]
    bar.data = pack({**bar.frame, "sides": [side, side], "pairs": pairs})
    still = bar._still()
    assert "999999 999999" in still and len(still.encode()) < 20_000
