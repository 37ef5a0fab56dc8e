"""Traps measured in TransformerLens 3.9 and nnsight 0.8, each shut on our side."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.errors import SiteUnavailable, UnknownName, WorkbenchError
from workbench.model.backends.base import Tap
from workbench.scopes import Scope
from workbench.sites import Site
from workbench.tensors import Intervention

BACKENDS = ("transformers", "transformer_lens", "nnsight")
SERIAL = ("gpt2", "llama", "qwen3", "mixtral", "gemma2")
PROMPT = "abc 12+34"
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def logits(model: wb.Model, *edits: Intervention) -> Tensor:
    """Logits of the prompt."""
    return model.run(PROMPT, edits=edits).logits


def shift(site: str, width: int, scope: str = "all") -> Intervention:
    """A constant uneven shift."""
    tensors = {site: {"shift": torch.arange(width).sin()}}
    return Intervention("custom", "affine", tensors, scope=Scope.parse(scope))


@pytest.mark.parametrize("family", SERIAL)
@every_backend
def test_a_resid_mid_write_reaches_the_skip_connection(family: str, backend: str) -> None:
    """TransformerLens' hook_resid_mid reaches the MLP alone: 0.14 instead of 1.26 on Qwen3."""
    model = tiny.model(family, backend)
    at_mid = logits(model, shift("L1.resid_mid", model.d_model))
    at_attention = logits(model, shift("L1.attn_out", model.d_model))
    assert torch.allclose(at_mid, at_attention, atol=1e-5)
    assert not torch.allclose(at_mid, logits(model), atol=1e-2)


def test_the_bridges_own_resid_mid_still_is_what_we_work_around() -> None:
    """When this fails, TransformerLens has mended it, and `Carry` may be needless there."""
    bridge = tiny.model("llama", "transformer_lens").unwrap()
    ids, width = torch.arange(3, 9)[None], tiny.model("llama").d_model

    def write(h: Tensor, hook: object) -> Tensor:
        return h + torch.arange(width).sin()

    plain, mid, attn = (
        bridge.run_with_hooks(ids, fwd_hooks=hooks)
        for hooks in ([], [("blocks.1.hook_resid_mid", write)], [("blocks.1.hook_attn_out", write)])
    )
    assert not torch.allclose(mid, plain, atol=1e-2)
    assert not torch.allclose(mid, attn, atol=1e-2)


@pytest.mark.parametrize("family", tiny.MOE)
@every_backend
def test_a_router_write_has_effect(family: str, backend: str) -> None:
    """A hook on the router's output is a silent no-op in transformers 5."""
    model = tiny.model(family, backend)
    bias = torch.tensor([4.0, -4.0, 2.0, 0.0])
    change = Intervention("custom", "route", {"L1.router_logits": {"bias": bias}})
    assert float((logits(model, change) - logits(model)).abs().max()) > 1e-3


@pytest.mark.parametrize("part", ["pattern", "attn_scores"])
@every_backend
def test_a_pattern_write_has_effect(part: str, backend: str) -> None:
    """Hugging Face returns patterns that nothing reads, and under sdpa none at all."""
    model = tiny.model("llama", backend)
    assert model.hf.config._attn_implementation == "sdpa"
    change = Intervention(
        "custom", "score_bias", {f"L1.{part}": {"bias": torch.ones(1)}}, params={"keys": "bos"}
    )
    assert float((logits(model, change) - logits(model)).abs().max()) > 1e-3


@every_backend
def test_a_misspelt_site_is_an_error_that_lists_the_nearest(backend: str) -> None:
    """TransformerLens 3.9 accepts a misspelt hook name, and its cache is then empty."""
    with pytest.raises(UnknownName, match="nearest: resid_post"):
        tiny.model("llama", backend).run(PROMPT, record="L1.resid_pots")
    attach = tiny.model("llama", backend).backend.attach
    nowhere = Tap(Site(1, "nowhere"), lambda h: h)
    with pytest.raises(SiteUnavailable, match="no backend can offer it"), attach([nowhere]):
        pass


