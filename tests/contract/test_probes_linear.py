"""The linear probes and the MLP: planted truths, refusals, and what their options mean.

What every probe keeps is in `test_probes.py`; agreement with scikit-learn in `tests/parity`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

from workbench import linalg
from workbench.errors import DeviceUnavailable, WorkbenchError
from workbench.probes import FittedProbe, Lda, Logistic, MassMean, Mlp, Ridge
from workbench.probes.base import Data, Probe

D, SITE = 16, "L3.resid_post"
CLASS = [MassMean(), MassMean(iid=True), Logistic(), Logistic(standardised=False), Lda(), Lda(None)]
LINEAR = [*CLASS, Ridge()]
every_class_probe = pytest.mark.parametrize("probe", CLASS, ids=str)
every_linear_probe = pytest.mark.parametrize("probe", LINEAR, ids=str)
every_probe = pytest.mark.parametrize("probe", [*LINEAR, Mlp(hidden=4)], ids=str)


def gaussians(seed: int = 0, n: int = 1200, gap: float = 1.5) -> tuple[Data, torch.Tensor]:
    """Two round Gaussian classes far from 0, `gap` apart along a random direction."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(D, generator=draw), dim=0)
    targets = (torch.arange(n) % 2).double()
    rows = torch.randn(n, D, generator=draw) + 4 * torch.randn(D, generator=draw)
    return Data(rows + gap * targets[:, None].float() * truth, targets), truth


def fitted(probe: Probe, data: Data) -> FittedProbe:
    name = {"MassMean": "mass_mean"}.get(type(probe).__name__, type(probe).__name__.lower())
    return FittedProbe(name, SITE, "last", probe.fit(data), probe.params)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


@every_linear_probe
def test_a_planted_direction_is_found(probe: Probe) -> None:
    data, truth = gaussians()
    assert cosine(fitted(probe, data).readout.weight, truth) > 0.95


def test_a_planted_number_is_found_in_its_own_units() -> None:
    data, truth = gaussians(gap=0)
    number = 40 + 7 * (data.rows @ truth).double()
    probe = fitted(Ridge(), Data(data.rows, number))
    torch.testing.assert_close(probe.readout.weight, 7 * truth, atol=0.05, rtol=0)
    torch.testing.assert_close(probe.score(data.rows).double(), number, atol=0.1, rtol=0)


@pytest.mark.parametrize("probe", [*CLASS, Mlp(hidden=4)], ids=str)
def test_shuffled_labels_give_chance_on_other_rows(probe: Probe) -> None:
    right = []
    for seed in range(6):
        data, _ = gaussians(seed, n=400)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed + 50))
        shuffled = Data(data.rows[:200], data.targets[:200][order])
        score = fitted(probe, shuffled).score(data.rows[200:])
        right.append(((score > 0) == (data.targets[200:] == 1)).double().mean())
    # a direction of no meaning still splits these classes somehow: 0.25 to 0.75 in one draw
    assert abs(float(torch.stack(right).mean()) - 0.5) < 0.15


@every_probe
def test_fits_repeat_and_leave_their_data_alone(probe: Probe) -> None:
    data, _ = gaussians(n=120)
    rows, targets = data.rows.clone(), data.targets.clone()
    first, second = probe.fit(data), probe.fit(data)
    assert torch.equal(data.rows, rows) and torch.equal(data.targets, targets)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"


@every_probe
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_rows_fit_and_score(probe: Probe, dtype: torch.dtype) -> None:
    data, _ = gaussians(n=200, gap=4)
    data = Data(data.rows.to(dtype), data.targets)
    score = fitted(probe, data).score(data.rows)
    assert score.dtype == torch.float32
    edge = 0.5 if isinstance(probe, Ridge) else 0.0
    assert float(((score > edge) == (data.targets == 1)).double().mean()) > 0.9


@every_linear_probe
def test_the_line_is_the_score_and_an_edit_of_1_raises_it_by_1(probe: Probe) -> None:
    data, _ = gaussians(n=200)
    found = fitted(probe, data)
    line = data.rows @ found.readout.weight + found.readout.bias
    torch.testing.assert_close(line, found.score(data.rows))
    moved = data.rows + found.edit().tensors[SITE]["shift"]
    torch.testing.assert_close(
        found.score(moved) - found.score(data.rows), torch.ones(200), atol=1e-3, rtol=0
    )


