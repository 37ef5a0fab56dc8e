"""FeatureBrowser: its list, numbers, own texts and edits are those of dashboard, dictionary and model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import workbench as wb
from tests import tiny
from workbench import sae
from workbench.errors import UnknownName, WorkbenchError
from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dashboards.corpus import Corpus
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens
from workbench_widgets import FeatureBrowser, LiveEdit
from workbench_widgets.feature_browser import widget as widget_module
from workbench_widgets.frames import unpack

SITE = "L1.resid_post"
PROMPTS = ["abcabc", "hello there", "12+34=46"]
WORDS = ["two", " plus", "<b>two", "\n", "four"]
# features 3, 5, 8, 9, 12: rare, dense, dead, weak, twice
CODES = np.array(
    [[0, 1, 0, 0, 0], [4, 1, 0, 0, 0], [0, 2, 0, 0.5, 0], [0, 3, 0, 0, 0], [0, 1, 0, 0, 7],
     [2, 0, 0, 0, 6], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]],
    np.float32,
)  # fmt: skip
FEATURES = [3, 5, 8, 9, 12]


@cache
def board() -> Dashboard:
    """Five features on ten tokens of two prompts, by hand."""
    ids = np.array([0, 1, 2, 3, 0, 4, 1, 0, 2, 3])
    prompts, positions = np.repeat([0, 1], 5), np.tile(np.arange(1, 6), 2)
    texts = dict(enumerate(WORDS)) | {7: " five", 8: "six"}
    on = CODES > 0
    order = np.argsort(-CODES, axis=0, kind="stable")[:2].T
    values = np.take_along_axis(CODES.T, order, 1)
    steps = [np.histogram(c[c > 0], 4, (0, max(c.max(), 1)))[0] for c in CODES.T]
    one = np.ones((5, 1))
    return Dashboard(
        "tiny", SITE, "llama", 10, FEATURES, on.mean(0), CODES.max(0),
        CODES.sum(0) / np.maximum(on.sum(0), 1), np.array(steps), np.where(values > 0, order, -1),
        values, Corpus(ids, prompts, positions, dict(enumerate(WORDS))),
        np.array([[7, 8]] * 5), one * [0.5, 0.25], np.array([[0, 1]] * 5), one * [-0.5, -0.125],
        np.array([[5], [3], [-1], [12], [40]]), 0.5 * one, np.array([[12]] * 5), 0.75 * one,
        ["after a two", "all over", "unlabelled", "token '\\n'", "two in line 1"],
        np.array([0.9, 0.5, 0, 0.25, 0.6], np.float32), np.full(5, 0.1, np.float32),
        sparse.csc_array(CODES), texts,
    )  # fmt: skip


@cache
def made(kind: str = "StandardSAE") -> Dictionary:
    """A random dictionary at the tiny model's second block."""
    lens, draw = sae_lens(), torch.Generator().manual_seed(0)
    more = {"k": 4} if kind.startswith("TopK") else {}
    one = getattr(lens, kind)(getattr(lens, f"{kind}Config")(d_in=32, d_sae=24, **more))
    with torch.no_grad():
        for p in one.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=draw))
    return Dictionary(one.eval(), SITE, SITE, name="tiny")


@cache
def real() -> Dashboard:
    """What `sae.dashboard` says of it."""
    return sae.dashboard(made(), tiny.model(), PROMPTS, progress=False)


def browser(**options: Any) -> FeatureBrowser:
    return FeatureBrowser(real(), made(), tiny.model(), PROMPTS, **options)


def ranking(**more: Any) -> pd.DataFrame:
    """Three features, the best one far below."""
    about = {"feature": [9, 3, 5], "score": [-2.0, 1.0, 0.5], "low": [-3.0, 0.5, np.nan]}
    return pd.DataFrame(about | {"high": [-1.0, 1.5, np.nan], "unit": ["logits"] * 3} | more)


