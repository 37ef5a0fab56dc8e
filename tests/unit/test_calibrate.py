"""Strength in nats: on known curves, against plain forwards, and where it is out of reach."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import tiny
from workbench.errors import EditDidNothing, EditError
from workbench.interventions import calibrate, gate, kl_nats, random_control
from workbench.interventions.calibrate import _Search
from workbench.steering import Ace, DirectionalAblation, MeanDifference
from workbench.tensors import Contrast, Intervention, Readout

PROMPTS = ["abc", "hello there", "900+7=", "Q"]
SITE = "L1.resid_post"


def vector(seed: int = 0, size: float = 3.0) -> Intervention:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Intervention("custom", "affine", {SITE: {"shift": size * shift}})


def contrast() -> Contrast:
    rows = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(3))
    return Contrast({SITE: rows[0] + 1}, {SITE: rows[1]}, True)


# --- the divergence -------------------------------------------------------------------------------


def test_kl_is_that_of_plain_forwards_along_the_edited_rollout() -> None:
    model, edit = tiny.model("llama"), vector()
    measured = kl_nats(model, PROMPTS, [edit], n_tokens=6)
    for prompt, values in zip(PROMPTS, measured, strict=True):
        rollout = model.generate([prompt], edits=[edit], max_new_tokens=6)[0].ids
        start = model.tokens([prompt]).ids
        ids = torch.cat([start, torch.tensor([rollout])], 1)
        hook = model.hf.model.layers[1].register_forward_hook(
            lambda _m, _i, out: out + edit.tensors[SITE]["shift"]
        )
        edited = model.hf(ids).logits[0].log_softmax(-1)
        hook.remove()
        base = model.hf(ids).logits[0].log_softmax(-1)
        at = slice(start.shape[1] - 1, ids.shape[1] - 1)
        want = (edited[at].exp() * (edited[at] - base[at])).sum(-1)
        assert len(values) == len(rollout)
        np.testing.assert_allclose(values, want.numpy(), atol=2e-5)
        assert torch.equal(edited[at].argmax(-1), torch.tensor(rollout))


def test_no_edit_has_no_divergence() -> None:
    values = kl_nats(tiny.model("llama"), PROMPTS, [], n_tokens=4)
    assert max(np.abs(v).max() for v in values) == 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_divergence_does_not_depend_on_the_batch(batch_size: int) -> None:
    model, edit = tiny.model("gpt2"), vector()
    one = kl_nats(model, PROMPTS, [edit], n_tokens=5)
    other = kl_nats(model, PROMPTS, [edit], n_tokens=5, batch_size=batch_size)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_small_edits_diverge_as_strength_squared() -> None:
    model = tiny.model("llama")

    def mean(strength: float) -> float:
        return float(
            np.mean([v.mean() for v in kl_nats(model, ["abc"], [vector().at(strength)], 1)])
        )

    assert mean(0.02) / mean(0.01) == pytest.approx(4, rel=0.1)


# --- the search, on curves with known answers -----------------------------------------------------


def search(curve, target: float = 1.0, limit: float = math.inf, tolerance: float = 0.01) -> _Search:
    return _Search(lambda s: (curve(s), 0.0), target, tolerance, limit, 40, "test")


@pytest.mark.parametrize("start", [1e-4, 0.3, 1.0, 50.0, -2.0, -1e4])
@pytest.mark.parametrize("power", [0.5, 2.0, 4.0])
def test_it_finds_the_strength_from_any_start(start: float, power: float) -> None:
    found = search(lambda s: (abs(s) / 3) ** power)
    assert abs(found.run(start)) == pytest.approx(3, rel=0.03)
    assert math.copysign(1, found.run(start)) == math.copysign(1, start)
    assert len(found.seen) <= 25


def test_it_finds_the_strength_on_a_saturating_curve() -> None:
    strength = search(lambda s: 1.1 * math.tanh(s**2), tolerance=0.001).run(0.01)
    assert 1.1 * math.tanh(strength**2) == pytest.approx(1, rel=0.002)


def test_it_comes_back_from_where_the_model_breaks() -> None:
    strength = search(lambda s: math.inf if s > 7 else (s / 3) ** 2).run(1000.0)
    assert strength == pytest.approx(3, rel=0.03)


def test_it_finds_the_rising_side_of_a_peak_below_the_start() -> None:
    strength = search(lambda s: 2 * s * math.exp(1 - s), tolerance=0.02).run(6.0)
    assert strength == pytest.approx(0.2320, rel=0.05)  # the other root, 2.678, is past the peak


STARTS = [1e-5, 1.0, 100.0, 1e4, 1e20, -1e20]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("plateau", [0.97, 1.0, 1.04, 3.0])
def test_a_plateau_at_or_over_the_target_gives_its_rising_side(start: float, plateau) -> None:
    found = search(lambda s: plateau * math.tanh(s**2), tolerance=0.05)
    strength = abs(found.run(start))
    assert plateau * math.tanh(strength**2) == pytest.approx(1, rel=0.05)
    assert math.tanh(strength**2 / 4) < 0.9 * math.tanh(strength**2)


@pytest.mark.parametrize("start", STARTS)
def test_a_plateau_under_the_target_is_refused_from_any_start(start: float) -> None:
    with pytest.raises(EditError, match="stops growing"):
        search(lambda s: 0.9 * math.tanh(s**2), tolerance=0.05).run(start)


@pytest.mark.parametrize("start", STARTS)
def test_a_divergence_that_hardly_grows_is_refused_in_words(start: float) -> None:
    said = "hardly grows at .* nats at half of it" if start == 1 else "out of reach"
    with pytest.raises(EditError, match=said):
        search(lambda s: abs(s) ** 0.1, tolerance=0.05).run(start)


def nothing_below(smallest: float):
    def curve(s: float) -> float:
        if abs(s) < smallest:
            raise EditDidNothing("edit", "changed nothing", expected="a", got="b", do="c")
        return s**2

    return curve


@pytest.mark.parametrize("start", [1e-5, -1e-5, 1e-8, 1e20])
def test_a_start_lost_in_rounding_rises(start: float) -> None:
    assert abs(search(nothing_below(0.01)).run(start)) == pytest.approx(1, rel=0.01)


def test_an_edit_that_never_does_anything_is_refused_soon() -> None:
    found = search(nothing_below(math.inf))
    with pytest.raises(EditDidNothing):
        found.run(1.0)
    assert len(found.seen) < 12


@pytest.mark.parametrize(
    ("curve", "limit", "said"),
    [
        (lambda s: 0.5 * math.tanh(s), math.inf, "stops growing.*to 0.5 nats"),
        (lambda s: 0.2 * s * s, 1.0, "strength ends at 1.*to 0.2 nats"),
        (lambda _: 5.0, math.inf, "does not go to 0"),
        (lambda s: 0.1 if s < 2 else 3.0, math.inf, "jumps from 0.1 to 3 nats"),
        (lambda _: math.inf, math.inf, "only NaN or infinity"),
    ],
)
def test_what_cannot_be_reached_is_said_with_the_range_that_can(curve, limit, said: str) -> None:
    with pytest.raises(EditError, match=said):
        search(curve, limit=limit).run(1.0)


# --- on a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_calibrated_edits_have_the_asked_divergence_and_keep_their_sign(sign: float) -> None:
    model = tiny.model("llama")
    edit = calibrate(vector().at(sign), model, PROMPTS, 0.1, n_tokens=8, progress=False)
    values = kl_nats(model, PROMPTS, [edit], n_tokens=8)
    record = edit.params["calibration"]
    assert math.copysign(1.0, edit.strength) == sign
    assert np.mean([v.mean() for v in values]) == pytest.approx(0.1, rel=0.05)
    assert record["mean_kl_nats"] == pytest.approx(np.mean([v.mean() for v in values]))
    assert record["p95_kl_nats"] == pytest.approx(np.percentile(np.concatenate(values), 95))
    assert record["strength"] == edit.strength
    assert (record["scope"], record["sites"]) == ("all", [SITE])
    assert record["n_prompts"] == 4


def test_the_length_of_the_vector_does_not_matter() -> None:
    model = tiny.model("llama")
    found = [
        calibrate(vector(size=size), model, PROMPTS, 0.05, tolerance=0.01, progress=False)
        for size in (0.1, 1.0, 10.0)
    ]
    lengths = [e.strength * float(e.tensors[SITE]["shift"].norm()) for e in found]
    assert max(lengths) / min(lengths) < 1.03


def test_ablations_never_pass_strength_one() -> None:
    model = tiny.model("llama")
    for method in (DirectionalAblation(), Ace()):
        edit = method.fit(contrast())
        with pytest.raises(EditError, match="strength ends at 1"):
            calibrate(edit, model, PROMPTS, 3.0, n_tokens=4, progress=False)


def test_calibration_leaves_edit_and_model_alone() -> None:
    model, edit = tiny.model("llama"), vector()
    before = [p.clone() for p in model.hf.parameters()], edit.tensors[SITE]["shift"].clone()
    calibrate(edit, model, PROMPTS, 0.1, n_tokens=4, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before[0], model.hf.parameters(), strict=True))
    assert torch.equal(before[1], edit.tensors[SITE]["shift"])
    assert edit.strength == 1.0 and "calibration" not in edit.params


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_must_be_a_divergence(target: float) -> None:
    with pytest.raises(EditError, match="not a divergence"):
        calibrate(vector(), tiny.model("llama"), PROMPTS, target)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_must_leave_some_strength(limit: float) -> None:
    with pytest.raises(EditError, match="leaves no strength"):
        calibrate(vector(), tiny.model("llama"), PROMPTS, 0.1, max_strength=limit, progress=False)


def test_a_limit_holds() -> None:
    model = tiny.model("llama")
    with pytest.raises(EditError, match="strength ends at 0.001"):
        calibrate(vector(), model, PROMPTS, 1.0, n_tokens=3, max_strength=1e-3, progress=False)


def test_a_tiny_start_in_bf16_rises() -> None:
    import workbench as wb

    model = wb.load(tiny.module("llama").to(torch.bfloat16), tiny.tokenizer())
    edit = calibrate(
        vector().at(1e-9), model, PROMPTS, 0.1, n_tokens=4, tolerance=0.2, progress=False
    )
    assert edit.params["calibration"]["mean_kl_nats"] == pytest.approx(0.1, rel=0.2)


def test_a_strength_per_row_cannot_be_calibrated() -> None:
    with pytest.raises(EditError, match="one strength per row"):
        calibrate(vector().at(torch.ones(4)), tiny.model("llama"), PROMPTS)


# --- controls and gates ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", [MeanDifference(), DirectionalAblation(), Ace()])
def test_a_control_keeps_every_length_and_angle_and_turns_the_rest(method) -> None:
    edit = method.fit(contrast())
    control = random_control(edit, seed=4)
    assert control is not None
    a, b = edit.tensors[SITE], control.tensors[SITE]
    for one in a:
        for two in a:
            inner = (a[one].flatten() @ a[two].flatten(), b[one].flatten() @ b[two].flatten())
            torch.testing.assert_close(*inner, atol=1e-4, rtol=1e-4)
    name = next(iter(a))
    cosine = torch.nn.functional.cosine_similarity(a[name].flatten(), b[name].flatten(), dim=0)
    assert abs(float(cosine)) < 0.7
    assert control.params["control_seed"] == 4
    assert "random control" in control.label
    assert (control.scope, control.strength, control.sites) == (
        edit.scope,
        edit.strength,
        edit.sites,
    )


def test_controls_of_one_seed_agree_and_of_two_differ() -> None:
    a, b, c = (random_control(vector(), seed=s).tensors[SITE]["shift"] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_an_edit_without_direction_has_no_control() -> None:
    edit = Intervention("custom", "score_bias", {"L0.attn_scores": {"bias": torch.tensor(2.0)}})
    assert random_control(edit) is None


def test_a_control_does_not_inherit_a_calibration() -> None:
    edit = replace(vector(), params={"calibration": {"strength": 1.0}})
    assert "calibration" not in random_control(edit).params


def test_a_gate_pushes_below_its_threshold_only() -> None:
    model, edit = tiny.model("llama"), vector()
    weight = torch.randn(32, generator=torch.Generator().manual_seed(8))
    trace = model.run(PROMPTS[1], record=[SITE])
    scores = trace[SITE][0] @ weight
    gated = gate(edit, Readout(SITE, weight), below=float(scores.median()) + 1e-4)
    moved = model.run(PROMPTS[1], record=[SITE], edits=[gated])[SITE][0] - trace[SITE][0]
    below = scores < gated.params["threshold"]
    assert 0 < below.sum() < len(below)
    assert torch.equal(moved.abs().sum(-1) > 0, below)
    want = edit.tensors[SITE]["shift"].expand(int(below.sum()), -1)
    torch.testing.assert_close(moved[below], want, atol=1e-4, rtol=1e-4)


def test_a_gate_that_never_opens_is_no_error() -> None:
    gated = gate(vector(), Readout(SITE, torch.zeros(32), bias=5.0), below=0.0)
    receipts = tiny.model("llama").run("abc", edits=[gated]).receipts
    assert receipts[0].change == 0


def test_only_an_added_vector_at_the_probes_site_can_be_gated() -> None:
    with pytest.raises(EditError, match="cannot be gated"):
        gate(vector(), Readout("L2.resid_post", torch.ones(32)))
    with pytest.raises(EditError, match="cannot be gated"):
        gate(DirectionalAblation().fit(contrast()), Readout(SITE, torch.ones(32)))


@pytest.mark.parametrize(
    "edit",
    [
        Intervention("c", "set", {SITE: {"value": torch.zeros(32)}}),
        Intervention("c", "affine", {SITE: {"scale": torch.full((32,), -1.0)}}),
        Intervention("c", "score_bias", {"L0.attn_scores": {"bias": torch.full((4,), 2.0)}}),
        Intervention("c", "scale_keys", {"L0.k_cache": {"factor": torch.full((2,), 0.5)}}),
        Intervention("c", "affine", {"L1.mlp_post[neuron=3]": {"shift": torch.tensor([2.0])}}),
    ],
)
def test_an_edit_that_every_draw_gives_back_has_no_control(edit) -> None:
    assert all(random_control(edit, seed=s) is None for s in range(8))


def test_a_permuted_control_is_never_its_arm() -> None:
    factor = torch.tensor([0.0, 1.0])
    edit = Intervention("c", "scale_keys", {"L0.k_cache": {"factor": factor}})
    for seed in range(8):
        control = random_control(edit, seed).tensors["L0.k_cache"]["factor"]
        assert control.tolist() == [1.0, 0.0]
