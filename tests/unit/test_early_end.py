"""A run that wants no logits ends after its highest site: same values, same receipts, nothing left."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import EditDidNothing, EditError
from workbench.model.backends import lower

TEXTS = ["12+3", "4+5=", "6"]
SITES = (
    "embed",
    "L0.resid_pre",
    "L1.mlp_out",
    "L1.resid_mid",
    "L2.z",
    "L2.resid_post",
    "final_norm",
)


def edit(model, site: str, size: float = 0.5, **options) -> wb.Intervention:
    shift = size * torch.arange(1.0, model.d_model + 1)
    return wb.Intervention("custom", "affine", {site: {"shift": shift}}, **options)


class Reached:
    """Which blocks, final norm and unembedding a run enters."""

    def __init__(self, model):
        hf, layout = model.hf, model.layout
        self.names: list[str] = []
        found = {f"L{y}": b for y, b in enumerate(hf.get_submodule(layout.blocks))}
        found["norm"] = hf.get_submodule(layout.outside["final_norm"].module)
        found["head"] = hf.get_output_embeddings()
        self.handles = [m.register_forward_hook(self._note(n)) for n, m in found.items()]

    def _note(self, name):
        return lambda *_: self.names.append(name)

    def __enter__(self):
        return self.names

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_values_are_those_of_a_whole_run(family) -> None:
    model = tiny.model(family)
    sites = [site for site in SITES if site in model.sites()]
    assert len(sites) >= len(SITES) - 1  # resid_mid is not everywhere
    for site in sites:
        whole = model.run(TEXTS, [site], logits="last")
        ended = model.run(TEXTS, [site], logits="none")
        assert torch.equal(whole[site], ended[site]), site
        assert ended.logits.shape == (3, 0, model.dims.n_vocab)
        assert ended.logits.dtype == whole.logits.dtype


@pytest.mark.parametrize(
    "site, want",
    [
        ("embed", []),
        ("L0.resid_pre", ["L0"]),
        ("L1.mlp_out", ["L0", "L1"]),
        ("L2.resid_post", ["L0", "L1", "L2"]),
        ("final_norm", ["L0", "L1", "L2", "norm"]),
    ],
)
def test_nothing_above_runs(site, want) -> None:
    model = tiny.model("llama")
    with Reached(model) as reached:
        model.run(TEXTS, [site], logits="none")
    assert reached == want


def test_with_logits_everything_runs() -> None:
    model = tiny.model("llama")
    with Reached(model) as reached:
        model.run(TEXTS, ["embed"], logits="last")
    assert reached == ["L0", "L1", "L2", "norm", "head"]


@pytest.mark.parametrize("site", ["logits", "hf:model.layers.0.mlp:out"])
def test_a_site_outside_the_blocks_lets_the_run_finish(site) -> None:
    model = tiny.model("llama")
    with Reached(model) as reached:
        value = model.run(TEXTS, [site], logits="none")[site]
    assert reached[-1] == "head"
    assert torch.equal(value, model.run(TEXTS, [site])[site])


@pytest.mark.parametrize("site", ["L0.resid_post", "L1.resid_mid", "L2.resid_post"])
def test_an_edit_is_reached_and_receipted(site) -> None:
    """Also above everything recorded."""
    model = tiny.model("llama")
    one = edit(model, site)
    whole = model.run(TEXTS, ["L0.resid_post"], [one], logits="last")
    with Reached(model) as reached:
        ended = model.run(TEXTS, ["L0.resid_post"], [one], logits="none")
    assert whole.receipts == ended.receipts
    assert torch.equal(whole["L0.resid_post"], ended["L0.resid_post"])
    assert reached[-1] == site.partition(".")[0]


def test_an_edit_that_fails_still_says_so() -> None:
    model = tiny.model("llama")
    with pytest.raises(EditError, match="infinite or NaN"):
        model.run(TEXTS, edits=[edit(model, "L1.resid_post", 1e38)], logits="none")
    with pytest.raises(EditDidNothing):
        model.run(TEXTS, edits=[edit(model, "L1.resid_post", 0.0)], logits="none")


def test_nothing_is_left_on_the_module() -> None:
    model = tiny.model("llama")
    before = {n: len(m._forward_pre_hooks) for n, m in model.hf.named_modules()}
    want = model.run(TEXTS).logits
    model.run(TEXTS, ["L0.resid_post"], logits="none")
    assert {n: len(m._forward_pre_hooks) for n, m in model.hf.named_modules()} == before
    assert torch.equal(model.run(TEXTS).logits, want)


def test_another_exception_passes_through() -> None:
    model = tiny.model("llama")

    def broken(*_):
        raise ValueError("mine")

    handle = model.hf.model.layers[0].register_forward_hook(broken)
    try:
        with pytest.raises(ValueError, match="mine"):
            model.run(TEXTS, ["L1.resid_post"], logits="none")
    finally:
        handle.remove()
    assert not model.hf.model.layers[2]._forward_pre_hooks


def test_gradients_reach_what_is_below() -> None:
    model = tiny.model("llama")
    ended = model.run(TEXTS, ["L0.resid_post", "L1.resid_post"], logits="none", grad=True)
    assert not ended["L1.resid_post"].requires_grad  # its weights are frozen
    shift = torch.zeros(model.d_model, requires_grad=True)
    one = wb.Intervention("custom", "affine", {"L0.resid_post": {"shift": shift + 0.1}})
    found = []
    for logits in ("none", "last"):
        trace = model.run(TEXTS, ["L1.resid_post"], [one], logits=logits, grad=True)
        found.append(torch.autograd.grad(trace["L1.resid_post"].square().sum(), shift)[0])
        one = wb.Intervention("custom", "affine", {"L0.resid_post": {"shift": shift + 0.1}})
    assert torch.equal(*found)
    assert float(found[0].norm()) > 0


def test_no_gradient_mode_stays_behind() -> None:
    model = tiny.model("llama")
    model.run(TEXTS, ["L0.resid_post"], logits="none")
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model.run(TEXTS, ["L0.resid_post"], logits="none", grad=True)
    assert torch.is_grad_enabled()


def test_what_was_recorded_is_freed_without_a_collection() -> None:
    """The exception's traceback holds the forward's frames: it must not outlive the run."""
    model = tiny.model("llama")
    gc.disable()
    try:
        trace = model.run(TEXTS, ["L1.resid_post"], logits="none")
        value = weakref.ref(trace["L1.resid_post"])
        del trace
        assert value() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_run_to_their_end(backend) -> None:
    pytest.importorskip(backend)
    model = tiny.model("llama", backend)
    want = model.run(TEXTS, ["L0.resid_post"], logits="last")["L0.resid_post"]
    assert torch.equal(model.run(TEXTS, ["L0.resid_post"], logits="none")["L0.resid_post"], want)
    assert lower._first_unneeded(model.backend, []) is None