# --- list ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [3, 12, 5, 9]),
        ({"show": "all"}, [3, 12, 5, 9, 8]),
        ({"show": "dead"}, [8]),
        ({"show": "dense"}, [3, 12, 5]),
        ({"show": "sparse"}, [9]),
        ({"sort": "largest"}, [12, 3, 5, 9]),
        ({"sort": "density"}, [5, 3, 12, 9]),
        ({"sort": "density", "reverse": True}, [9, 3, 12, 5]),
        ({"sort": "number", "show": "all"}, [3, 5, 8, 9, 12]),
        ({"sort": "number", "show": "all", "reverse": True}, [12, 9, 8, 5, 3]),
        ({"query": "TWO after"}, [3]),
        ({"query": "five", "sort": "number"}, [3, 5, 9, 12]),
        ({"query": "six nowhere"}, []),
        ({"query": "#8"}, [8]),
        ({"query": "#9 #12"}, [12, 9]),
        ({"query": "<b>two\n"}, [3, 12, 5, 9]),
        ({"sort": "mine"}, [9, 3, 5, 12]),
        ({"sort": "mine", "reverse": True}, [5, 3, 9, 12]),
    ],
    ids=str,
)
def test_the_list_is_what_was_asked_for(asked: dict[str, Any], found: list[int]) -> None:
    widget = FeatureBrowser(board(), rankings={"mine": ranking()})
    widget.search(**{"sort": "label"} | asked)
    assert widget.found == found
    assert [row["feature"] for row in widget.frame["list"]["rows"]] == found
    assert widget.frame["list"]["matched"] == len(found)


def test_words_are_found_in_examples_alone() -> None:
    words = replace(board(), labels=["x"] * 5, texts=dict.fromkeys(range(9), "y"))
    # the second prompt alone has "four", and of these two features alone an example is there
    assert FeatureBrowser(words).search("four").found == [3, 12]
    short = replace(words, example_rows=np.where(words.example_rows < 5, words.example_rows, -1))
    assert FeatureBrowser(short).search("four").found == []


def test_a_ranking_gives_scores_intervals_and_places() -> None:
    widget = FeatureBrowser(board(), rankings={"mine": ranking(p=[0.01, 0.5, 1.0])})
    assert widget.spec["sort"] == "mine" and widget.spec["feature"] == 9
    rows = widget.frame["list"]["rows"]
    (own,) = widget.frame["one"]["scores"]
    wanted = {"name": "mine", "score": -2.0, "low": -3.0, "high": -1.0, "p": 0.01}
    assert own == wanted | {"rank": 1, "of": 3, "unit": "logits"}
    assert rows[2]["score"]["low"] is None and rows[3]["score"] is None


def test_a_long_list_is_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = FeatureBrowser(board())
    widget.ask(limit=2)
    assert len(widget.frame["list"]["rows"]) == 2 and widget.frame["list"]["matched"] == 4
    widget.ask(limit=3)
    assert [row["feature"] for row in widget.frame["list"]["rows"]] == [3, 12, 5]


# --- one feature -----------------------------------------------------------------------------------


def test_an_opened_feature_is_what_the_dashboard_says() -> None:
    one = FeatureBrowser(board(), feature=12).frame["one"]
    assert one["label"] == "two in line 1" and one["f1"] == pytest.approx(0.6)
    assert (one["density"], one["largest"], one["mean"], one["control"]) == (0.2, 7, 6.5, 0.1)
    assert one["histogram"] == [0, 0, 0, 2]
    first, second = one["examples"]
    assert first["pieces"] == ["two", " plus", "<b>two", "\n", "two"] and first["peak"] == 4
    assert first["values"] == [0, 0, 0, 0, 7] and (first["prompt"], first["position"]) == (0, 5)
    assert second["prompt"] == 1 and second["values"][second["peak"]] == 6
    assert one["promoted"] == [{"text": " five", "value": 0.5}, {"text": "six", "value": 0.25}]
    assert one["suppressed"][1] == {"text": " plus", "value": -0.125}
    assert one["correlated"] == [{"feature": 40, "value": 0.5, "label": None}]
    assert one["neighbours"] == [{"feature": 12, "value": 0.75, "label": "two in line 1"}]


def test_a_dead_feature_opens_without_examples() -> None:
    one = FeatureBrowser(board(), feature=8).frame["one"]
    assert one["examples"] == [] and one["density"] == 0 and sum(one["histogram"]) == 0
    assert one["correlated"] == [] and "never" not in one["label"]


