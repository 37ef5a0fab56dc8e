"""HeadBoard: its scores are the maps', its pattern, ablation and examples are runs by hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import PromptError, WorkbenchError
from workbench.locate import WriteNorms
from workbench.locate.base import Axis, Scores, head_axis, layer_axis
from workbench.patching.cases import cases_of
from workbench.patching.map import Map, as_map
from workbench.probes.base import FittedProbe
from workbench.tensors import Intervention, Readout
from workbench_widgets import HeadBoard
from workbench_widgets.frames import unpack
from workbench_widgets.head_board import widget as widget_module

PROMPTS = ["abcabc", "hello there", "12+34=46"]


def made(model: wb.Model, values: Any, axes: Any, **about: Any) -> Map:
    scores = Scores({"score": values}, axes, {"score": "share"}, **about)
    return as_map(scores, cases_of(model, PROMPTS), WriteNorms(), model)


@cache
def maps() -> tuple[Map, Map]:
    """One of heads alone; one of heads with an axis of parts, head before layer."""
    model = tiny.model()
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(3, 3, 4, generator=draw)
    two = torch.rand(3, 4, 2, 3, generator=draw)
    parts = Axis("part", ("q", "v"))
    return (
        made(model, one, (layer_axis(3), head_axis(4))),
        made(model, two, (head_axis(4), parts, layer_axis(3))),
    )


def board(**options: Any) -> HeadBoard:
    return HeadBoard(tiny.model(), PROMPTS, list(maps()), **options)


def test_every_measure_is_a_score_with_the_maps_intervals() -> None:
    widget = board()
    one, two = maps()
    assert [s["name"] for s in widget.meta["scores"]] == [
        "write norms: score", "write norms: score, part q", "write norms: score, part v"
    ]  # fmt: skip
    frame = widget.frame
    assert np.allclose(frame["mean"][0], one.grid(), atol=1e-6)
    assert np.allclose(frame["mean"][2], two.grid()[:, 1].T, atol=1e-6)
    row = two.at(layer=1, head=3, part="v").iloc[0]
    for name in ("mean", "low", "high", "n"):
        assert frame[name][2, 1, 3] == pytest.approx(row[name], abs=1e-6)


def test_heads_beside_a_main_map_are_found_and_equal_names_numbered() -> None:
    model, one = tiny.model(), maps()[0]
    whole = made(model, torch.ones(3, 2), (Axis("part", ("a", "b")),), also={"heads": one.scores})
    names = [s["name"] for s in HeadBoard(model, PROMPTS, whole).meta["scores"]]
    assert names == ["write norms heads: score"]
    names = [s["name"] for s in HeadBoard(model, PROMPTS, [one, one]).meta["scores"]]
    assert names == ["write norms: score", "write norms: score (2)"]


def test_an_opened_head_shows_its_pattern_and_the_model_without_it() -> None:
    model = tiny.model()
    widget = board(top=96).choose(layer=1, head=2, prompt=1)
    frame, opened = widget.frame, widget.frame["opened"]
    own = model.run(PROMPTS[1], record="L1.pattern")["L1.pattern"][0, 2]
    assert np.allclose(frame["pattern"], own, atol=1e-6) and len(frame["tokens"]) == len(own)
    z = model.run(PROMPTS[1], record="L1.z")["L1.z"].clone()
    z[:, :, 2] = 0
    gone = Intervention("custom", "set", {"L1.z": {"value": z}})
    runs = [model.run(PROMPTS[1], edits=e, logits="last").logits[0, -1] for e in ([], [gone])]
    wanted = torch.stack(runs).softmax(-1)
    for row in opened["tokens"]:
        (id_,) = model.tokenizer(row["text"], add_special_tokens=False)["input_ids"] or [None]
        if row["text"] in ("m", "Q", "7"):
            assert np.allclose(row["p"], wanted[:, id_], atol=1e-5)
    assert {"m", "Q", "7"} <= {row["text"] for row in opened["tokens"]}
    kl = (wanted[0] * (wanted[0].log() - wanted[1].log())).sum()
    assert opened["kl"][1] == pytest.approx(float(kl), abs=1e-5) and opened["kl"][1] > 1e-4
    widget.ask(strength=0.0)
    assert widget.frame["opened"]["kl"] == [0, 0]


def test_the_record_takes_the_head_away_and_nothing_else() -> None:
    model = tiny.model()
    edit = board().choose(layer=1, head=2, strength=0.5).to_record()
    own = model.run(PROMPTS[0], record="L1.z")["L1.z"]
    half = model.run(PROMPTS[0], record="L1.z", edits=[edit])["L1.z"]
    assert torch.allclose(half[:, :, 2], own[:, :, 2] / 2, atol=1e-6)
    others = [0, 1, 3]
    assert torch.equal(half[:, :, others], own[:, :, others])


def test_a_neurons_most_active_tokens_are_the_largest() -> None:
    model = tiny.model()
    site = "L1.mlp_post[neuron=5]"
    found = board(neuron=site, examples=2).frame["examples"]
    peaks = []
    for i, prompt in enumerate(PROMPTS):
        h = model.run(prompt, record="L1.mlp_post")["L1.mlp_post"][0, :, 5]
        peaks.append((float(h.max()), i, int(h.argmax()), h))
    peaks.sort(key=lambda x: -x[0])
    assert [row["prompt"] for row in found["rows"]] == [i for _, i, _, _ in peaks[:2]]
    for row, (value, _, at, h) in zip(found["rows"], peaks, strict=False):
        assert row["value"] == pytest.approx(value, abs=1e-5)
        assert row["before"] + row["at"] == at
        assert np.allclose(row["values"], h[row["before"] : len(h) - row["after"]], atol=1e-5)
    assert found["of"] == 3 and found["name"] == site


def test_context_is_cut_around_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench_widgets.head_board import examples

    monkeypatch.setattr(examples, "AROUND", 2)
    whole = {
        r["prompt"]: r for r in board(neuron="L1.mlp_post[neuron=5]").frame["examples"]["rows"]
    }
    for row in whole.values():
        length = tiny.model().tokens(PROMPTS[row["prompt"]]).ids.shape[1]
        assert row["before"] + len(row["pieces"]) + row["after"] == length
        assert len(row["pieces"]) <= 5 and row["values"][row["at"]] == pytest.approx(row["value"])
    monkeypatch.setattr(examples, "TOKENS_AT_ONCE", 1)  # each prompt a batch of its own
    one = {r["prompt"]: r for r in board(neuron="L1.mlp_post[neuron=5]").frame["examples"]["rows"]}
    for i, row in one.items():
        assert row["value"] == pytest.approx(whole[i]["value"], abs=1e-5)


@pytest.mark.parametrize("kind", ["readout", "addition", "probe", "head"])
def test_a_direction_is_read_along_it(kind: str) -> None:
    model = tiny.model()
    w = torch.randn(32, generator=torch.Generator().manual_seed(1))
    site, bias = "L1.resid_post", 0.0
    if kind == "readout":
        given, bias = Readout(site, w, 0.5), 0.5
    elif kind == "addition":
        given = Intervention("custom", "affine", {site: {"shift": 3 * w}}, name="push")
        w = w / w.norm()
    elif kind == "probe":
        tensors = {"weight": w, "bias": torch.tensor(0.25)}
        given, bias = FittedProbe("logistic", site, "last", tensors), 0.25
    else:
        w, site = w[:8], "L1.z[head=2]"
        given = Readout(site, w)
    rows = board(neuron=given).frame["examples"]["rows"]
    for row in rows:
        h = model.run(PROMPTS[row["prompt"]], record=site)[site][0].flatten(1)
        assert row["value"] == pytest.approx(float((h @ w).max()) + bias, abs=1e-4)


def test_a_moved_slider_reads_the_examples_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = widget_module.most_active
    monkeypatch.setattr(widget_module, "most_active", lambda *a: calls.append(a) or real(*a))
    widget = board(neuron="L1.mlp_post[neuron=5]").choose(layer=0, head=0)
    widget.ask(strength=0.5)
    assert len(calls) == 1
    widget.ask(neuron="L0.mlp_post[neuron=1]")
    assert len(calls) == 2 and widget.frame["examples"]["name"] == "L0.mlp_post[neuron=1]"


def test_what_is_kept_for_a_page_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = board().choose(layer=2, head=0)
    sweep = unpack(widget.precompute([0.0], heads=2).sweep)
    assert sweep["grid"] == [0.0, 1.0] and len(sweep["opened"]) in (2, 3)
    assert sweep["opened"]["2,0"][1] == widget.frame["opened"]
    own = tiny.model().run(PROMPTS[0], record="L*.pattern").stack("pattern")[:, 0].numpy()
    assert np.abs(sweep["patterns"] / 255 - own).max() <= 0.5 / 255 + 1e-6
    top = maps()[0].top(1).iloc[0]
    assert f"{top['layer']},{top['head']}" in sweep["opened"]
    monkeypatch.setattr(widget_module, "SMALL", 10)
    assert "patterns" not in unpack(widget.precompute().sweep)


def test_a_pattern_too_large_to_draw_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widget_module, "TOKENS_DRAWN", 4)
    widget = board().choose(layer=0, head=0)
    assert "pattern" not in widget.frame and widget.frame["opened"]


def test_mistakes_are_said_in_words() -> None:
    model, (one, _) = tiny.model(), maps()
    for wrong, words in (
        ([], "a Map or a list"),
        ("induction_heads", "a Map or a list"),
        (made(model, torch.ones(3, 3), (layer_axis(3),)), "a layer and a head"),
        (made(model, torch.ones(3, 3, 2), (layer_axis(3), head_axis(2))), "4 heads"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            HeadBoard(model, PROMPTS, wrong)
    small = wb.load(tiny.module("llama", num_hidden_layers=2), tiny.tokenizer())
    with pytest.raises(WorkbenchError, match="n_layers 2"):
        HeadBoard(small, PROMPTS, one)
    with pytest.raises(PromptError):
        HeadBoard(model, [], one)
    widget = board()
    with pytest.raises(WorkbenchError, match="no head chosen"):
        widget.to_record()
    for place in ((3, 0), (0, 4), (-1, 0)):
        with pytest.raises(WorkbenchError, match="no such head"):
            widget.choose(*place)
    with pytest.raises(WorkbenchError, match="no such prompt"):
        widget.choose(0, 0, prompt=3)
    widget.ask(head=[0, "x"])
    assert "no such head" in widget.status["msg"]
    widget.ask(head=[0, 0], strength=None)
    assert "finite number" in widget.status["msg"]
    with pytest.raises(WorkbenchError, match="needs strengths"):
        board().precompute([])


@pytest.mark.parametrize(
    "wrong",
    [
        "L1.mlp_post", "L*.mlp_post[neuron=1]", "L1.resid_post", "nonsense", 7, "L1.mlp_post[neuron=999]",
        Readout("L1.resid_post", torch.ones(5)), Readout("L1.pattern", torch.ones(5)),
        Intervention("custom", "affine", {"L1.resid_post": {"scale": torch.ones(32)}}),
        Intervention("custom", "affine", {"L1.resid_post": {"shift": torch.zeros(32)}}),
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be_read_at_tokens_is_said(wrong: Any) -> None:
    try:
        widget = board(neuron=wrong)
    except WorkbenchError:
        return
    # what only a run finds out
    assert widget.status["state"] == "error" and widget.status["msg"]
    assert "Error:" not in widget.status["msg"]


def test_code_gives_the_same_without_the_widget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = wb.load("reasoner")
    values = torch.rand(2, model.n_layers, model.n_heads)
    scores = Scores(
        {"s": values}, (layer_axis(model.n_layers), head_axis(model.n_heads)), {"s": "x"}
    )
    prompts = ["add 12+34\n", "add 15+31\n"]
    found = as_map(scores, cases_of(model, prompts), WriteNorms(), model)
    widget = HeadBoard(model, prompts, found).choose(layer=2, head=1, prompt=1, strength=0.5)
    scope: dict[str, Any] = {}
    exec(widget.to_code(), scope)
    assert np.allclose(scope["pattern"], widget.frame["pattern"], atol=1e-6)
    most = widget.frame["opened"]["tokens"]
    assert max(row["p"][1] for row in most) == pytest.approx(float(scope["p"].max()), abs=1e-5)


def test_real_methods_of_heads_come_together() -> None:
    model = tiny.model()
    found = [wb.locate.find(name, model, PROMPTS, progress=False)
             for name in ("induction_heads", "previous_token_heads", "head_norms")]  # fmt: skip
    widget = HeadBoard(model, PROMPTS, found)
    assert np.allclose(widget.frame["mean"][0], found[0].grid(), atol=1e-6)
    assert "induction heads" in repr(widget)


def test_the_still_is_small_and_escaped() -> None:
    model = wb.load(tiny.module("gpt2"), tiny.tokenizer())
    scores = maps()[0].scores
    found = as_map(Scores({"<b>": scores.values["score"]}, scores.axes, {"<b>": "<i>"}),
                   cases_of(model, PROMPTS), WriteNorms(), model)  # fmt: skip
    still = HeadBoard(model, PROMPTS, found, neuron="L1.mlp_post[neuron=5]")._still()
    assert "<i>" not in still and len(still.encode()) < 20_000 and "most active" in still
