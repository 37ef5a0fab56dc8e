"""CoCoMix concept targets: against finite differences, plain loops, and both ways to choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import sae
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.sae import concepts, putting
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens
from workbench.tensors import Intervention

TEXTS = ["ab cab cab c", "de fdeab cab ", "gh", "x+y=z, and more of it"]
SITE = "L1.resid_post"


def made(site: str = SITE, bias: float = 0.0, **more: Any) -> Dictionary:
    lens, draw = sae_lens(), torch.Generator().manual_seed(0)
    module = lens.StandardSAE(lens.StandardSAEConfig(d_in=32, d_sae=48, **more))
    with torch.no_grad():
        module.W_dec.copy_(
            torch.nn.functional.normalize(torch.randn(48, 32, generator=draw), dim=1)
        )
        module.W_enc.copy_(module.W_dec.T)
        module.b_enc.fill_(bias)
    return Dictionary(module.eval(), site, site, name="made")


def found_in(model: wb.Model, dictionary: Dictionary, texts: Any = TEXTS, **more: Any) -> Any:
    return sae.concept_targets(dictionary, model, texts, progress=False, **more)


def test_attributions_are_what_finite_differences_say() -> None:
    """Each token's targets: the loss when the feature grows and shrinks by a share of its own size."""
    model = wb.load(tiny.module("gpt2").double(), tiny.tokenizer())
    dictionary, text, step = made(), TEXTS[0], 1e-4
    found = found_in(model, dictionary, [text])

    def loss(position: int, feature: int, size: float) -> float:
        shift = size * dictionary.decoder[feature].double()
        edit = Intervention(
            "custom", "affine", {f"{SITE}[pos={position}]": {"shift": shift}}, conditional=True
        )
        logits, tokens = model.run(text, edits=[edit]).logits, model.tokens(text)
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens.ids[0, 1:]))

    assert found.losses[0] == pytest.approx(loss(1, 0, 0.0))
    # the last token carries no loss, the first is special
    assert found.positions.tolist() == list(range(1, 12))
    for row in (0, 4, 10):
        for k in range(4):
            j, c = found.features[row, k], found.activations[row, k]
            ends = [loss(int(found.positions[row]), int(j), sign * step * c) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert found.attributions[row, k] == pytest.approx(slope, rel=1e-5)
            assert slope > 0  # the largest signed ones raise the loss


def test_targets_are_the_largest_signed_of_all_active_features() -> None:
    """Against plain autograd, and by activation against a plain sort; the same choice both ways round."""
    model, dictionary = tiny.model("gpt2"), made()
    found = found_in(model, dictionary)
    turned = found_in(model, dictionary, by="activation")
    np.testing.assert_array_equal(found.other, turned.features)
    np.testing.assert_array_equal(turned.other, found.features)
    at = 0
    for number, text in enumerate(TEXTS):
        tokens = model.tokens(text)
        trace = model.run(text, [SITE])
        h = trace[SITE][0].clone().requires_grad_()
        codes = dictionary.encode(h.detach())
        put = Intervention("custom", "set", {SITE: {"value": h[None]}}, conditional=True)
        logits = model.run(text, edits=[put], grad=True).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens.ids[0, 1:])
        (slope,) = torch.autograd.grad(loss, h)
        scores = (slope @ dictionary.decoder.T) * codes
        for position in range(1, len(h) - 1):
            assert (found.owners[at], found.positions[at]) == (number, position)
            best = scores[position].sort(descending=True)
            np.testing.assert_allclose(
                found.attributions[at], best.values[:4], rtol=1e-3, atol=1e-7
            )
            np.testing.assert_array_equal(
                turned.features[at], codes[position].sort(descending=True).indices[:4]
            )
            assert found.active[at] == int((codes[position] > 0).sum())
            at += 1
    assert at == len(found.features)
    assert (turned.attributions < 0).any() and not (found.attributions < 0).any()


def test_batches_and_padding_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, dictionary = tiny.model("gpt2"), made()
    together = found_in(model, dictionary)
    monkeypatch.setattr(putting, "CPU_TOKENS", 1)
    monkeypatch.setattr(concepts, "SCORES", 1)
    alone = found_in(model, dictionary)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-5)
    np.testing.assert_allclose(together.attributions, alone.attributions, rtol=1e-3, atol=1e-6)
    assert (together.features == alone.features).mean() > 0.98


def test_a_token_with_too_few_features_has_empty_places() -> None:
    """Features that are hardly ever on leave -1, not features that are off."""
    found = found_in(tiny.model("gpt2"), made(bias=-0.9))
    none = found.features == -1
    assert none.any() and not none.all()
    np.testing.assert_array_equal(none, np.isnan(found.attributions))
    chosen = found.attributions[~none]
    assert (chosen > 0).all() and (found.activations[~none] > 0).all()
    assert -1 not in found.summary()["feature"].tolist()
    assert found.summary()["tokens"].sum() == (~none).sum()


