"""Quality of dictionaries: SAELens' own numbers, what is planted, the controls, and bad input."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.sae import putting
from workbench.sae.controls import random_like
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens
from workbench.sae.quality import (
    IDENTITY,
    MEAN,
    MODEL,
    OWN,
    RANDOM,
    ZERO,
    QualityTable,
    evaluate,
)

PROMPTS = ["ab cab cab c", "de fdeab cab ", "gh", "x+y=z, and more of it"]
SITE = "L1.resid_post"


def made(kind: str, width: int = 64, seed: int = 0, **more: Any) -> Dictionary:
    """A random dictionary of the tiny models' width, with biases that show where they are forgotten."""
    lens, draw = sae_lens(), torch.Generator().manual_seed(seed)
    names = {"standard": "StandardSAE", "jumprelu": "JumpReLUSAE", "topk": "TopKSAE"}
    name = names[kind]
    sae = getattr(lens, name)(getattr(lens, f"{name}Config")(d_in=32, d_sae=width, **more))
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=draw))
        sae.W_enc.copy_(sae.W_dec.T)
        if kind == "jumprelu":
            sae.threshold.abs_()
    return Dictionary(sae.eval(), SITE, SITE, name=kind)


def whole() -> Dictionary:
    """A dictionary of both directions of every axis: it explains everything."""
    dictionary = made("standard")
    with torch.no_grad():
        eye = torch.eye(32)
        dictionary.sae.W_dec.copy_(torch.cat([eye, -eye]))
        dictionary.sae.W_enc.copy_(dictionary.sae.W_dec.T)
        dictionary.sae.b_enc.zero_()
    return replace(dictionary, name="whole")


def own_words(model: wb.Model) -> dict[str, Any]:
    """Prompts with what the model itself says next: ablations then do it harm."""
    prompts = ["ab", "de", "gh", "x+"]
    said = model.generate(prompts, max_new_tokens=24, progress=False)
    shortest = min(len(one.ids) for one in said)
    return {"prompts": prompts, "completions": [list(one.ids)[:shortest] for one in said]}


class Store:
    """What SAELens' evaluation needs of an activation store: two batches of tokens, over and over."""

    store_batch_size_prompts, context_size = 2, 0

    def __init__(self, ids: torch.Tensor):
        self.batches, self.turn = ids.split(2), 0

    def get_batch_tokens(self, _: int) -> torch.Tensor:
        self.turn += 1
        return self.batches[(self.turn - 1) % 2]

    def reset_input_dataset(self) -> None:
        self.turn = 0


class Unscaled:
    scale = unscale = staticmethod(lambda x: x)