def test_another_feature_or_order_asks_for_a_frame_and_a_slider_does_not() -> None:
    widget = browser()
    seen = widget.seq
    widget.ask(strength=0.5)
    widget.ask(mode="clamp")
    assert widget.seq == seen
    widget.choose(real().features[3])
    assert widget.seq == seen + 1


# --- own text --------------------------------------------------------------------------------------


def test_an_own_text_has_the_features_codes_at_its_tokens() -> None:
    model, text = tiny.model(), "2+2=4 abc"
    rows = model.record([text], SITE, pool="all", progress=False)[SITE]
    codes = made().encode(rows)
    widget = browser().read(text)
    for feature in (0, 5, 11):
        own = widget.choose(feature).frame["own"]
        assert own["pieces"] == ["<bos>", *text] and own["values"][0] is None
        assert np.allclose(own["values"][1:], codes[1:, feature], rtol=1e-3)
    best = own["strongest"][0]
    shares = codes[1:] / torch.tensor(real().largest).clamp_min(1e-9)
    shares[:, torch.tensor(real().largest) == 0] = 0
    assert best["share"] == pytest.approx(float(shares.max()), rel=1e-3)
    assert best["feature"] == int(shares.max(0).values.argmax())
    assert best["token"] == 1 + int(shares[:, best["feature"]].argmax())


def test_another_feature_reads_the_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real_stream = sae.stream
    monkeypatch.setattr(
        sae, "stream", lambda *a, **k: calls.append(a) or real_stream(*a, **k), raising=False
    )
    widget = browser().read("abc")
    widget.choose(4).choose(5)
    assert len(calls) == 1
    widget.read("abcd")
    assert len(calls) == 2


def test_trained_weights_read_the_text_again() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    widget = FeatureBrowser(real(), made(), model, PROMPTS, feature=0)
    before = widget.read("abc").frame["own"]["values"]
    with torch.no_grad():
        next(model.hf.parameters()).mul_(3)
    widget.choose(5).choose(0)
    assert widget.frame["own"]["values"] != before


def test_a_text_that_cannot_be_read_says_why_and_the_rest_is_shown() -> None:
    widget = browser().read("a" * 500)
    own = widget.frame["own"]
    assert "pieces" not in own and "500" in own["problem"] or "128" in own["problem"]
    assert widget.frame["one"] and widget.status["state"] == "idle"
    assert "own" not in browser().read("a").read("").frame


# --- steering --------------------------------------------------------------------------------------


@pytest.fixture
def alive() -> int:
    return int(np.argmax(real().largest))


@pytest.mark.parametrize(
    ("mode", "strength"), [("add", 1.5), ("clamp", 0.5), ("clamp", 0), ("scale", -1)]
)
def test_the_record_is_saes_own_edit(mode: str, strength: float | int, alive: int) -> None:
    widget = browser().choose(alive, mode=mode, strength=strength)
    largest = float(real().largest[alive])
    level = strength if mode == "clamp" else 1.0
    wanted = sae.steer(made(), alive, mode=mode, level=level, largest=largest)
    wanted = wanted.at(1.0 if mode == "clamp" else float(strength))
    model, prompt = tiny.model(), PROMPTS[1]
    runs = [
        model.run(prompt, edits=[e], logits="last").logits for e in (widget.to_record(), wanted)
    ]
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], model.run(prompt, logits="last").logits)


def test_clamped_features_have_the_sliders_activation(alive: int) -> None:
    edit = browser().choose(alive, mode="clamp", strength=0.5).to_record()
    model = tiny.model()
    own = model.run(PROMPTS[0], record=SITE)[SITE][0]
    moved = model.run(PROMPTS[0], record=SITE, edits=[edit])[SITE][0]
    row = made().decoder[alive]
    gap = (moved - own) @ row / (row @ row)
    wanted = 0.5 * float(real().largest[alive]) - made().encode(own)[:, alive]
    assert torch.allclose(gap, wanted, atol=1e-3)


def test_modes_are_those_that_the_dictionary_allows() -> None:
    assert [m["name"] for m in browser().meta["modes"]] == ["add", "clamp", "scale"]
    topk = made("TopKSAE")
    widget = FeatureBrowser(real(), topk, tiny.model(), PROMPTS)
    assert [m["name"] for m in widget.meta["modes"]] == ["add"]
    with pytest.raises(WorkbenchError, match="cannot be steered in this way"):
        widget.choose(0, mode="clamp")
    assert FeatureBrowser(real()).meta["modes"] == []


