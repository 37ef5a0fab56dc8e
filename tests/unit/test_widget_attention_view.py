"""AttentionView: its numbers against numpy and scipy, its edges, its code, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import workbench as wb
from tests import tiny
from tests.unit.test_widget_lens_grid import MODELS, PROMPT, STORIES, edit, model_of
from workbench.errors import SiteUnavailable, WorkbenchError
from workbench_widgets import AttentionView
from workbench_widgets.attention_view import widget as widget_module
from workbench_widgets.frames import unpack


@pytest.mark.parametrize("name", MODELS)
def test_every_number_is_the_one_computed_by_hand(name: str) -> None:
    model = model_of(name)
    prompt = "add 12+34\n" if name == "reasoner" else PROMPT
    found = AttentionView(model, prompt).frame["base"]
    trace = model.run(prompt, record="L*.pattern")
    assert found.shape == (4, model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            p = trace[f"L{layer}.pattern"][0, head].double().numpy()
            n = len(p)
            wanted = (
                np.mean([stats.entropy(p[q]) for q in range(1, n)]),
                p[1:, 0].mean(),
                np.mean([p[q, q - 1] for q in range(1, n)]),
                np.mean([sum(p[q, k] * (q - k) for k in range(n)) for q in range(1, n)]),
            )
            assert np.allclose(found[:, layer, head], wanted, atol=1e-4)


def answers(widget: AttentionView, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    sent: list[Any] = []
    monkeypatch.setattr(
        widget, "send", lambda content, buffers=None: sent.append((content, buffers))
    )
    return sent


def test_a_pattern_is_fetched_as_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    widget = AttentionView(model, PROMPT, [edit(site="L0.resid_post")])
    sent = answers(widget, monkeypatch)
    widget._message(None, {"type": "fetch", "id": "a", "what": "pattern",
                           "arguments": {"layer": 2, "head": 1}}, [])  # fmt: skip
    ((content, buffers),) = sent
    found = unpack(buffers[0])
    assert content == {"type": "fetched", "id": "a"} and len(buffers) == 1
    own = model.run(PROMPT, record="L2.pattern")["L2.pattern"][0, 1]
    moved = model.run(PROMPT, record="L2.pattern", edits=[edit(site="L0.resid_post")])
    assert np.allclose(found["base"], own, atol=1e-6)
    assert np.allclose(found["edited"], moved["L2.pattern"][0, 1], atol=1e-6)
    assert torch.equal(widget.pattern(2, 1), own)


@pytest.mark.parametrize("place", [{"layer": 3, "head": 0}, {"layer": 0, "head": 4}, {"head": "x"}])
def test_a_pattern_that_is_not_there_is_said(place: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    widget = AttentionView(tiny.model(), PROMPT)
    sent = answers(widget, monkeypatch)
    widget._message(None, {"type": "fetch", "id": "a", "what": "pattern", "arguments": place}, [])
    assert "no such pattern" in sent[0][0]["error"]
    widget._message(None, {"type": "fetch", "id": "b", "what": "weights"}, [])
    assert "no such part" in sent[1][0]["error"]


def test_long_prompts_are_read_a_few_layers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AttentionView(tiny.model(), PROMPT).frame["base"]
    monkeypatch.setattr(widget_module, "AT_ONCE", 1)
    widget = AttentionView(tiny.model(), PROMPT)
    assert len(list(widget._groups())) == 3
    assert np.allclose(widget.frame["base"], whole, atol=1e-5)


def test_a_pattern_too_large_to_draw_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widget_module, "TOKENS_DRAWN", 4)
    widget = AttentionView(tiny.model(), PROMPT)
    sent = answers(widget, monkeypatch)
    place = {"layer": 0, "head": 0}
    widget._message(None, {"type": "fetch", "id": "a", "what": "pattern", "arguments": place}, [])
    assert "64 cells" in sent[0][0]["error"] and widget.pattern(0, 0).shape == (8, 8)


def test_edits_move_heads_above_them_only() -> None:
    frame = AttentionView(tiny.model(), PROMPT, [edit(site="L1.resid_post")]).frame
    gain = np.abs(frame["edited"] - frame["base"]).max(axis=(0, 2))
    assert gain[0] == gain[1] == 0 and gain[2] > 1e-3


def test_small_patterns_are_kept_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = AttentionView(tiny.model(), PROMPT).precompute()
    sweep = unpack(widget.sweep)
    own = tiny.model().run(PROMPT, record="L*.pattern").stack("pattern")[:, 0].numpy()
    assert sweep["base_patterns"].dtype == np.uint8
    assert np.abs(sweep["base_patterns"] / 255 - own).max() <= 0.5 / 255 + 1e-6
    assert widget.meta["complete"]
    edited = unpack(AttentionView(tiny.model(), PROMPT, [edit()]).precompute([0.0, 2.0]).sweep)
    assert edited["grid"] == [0.0, 1.0, 2.0]
    assert np.array_equal(edited["edited_patterns"][0], sweep["base_patterns"])
    at_two = AttentionView(tiny.model(), PROMPT, [edit(2.0)]).frame["edited"]
    assert np.allclose(edited["edited"][2], at_two, atol=1e-5)
    monkeypatch.setattr(widget_module, "SMALL", 10)
    large = AttentionView(tiny.model(), PROMPT).precompute()
    assert large.sweep == b"" and not large.meta["complete"]


def test_code_gives_the_same_without_the_widget(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    widget = AttentionView(wb.load("reasoner"), "add 12+34\n")
    widget.selection = {"layer": 2, "head": 5}
    scope: dict = {}
    exec(widget.to_code(), scope)
    assert np.allclose(scope["heads"], widget.frame["base"], atol=1e-6)
    assert torch.allclose(scope["pattern"], widget.pattern(2, 5), atol=1e-6)


def test_a_model_without_patterns_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.model.backends import hooks

    monkeypatch.setattr(hooks.attention_tap, "supported", lambda _attention: False)
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    with pytest.raises(SiteUnavailable, match="pattern"):
        AttentionView(model, PROMPT)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(prompt="a" * 4000), "longer than the context"),
        (dict(prompt=["a", "b"]), "one prompt"),
        (dict(edits=[edit(site="L7.resid_post")]), "layer"),
    ],
)
def test_mistakes_are_said_at_once(wrong: dict, words: str) -> None:
    with pytest.raises(WorkbenchError, match=words):
        AttentionView(tiny.model(), **{"prompt": PROMPT, **wrong})


def test_one_token_has_no_statistics_but_a_widget() -> None:
    widget = AttentionView(tiny.model(), "<bos>")
    assert np.isnan(widget.frame["base"]).all() and "mean entropy 0.00" in repr(widget)
    assert widget._still()


def test_nan_is_said_and_the_widget_goes_on() -> None:
    broken = edit(site="L0.resid_post", scale=float("inf"))
    widget = AttentionView(tiny.model(), PROMPT, [broken])
    assert "infinite or NaN" in widget.status["msg"]
    widget.ask(strengths=[0.0])
    assert widget.status["state"] == "idle"


def test_the_still_is_small_and_repr_stable() -> None:
    one, two = (AttentionView(wb.load("reasoner"), "add 12+34\n") for _ in range(2))
    assert repr(one) == repr(two)
    assert len(one._still().encode()) < 20_000 and "entropy of each head" in one._still()


def test_weights_changed_in_place_change_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widget_module, "AT_ONCE", 1)  # each layer is a run of its own
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    widget = AttentionView(model, PROMPT, [edit(site="L0.resid_post")])
    before = widget._base
    widget.ask(strengths=[0.5])
    assert widget._base is before, "read again without a reason"
    with torch.no_grad():
        model.hf.get_submodule("model.layers.1.self_attn.q_proj").weight.mul_(3)
    widget.ask(strengths=[0.0])
    fresh = AttentionView(model, PROMPT).frame["base"]
    assert np.allclose(widget.frame["base"], fresh, atol=1e-6)
    assert np.allclose(widget.frame["edited"], fresh, atol=1e-6)
    assert before is not None and np.abs(before - fresh).max() > 1e-3


def test_settings_say_which_later_edits_they_are_of() -> None:
    widget = AttentionView(tiny.model(), PROMPT, [edit(), edit(0.5, "L0.resid_post")])
    sweep = unpack(widget.precompute([0.0]).sweep)
    assert sweep["grid"] == [0.0, 1.0] and sweep["others"] == [0.5]
    with pytest.raises(WorkbenchError, match="strengths of the first edit"):
        widget.precompute(["a"])  # type: ignore[list-item]


@pytest.mark.skipif(
    not STORIES.is_dir(), reason="the stories260K model is not beside this checkout"
)
def test_a_head_of_stories260k() -> None:
    model = wb.load(STORIES)
    text = "Once upon a time, there was a little girl named Lily."
    own = model.run(text, record="L2.pattern")["L2.pattern"][0, 5]
    widget = AttentionView(model, text)
    assert torch.equal(widget.pattern(2, 5), own)
    entropy = np.mean([stats.entropy(row.numpy()) for row in own[1:].double()])
    assert widget.frame["base"][0, 2, 5] == pytest.approx(entropy, abs=1e-4)


def test_a_head_of_gpt2() -> None:
    model = tiny.model("gpt2")
    own = model.run(PROMPT, record="L1.pattern")["L1.pattern"][0, 3]
    widget = AttentionView(model, PROMPT)
    assert torch.equal(widget.pattern(1, 3), own)
    assert widget.frame["base"][1, 1, 3] == pytest.approx(float(own[1:, 0].mean()), abs=1e-6)
    assert torch.allclose(own.sum(-1), torch.ones(len(own)), atol=1e-5)
