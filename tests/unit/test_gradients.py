"""Gradients at sites: against finite differences, in any batch, and with nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.patching import gradients
from workbench.patching.gradients import Gradients
from workbench.patching.patcher import Patched

PROMPTS = ("ab cab cab c", "de fde", "gh igh i")
PARTS = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out")


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 5] - 2 * logits[:, 9] * logits[:, 7]


def whole(logits: torch.Tensor, rows: slice) -> torch.Tensor:
    return (logits[..., 5] * logits[..., 9]).sum(-1)


def double(family: str) -> wb.Model:
    return wb.load(tiny.module(family).double(), tiny.tokenizer())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3"])
def test_gradients_are_what_finite_differences_say(family: str) -> None:
    """Along a random direction at every part, in float64, every case by itself.

    transformers takes RMS norms in float32 whatever the model's own type: fewer digits there.
    """
    rms = family not in ("gpt2", "gpt_neox")
    near = dict(rtol=1e-2, atol=2e-3) if rms else dict(rtol=1e-6, atol=1e-8)
    model = double(family)
    tokens = model.tokens(PROMPTS)
    parts = [p for p in PARTS if not (family == "gpt_neox" and p == "resid_mid")]
    # tiny embeddings behind an RMS norm bend too much for a step that float32 can see
    sites = [*([] if rms else ["embed"]), *(f"L1.{part}" for part in parts), "final_norm"]
    values, grads, losses = Gradients(model, False)(tokens, sites, score)
    draw, step = torch.Generator().manual_seed(0), 1e-3 if rms else 1e-5
    for site in sites:
        along = torch.randn(values[site].shape, generator=draw, dtype=torch.float64)
        ends = [values[site] + step * sign * along for sign in (1, -1)]
        up, down = (Gradients(model, False)(tokens, [], score, put={site: v})[2] for v in ends)
        told = (grads[site] * along).flatten(1).sum(1)
        torch.testing.assert_close((up - down) / (2 * step), told, **near, msg=site)
        assert float(told.abs().max()) > 1e-3, site
    torch.testing.assert_close(losses, score(model.run(tokens, logits="last").logits[:, -1]))


@pytest.mark.parametrize("part", ["pattern", "attn_scores"])
def test_attention_has_gradients_too(part: str) -> None:
    """In float32, in which transformers takes the softmax, so to fewer digits."""
    model = tiny.model("gpt2")
    tokens, site = model.tokens(PROMPTS), f"L1.{part}"
    take = Gradients(model, False)
    values, grads, _ = take(tokens, site, score)
    along = torch.randn(values[site].shape, generator=torch.Generator().manual_seed(0))
    along = along * (values[site] > -1e30)  # not where it is masked
    up, down = (
        take(tokens, [], score, put={site: values[site] + x * along})[2] for x in (0.01, -0.01)
    )
    told = (grads[site] * along).flatten(1).sum(1)
    assert float(told.abs().min()) > 1e-3
    torch.testing.assert_close((up - down) / 0.02, told, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("part", ["pattern", "attn_scores"])
def test_attention_is_finite_in_float64_too(family: str, part: str) -> None:
    """Rows of left padding see nothing at all; float64's least number is -inf in a float32 softmax."""
    model = double(family)
    tokens = model.tokens(PROMPTS)
    assert not bool(tokens.mask.all())
    plain = model.run(tokens, logits="last").logits
    trace = model.run(tokens, record=[f"L1.{part}"], logits="last")
    torch.testing.assert_close(trace.logits, plain, rtol=1e-5, atol=1e-6)
    _, grads, _ = Gradients(model, False)(tokens, f"L1.{part}", score)
    assert bool(grads[f"L1.{part}"].isfinite().all()) and bool(grads[f"L1.{part}"].any())


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same(backend: str) -> None:
    tokens = tiny.model().tokens(PROMPTS)
    sites = ["embed", "L0.resid_pre", "L1.q", "L1.z", "L1.resid_mid", "L2.mlp_out"]
    ours = Gradients(tiny.model(), False)(tokens, sites, score)
    theirs = Gradients(tiny.model("llama", backend), False)(tokens, sites, score)
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        for site in sites:
            at = tokens.mask  # what padding holds is each backend's own business
            torch.testing.assert_close(one[site][at], other[site][at], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("keep", "loss"), [(1, score), (0, whole)])