@pytest.mark.parametrize("kind, more", [("standard", {}), ("jumprelu", {}), ("topk", {"k": 5})])
def test_numbers_are_those_of_sae_lens(kind: str, more: dict[str, Any]) -> None:
    """`run_evals` of SAELens on a TransformerBridge, in two batches, without the first token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that TransformerLens has moved
        from sae_lens.evals import get_eval_everything_config, run_evals

    model, dictionary = tiny.model("gpt2", "transformer_lens"), made(kind, **more)
    dictionary.sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    read = own_words(model)
    store: Any = Store(model.tokens(**read).ids)
    config = get_eval_everything_config(2, 2, 2)
    scaler: Any = Unscaled()
    found, features = run_evals(dictionary.sae, store, model.unwrap(), scaler, config)
    table = evaluate(dictionary, model, **read, progress=False)
    flat = {k: v for group in found.values() for k, v in group.items()}
    theirs = {
        ("fvu", OWN): 1 - flat["explained_variance"],
        ("l0", OWN): flat["l0"],
        ("l1", OWN): flat["l1"],
        ("mse", OWN): flat["mse"],
        ("cosine", OWN): flat["cossim"],
        ("ce", MODEL): flat["ce_loss_without_sae"],
        ("ce", OWN): flat["ce_loss_with_sae"],
        ("ce", ZERO): flat["ce_loss_with_ablation"],
        ("ce_recovered", OWN): flat["ce_loss_score"],
        ("kl", OWN): flat["kl_div_with_sae"],
        ("kl", ZERO): flat["kl_div_with_ablation"],
        ("kl_recovered", OWN): flat["kl_div_score"],
    }
    for (measure, by), value in theirs.items():
        assert table.value(measure, by).mean == pytest.approx(value, rel=1e-5, abs=1e-5), measure
    density = np.array(features["feature_density"])
    np.testing.assert_allclose(table.density[kind][OWN], density, atol=1e-6)
    assert table.value("dead").mean == (density == 0).sum()
    assert abs(flat["ce_loss_score"]) < 10  # the ablation did harm, so the score means something


def test_what_is_explained_is_recovered_and_the_identity_is_exact() -> None:
    model = tiny.model("gpt2")
    table = evaluate([whole(), made("standard")], model, **own_words(model), progress=False)
    for by, near in (("dictionary", 1e-5), (IDENTITY, 0.0)):
        assert table.value("fvu", by, "whole").mean == pytest.approx(0, abs=near)
        assert table.value("kl", by, "whole").mean == pytest.approx(0, abs=near)
        assert table.value("ce_recovered", by, "whole").mean == pytest.approx(1, abs=near)
        assert table.value("ce_recovered_mean", by, "whole").mean == pytest.approx(1, abs=near)
    assert table.value("fvu", MEAN, "whole").mean == 1
    assert table.value("l0", OWN, "whole").mean == pytest.approx(32)
    assert table.value("fvu", OWN, "standard").mean > 0.1
    by = set(table.frame()["by"])
    assert by == {MODEL, OWN, RANDOM, IDENTITY, MEAN, ZERO}


@pytest.mark.parametrize("kind, more", [("standard", {}), ("jumprelu", {}), ("topk", {"k": 5})])
def test_random_control_is_as_sparse_and_at_its_best(kind: str, more: dict[str, Any]) -> None:
    """Among all factors on its codes its own leaves the least unexplained."""
    model, dictionary = tiny.model("llama"), made(kind, **more)
    rows = model.record(PROMPTS, SITE, pool="all", progress=False)[SITE][1:]
    control = random_like(dictionary, rows, rows, seed=3)
    ours, theirs = ((d.encode(rows) != 0).float().sum(1).mean() for d in (dictionary, control))
    assert float(theirs) == pytest.approx(float(ours), rel=0.02)
    torch.testing.assert_close(control.decoder.norm(dim=1), torch.ones(64))
    error = lambda f: float((rows - replace(control, factor=f).reconstruct(rows)).pow(2).sum())  # noqa: E731
    best = error(control.factor)
    assert best < error(1.1 * control.factor) and best < error(0.9 * control.factor)
    again = random_like(dictionary, rows, rows, seed=3)
    assert torch.equal(again.decoder, control.decoder)
    assert not torch.equal(random_like(dictionary, rows, rows, 4).decoder, control.decoder)


def test_batches_and_padding_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dictionary = tiny.model("llama"), made("jumprelu")
    together = evaluate(dictionary, model, PROMPTS, progress=False).frame()
    monkeypatch.setattr(putting, "CPU_TOKENS", 1)
    alone = evaluate(dictionary, model, PROMPTS, progress=False).frame()
    kept = together["by"] != RANDOM  # one score on the cut may fall to either side
    np.testing.assert_allclose(together["mean"][kept], alone["mean"][kept], rtol=1e-4, atol=1e-5)


def test_a_long_corpus_is_cut_into_batches_within_the_budget() -> None:
    lengths = [5, 9, 3, 3, 3, 20, 1]
    found = putting._batches(lengths, 12)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(7))
    for start, stop in found:
        assert stop - start == 1 or max(lengths[start:stop]) * (stop - start) <= 12
    assert len(found) == 5


def test_dead_features_are_counted_over_the_whole_corpus() -> None:
    dictionary = made("standard")
    with torch.no_grad():
        dictionary.sae.b_enc[:7] = -1e6
        dictionary.sae.b_enc[7:] = 1e3
    table = evaluate(dictionary, tiny.model(), PROMPTS, progress=False)
    assert table.value("dead").mean == 7
    assert table.value("dead_share").mean == 7 / 64
    assert np.isnan(table.value("dead").low)
    np.testing.assert_array_equal(table.density["standard"][OWN] == 0, np.arange(64) < 7)


def test_special_tokens_count_only_where_asked() -> None:
    model, dictionary = tiny.model(), made("standard")
    tokens = [
        evaluate(dictionary, model, PROMPTS, special=s, progress=False) for s in (False, True)
    ]
    counts = [one.provenance["tokens"] for one in tokens]
    assert counts[1] - counts[0] == len(PROMPTS)
    assert tokens[0].value("fvu").mean != tokens[1].value("fvu").mean


def test_a_transcoder_is_judged_on_what_it_writes() -> None:
    """One that writes the mean and nothing else explains nothing and is the mean ablation."""
    lens, model = sae_lens(), tiny.model("gpt2")
    config = lens.saes.transcoder.TranscoderConfig(
        d_in=32, d_sae=48, d_out=32, apply_b_dec_to_input=False
    )
    sae = lens.saes.transcoder.Transcoder(config).eval()
    rows = model.record(PROMPTS, "L1.mlp_out", pool="all", progress=False)
    keep = torch.tensor(rows.positions) > 0
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.copy_(rows["L1.mlp_out"][keep].mean(0))
    dictionary = Dictionary(sae, "L1.mlp_norm_out", "L1.mlp_out", name="flat")
    table = evaluate(dictionary, model, PROMPTS, progress=False)
    assert table.value("fvu").mean == pytest.approx(1, abs=1e-5)
    assert table.value("ce").mean == pytest.approx(table.value("ce", MEAN).mean, abs=1e-5)
    assert table.value("ce").mean != pytest.approx(table.value("ce", MODEL).mean, abs=1e-5)
    assert table.value("kl", IDENTITY).mean == 0


def test_a_site_with_heads_is_put_back_in_its_own_shape() -> None:
    dictionary = replace(whole(), site="L1.z", target="L1.z")
    table = evaluate(dictionary, tiny.model("gpt2"), PROMPTS, progress=False)
    assert table.value("fvu").mean == pytest.approx(0, abs=1e-5)
    assert table.value("kl").mean == pytest.approx(0, abs=1e-5)
    assert table.value("kl", ZERO).mean > 1e-3


def test_intervals_are_over_prompts() -> None:
    """The bootstrap of L0 is the one of its mean where all prompts are equally long; one prompt has none."""
    model, dictionary = tiny.model("gpt2"), made("jumprelu")
    prompts = [p[:8] for p in ("abcdefgh", "ijklmnop", "01234567", "zzzzzzzz", "a=b+c-d*")]
    table = evaluate(dictionary, model, prompts, progress=False)
    rows = model.record(prompts, SITE, pool="all", progress=False)[SITE].view(5, 9, 32)[:, 1:]
    own = (dictionary.encode(rows.flatten(0, 1)) != 0).sum(1).view(5, 8).float().mean(1)
    from workbench.comparison.stats import mean_interval

    said, value = mean_interval(own.numpy()), table.value("l0")
    assert (value.mean, value.n) == (pytest.approx(said.mean), 5)
    assert value.low == pytest.approx(said.low, rel=0.05)
    assert value.high == pytest.approx(said.high, rel=0.05)
    alone = evaluate(dictionary, model, prompts[:1], progress=False)
    assert np.isfinite(alone.value("fvu").mean) and np.isnan(alone.value("fvu").low)


def test_the_recovered_share_is_missing_where_the_ablation_does_no_harm() -> None:
    """Random text is likelier after zeros than after a random model's own activations."""
    table = evaluate(made("standard"), tiny.model("llama"), PROMPTS, progress=False)
    assert table.value("ce", ZERO).mean < table.value("ce", MODEL).mean
    assert np.isnan(table.value("ce_recovered").mean)
    assert np.isfinite(table.value("kl_recovered").mean)