def test_it_opens_the_edit_in_a_live_edit(alive: int) -> None:
    widget = browser().choose(alive, mode="add", strength=2)
    live = widget.steer(max_new_tokens=3)
    assert isinstance(live, LiveEdit) and live.spec["max_new_tokens"] == 3
    assert [p.text for p in live._prompts] == PROMPTS
    (edit,) = live.to_record()
    assert edit.strength == 2 and f"feature {alive}" in live.spec["rows"][0]["label"]
    own = FeatureBrowser(real(), made(), tiny.model(), feature=alive)
    with pytest.raises(WorkbenchError, match="own text"):
        own.steer()
    assert [p.text for p in own.read("abc").steer(max_new_tokens=2)._prompts] == ["abc"]


def test_the_browsers_button_opens_one_live_edit_at_a_time(alive: int) -> None:
    widget = browser().choose(alive)
    reference = widget._fetch("open", {}, None)["opened"]  # type: ignore[arg-type]
    first = widget._shown_live
    assert reference == f"IPY_MODEL_{first.model_id}" == widget.meta["opened"]  # type: ignore[union-attr]
    widget._fetch("open", {}, None)  # type: ignore[arg-type]
    assert widget._shown_live is not first and first.comm is None  # type: ignore[union-attr]


def test_code_gives_the_same_without_the_widget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    monkeypatch.chdir(tmp_path)
    code = browser().choose(alive, mode="clamp", strength=0.5).to_code()
    scope: dict[str, Any] = {"model": tiny.model()}
    exec(code, scope)
    edit = browser().choose(alive, mode="clamp", strength=0.5).to_record()
    (wanted,) = tiny.model().generate([PROMPTS[0]], edits=[edit], progress=False)
    assert scope["text"].ids == wanted.ids
    alone = FeatureBrowser(real(), made(), feature=alive).to_code()
    assert "wb.load_edit(" in alone and "generate" not in alone
    exec(alone, {})


# --- without a kernel ------------------------------------------------------------------------------


def test_a_page_keeps_the_first_of_the_list_and_the_opened_one() -> None:
    widget = FeatureBrowser(board(), feature=8).search(sort="largest")
    sweep = unpack(widget.precompute().sweep)
    assert sweep["grid"] == [12, 3, 5, 9, 8]
    assert sweep["features"][-1] == widget.frame["one"]
    assert unpack(widget.precompute(features=[3]).sweep)["grid"] == [3, 8]
    assert "own" not in sweep


def test_a_page_keeps_the_own_text_of_every_kept_feature() -> None:
    widget = browser().read("abc+1")
    sweep = unpack(widget.precompute([2, 4]).sweep)
    for feature in (2, 4):
        own = browser().choose(feature).read("abc+1").frame["own"]
        assert sweep["own"]["values"][str(feature)] == own["values"]
    assert sweep["own"]["pieces"] == own["pieces"]


def test_a_page_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = browser().precompute()
    assert len(whole.sweep) < widget_module.KEPT_BYTES
    most = max(len(one["examples"]) for one in unpack(whole.sweep)["features"])
    monkeypatch.setattr(widget_module, "KEPT_BYTES", len(whole.sweep) - 1)
    fewer = unpack(browser().precompute().sweep)["features"]
    assert max(len(one["examples"]) for one in fewer) < most


def test_numbers_of_numpy_are_numbers() -> None:
    widget = browser().choose(np.int64(3), mode="add", strength=np.float32(0.5))  # type: ignore[arg-type]
    assert type(widget.spec["feature"]) is int and type(widget.spec["strength"]) is float
    assert unpack(widget.precompute(np.array([2, 3])).sweep)["grid"] == [2, 3]


def test_the_frame_is_small() -> None:
    assert len(browser().data) < 40_000


# --- mistakes and pictures -------------------------------------------------------------------------


