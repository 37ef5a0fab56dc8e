"""Lenses, shares in the logits and norms: numbers by hand, planted truths, and edits that bear them out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.model.stopping import stoppable
from workbench.patching import head as head_module
from workbench.patching.head import Head
from workbench.patching.lens_files import load_lens, save_lens

CLEAN = ("ab cab cab c", "de fde", "gh igh igh i", "jk ljk ljk l")
ANSWERS, FOILS = ["a", "d", "g", "j"], ["x", "y", "z", "w"]
SPLITS = [f for f in tiny.FAMILIES if not f.startswith("gemma")]
BACKENDS = ("transformers", "transformer_lens", "nnsight")


def cases(**options: Any) -> wb.Prompts:
    given = {"answers": ANSWERS, "foils": FOILS, "align": "end", **options}
    return wb.prompts.counterfactuals(clean=CLEAN, corrupted=CLEAN, **given)


def ids(letters: list[str]) -> list[int]:
    return [tiny.tokenizer().convert_tokens_to_ids(letter) for letter in letters]


def find(method: Any, prompts: Any = None, model: Any = "llama", **handed: Any) -> Any:
    model = tiny.model(model) if isinstance(model, str) else model
    prompts = cases() if prompts is None else prompts
    return locate.find(method, model, prompts, progress=False, **handed)


def values(found: Any, measure: str | None = None) -> np.ndarray:
    return found.scores.values[measure or found.measures[0]].numpy()


def own_difference(model: wb.Model, edits: Any = ()) -> np.ndarray:
    logits = model.run(list(CLEAN), edits=edits, logits="last").logits[:, -1].numpy()
    rows = np.arange(len(CLEAN))
    return logits[rows, ids(ANSWERS)] - logits[rows, ids(FOILS)]


# logit lens


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_logit_lens_is_norm_and_unembedding_by_hand(family: str) -> None:
    model = tiny.model(family)
    trace = model.run(list(CLEAN), record="L*.resid_post")
    norm, _ = model.backend.place(wb.sites.Site(None, "final_norm"))  # type: ignore[attr-defined]
    found, rows = find("logit_lens", model=family), np.arange(4)
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    own = trace.logits[:, -1].double().softmax(-1).numpy()
    for layer in range(3):
        stream = trace[f"L{layer}.resid_post"][:, -1:]
        z = model.hf.get_output_embeddings()(norm(stream))[:, 0]
        z = (cap * torch.tanh(z / cap) if cap else z).double()
        p, a = z.softmax(-1).numpy(), z.numpy()[rows, ids(ANSWERS)]
        by_hand = {
            "logit_difference": a - z.numpy()[rows, ids(FOILS)],
            "probability": p[rows, ids(ANSWERS)],
            "rank": (z.numpy() > a[:, None]).sum(-1) + 1,
            "kl": stats.entropy(own, p, axis=-1),
            "entropy": stats.entropy(p, axis=-1),
        }
        assert set(by_hand) == set(found.measures)
        for name, wanted in by_hand.items():
            np.testing.assert_allclose(values(found, name)[:, layer], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_last_layer_is_the_model_itself(family: str) -> None:
    found = find("logit_lens", model=family)
    wanted = own_difference(tiny.model(family))
    np.testing.assert_allclose(values(found)[:, -1], wanted, rtol=1e-4, atol=1e-5)
    assert (values(found, "kl")[:, -1] == 0).all() and (values(found, "kl")[:, 0] > 1e-4).all()


def test_all_positions_hold_the_last_and_nothing_of_padding() -> None:
    last, every = find("logit_lens"), find(locate.LogitLens(positions="all"))
    assert every.axes == ("layer", "pos") and every.figure().spec["kind"] == "heat"
    lengths = [len(text) + 1 for text in CLEAN]
    for name in last.measures:
        grid = values(every, name)
        np.testing.assert_allclose(grid[:, :, -1], values(last, name), rtol=1e-4, atol=1e-5)
        for row, n in enumerate(lengths):
            assert np.isnan(grid[row, :, : grid.shape[2] - n]).all()
            assert np.isfinite(grid[row, :, grid.shape[2] - n :]).all()


def test_without_answers_the_target_is_the_models_own_choice() -> None:
    model = tiny.model()
    found = find("logit_lens", list(CLEAN))
    assert found.measures[0] == "logit" and "own first choice" in found.scores.caption
    best = model.run(list(CLEAN), logits="last").logits[:, -1].max(-1).values
    np.testing.assert_allclose(values(found)[:, -1], best.numpy(), rtol=1e-5, atol=1e-5)
    assert (values(found, "rank")[:, -1] == 1).all()


def test_an_answer_without_a_foil_is_read_by_its_logit() -> None:
    logits = tiny.model().run(list(CLEAN), logits="last").logits[:, -1].numpy()
    found = find("logit_lens", cases(foils=None))
    assert found.measures[0] == "logit"
    wanted = logits[np.arange(4), ids(ANSWERS)]
    np.testing.assert_allclose(values(found)[:, -1], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "method", [locate.LogitLens(positions="first"), locate.TunedLens(positions="first", steps=0)]
)
def test_unknown_positions_are_refused(method: Any) -> None:
    with pytest.raises(wb.WorkbenchError, match="choice"):
        find(method)


# tuned lens


def test_an_untrained_lens_is_the_logit_lens() -> None:
    bare, tuned = find("logit_lens"), find(locate.TunedLens(steps=0))
    kept = np.isfinite(values(tuned)[:, 0])
    assert kept.sum() == 2
    for name in bare.measures:
        np.testing.assert_allclose(
            values(tuned, name)[kept], values(bare, name)[kept], rtol=1e-5, atol=1e-6
        )
    assert (values(tuned, "kl_saved")[kept] == 0).all()


def test_the_control_is_the_mean_prediction() -> None:
    model, train = tiny.model(), ["abc", "some other text"]
    found = find(locate.TunedLens(steps=0), train=train)
    trace = model.run(train)
    mean = trace.logits[trace.tokens.mask].double().softmax(-1).mean(0)
    own = model.run(list(CLEAN), logits="last").logits[:, -1].double().softmax(-1)
    wanted = stats.entropy(own.numpy(), mean[None].numpy().repeat(4, 0), axis=-1)
    for layer in range(3):
        np.testing.assert_allclose(values(found, "kl_constant")[:, layer], wanted, atol=1e-5)


def test_it_reads_the_reasoner_better_than_the_logit_lens_on_held_out_prompts() -> None:
    model = wb.load("reasoner")
    prompts = wb.Prompts(list(wb.tasks.carries(48, seed=0)))
    found = find(locate.TunedLens(steps=150), prompts, model)
    frame = found.frame()
    saved = frame[(frame["measure"] == "kl_saved") & (frame["layer"] < 5)]
    assert (saved["n"] == 24).all()
    assert (saved["low"] > 0).all(), saved
    assert (found.grid("kl")[:4] < 0.5 * found.grid("kl_logit_lens")[:4]).all()
    assert (found.grid("kl")[:5] < 0.5 * found.grid("kl_constant")[:5]).all()
    assert (found.grid("kl")[-1], found.grid("kl_logit_lens")[-1]) == (0, 0)
    assert found.scores.lens.losses[-1] < 0.3 * found.scores.lens.losses[0]


def test_it_finds_a_planted_basis() -> None:
    """Streams that the head would read right but for a rotation and a shift: the map undoes both."""
    model = tiny.model()
    generator = torch.Generator().manual_seed(0)
    final = torch.randn(400, 32, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator))
    rows = torch.stack([final @ turn + 1.0, final])
    head = Head(model)
    lens = locate.TunedLens(steps=600, lr=0.01).trained(rows[:, :300], head)
    own = head.unembed(final[300:]).log_softmax(-1)
    said = lambda h: head.unembed(h).log_softmax(-1)  # noqa: E731
    kl = lambda z: float((own.exp() * (own - z)).sum(-1).mean())  # noqa: E731
    bare, tuned = kl(said(rows[0, 300:])), kl(said(lens.through(0)(rows[0, 300:])))
    assert tuned < 0.05 * bare


def test_what_is_measured_was_not_trained_on() -> None:
    repeated = [*CLEAN, CLEAN[0], CLEAN[1]]
    found = find(locate.TunedLens(steps=1), repeated)
    kept = np.isfinite(values(found)[:, 0])
    assert (kept[4], kept[5]) == (kept[0], kept[1])  # equal prompts on one side
    assert 0 < kept[:4].sum() < 4
    handed = find(locate.TunedLens(steps=1), train=[CLEAN[2], "new text"])
    np.testing.assert_array_equal(np.isfinite(values(handed)[:, 0]), [True, True, False, True])
    with pytest.raises(wb.WorkbenchError, match="all were trained on"):
        find(locate.TunedLens(steps=1), train=list(CLEAN))
    with pytest.raises(wb.WorkbenchError, match="train="):
        find(locate.TunedLens(steps=1), [CLEAN[0], CLEAN[0]])


def test_the_split_does_not_depend_on_the_order_of_cases() -> None:
    order = [2, 0, 3, 1]
    found = find(locate.TunedLens(steps=5), list(CLEAN))
    turned = find(locate.TunedLens(steps=5), [CLEAN[i] for i in order])
    np.testing.assert_allclose(values(turned), values(found)[order], rtol=1e-4, atol=1e-6)


def test_training_does_not_depend_on_the_company_of_the_measured() -> None:
    train = ["some other text", "and one more"]
    both = find(locate.TunedLens(steps=5), train=train)
    alone = find(locate.TunedLens(steps=5), [CLEAN[1]], train=train)
    np.testing.assert_allclose(values(both)[1], values(alone)[0], rtol=1e-3, atol=1e-6)
    every = find(locate.TunedLens(steps=5, positions="all"), train=train)
    np.testing.assert_allclose(values(every)[..., -1], values(both), rtol=1e-3, atol=1e-6)
    assert np.isnan(values(every)[1, :, :6]).all()


def test_a_kept_lens_is_used_again_and_another_models_is_refused() -> None:
    found = find(locate.TunedLens(steps=20))
    kept = np.isfinite(values(found)[:, 0])
    again = find("tuned_lens", lens=found.scores.lens)
    assert np.isfinite(values(again)).all()
    np.testing.assert_array_equal(values(again)[kept], values(found)[kept])
    assert not np.allclose(values(found, "kl_saved")[kept][:, :2], 0)
    assert "held" not in again.scores.caption and "4 prompts." in again.scores.caption
    vocabulary = replace(found.scores.lens, mean=torch.zeros(7))
    for other in (locate.tuned_lens.Lens.identity(5, 32), vocabulary):
        with pytest.raises(wb.WorkbenchError, match="another model"):
            find("tuned_lens", lens=other)
    with pytest.raises(wb.WorkbenchError, match="train= or lens="):
        find("tuned_lens", lens=found.scores.lens, train=["new text"])


def test_a_lens_is_kept_in_a_file_for_its_own_model(tmp_path: Path) -> None:
    model = tiny.model()
    lens = find(locate.TunedLens(steps=3)).scores.lens
    again = load_lens(save_lens(lens, tmp_path / "lens.safetensors", model), model)
    assert torch.equal(again.weight, lens.weight) and torch.equal(again.bias, lens.bias)
    assert torch.equal(again.mean, lens.mean)
    assert again.losses == lens.losses and len(again.losses) == 3
    tuned = wb.load(tiny.module("llama", seed=1), tiny.tokenizer())
    with pytest.raises(wb.WorkbenchError, match="another model"):
        load_lens(tmp_path / "lens.safetensors", tuned)
    for content in (b"", b"no lens"):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(wb.WorkbenchError, match="cannot be read"):
            load_lens(tmp_path / "bad.safetensors", model)
    with pytest.raises(wb.WorkbenchError, match="cannot be read"):
        load_lens(tmp_path / "none.safetensors", model)
    other = {"weight": torch.zeros(1), "bias": torch.zeros(1)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(wb.WorkbenchError, match="no tuned lens"):
        load_lens(tmp_path / "other.safetensors", model)
    with pytest.raises(wb.WorkbenchError, match="pickle"):
        save_lens(lens, tmp_path / "lens.pt", model)
    deeper = wb.load(tiny.module("llama", num_hidden_layers=4), tiny.tokenizer())
    with pytest.raises(wb.WorkbenchError, match="another model"):
        save_lens(lens, tmp_path / "wrong.safetensors", deeper)


def test_a_step_is_the_same_however_few_blocks_are_done_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = ["some other text", "and one more"]
    whole = find(locate.TunedLens(steps=3, lr=0.01), train=train).scores.lens
    monkeypatch.setattr(head_module, "LARGEST_CHUNK", 30 * tiny.N_VOCAB)  # of 27 positions
    parts = find(locate.TunedLens(steps=3, lr=0.01), train=train).scores.lens
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.bias, whole.bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"steps": -1}, {"batch": 0}, {"held_out": 1.0}, {"held_out": 0.0}, {"lr": 0.0}]
)
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(wb.WorkbenchError, match=next(iter(options))):
        find(locate.TunedLens(**options))


def test_training_stops_when_asked_and_leaves_nothing() -> None:
    class Stopped(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise Stopped

    model = tiny.model()
    before = model.run(CLEAN[0]).logits
    with stoppable(check), pytest.raises(Stopped):
        find(locate.TunedLens(steps=10_000))
    assert torch.equal(model.run(CLEAN[0]).logits, before)


# direct logit attribution


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("family", SPLITS)
def test_the_shares_sum_to_the_logit_difference(family: str, heads: bool) -> None:
    found = find(locate.DirectLogitAttribution(heads=heads), model=family)
    wanted = own_difference(tiny.model(family))
    np.testing.assert_allclose(values(found).sum(-1), wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.scores.reference["logit difference"], wanted, atol=1e-4)
    n = 3 * (4 + 2 if heads else 2) + 2
    assert len(found.scores.axes[0].labels) == n


def test_what_cannot_be_split_is_refused_and_the_rest_sums() -> None:
    found = find("direct_logit_attribution", model="gemma3_text")
    wanted = own_difference(tiny.model("gemma3_text"))
    np.testing.assert_allclose(values(found).sum(-1), wanted, rtol=0, atol=1e-4)
    with pytest.raises(wb.WorkbenchError, match="heads=False"):
        find(locate.DirectLogitAttribution(heads=True), model="gemma3_text")
    with pytest.raises(wb.WorkbenchError, match="soft cap"):
        find("direct_logit_attribution", model="gemma2")


def test_without_foils_the_mean_logit_is_subtracted() -> None:
    logits = tiny.model().run(list(CLEAN), logits="last").logits[:, -1].numpy()
    found = find("direct_logit_attribution", cases(foils=None))
    wanted = logits[np.arange(4), ids(ANSWERS)] - logits.mean(-1)
    np.testing.assert_allclose(values(found).sum(-1), wanted, rtol=0, atol=1e-4)


def test_shares_are_directions_times_writes() -> None:
    """A part's share is what the readout says of what was recorded there, heads summing to attention."""
    model = tiny.model("gpt2")
    whole, split = (
        find(locate.DirectLogitAttribution(heads=h), model="gpt2") for h in (False, True)
    )
    read = ["L1.mlp_out[pos=-1]", "L2.resid_post[pos=-1]"]
    trace = model.run(list(CLEAN), record=read)
    direction, _ = Head(model).readout(
        trace[read[1]], torch.tensor(ids(ANSWERS)), torch.tensor(ids(FOILS))
    )
    parts = list(whole.scores.axes[0].labels)
    wanted = (direction * trace[read[0]]).sum(-1).numpy()
    np.testing.assert_allclose(values(whole)[:, parts.index("L1.mlp_out")], wanted, atol=1e-5)
    names = list(split.scores.axes[0].labels)
    heads = [i for i, name in enumerate(names) if name.startswith(("L1.h", "L1.attn_bias"))]
    attention = values(whole)[:, parts.index("L1.attn_out")]
    np.testing.assert_allclose(values(split)[:, heads].sum(-1), attention, atol=1e-5)
    layers = values(whole.also["layers"])
    np.testing.assert_allclose(layers[:, 1], np.stack([attention, wanted], -1), atol=1e-5)
    grid = values(split.also["heads"])
    np.testing.assert_array_equal(grid[:, 1, 2], values(split)[:, names.index("L1.h2")])
    np.testing.assert_allclose(
        values(split.also["layers"]), values(whole.also["layers"]), atol=1e-5
    )