def test_cases_in_several_forwards_are_as_in_one(
    keep: int, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model()
    tokens = model.tokens(PROMPTS)
    inputs = torch.randn(*tokens.ids.shape, model.d_model)
    take = Gradients(model, False)
    together = take(tokens, "L*.z", loss, inputs, keep=keep)
    monkeypatch.setattr(gradients, "CPU_TOKENS", 2 * tokens.ids.shape[1])
    apart = take(tokens, "L*.z", loss, inputs, keep=keep)
    assert list(together[1]) == ["L0.z", "L1.z", "L2.z"]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing() -> None:
    model = tiny.model()
    _, both, _ = Gradients(model, False)(model.tokens(PROMPTS), "L1.resid_pre", score)
    alone = model.tokens(PROMPTS[1])
    _, one, _ = Gradients(model, False)(alone, "L1.resid_pre", score)
    width = alone.ids.shape[1]
    torch.testing.assert_close(
        both["L1.resid_pre"][1, -width:], one["L1.resid_pre"][0], rtol=1e-4, atol=1e-6
    )
    assert not both["L1.resid_pre"][1, :-width].any()


def test_inputs_take_the_embeddings_place() -> None:
    model = tiny.model()
    one, other = model.tokens(PROMPTS[0]), model.tokens("zz yzz yzz y")
    embed = model.run(other, record=["embed"])["embed"]
    values, _, losses = Gradients(model, False)(one, "embed", score, embed)
    assert torch.equal(values["embed"], embed)
    torch.testing.assert_close(losses, score(model.run(other, logits="last").logits[:, -1]))


def test_a_value_that_is_put_in_is_what_patching_puts_in() -> None:
    from workbench.locate.base import Patch

    model = tiny.model("gpt2")
    tokens = model.tokens(PROMPTS)
    z = torch.randn(*tokens.ids.shape, model.n_heads, model.dims.d_head)
    _, _, losses = Gradients(model, False)(tokens, [], score, put={"L1.z": z})
    exact = Patched(model, False)(tokens, [[Patch("L1.z", z)]], score)
    torch.testing.assert_close(losses, exact[0], rtol=1e-4, atol=1e-5)


def test_nothing_is_left_and_parameters_keep_their_gradients() -> None:
    hf = tiny.module("llama").requires_grad_(True)
    model = wb.load(hf, tiny.tokenizer())
    held = torch.ones_like(hf.lm_head.weight)
    hf.lm_head.weight.grad = held.clone()
    before = model.run(PROMPTS[0]).logits
    with torch.inference_mode():
        _, grads, _ = Gradients(model, False)(model.tokens(PROMPTS), "L*.resid_pre", score)
        assert all(bool(g.any()) and not g.requires_grad for g in grads.values())
    assert torch.equal(hf.lm_head.weight.grad, held)
    assert all(p.grad is None for p in hf.parameters() if p is not hf.lm_head.weight)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())
    assert hooks == 0 and torch.equal(model.run(PROMPTS[0]).logits, before)

    def broken(logits: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gradients(model, False)(model.tokens(PROMPTS), "L*.resid_pre", broken)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules()) == 0
    assert torch.equal(model.run(PROMPTS[0]).logits, before)


def test_a_site_the_loss_does_not_depend_on_has_zeros() -> None:
    model = tiny.model()
    take = Gradients(model, False)
    _, grads, _ = take(model.tokens(PROMPTS), ["L1.z"], lambda logits: logits[:, 3] * 0)
    assert not grads["L1.z"].any()
    _, grads, _ = take(model.tokens(PROMPTS), ["L1.z"], lambda logits: torch.ones(3))
    assert not grads["L1.z"].any()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (dict(sites="L1.z[head=0]", loss=score), "has selectors"),
        (dict(sites="L9.z", loss=score), "names a layer the model lacks"),
        (dict(sites="L1.z", loss=lambda logits: logits.sum()), "not one number per case"),
        (dict(sites="L1.z", loss=score, inputs=torch.zeros(3, 2, 32)), "another shape"),
        (dict(sites="L1.router_logits", loss=score), "router_logits"),
        (dict(sites="L1.z", loss=lambda logits: (logits[:, 5] - 9).log()), "the loss is NaN"),
        (dict(sites="L1.z", loss=lambda logits: (logits[:, 5] * 0).sqrt()), "L1.z is NaN"),
    ],
)
def test_what_cannot_be_is_said(ask: dict[str, Any], said: str) -> None:
    model = tiny.model()
    with pytest.raises(wb.WorkbenchError, match=said):
        Gradients(model, False)(model.tokens(PROMPTS), **ask)
