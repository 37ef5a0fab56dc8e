"""The way to the logits: exact against the model's own, in every family, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import workbench as wb
from tests import tiny
from workbench.model.stopping import stoppable
from workbench.patching import head as head_module
from workbench.patching.head import Head

PROMPTS = ["ab cab cab c", "de fde", "x"]
NORMED = ("gemma2", "gemma3_text")
CAPPED = ("gemma2",)
LINEAR = tuple(f for f in tiny.FAMILIES if f not in CAPPED)


def last_stream(model: wb.Model) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the final norm at the last position, and the logits there."""
    site = f"L{model.n_layers - 1}.resid_post[pos=-1]"
    trace = model.run(PROMPTS, record=site)
    return trace[site], trace.logits[:, -1]


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_last_stream_gives_the_models_own_logits(family: str) -> None:
    model = tiny.model(family)
    trace = model.run(PROMPTS, record="L2.resid_post")
    torch.testing.assert_close(
        Head(model).unembed(trace["L2.resid_post"]), trace.logits, rtol=1e-5, atol=1e-5
    )


def test_shape_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("gpt2")
    resid = torch.randn(2, 3, 200, 32)  # more positions than the model's context
    whole = Head(model).unembed(resid)
    assert whole.shape == (2, 3, 200, tiny.N_VOCAB)
    monkeypatch.setattr(head_module, "LARGEST_CHUNK", 7 * tiny.N_VOCAB)
    assert [s.stop - s.start for s in Head(model).chunks(10)] == [7, 3]
    torch.testing.assert_close(Head(model).unembed(resid), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Head(model).unembed(resid[0, 1, 5]), whole[0, 1, 5])


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_gradients_pass_through_the_head_and_stay_off_the_model(family: str) -> None:
    hf = tiny.module(family).requires_grad_(True)
    head = Head(wb.load(hf, tiny.tokenizer()))
    h, step = torch.randn(1, 32), torch.randn(1, 32) * 1e-3
    assert not head.unembed(h.clone().requires_grad_()).requires_grad
    leaf = h.clone().requires_grad_()
    (slope,) = torch.autograd.grad(head.unembed(leaf, grad=True)[0, 5], [leaf])
    rise = head.unembed(h + step)[0, 5] - head.unembed(h - step)[0, 5]
    assert float((slope * step).sum() * 2) == pytest.approx(float(rise), rel=0.02)
    assert all(p.grad is None for p in hf.parameters())