def test_agreement_of_the_two_choices_is_compared_with_chance() -> None:
    model, dictionary = tiny.model("gpt2"), made()
    found = found_in(model, dictionary)
    said = found.agreement()
    shared = [len({*a} & {*b}) / 4 for a, b in zip(found.features, found.other, strict=True)]
    texts = [np.mean(np.array(shared)[found.owners == i]) for i in range(len(TEXTS))]
    assert said["agreement"].mean == pytest.approx(np.mean(texts))
    gap = said["agreement"].mean - said["chance"].mean
    assert said["beyond chance"].mean == pytest.approx(gap)
    assert said["chance"].low < said["chance"].mean < said["chance"].high < 0.5
    same = replace(found, other=found.features)
    assert same.agreement()["agreement"].mean == 1


def test_random_choices_agree_as_chance_says() -> None:
    """Tokens whose other choice is drawn from their active features at random."""
    found = found_in(tiny.model("gpt2"), made())
    draw = np.random.default_rng(0)
    rows, active = 4000, 20
    drawn = [np.stack([draw.permutation(active)[:4] for _ in range(rows)]) for _ in range(2)]
    many = replace(
        found,
        features=drawn[0],
        other=drawn[1],
        active=np.full(rows, active),
        owners=np.arange(rows) % 40,
    )
    said = many.agreement()
    assert said["chance"].mean == pytest.approx(4 / 20)
    assert said["beyond chance"].low < 0 < said["beyond chance"].high


def test_a_transcoder_is_attributed_where_it_writes() -> None:
    """Half the decoder gives half the attributions; the gradient is that at the target."""
    model = tiny.model("gpt2")
    dictionary = replace(made("L1.mlp_norm_out"), target="L1.mlp_out")
    found = found_in(model, dictionary, by="activation")
    at_site = found_in(model, replace(dictionary, target="L1.mlp_norm_out"), by="activation")
    np.testing.assert_array_equal(found.features, at_site.features)
    assert not np.allclose(found.attributions, at_site.attributions, rtol=0.1)


def test_special_tokens_completions_and_words(tmp_path: Any) -> None:
    model, dictionary = tiny.model("gpt2"), made()
    before = model.run(TEXTS).logits
    found = found_in(model, dictionary, top=2)
    assert found.features.shape[1] == 2
    more = found_in(model, dictionary, special=True)
    assert len(more.features) == len(found.features) + len(TEXTS)
    with torch.inference_mode():
        np.testing.assert_array_equal(
            found_in(model, dictionary, top=2).attributions, found.attributions
        )
    ids = model.tokens("cd").ids[0, 1:].tolist()
    longer = found_in(model, dictionary, ["ab"], completions=[ids])
    whole = found_in(model, dictionary, ["abcd"])
    np.testing.assert_allclose(longer.attributions, whole.attributions, rtol=1e-5)
    frame = whole.frame()
    assert frame["token"].tolist()[::4] == ["a", "b", "c"] and set(frame["prompt"]) == {0}
    assert "raise the loss" in repr(found) and "<table" in found._repr_html_()
    again = sae.ConceptTargets.load(found.save(tmp_path / "concepts.json"))
    assert again.frame().equals(found.frame())
    assert again.summary().equals(found.summary()) and repr(again) == repr(found)
    with pytest.raises(WorkbenchError, match="no other choice"):
        again.agreement()
    assert torch.equal(model.run(TEXTS).logits, before)
    assert all(p.grad is None for p in model.hf.parameters())


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (dict(by="luck"), UnknownName, "way to choose"),
        (dict(top=0), WorkbenchError, "not a number of features"),
        (dict(top=49), WorkbenchError, "not a number of features"),
        (dict(texts=["<bos>"]), WorkbenchError, "one token"),
        (dict(texts=["ab", "<bos>"]), WorkbenchError, "one token"),
        (dict(texts=[]), PromptError, "there are none"),
        (dict(texts=["a"]), WorkbenchError, "no token counts"),
        (dict(normed=True), WorkbenchError, "normalises each row"),
        (dict(site="L9.resid_post"), WorkbenchError, "layer the model lacks"),
    ],
)
def test_bad_input(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    options = {"normalize_activations": "layer_norm"} if change.pop("normed", False) else {}
    dictionary = made(change.pop("site", SITE), **options)
    with pytest.raises(kind, match=words):
        found_in(tiny.model("gpt2"), dictionary, **{"texts": TEXTS, **change})