@every_class_probe
def test_swapping_the_classes_turns_the_score_round(probe: Probe) -> None:
    data, _ = gaussians(n=200)
    swapped = Data(data.rows, 1 - data.targets)
    torch.testing.assert_close(
        fitted(probe, data).score(data.rows),
        -fitted(probe, swapped).score(data.rows),
        atol=1e-3,
        rtol=1e-3,
    )


@every_probe
@pytest.mark.parametrize(
    "change",
    [
        lambda d: Data(d.rows, torch.ones_like(d.targets)),
        lambda d: Data(torch.where(torch.arange(D) == 3, math.nan, d.rows), d.targets),
        lambda d: Data(d.rows[:0], d.targets[:0]),
    ],
    ids=["constant labels", "NaN", "no rows"],
)
def test_bad_data_is_refused(probe: Probe, change) -> None:
    with pytest.raises(WorkbenchError, match=f"^{type(probe).__name__}.fit"):
        probe.fit(change(gaussians(n=60)[0]))


# --- more features than rows, and covariances that cannot be inverted


@pytest.mark.parametrize("probe", [Logistic(), Ridge(), Lda(), Lda(0.5)], ids=str)
def test_more_features_than_rows_are_said(probe: Probe) -> None:
    with pytest.warns(UserWarning, match="16 features and only 10 rows"):
        found = probe.fit(gaussians(n=10)[0])
    assert found["weight"].isfinite().all()


@pytest.mark.parametrize("probe", [MassMean(iid=True), Lda(None), Lda(0)], ids=str)
@pytest.mark.parametrize("how", ["few rows", "twin", "constant", "sum"])
def test_a_covariance_that_cannot_be_inverted_is_refused(probe: Probe, how: str) -> None:
    data, _ = gaussians(n=D + 1 if how == "few rows" else 200)
    rows = data.rows.clone()
    if how == "twin":
        rows[:, 3] = rows[:, 5]
    if how == "constant":
        rows = rows.double()  # the mean of many 0.1 is not quite 0.1
        rows[:, 3] = 0.1
    if how == "sum":  # as activations without a mean: no column repeats another
        rows = rows - rows.mean(1, keepdim=True)
    with pytest.raises(WorkbenchError, match="cannot be inverted") as refusal:
        probe.fit(Data(rows, data.targets))
    assert f"got {len(rows)} rows" in str(refusal.value)


@pytest.mark.parametrize("probe", [MassMean(iid=True), Lda(None)], ids=str)
def test_features_of_unequal_size_are_whitened_all_the_same(probe: Probe) -> None:
    """One massive activation beside small ones is no reason to refuse."""
    data, _ = gaussians(n=300)
    scaled = Data(data.rows * torch.logspace(-4, 4, D), data.targets)
    same = [fitted(probe, x).score(x.rows) for x in (data, scaled)]
    torch.testing.assert_close(*same, atol=1e-3, rtol=1e-3)


