"""Next-token sweeps: each cell is its own run, controls are controls, and failures stay in their cell."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import EditError, PromptError, WorkbenchError
from workbench.interventions.control import random_control
from workbench.sweep import next_token

TEXTS = ["12+3", "4+5=", "6", "abc def", "9+9"]
STRENGTHS = (-1.0, 0.0, 0.5, 2.0)
CLOSE = dict(atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def model() -> wb.Model:
    return tiny.model("llama")


def edit(model: wb.Model, part: str = "resid_post", **options) -> wb.Intervention:
    draw = torch.Generator().manual_seed(0)
    shifts = {
        f"L{y}.{part}": {"shift": torch.randn(model.d_model, generator=draw)}
        for y in range(model.n_layers)
    }
    return wb.Intervention("custom", "affine", shifts, **options)


def sweep(model, one, strengths=STRENGTHS, **options):
    return next_token(model, TEXTS, one, strengths, progress=False, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("part", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_every_cell_is_its_own_run(family, part) -> None:
    model = tiny.model(family)
    one = edit(model, part)
    found = sweep(model, one)
    assert (found.layers, found.strengths, found.errors) == ((0, 1, 2), STRENGTHS, {})
    for y in found.layers:
        for s, strength in enumerate(STRENGTHS):
            alone = one.only(f"L{y}.{part}").at(strength)
            want = model.run(TEXTS, edits=[alone], logits="last").logits[:, -1]
            torch.testing.assert_close(found.logits[y, s], want, **CLOSE)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_give_the_same(model, backend) -> None:
    other = tiny.model("llama", backend)
    got, want = sweep(other, edit(model)), sweep(model, edit(model))
    torch.testing.assert_close(got.logits, want.logits, atol=1e-4, rtol=1e-3)


def test_strength_zero_is_the_base_bit_for_bit(model) -> None:
    found = sweep(model, edit(model), control=True)
    for one in (found, found.control):
        assert all(torch.equal(one.logits[y, 1], found.base) for y in range(3))
        assert torch.equal(one.kl[:, 1], torch.zeros(3, len(TEXTS)))
    assert bool((found.kl[:, [0, 2, 3]] > 0).all())


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_the_batch_size_changes_nothing(model, size) -> None:
    got, want = sweep(model, edit(model), batch_size=size), sweep(model, edit(model))
    torch.testing.assert_close(got.logits, want.logits, **CLOSE)
    torch.testing.assert_close(got.kl, want.kl, atol=1e-5, rtol=1e-3)


def test_no_batch_is_larger_than_asked(model, monkeypatch) -> None:
    rows, forward = [], model.backend.forward
    monkeypatch.setattr(
        model.backend, "forward", lambda ids, **k: (rows.append(len(ids)), forward(ids, **k))[1]
    )
    sweep(model, edit(model), batch_size=2)
    assert max(rows) == 2


def test_only_the_blocks_from_the_edit_on_run(model) -> None:
    calls = [0] * model.n_layers
    handles = [
        block.register_forward_hook(lambda *_, y=y: calls.__setitem__(y, calls[y] + 1))
        for y, block in enumerate(model.hf.model.layers)
    ]
    try:
        sweep(model, edit(model), layers=[2], batch_size=64)
    finally:
        for handle in handles:
            handle.remove()
    assert calls[0] == calls[1] == 1  # the base


def test_kept_tokens_are_those_of_all(model) -> None:
    whole, kept = sweep(model, edit(model)), sweep(model, edit(model), read=[9, 4, 7, 4])
    assert kept.read == (9, 4, 7)
    assert torch.equal(kept.logits, whole.logits[..., [9, 4, 7]])
    assert torch.equal(kept.kl, whole.kl)
    torch.testing.assert_close(kept.probability(7), whole.logits.softmax(-1)[..., 7])
    torch.testing.assert_close(kept.base_probability(4), whole.base.softmax(-1)[:, 4])
    assert set(kept.top().unique().tolist()) <= {9, 4, 7}
    assert torch.equal(whole.top(), whole.logits.argmax(-1))


def test_tokens_may_differ_by_prompt(model) -> None:
    found = sweep(model, edit(model))
    a, b = [4, 5, 6, 7, 8], 9
    got = found.logit_difference(a, b)
    for p, token in enumerate(a):
        want = found.logits[..., p, token] - found.logits[..., p, 9]
        assert torch.equal(got[..., p], want)
        assert found.base_logit_difference(a, b)[p] == found.base[p, token] - found.base[p, 9]
    assert got.shape == (3, 4, 5)


def test_kl_is_that_of_torch(model) -> None:
    found = sweep(model, edit(model))
    log_p, log_q = found.logits.double().log_softmax(-1), found.base.double().log_softmax(-1)
    want = torch.nn.functional.kl_div(
        log_q.expand_as(log_p), log_p, log_target=True, reduction="none"
    )
    torch.testing.assert_close(found.kl.double(), want.sum(-1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.kl_nats(), found.kl.mean(-1))


def test_the_control_is_the_random_control(model) -> None:
    one = edit(model)
    found = sweep(model, one, control=True, control_seed=3)
    for y in found.layers:
        twin = random_control(one.only(f"L{y}.resid_post"), 3)
        assert twin is not None
        want = model.run(TEXTS, edits=[twin.at(2.0)], logits="last").logits[:, -1]
        torch.testing.assert_close(found.control.logits[y, 3], want, **CLOSE)
    assert not torch.allclose(found.control.logits[:, 3], found.logits[:, 3], atol=1e-2)
    assert sweep(model, one).control is None


def test_an_edit_without_a_direction_has_no_control(model) -> None:
    """A zero ablation: every draw of a control would be itself."""
    zero = {"L1.mlp_out": {"scale": -torch.ones(model.d_model)}}
    found = sweep(model, wb.Intervention("custom", "affine", zero), control=True)
    assert found.control.logits[0, [0, 2, 3]].isnan().all()
    assert "no direction" in found.control.errors[(1, 2.0)]
    assert torch.equal(found.control.logits[0, 1], found.base)
    assert not found.errors


def test_a_layer_may_have_its_own_edit(model) -> None:
    asked = []

    def at(layer: int) -> wb.Intervention:
        asked.append(layer)
        return edit(model).only(f"L{layer}.resid_post")

    got, want = sweep(model, at, layers=[2, 0]), sweep(model, edit(model), layers=[0, 2])
    assert asked == [0, 2] and got.layers == (0, 2)
    assert torch.equal(got.logits, want.logits)


def test_one_failing_strength_leaves_the_others(model) -> None:
    found = sweep(model, edit(model), (-1.0, 0.0, 1.0, 3e38))
    assert set(found.errors) == {(y, 3e38) for y in range(3)}
    assert "infinite or NaN" in found.errors[(0, 3e38)]
    assert found.logits[:, 3].isnan().all() and found.probability(4)[:, 3].isnan().all()
    assert found.kl_nats()[:, 3].isnan().all() and bool((found.top()[:, 3] == -1).all())
    want = sweep(model, edit(model), (-1.0, 0.0, 1.0))
    torch.testing.assert_close(found.logits[:, :3], want.logits, **CLOSE)


def test_an_edit_of_another_width_says_so_in_its_cells(model) -> None:
    wrong = wb.Intervention("custom", "affine", {"L0.resid_post": {"shift": torch.ones(7)}})
    found = sweep(model, wrong)
    assert set(found.errors) == {(0, s) for s in STRENGTHS if s}
    assert "another width" in found.errors[(0, 2.0)]


def test_the_model_is_left_as_it_was(model) -> None:
    before = model.run(TEXTS).logits
    sweep(model, edit(model), control=True)
    assert torch.equal(model.run(TEXTS).logits, before)


@pytest.mark.parametrize(
    "options, wrong",
    [
        (dict(layers=[]), "no such layers"),
        (dict(layers=[7]), "no such layers"),
        (dict(read=[]), "no such tokens"),
        (dict(read=[10**6]), "no such tokens"),
        (dict(strengths=[]), "no strengths"),
        (dict(strengths=[float("nan")]), "no strengths"),
    ],
)
def test_bad_settings_are_refused(model, options, wrong) -> None:
    with pytest.raises(WorkbenchError, match=wrong):
        sweep(model, edit(model), **options)


def test_bad_edits_and_prompts_are_refused(model) -> None:
    with pytest.raises(EditError, match="not in one layer"):
        sweep(model, wb.Intervention("c", "affine", {"embed": {"shift": torch.ones(32)}}))
    with pytest.raises(PromptError):
        next_token(model, [], edit(model))
    with pytest.raises(PromptError, match="longer than the context"):
        next_token(model, ["1" * 500], edit(model))


def test_tokens_that_were_not_kept_are_refused(model) -> None:
    found = sweep(model, edit(model), read=[4, 5])
    with pytest.raises(WorkbenchError, match=r"were not kept; .* got \[6\]"):
        found.probability(6)
    with pytest.raises(WorkbenchError, match="not one per prompt; expected 5; got 2"):
        found.probability([4, 5])


def test_what_does_not_fit_into_memory_is_refused(model, monkeypatch) -> None:
    import importlib

    module = importlib.import_module("workbench.sweep.next_token")
    monkeypatch.setattr(module, "free_bytes", lambda _: 10_000)
    with pytest.raises(WorkbenchError, match="do not fit into memory.*read="):
        sweep(model, edit(model))
    assert sweep(model, edit(model), read=[4]).logits.shape == (3, 4, 5, 1)


def test_the_bar_can_be_seen(model, capsys) -> None:
    next_token(model, TEXTS, edit(model), [1.0])
    assert "next token" in capsys.readouterr().err
