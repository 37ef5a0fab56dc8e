"""Ablation in the weights equals ablation by hooks at every write, in every family."""

from __future__ import annotations

import copy

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import EditError
from workbench.interventions import orthogonalise
from workbench.tensors import Intervention

POST_NORMED = ("gemma2", "gemma3_text")
PLAIN = tuple(f for f in tiny.FAMILIES if f not in POST_NORMED)
TEXT = "hello there, 900+7="


def direction(seed: int = 1) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def by_hooks(r: torch.Tensor) -> Intervention:
    r = (r / r.norm())[None]
    writes = [
        "L0.resid_pre",
        *(f"L{i}.{part}" for i in range(3) for part in ("attn_out", "mlp_out")),
    ]
    tensors = {site: {"down": r, "up": -r} for site in writes}
    return Intervention("custom", "affine", tensors)


@pytest.mark.parametrize("family", PLAIN)
def test_weights_and_hooks_agree(family: str) -> None:
    model = tiny.model(family)
    edited = wb.load(orthogonalise(model, direction()), tiny.tokenizer())
    want = model.run(TEXT, edits=[by_hooks(direction())]).logits
    torch.testing.assert_close(edited.run(TEXT).logits, want, atol=2e-4, rtol=2e-4)
    assert (edited.run(TEXT).logits - model.run(TEXT).logits).abs().max() > 0.01


@pytest.mark.parametrize("family", PLAIN)
def test_the_stream_never_holds_the_direction(family: str) -> None:
    edited = wb.load(orthogonalise(tiny.model(family), direction()), tiny.tokenizer())
    stream = edited.run(TEXT, record=["L*.resid_post"]).stack("resid_post")
    r = direction() / direction().norm()
    assert (stream @ r).abs().max() < 1e-5 * stream.norm(dim=-1).max()


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_the_given_model_is_never_changed(family: str) -> None:
    hf = tiny.module(family, tie_word_embeddings=True)
    before, tied = copy.deepcopy(hf.state_dict()), hf.config.tie_word_embeddings
    edited = orthogonalise(hf, direction())
    assert all(torch.equal(before[k], v) for k, v in hf.state_dict().items())
    assert hf.config.tie_word_embeddings is tied
    assert hf.lm_head.weight is hf.get_input_embeddings().weight
    shared = {p.data_ptr() for p in hf.parameters()} & {p.data_ptr() for p in edited.parameters()}
    assert not shared


def test_a_tied_unembedding_is_left_as_it_was() -> None:
    hf = tiny.module("llama", tie_word_embeddings=True)
    edited = orthogonalise(hf, direction())
    assert torch.equal(edited.lm_head.weight, hf.lm_head.weight)
    assert not torch.equal(edited.get_input_embeddings().weight, hf.lm_head.weight)


@pytest.mark.parametrize("factor", [-1.0, 1e3, 1e-3])
def test_length_and_sign_of_the_direction_do_not_matter(factor: float) -> None:
    hf = tiny.module("gpt2")
    one, other = orthogonalise(hf, direction()), orthogonalise(hf, factor * direction())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", POST_NORMED)
def test_models_that_normalise_their_writes_are_refused(family: str) -> None:
    with pytest.raises(EditError, match="normalises its writes"):
        orthogonalise(tiny.model(family), direction())


@pytest.mark.parametrize("bad", [torch.zeros(32), torch.ones(31), torch.full((32,), float("nan"))])
def test_directions_that_do_not_fit_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(EditError, match="direction does not fit"):
        orthogonalise(tiny.model("llama"), bad)


def test_quantised_weights_are_refused() -> None:
    hf = tiny.module("llama")
    layer = hf.model.layers[1].self_attn.o_proj
    layer.weight = torch.nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(EditError, match="quantised weights"):
        orthogonalise(hf, direction())


def test_adapters_are_refused() -> None:
    hf = tiny.module("llama")
    hf.model.layers[0].mlp.lora_A = torch.nn.Linear(4, 4)
    with pytest.raises(EditError, match="merge_and_unload"):
        orthogonalise(hf, direction())


def test_a_writer_that_was_missed_is_found_out(monkeypatch) -> None:
    monkeypatch.setattr("workbench.interventions.weights.WRITERS", ("o_proj",))
    with pytest.raises(EditError, match="still writes along the direction"):
        orthogonalise(tiny.model("gpt2"), direction())