def test_taking_the_last_mlp_away_is_the_stream_without_it() -> None:
    model = tiny.model("gpt2")
    found = find("direct_logit_attribution", model="gpt2")
    read = ["L2.mlp_out[pos=-1]", "L2.resid_post[pos=-1]"]
    trace = model.run(list(CLEAN), record=read)
    z = Head(model).unembed(trace[read[1]] - trace[read[0]]).numpy()
    rows = np.arange(4)
    wanted = z[rows, ids(ANSWERS)] - z[rows, ids(FOILS)]
    edited = own_difference(model, [found.edit(part="L2.mlp_out")])
    np.testing.assert_allclose(edited, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(edited - own_difference(model)).max() > 0.01


def test_every_part_but_the_constant_is_an_edit_at_the_last_position() -> None:
    model = tiny.model("gpt2")
    found = find(locate.DirectLogitAttribution(heads=True), model="gpt2")
    plain = model.run(CLEAN[0]).logits
    for part in found.scores.axes[0].labels[:-1]:
        edited = model.run(CLEAN[0], edits=[found.edit(part=part)]).logits
        assert torch.equal(edited[:, :-1], plain[:, :-1]) and not torch.equal(edited, plain)
    with pytest.raises(wb.WorkbenchError, match="no edit"):
        found.edit(part="bias")
    for name, place in (("heads", {"head": 1}), ("layers", {"part": "attn_out"})):
        assert found.also[name].edit(layer=1, **place).sites[0].startswith("L1.")
    heads = [found.edit(part=f"L1.h{i}") for i in range(4)] + [found.edit(part="L1.attn_bias")]
    whole = find("direct_logit_attribution", model="gpt2").edit(part="L1.attn_out")
    torch.testing.assert_close(
        model.run(CLEAN[0], edits=heads).logits,
        model.run(CLEAN[0], edits=[whole]).logits,
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_part_that_carries_the_reasoners_carry_takes_it_away() -> None:
    """Block 1's attention has the largest share in "carry 1"; without it the carry is 0.

    A share is no effect: the last MLP's is as large, and taking it away costs less than a quarter
    of it, since the final norm then scales up what is left.
    """
    model = wb.load("reasoner")
    texts = [p.text for p in wb.tasks.carries(64, seed=0) if p.label]
    prompts = wb.prompts.counterfactuals(clean=texts, corrupted=texts, answers="1", foils="0")
    found = find("direct_logit_attribution", prompts, model)
    assert list(found.top(2)["part"]) == ["L1.attn_out", "L5.mlp_out"]
    one, zero = model.tokenizer.convert_tokens_to_ids(["1", "0"])

    def difference(*edits: Any) -> float:
        z = model.run(texts, edits=edits, logits="last").logits[:, -1]
        return float((z[:, one] - z[:, zero]).mean())

    share = found.at(part="L5.mlp_out")["mean"].iloc[0]
    assert difference() > 8 and difference(found.edit(part="L1.attn_out")) < 0
    assert 0 < difference() - difference(found.edit(part="L5.mlp_out")) < 0.25 * share
    assert difference(found.edit(part="L2.attn_out")) > 8  # a part without a share


def test_parts_that_are_not_the_whole_stream_are_refused() -> None:
    class Half(Head):
        def write_bias(self, layer: int) -> torch.Tensor:
            return super().write_bias(layer) + 1.0

        def writes(self, layer: int, z: Any, _attn_out: Any = None) -> torch.Tensor:
            return super().writes(layer, z)

    with pytest.raises(wb.WorkbenchError, match="do not sum"):
        find(locate.DirectLogitAttribution(heads=True), head=Half(tiny.model()))


# norms


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_head_norms_by_hand(family: str) -> None:
    model = tiny.model(family)
    trace = model.run(list(CLEAN), record=["L1.z", "L1.resid_pre"])
    weight = {
        "gpt2": lambda hf: hf.transformer.h[1].attn.c_proj.weight,
        "llama": lambda hf: hf.model.layers[1].self_attn.o_proj.weight.mT,
    }[family](model.hf)
    z, lengths = trace["L1.z"], [len(text) + 1 for text in CLEAN]
    mean, last = (
        find("head_norms", model=family),
        find(locate.HeadNorms(positions="last", relative=True), model=family),
    )
    for head in range(4):
        norms = (z[:, :, head] @ weight[8 * head : 8 * head + 8]).norm(dim=-1)
        wanted = [float(norms[row, -n + 1 :].mean()) for row, n in enumerate(lengths)]
        np.testing.assert_allclose(values(mean)[:, 1, head], wanted, rtol=1e-5)
        share = norms[:, -1] / trace["L1.resid_pre"][:, -1].norm(dim=-1)
        np.testing.assert_allclose(values(last)[:, 1, head], share, rtol=1e-5)


def test_a_prompt_of_one_token_has_norms_too() -> None:
    one = find("head_norms", [wb.Prompt("a")], wb.load(tiny.module("gpt2"), bare_tokenizer()))
    assert np.isfinite(values(one)).all() and (values(one) > 0).all()
    with pytest.raises(wb.WorkbenchError, match="choice"):
        find(locate.HeadNorms(positions="all"))


@pytest.mark.parametrize("relative", [False, True])
def test_what_stands_on_padding_need_not_be_a_number(relative: bool) -> None:
    model = tiny.model()

    def run(prompts: Any, record: Any, **_: Any) -> Any:
        trace = model.run(prompts, record)
        for value in trace.values.values():
            value[~trace.tokens.mask] = float("nan")
        return trace

    for method in (locate.HeadNorms(relative=relative), locate.WriteNorms(relative=relative)):
        plain, planted = find(method), find(method, run=run)
        for name in plain.measures:
            np.testing.assert_array_equal(values(planted, name), values(plain, name))


def bare_tokenizer() -> Any:
    """The tiny one, without a beginning of sequence."""
    import copy

    from tokenizers import processors

    made = copy.deepcopy(tiny.tokenizer())
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    return made


def test_a_head_that_writes_nothing_has_no_norm() -> None:
    hf: Any = tiny.module("llama")
    hf.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0
    grid = find("head_norms", model=wb.load(hf, tiny.tokenizer())).grid()
    assert grid[1, 1] == 0 and (np.delete(grid.ravel(), 5) > 0.01).all()


@pytest.mark.parametrize("relative", [False, True])
def test_write_norms_by_hand(relative: bool) -> None:
    trace = tiny.model().run(list(CLEAN), record=["L1.mlp_out", "L1.resid_pre"])
    found = values(find(locate.WriteNorms(relative=relative)), "MLP")[:, 1]
    wanted = trace["L1.mlp_out"].norm(dim=-1)
    wanted = wanted / trace["L1.resid_pre"].norm(dim=-1) if relative else wanted
    mask = trace.tokens.mask.numpy()
    np.testing.assert_allclose(found[mask], wanted.numpy()[mask], rtol=1e-5)
    assert np.isnan(found[~mask]).all() and not mask.all()


# all of them


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_a_model_of_one_block_is_all_its_own(family: str) -> None:
    size = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    model = wb.load(tiny.module(family, **size), tiny.tokenizer())
    wanted = own_difference(model)
    for method in ("logit_lens", locate.TunedLens(steps=2)):
        found = find(method, model=model)
        known = np.isfinite(values(found, "kl")[:, 0])
        assert (values(found, "kl")[known] == 0).all()
        difference = values(found, "logit_difference")[known, 0]
        np.testing.assert_allclose(difference, wanted[known], rtol=1e-4, atol=1e-5)
    assert find("head_norms", model=model).grid().shape == (1, 4)
    if family != "gemma2":
        shares = find("direct_logit_attribution", model=model)
        np.testing.assert_allclose(values(shares).sum(-1), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", torch.float16), ("mixtral", torch.bfloat16)]
)
def test_low_precision_is_close_to_high(family: str, dtype: torch.dtype) -> None:
    """Twelve blocks: roundings of many additions still sum to the logit difference."""
    size = {"n_layer": 12} if family == "gpt2" else {"num_hidden_layers": 12}
    model = wb.load(tiny.module(family, **size).to(dtype), tiny.tokenizer())
    z = model.run(list(CLEAN), logits="last").logits[:, -1].float().numpy()
    wanted = z[np.arange(4), ids(ANSWERS)] - z[np.arange(4), ids(FOILS)]
    shares = values(find(locate.DirectLogitAttribution(heads=True), model=model))
    assert np.abs(shares.sum(-1) - wanted).max() < 0.03 * (1 + np.abs(shares).sum(-1).max())
    lens = find("logit_lens", model=model)
    np.testing.assert_allclose(values(lens)[:, -1], wanted, atol=0.05)
    assert (values(lens, "kl")[:, -1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(
    "method",
    [
        locate.LogitLens(),
        locate.TunedLens(steps=3),
        locate.DirectLogitAttribution(heads=True),
        locate.HeadNorms(),
        locate.WriteNorms(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_backends_agree(method: Any, backend: str) -> None:
    here, there = (find(method, model=tiny.model("gpt2", b)) for b in ("transformers", backend))
    for name in here.measures:
        np.testing.assert_allclose(values(there, name), values(here, name), rtol=1e-3, atol=1e-4)


def test_a_line_is_drawn_with_its_band_and_parts_with_their_bars() -> None:
    lens = find("logit_lens").figure().plot()
    assert [trace.mode for trace in lens.data] == ["lines", "lines", "lines+markers"]
    assert list(lens.data[2].x) == [0, 1, 2]
    np.testing.assert_allclose(lens.data[2].y, find("logit_lens").grid(), atol=1e-5)
    parts = find("direct_logit_attribution")
    drawn = parts.figure().plot().data[0]
    assert drawn.mode == "markers" and list(drawn.x) == list(parts.scores.axes[0].labels)
    frame = parts.frame()
    np.testing.assert_allclose(drawn.error_y.array, frame["high"] - frame["mean"], atol=1e-5)
    np.testing.assert_allclose(drawn.error_y.arrayminus, frame["mean"] - frame["low"], atol=1e-5)