@pytest.mark.parametrize("family", LINEAR)
def test_the_readout_is_the_logit_difference(family: str) -> None:
    model = tiny.model(family)
    resid, logits = last_stream(model)
    plus, minus = ids(5, 6, 7), ids(50, 60, 70)
    each = torch.arange(3)
    for other, wanted in (
        (minus, logits[each, plus] - logits[each, minus]),
        (None, logits[each, plus] - logits.mean(-1)),
    ):
        direction, constant = Head(model).readout(resid, plus, other)
        found = (direction * resid).sum(-1) + constant
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_readout_is_the_formula_with_the_scale_frozen() -> None:
    model = tiny.model("llama")
    resid, _ = last_stream(model)
    direction, constant = Head(model).readout(resid, ids(5, 6, 7), ids(50, 60, 70))
    weight = model.hf.get_output_embeddings().weight
    gamma = model.hf.get_submodule("model.norm").weight
    rms = (resid.square().mean(-1, keepdim=True) + model.hf.config.rms_norm_eps).sqrt()
    wanted = (weight[[5, 6, 7]] - weight[[50, 60, 70]]) * gamma / rms
    torch.testing.assert_close(direction, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(constant, torch.zeros(3))


@pytest.mark.parametrize("width", [32, 33])
def test_a_layer_norms_constant_and_an_unembedding_bias_count(width: int) -> None:
    hf: Any = tiny.module("gpt2", n_embd=width, n_head=1 if width == 33 else 4)
    hf.lm_head.bias = nn.Parameter(torch.randn(tiny.N_VOCAB), requires_grad=False)
    model = wb.load(hf, tiny.tokenizer())
    resid, logits = last_stream(model)
    plus, minus = ids(5, 6, 7), ids(50, 60, 70)
    direction, constant = Head(model).readout(resid, plus, minus)
    each = torch.arange(3)
    wanted = logits[each, plus] - logits[each, minus]
    torch.testing.assert_close((direction * resid).sum(-1) + constant, wanted, rtol=1e-5, atol=1e-5)
    weight, norm = hf.lm_head.weight, hf.transformer.ln_f
    offset = (weight[plus] - weight[minus]) @ norm.bias + hf.lm_head.bias[plus]
    torch.testing.assert_close(constant, offset - hf.lm_head.bias[minus], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(direction.sum(-1), torch.zeros(3), atol=1e-4, rtol=0)  # centred


def test_low_precision_is_exact_to_its_own_rounding() -> None:
    model = wb.load(tiny.module("llama").to(torch.bfloat16), tiny.tokenizer())
    resid, logits = last_stream(model)
    direction, constant = Head(model).readout(resid, ids(5, 6, 7), ids(50, 60, 70))
    wanted = logits[torch.arange(3), [5, 6, 7]] - logits[torch.arange(3), [50, 60, 70]]
    found = (direction * resid.float()).sum(-1) + constant
    torch.testing.assert_close(found, wanted.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", CAPPED)
def test_a_soft_cap_is_refused(family: str) -> None:
    model = tiny.model(family)
    before = len(model.hf.get_output_embeddings()._forward_hooks)
    with pytest.raises(wb.WorkbenchError, match="soft cap"):
        Head(model).readout(last_stream(model)[0], ids(5, 6, 7))
    assert len(model.hf.get_output_embeddings()._forward_hooks) == before


class Squashing(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(hidden_states)


class Shifted(nn.Module):
    """A norm that is right at the probes and wrong elsewhere."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out = self.norm(hidden_states)
        return torch.where(hidden_states.abs() == 64, out, out + 1.0 * (hidden_states != 0))


@pytest.mark.parametrize("kind", ["squashing", "shifted"])
def test_a_norm_of_another_kind_is_refused(kind: str) -> None:
    hf: Any = tiny.module("llama")
    model = wb.load(hf, tiny.tokenizer())
    hf.model.norm = Squashing() if kind == "squashing" else Shifted(hf.model.norm)
    with pytest.raises(wb.WorkbenchError, match="neither an RMS nor a layer norm"):
        Head(model).readout(last_stream(model)[0], ids(5, 6, 7))


def test_logits_that_something_else_changes_are_refused() -> None:
    """A hook that moves the logits of small streams only passes the first check, not the second."""
    hf: Any = tiny.module("llama")
    model = wb.load(hf, tiny.tokenizer())
    resid, _ = last_stream(model)
    hook = hf.lm_head.register_forward_hook(lambda _m, _a, out: out * 1.1)
    try:
        with pytest.raises(wb.WorkbenchError, match="does not give the model's own logits"):
            Head(model).readout(resid, ids(5, 6, 7), ids(50, 60, 70))
    finally:
        hook.remove()


def test_weights_that_are_elsewhere_are_refused() -> None:
    hf: Any = tiny.module("llama")
    model = wb.load(hf, tiny.tokenizer())
    resid, _ = last_stream(model)
    hf.lm_head.weight = nn.Parameter(torch.empty(tiny.N_VOCAB, 32, device="meta"))
    with pytest.raises(wb.WorkbenchError, match="not at hand"):
        Head(model).readout(resid, ids(5, 6, 7))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_heads_writes_add_up_to_what_attention_adds(family: str) -> None:
    model, head = tiny.model(family), Head(tiny.model(family))
    trace = model.run(PROMPTS, record=["L1.z", "L1.attn_out"])
    z, attention = trace["L1.z"], trace["L1.attn_out"]
    if family in NORMED:
        assert head.writes(1, z).shape == (*z.shape[:3], 32)
        with pytest.raises(wb.WorkbenchError, match="heads=False"):
            head.writes(1, z, attention)
        return
    writes = head.writes(1, z, attention)
    torch.testing.assert_close(writes.sum(-2) + head.write_bias(1), attention, rtol=1e-5, atol=1e-5)
    assert (float(head.write_bias(1).abs().max()) > 0) == (family in ("gpt2", "gpt_neox"))


def test_a_heads_write_is_what_is_missing_without_it() -> None:
    model, head = tiny.model("gpt2"), Head(tiny.model("gpt2"))
    trace = model.run(PROMPTS, record=["L1.z", "L1.attn_out"])
    gone = wb.Intervention("custom", "affine", {"L1.z[head=2]": {"scale": -torch.ones(8)}})
    without = model.run(PROMPTS, record="L1.attn_out", edits=[gone])["L1.attn_out"]
    missing = torch.where(trace.tokens.mask[..., None], trace["L1.attn_out"] - without, 0.0)
    write = head.writes(1, trace["L1.z"])[..., 2, :]
    write = torch.where(trace.tokens.mask[..., None], write, 0.0)
    torch.testing.assert_close(missing, write, rtol=1e-4, atol=1e-5)


def test_norms_of_writes_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, head = tiny.model("llama"), Head(tiny.model("llama"))
    z = model.run(PROMPTS, record="L1.z")["L1.z"]
    monkeypatch.setattr(head_module, "LARGEST_CHUNK", 300)
    norms = head.write_norms(1, z)
    torch.testing.assert_close(norms, head.writes(1, z).norm(dim=-1), rtol=1e-5, atol=1e-6)


def test_it_stops_when_asked() -> None:
    class Stopped(Exception):
        pass

    def check() -> None:
        raise Stopped

    model = tiny.model()
    kept = dict(model.hf.get_submodule(model.layout.blocks)._modules)
    with stoppable(check), pytest.raises(Stopped):
        Head(model).unembed(torch.randn(4, 32))
    assert dict(model.hf.get_submodule(model.layout.blocks)._modules) == kept