def test_a_class_of_one_row_is_shrunk_in_silence() -> None:
    data, _ = gaussians(n=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Lda().fit(Data(data.rows, (torch.arange(60) == 7).double()))
    assert found["weight"].isfinite().all()


def test_enough_rows_pass_without_a_word() -> None:
    for probe in LINEAR:
        probe.fit(gaussians(n=D + 2)[0])


# --- mass-mean


def test_whitening_finds_what_correlated_noise_hides() -> None:
    """The paper's figure: classes along one axis, shared noise along a slant to it."""
    draw = torch.Generator().manual_seed(3)
    targets = (torch.arange(4000) % 2).double()
    noise = torch.randn(4000, 2, generator=draw) * torch.tensor([3.0, 0.3])
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    rows = noise @ turn + targets[:, None].float() * torch.tensor([1.0, 0.0])
    data = Data(rows, targets)
    right = {
        iid: float(
            ((fitted(MassMean(iid), data).score(rows) > 0) == (targets == 1)).double().mean()
        )
        for iid in (False, True)
    }
    assert right[True] > right[False] + 0.15
    assert cosine(MassMean().fit(data)["weight"], torch.tensor([1.0, 0.0])) > 0.98


def test_what_makes_no_sense_is_refused() -> None:
    data, _ = gaussians(n=100)
    with pytest.raises(WorkbenchError, match="predicts a number, which has no probability"):
        fitted(Ridge(), data).probability(data.rows)
    still = Data(torch.ones_like(data.rows), data.targets)
    with pytest.raises(WorkbenchError, match="has a weight of zero"):
        fitted(MassMean(), still).edit()


def test_the_plain_mass_mean_weight_is_the_difference_itself() -> None:
    data, _ = gaussians(n=100)
    found = MassMean().fit(data)
    means = [data.rows[data.targets == k].mean(0) for k in (0, 1)]
    torch.testing.assert_close(found["weight"], means[1] - means[0])
    for k, sign in ((0, -1), (1, 1)):
        score = MassMean.score(found, {}, means[k][None])
        torch.testing.assert_close(
            score, sign * (means[1] - means[0]).square().sum()[None] / 2, rtol=1e-3, atol=0
        )


# --- logistic


def test_standardised_scores_do_not_depend_on_units() -> None:
    data, _ = gaussians(n=300)
    units = torch.logspace(-3, 3, D)
    scaled = Data(data.rows * units, data.targets)
    same = [fitted(Logistic(), x).score(x.rows) for x in (data, scaled)]
    torch.testing.assert_close(*same, atol=1e-3, rtol=1e-3)
    other = [fitted(Logistic(standardised=False), x).score(x.rows) for x in (data, scaled)]
    assert float((other[0] - other[1]).abs().max()) > 0.1


def test_a_coordinate_that_never_varies_gets_no_weight() -> None:
    """Rounding gives a large constant a tiny variance; dividing by it must not make a weight."""
    data, _ = gaussians(n=700)
    rows = data.rows.clone()
    rows[:, :8] = torch.logspace(-1, 4, 8) * 1.2345
    assert (rows[:, :8].mean(0) != rows[0, :8]).any()
    for probe in (Logistic(), Ridge(), Mlp(hidden=4)):
        weight = probe.fit(Data(rows, data.targets))["weight"]
        assert not weight[..., :8].any() and weight[..., 8:].any()


@pytest.mark.parametrize("c", [0.001, 1.0, 1000.0])
def test_many_sites_in_one_batch_equal_single_fits(c: float) -> None:
    """The path of an accelerator, run here: stacked rows, labels of their own, one hard site."""
    data = [gaussians(seed, n=150)[0] for seed in range(3)]
    rows = torch.stack([d.rows for d in data])
    rows[1] *= torch.logspace(-2, 2, D)
    rows[1] += rows[1, :, :1] * 30
    ones = torch.stack([data[0].targets == 1, data[1].targets == 1, data[2].targets.flip(0) == 1])
    weights, biases = linalg.logistic_many(rows, ones, c)
    for i in range(3):
        weight, bias = linalg.logistic_many(rows[i : i + 1].double(), ones[i : i + 1], c)
        z = [
            x @ w + b
            for x, w, b in (
                (rows[i].double(), weights[i], biases[i]),
                (rows[i].double(), weight[0], bias[0]),
            )
        ]
        torch.testing.assert_close(*z, atol=2e-3 * float(z[1].abs().max()), rtol=0)


def test_a_site_that_arrives_at_once_does_not_disturb_the_others() -> None:
    """Every row with both labels: the optimum is 0, and every step after the first has length 0."""
    data, _ = gaussians(n=100)
    rows = torch.stack([data.rows.repeat_interleave(2, 0)[:100], data.rows])
    ones = torch.stack([torch.arange(100) % 2 == 1, data.targets == 1])
    weights, biases = linalg.logistic_many(rows, ones)
    assert float(weights[0].abs().max()) < 1e-5 and abs(float(biases[0])) < 1e-4
    alone, _ = linalg.logistic_many(rows[1:], ones[1:])
    torch.testing.assert_close(weights[1], alone[0], atol=1e-3, rtol=1e-3)


def test_logistic_stops_where_the_gradient_is_zero() -> None:
    data, _ = gaussians(n=300)
    found = linalg.logistic_many(data.rows.double()[None], (data.targets == 1)[None], 2.0, False)
    weight, bias = (x[0].requires_grad_() for x in found)
    sign = 2 * data.targets - 1
    loss = torch.nn.functional.softplus(-sign * (data.rows.double() @ weight + bias)).sum()
    slopes = torch.autograd.grad(2.0 * loss + weight.square().sum() / 2, [weight, bias])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


def test_a_site_without_a_slope_takes_no_step() -> None:
    """Nothing varies and the classes are even: gradient, steps and their changes are exactly 0."""
    data, _ = gaussians(n=100)
    rows = torch.stack([torch.zeros_like(data.rows), data.rows]).double()
    weights, biases = linalg.logistic_many(rows, torch.stack([data.targets == 1] * 2))
    assert not weights[0].any() and float(biases[0]) == 0
    assert weights[1].isfinite().all() and weights[1].any()


@pytest.mark.filterwarnings("ignore:.*features and only")
def test_a_wide_fit_factors_no_matrix_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of width 4096 takes half a second and 64 MB at each site, and saves nothing."""
    narrow, wide = correlated(n=300, d=24), correlated(n=60, d=300)
    called = []
    factor = linalg._factor
    monkeypatch.setattr(linalg, "_factor", lambda *a: called.append(1) or factor(*a))
    linalg.logistic_many(wide.rows[None], (wide.targets == 1)[None], 100.0)
    assert not called
    linalg.logistic_many(narrow.rows[None], (narrow.targets == 1)[None], 100.0)
    assert called


def correlated(n: int, d: int) -> Data:
    draw = torch.Generator().manual_seed(4)
    rows = torch.randn(n, d, generator=draw) * torch.logspace(0, -3, d)
    rows = rows @ torch.randn(d, d, generator=draw)
    return Data(rows, (rows[:, 0] + torch.randn(n, generator=draw) > 0).double())


def test_a_logistic_fit_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "LONGEST", 2)
    with pytest.warns(UserWarning, match="did not converge in 2 steps"):
        Logistic().fit(gaussians(n=100)[0])


@pytest.mark.parametrize("bad", [0, -1.0, math.inf, math.nan])
def test_a_penalty_must_be_one(bad: float | int) -> None:
    data, _ = gaussians(n=60)
    for probe in (Logistic(inverse_penalty=bad), Ridge(penalty=bad), Mlp(inverse_penalty=bad)):
        with pytest.raises(WorkbenchError, match="finite number above 0"):
            probe.fit(data)


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_shrinkage_must_be_a_share(bad: float) -> None:
    with pytest.raises(WorkbenchError, match="a number from 0 to 1"):
        replace(Lda(), shrinkage=bad).fit(gaussians(n=60)[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="no such device here"):
        Logistic(device="cuda").fit(gaussians(n=60)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_coefficients_of_the_cpu() -> None:
    sites = {f"L{i}.resid_post": gaussians(i, n=300)[0] for i in range(4)}
    here, there = Logistic().fit_many(sites), Logistic(device="cuda").fit_many(sites)
    for site in sites:
        torch.testing.assert_close(here[site], there[site], atol=1e-3, rtol=1e-3)


# --- MLP


def test_the_mlp_reads_what_no_line_does() -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(1000, 6, generator=draw)
    targets = ((rows[:, 0] > 0) ^ (rows[:, 1] > 0)).double()
    fit, held = Data(rows[:600], targets[:600]), Data(rows[600:], targets[600:])
    right = [
        float(((fitted(p, fit).score(held.rows) > 0) == (held.targets == 1)).double().mean())
        for p in (Mlp(), Mlp(early_stopping=True), Logistic())
    ]
    assert right[0] > 0.93 and right[1] > 0.9 and right[2] < 0.6


def test_the_mlp_has_no_direction_and_its_size_and_seed_are_options() -> None:
    data, _ = gaussians(n=100)
    found = Mlp(hidden=5, steps=20).fit(data)
    assert found["weight"].shape == (5, D) and found["outer"].shape == (5,)
    assert not torch.equal(found["weight"], Mlp(hidden=5, steps=20, seed=1).fit(data)["weight"])
    with pytest.raises(WorkbenchError, match="is no line"):
        _ = fitted(Mlp(steps=5), data).readout


def test_early_stopping_needs_rows_to_hold_out() -> None:
    data, _ = gaussians(n=12)
    with pytest.raises(WorkbenchError, match="too few rows to hold a tenth out"):
        Mlp(early_stopping=True).fit(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mlp(early_stopping=True, steps=30).fit(gaussians(n=100)[0])