def test_mistakes_are_said_in_words() -> None:
    for wrong, words in (
        ({"rankings": ["x"]}, "name: ranking"),
        ({"rankings": {"density": ranking()}}, "name of an order"),
        ({"rankings": {"a": pd.DataFrame({"x": [1]})}}, "'feature' and 'score'"),
        (
            {"rankings": {"a": pd.DataFrame({"feature": [40], "score": [1.0]})}},
            "no feature of the dash",
        ),
        ({"feature": 4}, "describes no such feature"),
        ({"feature": True}, "describes no such feature"),
        ({"dictionary": tiny.model()}, "expected a Dictionary"),
        (
            {"rankings": {"a": pd.DataFrame({"feature": [np.nan, 3], "score": [1.0, 2.0]})}},
            "expected numbers",
        ),
        ({"rankings": {"a": pd.DataFrame({"feature": [3], "score": ["x"]})}}, "expected numbers"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            FeatureBrowser(board(), **wrong)
    with pytest.raises(WorkbenchError, match="expected a Dashboard"):
        FeatureBrowser(made())  # type: ignore[arg-type]
    widget = FeatureBrowser(board())
    for act, words in (
        (lambda: widget.choose(4), "describes no such feature"),
        (lambda: widget.choose(3, mode="add"), "no dictionary to steer with"),
        (lambda: widget.read("a"), "dictionary= and model="),
        (lambda: widget.steer(), "model="),
        (lambda: widget.to_record(), "dictionary="),
        (lambda: widget.precompute([]), "no features to keep"),
        (lambda: widget.precompute(3), "no features to keep"),  # type: ignore[arg-type]
        (lambda: widget.precompute([4]), "describes no such feature"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            act()
    for asked in ({"sort": "size"}, {"show": "some"}):
        with pytest.raises(UnknownName):
            widget.search(**asked)
        widget.ask(**asked)
        assert "unknown" in widget.status["msg"]
    with pytest.raises(UnknownName):
        browser().choose(0, mode="double")
    for strength in (float("nan"), "2", True):
        with pytest.raises(WorkbenchError, match="finite number"):
            browser().choose(0, strength=strength)  # type: ignore[arg-type]


def test_a_feature_that_never_fires_can_be_switched_off_but_not_added() -> None:
    dead = replace(real(), largest=np.zeros_like(real().largest))
    widget = FeatureBrowser(dead, made(), tiny.model(), PROMPTS, feature=0)
    with pytest.raises(WorkbenchError, match="never active"):
        widget.to_record()
    with pytest.raises(WorkbenchError, match="never active"):
        widget.choose(0, mode="clamp", strength=1).to_record()
    assert widget.choose(0, mode="scale").to_record().params["mode"] == "scale"
    assert widget.choose(0, mode="clamp", strength=0).to_record().params["level"] == 0


@pytest.mark.parametrize(
    "changes",
    [{"site": "L2.resid_post"}, {"dictionary_name": "another"}, {"features": [*range(23), 24]}],
    ids=str,
)
def test_another_dictionary_is_refused(changes: dict[str, Any]) -> None:
    other = replace(real(), **changes)
    with pytest.raises(WorkbenchError, match="the dashboard is of"):
        FeatureBrowser(other, made(), tiny.model(), PROMPTS)
    if "dictionary_name" in changes:
        FeatureBrowser(other, made(), tiny.model(), PROMPTS, force=True)


def test_a_dictionary_of_another_model_is_refused() -> None:
    of_another = replace(made(), model=replace(tiny.model().fingerprint, name="x", weights=""))
    with pytest.raises(WorkbenchError, match="another model"):
        FeatureBrowser(real(), of_another, tiny.model(), PROMPTS)
    FeatureBrowser(real(), of_another, tiny.model(), PROMPTS, force=True).read("ab")


def test_the_still_is_small_and_escaped() -> None:
    labels = ["<script>" + "x" * 400] * 5
    widget = FeatureBrowser(replace(board(), labels=labels), feature=12)
    still = widget._still()
    assert "<script>" not in still and "<b>two" not in still and len(still.encode()) < 20_000
    assert "strongest" not in repr(widget) and "feature 12" in repr(widget)
    many = {"pieces": ["<i>" * 9] * 200, "values": [1.0] * 200, "peak": 0}
    frame = widget.frame["one"] | {"examples": [many] * 30}
    from workbench_widgets.feature_browser.still import still as drawn

    assert len(drawn("t", frame, widget.frame["list"]).encode()) < 20_000
    assert drawn("t", None, None) == "<div><b>t</b></div>"
