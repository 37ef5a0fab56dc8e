"""LensGrid: its numbers against torch and scipy, its edges, its code, its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import workbench as wb
from tests import tiny
from workbench.errors import WorkbenchError
from workbench_widgets import LensGrid
from workbench_widgets.frames import unpack
from workbench_widgets.lens_grid import lens as lens_module
from workbench_widgets.lens_grid.lens import STATISTICS, lens_logits

PROMPT = "abc def"
STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K" / "hf"
MODELS = ["reasoner", "gpt2", "gemma2"] + (["stories260K"] if STORIES.is_dir() else [])


def model_of(name: str) -> wb.Model:
    if name == "reasoner":
        return wb.load("reasoner")
    return wb.load(STORIES) if name == "stories260K" else tiny.model(name)


def edit(strength: float = 1.0, site: str = "L1.resid_post", scale: float = 1.0) -> wb.Intervention:
    shift = scale * torch.randn(32, generator=torch.Generator().manual_seed(0))
    return wb.Intervention("custom", "affine", {site: {"shift": shift}}, strength, name="shifted")


@torch.no_grad()
def by_hand(model: wb.Model, prompt: str) -> torch.Tensor:
    """`[layer, pos, vocab]` log-probabilities: norm and unembedding called one layer at a time."""
    trace = model.run(prompt, record="L*.resid_post")
    norm, _ = model.backend.place(wb.sites.Site(None, "final_norm"))  # type: ignore[attr-defined]
    found = []
    for layer in range(model.n_layers):
        logits = model.hf.get_output_embeddings()(norm(trace[f"L{layer}.resid_post"]))
        cap = getattr(model.hf.config, "final_logit_softcapping", None)
        logits = cap * torch.tanh(logits / cap) if cap else logits
        found.append(logits[0].double().log_softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_every_number_is_the_one_computed_by_hand(name: str) -> None:
    model = model_of(name)
    prompt = "add 12+34\n" if name == "reasoner" else PROMPT
    widget = LensGrid(model, prompt, top=4)
    logp = by_hand(model, prompt).numpy()
    p, frame = np.exp(logp), widget.frame
    places = dict(zip(STATISTICS, frame["base_statistics"], strict=True))
    first = logp.argmax(-1)
    assert np.array_equal(widget.read().top[..., 0], first)
    assert np.allclose(frame["base_top_p"], -np.sort(-p, -1)[..., :4], atol=1e-5)
    assert np.allclose(places["p"], p.max(-1), atol=1e-5)
    assert np.allclose(places["entropy"], stats.entropy(p, axis=-1), atol=1e-4)
    assert np.allclose(places["kl"], stats.entropy(p[-1:].repeat(len(p), 0), p, axis=-1), atol=1e-4)
    own = np.take_along_axis(logp, first[-1][None, :, None], -1)
    assert np.array_equal(places["rank"], (logp > own).sum(-1) + 1)
    words = [frame["words"][i] for i in frame["base_top"][-1, :, 0]]
    # a tokenizer of pieces drops the space of a first token; the widget keeps it
    spelled = model.tokenizer.convert_ids_to_tokens([int(i) for i in first[-1]])
    own_words = [word or "" for word in spelled]  # the tiny model has more ids than its tokenizer
    assert [word.strip() for word in words] == [
        word.replace("▁", " ").strip() for word in own_words
    ]
    assert any(word.startswith(" ") for word in words) or "▁" not in "".join(own_words)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_last_layer_is_the_model_itself(family: str) -> None:
    model = tiny.model(family)
    trace = model.run(PROMPT, record="L*.resid_post")
    logits = lens_logits(model, trace.tokens, trace.stack("resid_post")[:, 0])
    assert torch.equal(logits[-1], trace.logits[0])
    assert torch.equal(model.run(PROMPT).logits, trace.logits)  # left as it was


def test_an_edited_side_is_the_edited_model() -> None:
    model = tiny.model()
    widget = LensGrid(model, PROMPT, [edit()])
    own = model.run(PROMPT, edits=[edit()]).logits[0].softmax(-1)
    edited, base = widget.read("edited"), widget.read()
    assert np.allclose(edited.p[-1], own.max(-1).values, atol=1e-6)
    assert np.array_equal(edited.top[0], base.top[0])
    assert np.array_equal(edited.top_p[0], base.top_p[0])
    assert np.abs(edited.kl[0] - base.kl[0]).max() > 0.01  # towards the edited model's own words
    widget.ask(strengths=[0.0])
    assert np.array_equal(widget.frame["edited_statistics"], widget.frame["base_statistics"])


def test_a_moved_edit_runs_only_what_lies_above_it() -> None:
    widget = LensGrid(tiny.model(), PROMPT, [edit(site="L2.mlp_out")])
    widget.ask(strengths=[0.5])
    assert widget._arms._lives["edited"].reran == range(2, 3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LensGrid(tiny.model(), PROMPT).frame["base_statistics"]
    monkeypatch.setattr(lens_module, "LARGEST_CHUNK", 1)
    assert np.allclose(LensGrid(tiny.model(), PROMPT).frame["base_statistics"], whole, atol=1e-5)


def test_layers_can_be_chosen() -> None:
    widget = LensGrid(tiny.model(), PROMPT, layers=[2, 0])
    every = LensGrid(tiny.model(), PROMPT).frame["base_statistics"]
    assert widget.meta["layers"] == [0, 2]
    assert np.allclose(widget.frame["base_statistics"], every[:, [0, 2]], atol=1e-6)


def test_the_vocabulary_never_crosses() -> None:
    hf = tiny.module("gpt2", n_layer=24, vocab_size=20_000, bos_token_id=1)
    widget = LensGrid(wb.load(hf, tiny.tokenizer()), "a" * 63)
    assert widget.frame["base_top"].shape == (24, 64, 5)
    assert len(widget.data) < 24 * 64 * (5 * 6 + 16) + 100_000


def test_code_gives_the_same_without_the_widget(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = wb.load("reasoner")
    shift = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    given = wb.Intervention("custom", "affine", {"L2.resid_post": {"shift": shift}}, 1.0)
    widget = LensGrid(model, "add 12+34\n", [given], layers=[1, 3, 5])
    widget.ask(strengths=[0.75])
    scope: dict = {}
    exec(widget.to_code(), scope)
    assert np.array_equal(scope["first"].numpy(), widget.read("edited").top[..., 0])
    assert [float(e.strength) for e in widget.to_record()] == [0.75]


def test_precomputed_strengths_are_the_computed_ones() -> None:
    widget = LensGrid(tiny.model(), PROMPT, [edit()])
    sweep = unpack(widget.precompute([0.0, 2.0]).sweep)
    assert sweep["grid"] == [0.0, 1.0, 2.0]
    for i, strength in enumerate(sweep["grid"]):
        own = LensGrid(tiny.model(), PROMPT, [edit(strength)])
        lens = own.read("edited")
        texts = [sweep["words"][j] for j in sweep["top"][i].ravel()]
        assert texts == [own._model.tokenizer.decode([int(t)]) for t in lens.top[..., 0].ravel()]
        assert np.allclose(sweep["p"][i], lens.p, atol=1e-3)
        assert np.array_equal(sweep["rank"][i], lens.rank)
    assert widget.spec["strengths"] == [1.0]
    assert LensGrid(tiny.model(), PROMPT).precompute().meta["complete"]


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(prompt=""), "is empty"),
        (dict(prompt=[]), "there are none"),
        (dict(prompt="a" * 4000), "longer than the context"),
        (dict(prompt=["a", "b"]), "one prompt"),
        (dict(layers=[3]), "layers the model lacks"),
        (dict(layers=[]), "no layer"),
        (dict(edits=[edit(site="L7.resid_post")]), "layer"),
        (dict(edits=[edit().at(torch.ones(2))]), "one strength"),
    ],
)
def test_mistakes_are_said_at_once(wrong: dict, words: str) -> None:
    with pytest.raises(WorkbenchError, match=words):
        LensGrid(tiny.model(), **{"prompt": PROMPT, **wrong})


def test_an_edit_that_makes_nan_is_said_and_the_widget_goes_on() -> None:
    widget = LensGrid(tiny.model(), PROMPT, [edit(scale=float("inf"))])
    assert widget.status["state"] == "error" and "infinite or NaN" in widget.status["msg"]
    assert repr(widget) == "LensGrid(3 layers, 8 tokens)" and "not computed" in widget._still()
    widget.ask(strengths=[0.0])
    assert widget.status["state"] == "idle" and widget.frame["edited_top"].shape == (3, 8, 5)
    widget.ask(strengths=[1.0, 2.0])
    assert "a strength per edit" in widget.status["msg"]


def test_a_model_that_computes_nan_is_said() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    model.hf.get_submodule("model.layers.2.mlp.down_proj").weight.fill_(float("nan"))
    assert "values are not numbers" in LensGrid(model, PROMPT).status["msg"]


def test_the_still_is_small_and_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny.module("gpt2", n_layer=24)
    widget = LensGrid(wb.load(hf, tiny.tokenizer()), "a" * 63)
    hostile = "<script>alert(1)</script>"
    frame = {**widget.frame, "words": [hostile] * len(widget.frame["words"])}
    monkeypatch.setattr(LensGrid, "frame", property(lambda _: frame))
    still = widget._still()
    assert len(still.encode()) < 20_000
    assert "<script" not in still and "&lt;script" in still
    assert "16 of 24 layers" in still


def test_repr_is_stable() -> None:
    model = wb.load("reasoner")
    one, two = (repr(LensGrid(model, "add 12+34\n")) for _ in range(2))
    assert one == two and one.startswith("LensGrid(6 layers, 11 tokens; next ")


@pytest.mark.parametrize("backend", ["transformers", "other"])
def test_weights_changed_in_place_change_both_sides(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer())
    if backend == "other":  # every run is a full one there
        monkeypatch.setattr("workbench.model.live._why_full", lambda _model: "full")
    widget = LensGrid(model, PROMPT, [edit()])
    before = widget.read()
    assert widget.read() is before
    widget.ask(strengths=[0.5])
    assert widget._base is before, "read again without a reason"
    with torch.no_grad():
        model.hf.get_submodule("model.layers.0.mlp.down_proj").weight.mul_(3)
    widget.ask(strengths=[0.0])
    frame, fresh = widget.frame, LensGrid(model, PROMPT).read()
    assert np.array_equal(frame["base_statistics"], fresh.statistics)
    assert np.array_equal(frame["edited_statistics"], fresh.statistics)
    assert np.abs(before.p - fresh.p).max() > 1e-3
    with torch.no_grad():
        model.hf.get_output_embeddings().weight.mul_(2)
    assert np.array_equal(widget.read().p, LensGrid(model, PROMPT).read().p)
    widget.precompute([0.0])
    assert np.array_equal(widget.frame["base_statistics"], widget.read().statistics)


def masking(never: float) -> wb.Model:
    """A model whose head gives the last three ids a logit that no other has."""
    hf = tiny.module("gpt2")
    head = torch.nn.Linear(32, tiny.N_VOCAB)
    head.weight = hf.get_output_embeddings().weight
    head.bias = torch.nn.Parameter(torch.zeros(tiny.N_VOCAB), requires_grad=False)
    head.bias[-3:] = never
    hf.set_output_embeddings(head)
    return wb.load(hf.requires_grad_(False), tiny.tokenizer(), proof=False)


def test_a_model_may_rule_tokens_out() -> None:
    masked = LensGrid(masking(float("-inf")), PROMPT, [edit()], top=tiny.N_VOCAB)
    assert masked.status["state"] == "idle", masked.status["msg"]
    far = LensGrid(masking(-1e4), PROMPT, [edit()]).frame
    for side in ("base", "edited"):
        found = masked.frame[f"{side}_statistics"]
        assert np.allclose(found, far[f"{side}_statistics"], atol=1e-4)
        assert (masked.frame[f"{side}_top_p"][..., -3:] == 0).all()


@pytest.mark.parametrize("never", [float("nan"), float("inf")])
def test_a_base_side_that_is_wrong_says_look_at_the_model(never: float) -> None:
    said = LensGrid(masking(never), PROMPT, [edit()]).status["msg"]
    assert "base" in said and "look at the model" in said and "strength" not in said


@pytest.mark.parametrize("strengths", [["x"], ["1"], [None], [float("nan")], [False], 1.0, []])
def test_strengths_that_are_no_numbers_are_said(strengths: object) -> None:
    widget = LensGrid(tiny.model(), PROMPT, [edit()])
    widget.ask(strengths=strengths)
    assert "a strength per edit" in widget.status["msg"]
    with pytest.raises(WorkbenchError, match="a strength per edit"):
        widget.to_record()


@pytest.mark.parametrize("grid", [["a"], "12", [None], [], 3, [float("inf")], [[1.0]]])
def test_a_grid_that_holds_no_numbers_is_said(grid: object) -> None:
    with pytest.raises(WorkbenchError, match="strengths of the first edit"):
        LensGrid(tiny.model(), PROMPT, [edit()]).precompute(grid)  # type: ignore[arg-type]


def test_a_grid_may_be_any_numbers() -> None:
    widget = LensGrid(tiny.model(), PROMPT, [edit(), edit(0.5, "L2.resid_post")])
    sweep = unpack(widget.precompute(torch.tensor([2, 0])).sweep)
    assert sweep["grid"] == [0.0, 1.0, 2.0] and sweep["others"] == [0.5]
    assert unpack(widget.precompute().sweep)["grid"] == [-2 + i / 2 for i in range(9)]