def test_table_shows_saves_and_draws(tmp_path: Any) -> None:
    model = tiny.model("gpt2")
    before = model.run(PROMPTS).logits
    many = [whole(), made("jumprelu")]
    table = evaluate(many, model, PROMPTS, progress=False)
    assert "random dictionary" in repr(table) and "<table" in table._repr_html_()
    plot = table.figure().plot()
    assert len(plot.data) == 3  # no share recovered, as the ablation does no harm here
    plot = table.densities("jumprelu").plot()
    shares = [sum(t.y) for t in plot.data]
    assert sum(shares[:2]) == pytest.approx(1) and sum(shares[2:]) == pytest.approx(1)
    again = QualityTable.load(table.save(tmp_path / "quality.json"))
    assert again.frame().equals(table.frame())
    with pytest.raises(UnknownName, match="dictionary"):
        again.densities()
    with pytest.raises(UnknownName, match="measure"):
        table.value("fuv")
    with pytest.raises(UnknownName, match="measure"):
        table.figure(["fuv"])
    assert torch.equal(model.run(PROMPTS).logits, before)
    short = evaluate(whole(), model, PROMPTS, controls=False, progress=False)
    assert set(short.frame()["by"]) == {MODEL, OWN, MEAN, ZERO}


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (dict(dictionary=[]), WorkbenchError, "no dictionary"),
        (dict(dictionary="twins"), WorkbenchError, "no names of their own"),
        (dict(dictionary="other"), WorkbenchError, "another model"),
        (dict(prompts=[]), PromptError, "there are none"),
        (dict(prompts=["<bos>"]), WorkbenchError, "no token counts"),
        (dict(prompts=["a" * 500]), PromptError, "longer than the context"),
        (dict(completions=[[5]]), WorkbenchError, "one per prompt"),
    ],
)
def test_bad_input(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    model, one = tiny.model(), made("standard")
    asked: dict[str, Any] = {"dictionary": one, "prompts": PROMPTS} | change
    if asked["dictionary"] == "twins":
        asked["dictionary"] = [one, one]
    if asked["dictionary"] == "other":
        asked["dictionary"] = replace(one, model=replace(model.fingerprint, weights="other"))
    with pytest.raises(kind, match=words):
        evaluate(model=model, progress=False, **asked)