@every_backend
def test_mlp_post_of_a_mixture_of_experts_is_refused(backend: str) -> None:
    """TransformerLens' mlp.hook_post is the block's output there."""
    with pytest.raises(SiteUnavailable, match="neurons per expert: use expert"):
        tiny.model("mixtral", backend).run(PROMPT, record="blocks.1.mlp.hook_post")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bridging_leaves_the_module_whole(family: str, tmp_path: Path) -> None:
    """Bridged in place, 20 of 164 module names resolve and save_pretrained fails."""
    hf = tiny.module(family)
    names = {name: type(module) for name, module in hf.named_modules()}
    model = wb.load(hf, tiny.tokenizer(), backend="transformer_lens", proof=False)
    model.run(PROMPT)
    assert {name: type(module) for name, module in hf.named_modules()} == names
    hf.save_pretrained(tmp_path)
    saved = type(hf).from_pretrained(tmp_path)
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in hf.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen2_moe"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_weights_are_shared_and_edits_in_place_are_seen(family: str, backend: str) -> None:
    """The bridge copies NeoX's joint projection, so an edit of it would be missed."""
    hf = tiny.module(family)
    model = wb.load(hf, tiny.tokenizer(), backend=backend, proof=False)
    before = logits(model)
    with torch.no_grad():
        for p in hf.parameters():
            p.data.mul_(1.1)
    after, ids = logits(model), model.tokens(PROMPT).ids
    assert torch.allclose(after, hf(input_ids=ids).logits, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_bridge_adds_no_parameter_of_size(family: str) -> None:
    model = tiny.model(family, "transformer_lens")
    own = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    new = [p for p in model.unwrap().original_model.parameters()]
    added = sum(p.numel() for p in new if p.untyped_storage().data_ptr() not in own)
    joint = sum(p.numel() for n, p in model.hf.named_parameters() if "query_key_value" in n)
    assert added <= model.dims.n_vocab + joint


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@every_backend
def test_trainable_parameters_stay_trainable(family: str, backend: str) -> None:
    hf = tiny.module(family).requires_grad_(True)
    wb.load(hf, tiny.tokenizer(), backend=backend)
    assert all(p.requires_grad for p in hf.parameters())


def test_booting_a_gemma_leaves_other_gemmas_alone() -> None:
    """TransformerLens replaces `eager_attention_forward` of every Gemma in the process."""
    from transformers.models.gemma2 import modeling_gemma2
    from transformers.models.gemma3 import modeling_gemma3

    tiny.model("gemma2", "transformer_lens")
    for module in (modeling_gemma2, modeling_gemma3):
        assert module.eager_attention_forward.__module__ == module.__name__


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_users_tokenizer_is_not_changed(backend: str) -> None:
    """nnsight turns its padding side to the left; TransformerLens fills in special tokens."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    wb.load(tiny.module("llama"), tokenizer, backend=backend, proof=False).unwrap()
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)


def test_a_bridge_takes_hooks_of_the_user_and_keeps_them() -> None:
    model = tiny.model("llama", "transformer_lens")
    seen: list[Tensor] = []
    point = model.unwrap().hook_dict["blocks.1.hook_out"]
    point.add_hook(lambda h, **_: seen.append(h))
    try:
        model.run(PROMPT, record="L1.resid_post")
        assert len(point.fwd_hooks) == 1 and len(seen) == 1
    finally:
        point.remove_hooks()


def test_two_threads_on_nnsight_both_get_right_results() -> None:
    """Unserialised, 34 of 40 traces raise."""
    models = [
        tiny.model("llama", "nnsight"),
        tiny.model("llama", "nnsight"),
        tiny.model("gpt2", "nnsight"),
    ]
    changes = [
        shift("L1.resid_post", m.d_model, f"span({n}, {n + 2})") for n, m in enumerate(models)
    ]
    expected = [logits(m, c) for m, c in zip(models, changes, strict=True)]
    results: list[list[Tensor]] = [[] for _ in models]

    def work(n: int) -> None:
        torch.set_num_threads(1)
        for _ in range(10):
            results[n].append(logits(models[n], changes[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for n, want in enumerate(expected):
        assert len(results[n]) == 10 and all(torch.equal(want, got) for got in results[n])


def test_nnsight_entered_from_its_own_tap_says_so() -> None:
    """It would wait for itself for ever, or lose its place in the trace: calls take turns."""
    model = tiny.model("llama", "nnsight")
    again = Tap(Site(1, "resid_post"), lambda _: logits(model))
    wrong = pytest.raises(WorkbenchError, match="in the middle of a call")
    with wrong, model.backend.attach([again]):
        logits(model)
    assert torch.isfinite(logits(model)).all()


def test_nnsight_takes_taps_in_any_order() -> None:
    """A step asked for late silently gets the next forward's value, or an error."""
    model, seen = tiny.model("gpt2", "nnsight"), []
    places = [Site(None, "logits"), Site(2, "resid_post"), Site(0, "q"), Site(1, "pattern")]
    places += [Site(0, "k_cache"), Site(None, "embed"), Site(0, "resid_pre"), Site(0, "q")]
    with model.backend.attach([Tap(p, lambda h, p=p: seen.append(p) or h) for p in places]):
        logits(model)
    assert sorted(places, key=lambda p: p.depth) == seen


@every_backend
def test_nested_taps_come_off_one_by_one(backend: str) -> None:
    model, fired = tiny.model("llama", backend), []
    outer = Tap(Site(1, "z"), lambda h: fired.append("outer") or h * 0.5)
    inner = Tap(Site(1, "z"), lambda h: fired.append("inner") or h)
    with model.backend.attach([outer]):
        with model.backend.attach([inner]):
            logits(model)
        once = logits(model)
    assert fired == ["outer", "inner", "outer"]
    assert not torch.allclose(once, logits(model), atol=1e-3)


@every_backend
def test_gradients_reach_a_recorded_site(backend: str) -> None:
    model = tiny.model("llama", backend)
    start = torch.zeros(model.d_model, requires_grad=True)
    change = Intervention("custom", "affine", {"L0.resid_post": {"shift": start + 1e-3}})
    model.run(PROMPT, edits=[change], grad=True).logits.sum().backward()
    reference = torch.zeros(model.d_model, requires_grad=True)
    change = Intervention("custom", "affine", {"L0.resid_post": {"shift": reference + 1e-3}})
    tiny.model("llama").run(PROMPT, edits=[change], grad=True).logits.sum().backward()
    assert start.grad is not None and reference.grad is not None
    assert torch.allclose(start.grad, reference.grad, rtol=1e-3, atol=1e-3)


def test_unwrap_gives_an_nnsight_model_to_trace_with() -> None:
    model = tiny.model("llama", "nnsight")
    lm, ids = model.unwrap(), model.tokens(PROMPT).ids
    with lm.trace(ids):
        seen = lm.model.layers[1].output.save()
    recorded = model.run(PROMPT, record="L1.resid_post")["L1.resid_post"]
    assert torch.allclose(seen, recorded, atol=1e-5)


def test_two_backends_share_one_module() -> None:
    hf = tiny.module("gemma2")
    models = [wb.load(hf, tiny.tokenizer(), backend=b) for b in ("nnsight", "transformer_lens")]
    models.append(wb.load(hf, tiny.tokenizer()))
    change = shift("L1.resid_mid", models[0].d_model)
    first, *others = [logits(model, change) for model in models]
    assert all(torch.allclose(first, other, atol=1e-5) for other in others)


def test_a_model_transformer_lens_has_no_adapter_for_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def boot(*_args: object, **_options: object) -> None:
        raise ValueError("Could not determine supported architecture")

    bridge = type(tiny.model("llama", "transformer_lens").unwrap())
    monkeypatch.setattr(bridge, "boot_transformers", boot)
    with pytest.raises(WorkbenchError, match="TransformerLens cannot bridge this model"):
        wb.load(tiny.module("llama"), tiny.tokenizer(), backend="transformer_lens")


def test_a_multimodal_model_is_not_bridged() -> None:
    """Booting one may run pip in a subprocess."""
    hf = tiny.module("llama")
    hf.config.vision_config = {}
    with pytest.raises(WorkbenchError, match="is multimodal"):
        wb.load(hf, tiny.tokenizer(), backend="transformer_lens")


def test_the_libraries_load_only_with_their_backend() -> None:
    """Together they take seven seconds."""
    code = (
        "import sys, workbench.model.load, workbench.model.backends\n"
        "print(sorted({'nnsight', 'transformer_lens'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_them_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in BACKENDS[1:]:
            tiny.model("llama", name)
