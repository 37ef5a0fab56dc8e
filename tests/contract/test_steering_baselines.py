"""Baselines from rows: what each promises beyond the contract, on planted rows and on tiny models."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import workbench as wb
from tests import tiny
from tests.contract.fakes import FakeDictionary, fake_dictionary
from workbench import registry, steering
from workbench.activations.record import record
from workbench.errors import UnknownName, WorkbenchError
from workbench.interventions import random_control
from workbench.operations import Context, operation
from workbench.steering import conceptor as logic
from workbench.tensors import Contrast, Intervention

SITE, LATER = "L1.resid_post", "L2.resid_post"
D = 16


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def contrast_of(
    positive: Tensor, negative: Tensor, site: str = SITE, paired: bool = False
) -> Contrast:
    return Contrast({site: positive}, {site: negative}, paired)


def planted(n: int = 60, m: int = 60, paired: bool = False) -> Contrast:
    """Two clouds of unequal spread per coordinate, apart along a fixed direction."""
    spread = torch.linspace(0.3, 3.0, D)
    positive = draws(1, n, D) * spread + 2 * draws(2, D) + 5
    return contrast_of(positive, draws(3, m, D) * spread + 5, paired=paired)


def applied(edit: Intervention, h: Tensor, site: str | None = None) -> Tensor:
    rule = None
    if edit.operation == "adaptive":
        rule = registry.get("rules", edit.params["rule"]).change
    weights = {k: t.to(h.dtype) for k, t in edit.tensors[site or edit.sites[0]].items()}
    context = Context(edit.params, rule=rule)
    return operation(edit.operation)(h, weights, edit.strength, context)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def shift(edit: Intervention, site: str = SITE) -> Tensor:
    return edit.tensors[site]["shift"]


# --- mean-centring --------------------------------------------------------------------------------


def test_without_a_corpus_mean_centring_is_a_known_share_of_the_mean_difference() -> None:
    contrast = planted(20, 60)
    whole = shift(steering.MeanDifference().fit(contrast))
    torch.testing.assert_close(shift(steering.MeanCentring().fit(contrast)), whole * 60 / 80)


def test_mean_centring_is_one_sided() -> None:
    """Centring both classes by one corpus cancels it and is the difference of means again."""
    contrast, corpus = planted(), draws(9, 100, D) + 3
    positive, negative = (side[SITE] for side in (contrast.positive, contrast.negative))
    ours = shift(steering.MeanCentring().fit(contrast, corpus={SITE: corpus}))
    torch.testing.assert_close(ours, positive.mean(0) - corpus.mean(0))
    difference = shift(steering.MeanDifference().fit(contrast))
    two_sided = (positive - corpus.mean(0)).mean(0) - (negative - corpus.mean(0)).mean(0)
    torch.testing.assert_close(two_sided, difference, atol=1e-5, rtol=1e-5)
    assert float((ours - difference).norm() / difference.norm()) > 0.1


def test_a_corpus_replaces_the_negative_class() -> None:
    contrast, corpus = planted(), {SITE: draws(9, 100, D)}
    other = replace(contrast, negative={SITE: draws(4, 7, D)})
    method = steering.MeanCentring()
    first, second = (method.fit(c, corpus=corpus) for c in (contrast, other))
    assert torch.equal(shift(first), shift(second))


def test_an_empty_corpus_is_not_said_to_hold_nan() -> None:
    with pytest.raises(WorkbenchError) as error:
        steering.MeanCentring().fit(planted(), corpus={SITE: torch.ones(0, D)})
    assert "(0, 16)" in str(error.value) and "NaN" not in str(error.value)


def test_a_corpus_takes_the_shared_offset_out() -> None:
    truth = nn.functional.normalize(draws(5, D), dim=0)
    offset = 20 * draws(6, D)
    positive = offset + 2 * truth + 0.1 * draws(7, 80, D)
    contrast = contrast_of(positive, 0.1 * draws(8, 80, D))
    edit = steering.MeanCentring().fit(contrast, corpus={SITE: offset + 0.1 * draws(10, 80, D)})
    assert cosine(shift(edit), truth) > 0.99
    assert cosine(positive.mean(0), truth) < 0.5


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ({"L9.resid_post": torch.ones(3, D)}, "unknown site"),
        ({SITE: torch.ones(3, D + 1)}, "cannot be averaged.*width 16"),
        ({SITE: torch.ones(D)}, "cannot be averaged"),
        ({SITE: torch.ones(0, D)}, "cannot be averaged"),
        ({SITE: torch.full((3, D), float("nan"))}, "NaN"),
        ({SITE: planted().positive[SITE].flip(0)}, "mean of the positive class"),
    ],
)
def test_a_bad_corpus_is_an_error(corpus: dict[str, Tensor], said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        steering.MeanCentring().fit(planted(), corpus=corpus)


# --- linear probe ---------------------------------------------------------------------------------


def score_of(contrast: Contrast) -> tuple[Tensor, float]:
    """A probe of its own: standardised by hand, weights unstandardised by hand."""
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([contrast.positive[SITE], contrast.negative[SITE]]).double()
    mean, std = rows.mean(0), rows.std(0, correction=0)
    labels = [1] * len(contrast.positive[SITE]) + [0] * len(contrast.negative[SITE])
    fitted = LogisticRegression(max_iter=10_000, tol=1e-9).fit(
        ((rows - mean) / std).numpy(), labels
    )
    weight = torch.from_numpy(fitted.coef_[0]) / std
    return weight, float(fitted.intercept_[0] - (weight @ mean))


def test_a_probe_adds_standard_deviations_along_its_weight() -> None:
    contrast = planted()
    weight, _ = score_of(contrast)
    edit = steering.LinearProbe().fit(contrast)
    rows = torch.cat([contrast.positive[SITE], contrast.negative[SITE]]).double()
    sigma = (rows @ weight / weight.norm()).std(correction=0)
    expected = sigma * weight / weight.norm()
    torch.testing.assert_close(shift(edit).double(), expected, atol=2e-3, rtol=2e-3)


def test_at_the_boundary_a_probe_is_undecided_by_the_shortest_move() -> None:
    contrast = planted()
    weight, bias = score_of(contrast)
    edit = steering.LinearProbe(mode="boundary").fit(contrast)
    h = 4 * draws(11, 5, 7, D).double() + 5
    before = h @ weight + bias
    reached = applied(edit, h) @ weight + bias
    assert float(reached.abs().max()) < 1e-2 * float(before.abs().max())
    mirrored = applied(edit.at(2.0), h) @ weight + bias
    torch.testing.assert_close(mirrored, -before, atol=0.05, rtol=0.02)
    moved = applied(edit, h) - h
    across = moved - (moved @ weight)[..., None] * weight / weight.norm() ** 2
    assert float(across.norm() / moved.norm()) < 1e-2


def test_a_probe_does_not_mind_the_units_of_a_coordinate() -> None:
    contrast = planted()
    factor = torch.ones(D)
    factor[3] = 1000.0
    scaled = contrast_of(*(s[SITE] * factor for s in (contrast.positive, contrast.negative)))
    h = draws(12, 9, D) + 5
    edits = [steering.LinearProbe(mode="boundary").fit(c) for c in (contrast, scaled)]
    weights = [e.tensors[SITE]["down"][0] for e in edits]
    turned = nn.functional.normalize(weights[1] * factor, dim=0)
    assert cosine(turned, weights[0]) > 0.9999
    assert torch.isfinite(applied(edits[1], h * factor)).all()


def test_a_penalty_without_end_makes_the_probe_the_standardised_mean_difference() -> None:
    contrast = planted()
    edit = steering.LinearProbe(inverse_penalty=1e-8).fit(contrast)
    rows = torch.cat([contrast.positive[SITE], contrast.negative[SITE]])
    gap = contrast.positive[SITE].mean(0) - contrast.negative[SITE].mean(0)
    assert cosine(shift(edit), gap / rows.var(0, correction=0)) > 0.9999
    assert cosine(shift(edit), gap) < 0.99


def test_swapping_the_classes_turns_the_probe_round() -> None:
    contrast = planted()
    back = replace(contrast, positive=contrast.negative, negative=contrast.positive)
    there, again = (shift(steering.LinearProbe().fit(c)) for c in (contrast, back))
    torch.testing.assert_close(there, -again, atol=2e-3, rtol=2e-3)


def test_a_bad_probe_option_is_an_error() -> None:
    with pytest.raises(UnknownName, match="boundary"):
        steering.LinearProbe(mode="boundry").fit(planted())
    for bad in (0, -1.0, float("nan")):
        with pytest.raises(WorkbenchError, match="above 0"):
            steering.LinearProbe(inverse_penalty=bad).fit(planted())


# --- mass-mean ------------------------------------------------------------------------------------


def spread_out(n: int = 4000) -> tuple[Contrast, Tensor]:
    """Classes with one known covariance; also the direction that tells them apart best."""
    mixing = draws(20, D, D) / D**0.5 + 0.3 * torch.eye(D)
    gap = draws(21, D)
    best = torch.linalg.solve((mixing.mT @ mixing).double(), gap.double())
    return contrast_of(draws(22, n, D) @ mixing + gap, draws(23, n, D) @ mixing), best


def test_mass_mean_is_the_difference_through_the_covariance() -> None:
    contrast, best = spread_out()
    assert cosine(shift(steering.MassMean().fit(contrast)), best) > 0.98
    assert cosine(shift(steering.MeanDifference().fit(contrast)), best) < 0.8


def test_mass_mean_moves_the_negative_mean_to_the_positive_along_itself() -> None:
    contrast = planted()
    v = shift(steering.MassMean().fit(contrast)).double()
    gap = contrast.positive[SITE].double().mean(0) - contrast.negative[SITE].double().mean(0)
    torch.testing.assert_close(v @ v, gap @ v, rtol=1e-5, atol=1e-6)


def test_wholly_shrunk_mass_mean_is_the_mean_difference() -> None:
    contrast = planted()
    ours = shift(steering.MassMean(shrinkage=1).fit(contrast))
    torch.testing.assert_close(ours, shift(steering.MeanDifference().fit(contrast)))


def test_unshrunk_mass_mean_does_not_mind_a_change_of_basis() -> None:
    contrast, _ = spread_out(300)
    basis = torch.eye(D) + 0.3 * draws(24, D, D)
    mapped = contrast_of(*(s[SITE] @ basis for s in (contrast.positive, contrast.negative)))
    method = steering.MassMean(shrinkage=0)
    first, second = (shift(method.fit(c)) for c in (contrast, mapped))
    assert cosine(basis @ second, first) > 0.9999


def test_fewer_rows_than_the_width_still_have_a_whitened_direction() -> None:
    v = shift(steering.MassMean().fit(planted(5, 6)))
    assert torch.isfinite(v).all() and v.norm() > 0


def test_bad_data_for_a_covariance_is_an_error() -> None:
    with pytest.raises(WorkbenchError, match="no covariance.*1 and 1 rows"):
        steering.MassMean().fit(planted(1, 1))
    same = contrast_of(torch.ones(5, D), torch.zeros(5, D))
    with pytest.raises(WorkbenchError, match="no covariance"):
        steering.MassMean().fit(same)
    with pytest.raises(WorkbenchError, match="singular"):
        steering.MassMean(shrinkage=0).fit(planted(5, 5))
    with pytest.raises(WorkbenchError, match="no share"):
        steering.MassMean(shrinkage=1.5).fit(planted())


# --- ITI ------------------------------------------------------------------------------------------

HEADS = SimpleNamespace(n_layers=3, n_heads=4, d_head=8)
KNOWING = {"L0.z[head=2]": 0, "L2.z[head=1]": 1}


def headed(n: int = 80, layers: int = 3, heads: int = 4, paired: bool = False) -> Contrast:
    """Noise in every head, and a class difference in two of them."""
    positive, negative = {}, {}
    for layer in range(layers):
        rows = draws(30 + layer, n, heads, 8), draws(60 + layer, n, heads, 8)
        for head in range(heads):
            if f"L{layer}.z[head={head}]" in KNOWING:
                rows[0][:, head] += 1.5
        positive[f"L{layer}.z"], negative[f"L{layer}.z"] = (r.flatten(1) for r in rows)
    return Contrast(positive, negative, paired)


def test_iti_finds_the_heads_that_know_over_all_layers() -> None:
    edit = steering.Iti(n_heads=2).fit(headed(), dims=HEADS)
    assert set(edit.sites) == set(KNOWING)
    assert all(edit.params["held_out_accuracy"][site] > 0.9 for site in KNOWING)


def test_iti_scores_heads_on_rows_that_its_probes_have_not_seen() -> None:
    """With fewer rows than d_head any probe is right on what it was fitted on."""
    dims = SimpleNamespace(n_layers=3, n_heads=4, d_head=8)
    few = headed(6)
    scores = steering.Iti(n_heads=12).fit(few, dims=dims).params["held_out_accuracy"]
    noise = [score for site, score in scores.items() if site not in KNOWING]
    assert sum(noise) / len(noise) < 0.8


@pytest.mark.parametrize(("layers", "heads", "expected"), [(1, 2, 1), (3, 4, 4), (10, 16, 48)])
def test_iti_pushes_the_papers_heads_or_a_third(layers: int, heads: int, expected: int) -> None:
    dims = SimpleNamespace(n_layers=layers, n_heads=heads, d_head=8)
    found = steering.Iti().fit(headed(10, layers, heads), dims=dims)
    assert len(found.sites) == expected


@pytest.mark.parametrize("direction", ["probe", "mass_mean"])
def test_an_iti_push_is_one_standard_deviation_of_its_head(direction: str) -> None:
    contrast = headed()
    edit = steering.Iti(n_heads=2, direction=direction).fit(contrast, dims=HEADS)
    for site, head in (("L0.z", 2), ("L2.z", 1)):
        both = contrast.positive[site], contrast.negative[site]
        rows = torch.cat(both).unflatten(1, (4, 8))[:, head]
        v = shift(edit, f"{site}[head={head}]")
        projections = rows @ (v / v.norm())
        torch.testing.assert_close(projections.std(correction=0), v.norm(), rtol=1e-4, atol=1e-5)
        gap = (both[0].mean(0) - both[1].mean(0)).unflatten(0, (4, 8))[head]
        assert cosine(v, gap) > (0.99999 if direction == "mass_mean" else 0.8)


def test_iti_holds_out_both_rows_of_a_pair() -> None:
    """Pairs of one row are told apart by nothing; halves of a pair on two sides would leak."""
    method = steering.Iti()
    contrast = headed(20, paired=True)
    first, second = method._split(contrast, *(torch.zeros(20, 8),) * 2)
    assert torch.equal(first, second) and int(first.sum()) == 4
    apart = method._split(replace(contrast, paired=False), *(torch.zeros(20, 8),) * 2)
    assert not torch.equal(*apart)


def test_heads_of_equal_score_go_to_the_lowest_layer_however_they_are_recorded() -> None:
    contrast = headed()
    for positive, negative in zip(
        contrast.positive.values(), contrast.negative.values(), strict=True
    ):
        positive += 50 - negative  # every head of every layer knows, and tells all rows apart
        negative -= negative.round()
    back = {s: dict(reversed(getattr(contrast, s).items())) for s in ("positive", "negative")}
    for one in (contrast, replace(contrast, **back)):
        edit = steering.Iti(n_heads=5).fit(one, dims=HEADS)
        assert set(edit.params["held_out_accuracy"].values()) == {1.0}
        assert edit.sites == (*(f"L0.z[head={i}]" for i in range(4)), "L1.z[head=0]")


def test_iti_leaves_out_a_head_that_is_off() -> None:
    contrast = headed()
    for side in (contrast.positive, contrast.negative):
        side["L1.z"][:, :8] = 0
    edit = steering.Iti(n_heads=12).fit(contrast, dims=HEADS)
    assert len(edit.sites) == 11 and "L1.z[head=0]" not in edit.sites


def test_iti_is_a_bias_of_the_output_projection_in_every_row() -> None:
    """Rows of a padded batch alike: released hooks edit the first row's last index alone."""
    hf = tiny.module("llama").double()
    model = wb.load(hf, tiny.tokenizer())
    pairs = wb.prompts.pairs(
        positive=[f"sum {i}+{j}=" for i in range(3) for j in range(3)],
        negative=[f"say {i}+{j}=" for i in range(3) for j in range(3)],
    )
    alpha = 15.0
    edit = steering.fit("iti", model, pairs, progress=False).at(alpha)
    texts = ["12+34=", "a longer one 7*8="]
    plain, steered = (model.run(texts, edits=e).logits for e in ((), edit))
    biased = tiny.module("llama").double()
    d_head = model.dims.d_head
    for layer in range(model.dims.n_layers):
        projection = biased.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
        assert isinstance(projection, nn.Linear)
        bias = torch.zeros(32, dtype=torch.float64)
        for head in range(model.dims.n_heads):
            pushed = edit.tensors.get(f"L{layer}.z[head={head}]")
            if pushed:
                columns = projection.weight[:, head * d_head : (head + 1) * d_head]
                bias += alpha * columns @ pushed["shift"].double()
        projection.bias = nn.Parameter(bias, requires_grad=False)
    expected = wb.load(biased, tiny.tokenizer()).run(texts).logits
    mask = model.tokens(texts).mask
    assert float((steered - expected)[mask].abs().max()) < 1e-9
    changed = (steered - plain)[mask].abs().amax(-1)
    assert len(changed) == int(mask.sum()) and float(changed.min()) > 1e-4


@pytest.mark.parametrize(
    ("method", "contrast", "said"),
    [
        (steering.Iti(n_heads=13), headed(), "another number of heads.*1 to 12"),
        (steering.Iti(n_heads=0), headed(), "another number of heads"),
        (steering.Iti(direction="pca"), headed(), "unknown direction"),
        (steering.Iti(held_out=0.0), headed(), "no share"),
        (steering.Iti(inverse_penalty=0), headed(), "above 0"),
        (steering.Iti(), headed(1), "too small to hold a row out.*at least 2"),
        (steering.Iti(), planted(), "not the heads of a layer"),
        (steering.Iti(), headed(heads=3), "not the heads of a layer.*24 wide"),
    ],
)
def test_a_bad_iti_is_an_error(method: Any, contrast: Contrast, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        method.fit(contrast, dims=HEADS)


# --- angular steering -----------------------------------------------------------------------------


def several(n_sites: int = 4, n: int = 40) -> Contrast:
    """Sites whose class directions drift, the third nearest to all."""
    axes = torch.linalg.qr(draws(40, D, 3))[0].mT
    positive, negative = {}, {}
    for i in range(n_sites):
        site, angle = f"L{i}.resid_post", (0.9, 0.5, 0.1, -0.6)[i]
        way = torch.cos(torch.tensor(angle)) * axes[0] + torch.sin(torch.tensor(angle)) * axes[1]
        negative[site] = draws(41 + i, n, D)
        positive[site] = negative[site] + 3 * way + 0.01 * draws(51 + i, n, D)
    return Contrast(positive, negative, True)


def planes(edit: Intervention) -> list[tuple[Tensor, Tensor]]:
    return [(t["b1"].double(), t["b2"].double()) for t in edit.tensors.values()]


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"target": 30.0}])
def test_angular_planes_are_orthonormal_and_point_to_the_positive_class(options: dict) -> None:
    contrast = several()
    edit = steering.Angular(**options).fit(contrast)
    assert len(edit.sites) == 4
    for site, (b1, b2) in zip(edit.sites, planes(edit), strict=True):
        gram = torch.stack([b1, b2]) @ torch.stack([b1, b2]).mT
        torch.testing.assert_close(gram, torch.eye(2).double(), atol=1e-6, rtol=0)
        gap = contrast.positive[site].mean(0) - contrast.negative[site].mean(0)
        assert cosine(gap, b1) > 0.5


def test_the_shared_plane_is_that_of_the_directions() -> None:
    """b1 is the candidate most like the others, and b2 spans with it how they drift."""
    contrast = several()
    edit = steering.Angular().fit(contrast)
    gaps = [
        nn.functional.normalize(contrast.positive[s].mean(0) - contrast.negative[s].mean(0), dim=0)
        for s in edit.sites
    ]
    alike = [sum(cosine(a, b) for b in gaps) for a in gaps]
    b1, b2 = planes(edit)[0]
    assert cosine(gaps[alike.index(max(alike))], b1) > 0.999999
    assert all(torch.equal(b1, other) and torch.equal(b2, more) for other, more in planes(edit))
    for gap in gaps:  # all four drift in one plane
        assert float((gap.double() @ b1) ** 2 + (gap.double() @ b2) ** 2) > 0.999
    assert float(gaps[-1].double() @ b2) > 0


def test_a_plane_does_not_need_its_last_site_to_lie_beside_b1() -> None:
    """The last site may be the one most like the others; then the one before it gives b2 its side."""
    contrast = several()
    order = [f"L{i}.resid_post" for i in (0, 3, 1, 2)]
    names = [f"L{i}.resid_post" for i in range(4)]
    moved = {
        side: {name: getattr(contrast, side)[old] for name, old in zip(names, order, strict=True)}
        for side in ("positive", "negative")
    }
    edit = steering.Angular().fit(replace(contrast, **moved))
    b1, b2 = planes(edit)[0]
    gaps = [(moved["positive"][s] - moved["negative"][s]).mean(0) for s in names]
    assert cosine(gaps[-1], b1) > 0.999999
    assert float(gaps[-2].double() @ b2) > 0.1


def test_b2_is_the_centred_component_of_the_directions() -> None:
    """Uncentred, the first component is nearly the mean direction and says little about the drift."""
    from sklearn.decomposition import PCA

    gaps = 3 * draws(76, D) + draws(77, 5, D)
    rows = draws(78, 30, D)
    names = [f"L{i}.resid_post" for i in range(5)]
    contrast = Contrast(
        {s: rows + gap for s, gap in zip(names, gaps, strict=True)},
        dict.fromkeys(names, rows),
        True,
    )
    b1, b2 = planes(steering.Angular().fit(contrast))[0]
    directions = nn.functional.normalize(gaps.double(), dim=1)
    components = PCA(1).fit(directions.numpy()).components_
    assert components is not None
    first = torch.from_numpy(components[0])
    assert abs(cosine(first - (first @ b1) * b1, b2)) > 0.9999
    plain = torch.linalg.svd(directions).Vh[0]
    assert abs(cosine(plain - (plain @ b1) * b1, b2)) < 0.99


def test_own_planes_differ_and_one_site_has_one() -> None:
    contrast = several()
    own = planes(steering.Angular(shared=False).fit(contrast))
    assert not torch.equal(own[0][0], own[1][0])
    first = "L0.resid_post"
    for paired in (True, False):
        one = contrast_of(contrast.positive[first], contrast.negative[first], first, paired)
        assert len(planes(steering.Angular().fit(one))) == 1
    assert steering.Angular.sites == "L*.attn_norm_out"


def test_turning_keeps_the_norm_and_the_complement_and_adds_up() -> None:
    edit = steering.Angular().fit(several())
    b1, b2 = planes(edit)[0]
    h = 3 * draws(70, 5, 6, D).double()
    turned = applied(edit.at(70.0), h)
    torch.testing.assert_close(turned.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
    outside = torch.eye(D) - b1[:, None] * b1 - b2[:, None] * b2
    torch.testing.assert_close(turned @ outside, h @ outside, atol=1e-5, rtol=1e-5)
    twice = applied(edit.at(30.0), applied(edit.at(40.0), h))
    torch.testing.assert_close(twice, turned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(applied(edit.at(360.0), h), h, atol=1e-5, rtol=1e-5)
    quarter = applied(edit.at(90.0), b1[None, None])
    torch.testing.assert_close(quarter[0, 0], b2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("degrees", [0, 45.0, 180.0, -120.0])
def test_a_target_angle_is_the_papers_form(degrees: float | int) -> None:
    edit = steering.Angular(target=degrees).fit(several())
    b1, b2 = planes(edit)[0]
    h = 3 * draws(71, 5, 6, D).double()
    angle = torch.deg2rad(torch.tensor(float(degrees), dtype=torch.float64))
    in_plane = (h @ b1)[..., None] * b1 + (h @ b2)[..., None] * b2
    length = in_plane.norm(dim=-1, keepdim=True)
    expected = h - in_plane + length * (angle.cos() * b1 + angle.sin() * b2)
    once = applied(edit, h)
    torch.testing.assert_close(once, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(once.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(applied(edit, once), once, atol=1e-5, rtol=1e-5)  # idempotent


def test_turning_by_the_angle_that_is_missing_reaches_the_target() -> None:
    """The absolute form is the relative one with an angle of each activation's own."""
    contrast = several()
    relative, absolute = (steering.Angular(target=t).fit(contrast) for t in (None, 60.0))
    b1, b2 = planes(relative)[0]
    for h in draws(72, 5, D).double():
        missing = 60.0 - float(torch.rad2deg(torch.atan2(h @ b2, h @ b1)))
        turned = applied(relative.at(missing), h[None, None])
        torch.testing.assert_close(turned, applied(absolute, h[None, None]), atol=1e-5, rtol=1e-5)


def test_a_target_angle_survives_large_activations_in_half_precision() -> None:
    """Beyond 256, the square of a float16 is infinite."""
    edit = steering.Angular(target=90.0).fit(several())
    b1, b2 = planes(edit)[0]
    turned = applied(edit, (3000 * b1).half()[None])
    assert cosine(turned[0], b2) > 0.99 and turned.isfinite().all()


def test_adaptive_turning_looks_at_the_side() -> None:
    edit = steering.Angular(target=180.0, adaptive=True).fit(several())
    always = steering.Angular(target=180.0).fit(several())
    b1, _ = planes(edit)[0]
    h = draws(73, 50, D).double()
    ahead, changed = h @ b1 > 0, applied(edit, h)
    assert 0 < int(ahead.sum()) < 50 and edit.conditional and not always.conditional
    assert torch.equal(changed[~ahead], h[~ahead])
    torch.testing.assert_close(changed[ahead], applied(always, h)[ahead])


def test_a_plane_needs_two_directions() -> None:
    rows = draws(74, 8, D)
    same = contrast_of(rows + torch.eye(D)[0], rows, paired=True)
    with pytest.raises(WorkbenchError, match="one direction"):
        steering.Angular().fit(same)
    with pytest.raises(WorkbenchError, match="one direction"):
        steering.Angular().fit(planted(1, 1, paired=True))
    twice = Contrast({s: same.positive[SITE] for s in (SITE, LATER)},
                     {s: same.negative[SITE] for s in (SITE, LATER)}, True)  # fmt: skip
    with pytest.raises(WorkbenchError, match="all sites.*one direction"):
        steering.Angular().fit(twice)


def test_a_bad_angular_option_is_an_error() -> None:
    with pytest.raises(WorkbenchError, match="absolute form"):
        steering.Angular(adaptive=True).fit(several())
    with pytest.raises(WorkbenchError, match="not finite"):
        steering.Angular(target=float("nan")).fit(several())
    contrast = several(2)
    for side in (contrast.positive, contrast.negative):
        side["L1.resid_post"] = side["L1.resid_post"][:, :7]
    with pytest.raises(WorkbenchError, match="several widths"):
        steering.Angular().fit(contrast)
    assert len(steering.Angular(shared=False).fit(contrast).sites) == 2


def test_a_site_that_tells_nothing_apart_is_turned_with_the_others() -> None:
    contrast, silent = several(), draws(75, 40, D)
    telling = steering.Angular().fit(contrast)
    first = {"L9.attn_norm_out": silent}
    more = replace(
        contrast, positive=first | dict(contrast.positive), negative=first | dict(contrast.negative)
    )
    edit = steering.Angular().fit(more)
    assert set(edit.sites) == {"L9.attn_norm_out", *telling.sites}
    assert torch.equal(planes(edit)[0][0], planes(telling)[0][0])
    assert steering.Angular(shared=False).fit(more).sites == telling.sites


@pytest.mark.parametrize("sites", [None, ["L*.attn_norm_out", "L*.mlp_norm_out"]])
def test_angular_steering_turns_norm_outputs_of_a_model(sites: list[str] | None) -> None:
    model = tiny.model("llama")
    edit = steering.fit("angular", model, words(), sites, progress=False).at(90.0)
    assert len(edit.sites) == (3 if sites is None else 6)
    site = edit.sites[0]
    plain, steered = (model.run("12+3=", [site], e)[site] for e in ((), edit))
    torch.testing.assert_close(plain.norm(dim=-1), steered.norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, steered)


# --- conceptors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("aperture", [0.1, 1, 30.0])
@pytest.mark.parametrize("n", [5, 200])
def test_conceptor_eigenvalues_are_in_zero_to_one(n: int, aperture: float | int) -> None:
    rows = draws(80, n, D).double()
    c = logic.conceptor(rows, aperture)
    second = rows.mT @ rows / n
    expected = second @ torch.linalg.inv(second + aperture**-2 * torch.eye(D))
    torch.testing.assert_close(c, expected)
    values = torch.linalg.eigvalsh(c)
    assert float(values[0]) > -1e-12 and float(values[-1]) < 1
    assert int((values > 1e-9).sum()) == min(n, D)  # fewer rows than the width: rank of the rows


def test_aperture_and_negation_laws() -> None:
    rows = draws(81, 50, D).double()
    c = logic.conceptor(rows, 2.0)
    torch.testing.assert_close(logic.rescaled(c, 3.0), logic.conceptor(rows, 6.0))
    torch.testing.assert_close(logic.rescaled(c, 1), c)
    torch.testing.assert_close(logic.negation(logic.negation(c)), c)


def test_conceptor_logic() -> None:
    first, second = (
        draws(82, 50, D).double(),
        2 * draws(83, 50, D).double() @ torch.diag(torch.linspace(0.1, 2, D).double()),
    )
    a, b = logic.conceptor(first, 1.5), logic.conceptor(second, 1.5)
    both, either = logic.conjunction(a, b), logic.disjunction(a, b)
    torch.testing.assert_close(both, logic.conjunction(b, a))
    torch.testing.assert_close(
        logic.negation(either), logic.conjunction(logic.negation(a), logic.negation(b))
    )
    # OR is the conceptor of both correlations added
    added = first.mT @ first / 50 + second.mT @ second / 50
    expected = added @ torch.linalg.inv(added + 1.5**-2 * torch.eye(D))
    torch.testing.assert_close(either, expected)
    for one in (a, b):  # AND lets through less than either, OR more
        assert float(torch.linalg.eigvalsh(one - both)[0]) > -1e-9
        assert float(torch.linalg.eigvalsh(either - one)[0]) > -1e-9


def test_conjunction_is_nothing_outside_the_common_span() -> None:
    eye = torch.eye(D).double()
    a, b = logic.conceptor(eye[:6] * 3, 1), logic.conceptor(eye[4:9] * 3, 1)
    both = logic.conjunction(a, b)
    assert int((torch.linalg.eigvalsh(both) > 1e-9).sum()) == 2
    apart = logic.conjunction(logic.conceptor(eye[:3], 1), logic.conceptor(eye[5:8], 1))
    assert not apart.any()


@pytest.mark.parametrize("beta", [1, 1.7])
def test_a_conceptor_edit_is_beta_c_h(beta: float | int) -> None:
    contrast, h = planted(), draws(84, 4, 5, D).double()
    c = logic.conceptor(contrast.positive[SITE], 0.4)
    options = {"aperture": 0.4, "beta": beta, "relative": False}
    edit = steering.Conceptor(**options).fit(contrast)
    torch.testing.assert_close(applied(edit, h), beta * h @ c, atol=1e-4, rtol=1e-4)
    released = steering.Conceptor(**options, compat="released").fit(contrast)
    torch.testing.assert_close(applied(released, h), h + beta * h @ c, atol=1e-4, rtol=1e-4)


def test_a_relative_aperture_does_not_mind_the_scale_of_a_layer() -> None:
    contrast, h = planted(), draws(85, 4, 5, D)
    larger = contrast_of(*(s[SITE] * 50 for s in (contrast.positive, contrast.negative)))
    for options, alike in (({}, True), ({"relative": False, "aperture": 1.0}, False)):
        first, second = (steering.Conceptor(**options).fit(c) for c in (contrast, larger))
        assert torch.allclose(applied(first, h), applied(second, h), atol=1e-3) == alike


def test_a_wide_open_conceptor_of_a_full_class_is_no_edit() -> None:
    edit = steering.Conceptor(aperture=1e5).fit(planted())
    h = draws(86, 3, D)
    torch.testing.assert_close(applied(edit, h), h, atol=1e-3, rtol=1e-3)


def test_and_not_takes_out_what_the_unwanted_class_spans() -> None:
    eye = torch.eye(D)
    shared, wanted = 5 * draws(87, 60, 1) * eye[0], 5 * draws(88, 60, 1) * eye[1] + 4 * eye[1]
    contrast = contrast_of(shared + wanted, shared)
    plain, apart = (steering.Conceptor(without_negative=x).fit(contrast) for x in (False, True))
    for edit, left in ((plain, 0.9), (apart, 0.1)):
        kept = applied(edit, eye[:2])
        assert float(kept[1, 1]) > 0.9
        assert (float(kept[0, 0]) > left) == (edit is plain)


@pytest.mark.parametrize("n", [5, 60])
def test_and_not_is_the_conceptors_logic(n: int) -> None:
    contrast, h = planted(n, n + 3), draws(89, 4, D).double()
    options = {"aperture": 0.4, "relative": False, "without_negative": True}
    both = (logic.conceptor(s[SITE], 0.4) for s in (contrast.positive, contrast.negative))
    wanted, unwanted = both
    c = logic.conjunction(wanted, logic.negation(unwanted))
    edit = steering.Conceptor(**options).fit(contrast)
    torch.testing.assert_close(applied(edit, h), h @ c, atol=1e-4, rtol=1e-4)


def test_a_bad_conceptor_is_an_error() -> None:
    for bad in ({"aperture": 0}, {"beta": -1.0}, {"aperture": float("inf")}):
        with pytest.raises(WorkbenchError, match="above 0"):
            steering.Conceptor(**bad).fit(planted())
    with pytest.raises(UnknownName, match="released"):
        steering.Conceptor(compat="relesed").fit(planted())
    with pytest.raises(WorkbenchError, match="nothing of the wanted class"):
        steering.Conceptor().fit(contrast_of(torch.zeros(4, D), torch.ones(4, D)))


# --- linear transport -----------------------------------------------------------------------------


def test_transport_finds_the_line_between_the_classes() -> None:
    source = draws(90, 50, D)
    slope, offset = torch.linspace(0.2, 3, D), draws(91, D)
    target = (source * slope + offset)[torch.randperm(50)]
    tensors = steering.LinearAct().fit(contrast_of(target, source)).tensors[SITE]
    torch.testing.assert_close(tensors["scale"], slope - 1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tensors["shift"], offset, atol=1e-5, rtol=1e-5)


def test_transport_is_the_papers_blend_and_has_no_negative_slope() -> None:
    contrast, h = planted(), draws(92, 4, D)
    edit = steering.LinearAct().fit(contrast)
    omega, beta = edit.tensors[SITE]["scale"] + 1, shift(edit)
    assert float(omega.min()) >= 0
    s, t = (x[SITE].sort(0).values for x in (contrast.negative, contrast.positive))
    sc, tc = s - s.mean(0), t - t.mean(0)
    torch.testing.assert_close(omega, (sc * tc).sum(0) / (sc * sc).sum(0), atol=1e-4, rtol=1e-4)
    expected = 0.7 * h + 0.3 * (omega * h + beta)
    torch.testing.assert_close(applied(edit.at(0.3), h), expected, atol=1e-5, rtol=1e-5)


def test_mean_transport_is_the_mean_difference_bit_for_bit() -> None:
    contrast = planted()
    ours = steering.LinearAct(mean_only=True).fit(contrast).tensors[SITE]
    assert set(ours) == {"shift"}
    assert torch.equal(ours["shift"], shift(steering.MeanDifference().fit(contrast)))


def test_transport_moves_the_mean_and_matches_classes_of_two_sizes() -> None:
    contrast = planted(30, 75)
    edit = steering.LinearAct().fit(contrast)
    moved = applied(edit, contrast.negative[SITE]).mean(0)
    torch.testing.assert_close(moved, contrast.positive[SITE].mean(0), atol=1e-4, rtol=1e-4)
    even = planted(30, 30)
    doubled = replace(even, negative={SITE: even.negative[SITE].repeat(2, 1)})
    first, second = (steering.LinearAct().fit(c).tensors[SITE] for c in (even, doubled))
    torch.testing.assert_close(first["scale"], second["scale"])


def test_the_random_control_of_a_transport_moves_its_source_as_far() -> None:
    """`shift` alone is where 0 goes: with a large offset far further than any activation is moved."""
    source = draws(93, 50, D) + 300 * draws(94, D)
    slope = torch.linspace(0.2, 3, D)
    target = (source - source.mean(0)) * slope + source.mean(0) + draws(95, D)
    edit = steering.LinearAct().fit(contrast_of(target, source))
    control = random_control(edit)
    assert control is not None
    moved, other = (applied(e, source) - source for e in (edit, control))
    torch.testing.assert_close(other.mean(0).norm(), moved.mean(0).norm(), atol=1e-3, rtol=1e-3)
    assert abs(cosine(other.mean(0), moved.mean(0))) < 0.9
    assert 0.5 < float((other - other.mean(0)).norm() / (moved - moved.mean(0)).norm()) < 2


def test_a_coordinate_without_spread_keeps_its_slope() -> None:
    contrast = planted()
    contrast.negative[SITE][:, 2] = 7.0
    tensors = steering.LinearAct().fit(contrast).tensors[SITE]
    assert tensors["scale"][2] == 0 and all(t.isfinite().all() for t in tensors.values())
    single = steering.LinearAct().fit(planted(1, 1))
    torch.testing.assert_close(shift(single), shift(steering.MeanDifference().fit(planted(1, 1))))


def words() -> Any:
    sums = [f"{a}+{b}=" for a in range(1, 4) for b in (5, 66, 78)]
    return wb.prompts.pairs(
        positive=[f"sum {s}" for s in sums], negative=[f"say {s}" for s in sums]
    )


def test_sequential_transport_closes_the_loop() -> None:
    """Only rows that the lower edits moved give edits that end at the target's mean everywhere."""
    model = wb.load(tiny.module("llama").double(), tiny.tokenizer())
    sides = words()
    negative = [p for p in sides if not p.label]
    gaps, edits = {}, {}
    for sequential in (False, True):
        edit = steering.fit(steering.LinearAct(sequential=sequential), model, sides, progress=False)
        goal, reached = (
            record(model, prompts, list(edit.sites), "last", edits=e, progress=False)
            for prompts, e in (([p for p in sides if p.label], ()), (negative, (edit,)))
        )
        gaps[sequential] = [
            float((goal[s].mean(0) - reached[s].mean(0)).norm() / goal[s].mean(0).norm())
            for s in edit.sites
        ]
        edits[sequential] = edit
    assert max(gaps[True]) < 1e-5
    assert gaps[False][0] < 1e-5 and min(gaps[False][1:]) > 1e-3
    first, *others = edits[True].sites
    for site in edits[True].sites:
        both = [e.tensors[site]["shift"] for e in edits.values()]
        assert torch.allclose(*both, atol=1e-6) == (site == first)
    assert len(others) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear_act", "pid"])
def test_half_precision_is_not_taken_for_another_pool(name: str, dtype: torch.dtype) -> None:
    """Rows read again stand in other batches, so that deep in the model their rounding differs."""
    hf = tiny.module("llama", num_hidden_layers=8).to(dtype)
    method = registry.get("steering", name)(sequential=True)
    sides = wb.prompts.pairs(
        positive=[f"sum this longer text {a}+{b}=" for a in range(1, 999, 111) for b in (5, 6789)],
        negative=[f"say {a}+{b}=" for a in range(1, 999, 111) for b in (5, 6789)],
    )
    options = {"progress": False, "batch_size": 3}
    model = wb.load(hf, tiny.tokenizer())
    steering.fit(method, model, sides, "L7.resid_post", **options)
    with pytest.raises(WorkbenchError, match="not the rows of the contrast"):
        steering.fit(method, model, sides, "L7.resid_post", pool="mean", **options)


def test_sequential_transport_needs_a_model_and_its_own_pool() -> None:
    method = steering.LinearAct(sequential=True)
    assert method.needs == ("rows",) and steering.LinearAct().needs == ()
    with pytest.raises(WorkbenchError, match="run the model again.*no rows"):
        method.fit(planted())
    with pytest.raises(WorkbenchError, match="no prompts"):
        method.fit(planted(), rows=lambda *_, **__: {})
    with pytest.raises(WorkbenchError, match="not the rows of the contrast"):
        steering.fit(method, tiny.model("llama"), words(), pool="mean", progress=False)


# --- one feature of a sparse autoencoder ----------------------------------------------------------

WIDE = 2 * D


def coded(feature: int = 7, n: int = 40) -> tuple[Contrast, FakeDictionary]:
    """Rows of which one class holds more of one decoder row."""
    dictionary = fake_dictionary(D, SITE)
    shared = draws(100, n, D)
    more = 4 * dictionary.decoder[feature]
    return contrast_of(shared + more, draws(101, n, D)), dictionary


@pytest.mark.parametrize("by", ["mean_difference", "auroc"])
def test_the_feature_of_the_difference_is_chosen_and_added(by: str) -> None:
    contrast, dictionary = coded()
    edit = steering.SaeFeature(by=by).fit(contrast, dictionary=dictionary)
    assert edit.params["feature"] == 7 and edit.operation == "affine"
    rows = torch.cat([contrast.positive[SITE], contrast.negative[SITE]])
    largest = dictionary.encode(rows)[:, 7].max()
    torch.testing.assert_close(shift(edit), largest * dictionary.decoder[7])


def test_auroc_ranks_where_the_mean_difference_weighs() -> None:
    eye = torch.eye(2)
    dictionary = FakeDictionary(SITE, eye, eye, torch.zeros(2), torch.zeros(2))
    negative = torch.zeros(10, 2)
    positive = torch.tensor([[0.0, 1.0]] * 9 + [[100.0, 1.0]])
    contrast = contrast_of(positive, negative)
    for by, feature in (("mean_difference", 0), ("auroc", 1)):
        edit = steering.SaeFeature(by=by).fit(contrast, dictionary=dictionary)
        assert edit.params["feature"] == feature


def reconstruction(dictionary: FakeDictionary, active: Tensor) -> Tensor:
    return active @ dictionary.decoder + dictionary.input_bias


@pytest.mark.parametrize("threshold", [None, 0.8])
@pytest.mark.parametrize("mode", ["clamp", "min_clamp", "scale"])
def test_modes_set_the_feature_in_the_code_and_keep_the_error(
    mode: str, threshold: float | None
) -> None:
    """Changed code, decoded, plus what the autoencoder could not say: the long way round."""
    contrast, _ = coded()
    dictionary = fake_dictionary(D, SITE, threshold=threshold)
    method = steering.SaeFeature(mode=mode, feature=7, level=0.5)
    edit = method.fit(contrast, dictionary=dictionary)
    h = 2 * draws(102, 60, D) + dictionary.decoder[7]
    active = dictionary.encode(h)
    level = 0.5 * edit.params["largest"]
    fresh = active.clone()
    fresh[:, 7] = {
        "clamp": torch.full((60,), level),
        "min_clamp": active[:, 7].clamp_min(level),
        "scale": 3.0 * active[:, 7],
    }[mode]
    error = h - reconstruction(dictionary, active)
    strong = edit.at(2.0) if mode == "scale" else edit  # scale by s adds s - 1 of itself
    expected = reconstruction(dictionary, fresh) + error
    torch.testing.assert_close(applied(strong, h), expected, atol=1e-4, rtol=1e-4)
    assert 5 < int((active[:, 7] > 0).sum()) < 55
    if threshold:
        below = dictionary.encode(h)[:, 7] == 0
        bare = (h - dictionary.input_bias) @ dictionary.encoder[7] + dictionary.bias[7] > 0
        assert int((below & bare).sum()) > 0  # the threshold matters on these rows


@pytest.mark.parametrize("by", ["mean_difference", "auroc"])
def test_a_dictionary_in_training_can_be_read(by: str) -> None:
    contrast, dictionary = coded()
    for weight in (dictionary.encoder, dictionary.decoder, dictionary.bias):
        weight.requires_grad_()
    edit = steering.SaeFeature(by=by).fit(contrast, dictionary=dictionary)
    assert not any(t.requires_grad for t in edit.tensors[SITE].values())


def test_scale_at_minus_one_is_a_clamp_at_zero() -> None:
    contrast, dictionary = coded()
    h = draws(103, 30, D)
    off = steering.SaeFeature(mode="scale", feature=7).fit(contrast, dictionary=dictionary).at(-1.0)
    clamped = steering.SaeFeature(mode="clamp", feature=7, level=0).fit(
        contrast, dictionary=dictionary
    )
    torch.testing.assert_close(applied(off, h), applied(clamped, h))
    assert off.conditional and clamped.conditional


def test_the_edit_outlives_its_dictionary(tmp_path) -> None:
    contrast, dictionary = coded()
    edit = steering.SaeFeature(mode="clamp").fit(contrast, dictionary=dictionary)
    path = wb.save_edit(edit, tmp_path / "edit.safetensors")
    h = draws(104, 5, D)
    before = applied(edit, h)
    for tensor in (dictionary.encoder, dictionary.decoder, dictionary.bias, dictionary.input_bias):
        tensor.add_(1.0)
    assert torch.equal(applied(edit, h), before)
    assert torch.equal(applied(wb.load_edit(path), h), before)


@pytest.mark.parametrize("mode", ["add", "clamp", "min_clamp", "scale"])
def test_a_feature_steers_a_model_at_its_site_alone(mode: str) -> None:
    model = tiny.model("llama")
    dictionary = fake_dictionary(32, SITE)
    edit = steering.fit(
        steering.SaeFeature(mode=mode), model, words(), progress=False, dictionary=dictionary
    )
    assert edit.sites == (SITE,)
    plain, steered = (model.run("sum 12+3=", [SITE], e)[SITE] for e in ((), edit))
    moved = (steered - plain).flatten(0, 1)
    assert float(moved.norm()) > 0
    way = dictionary.decoder[edit.params["feature"]]
    assert float((moved - (moved @ way)[:, None] * way).norm()) < 1e-4 * float(moved.norm())


class Unfolded(FakeDictionary):
    """A dictionary that forgets its input bias in `encoder_row`."""

    def encoder_row(self, feature: int) -> tuple[Tensor, Tensor]:
        return self.encoder[feature], self.bias[feature]


def test_a_bad_dictionary_or_feature_is_an_error() -> None:
    contrast, dictionary = coded()

    def fit(other: FakeDictionary = dictionary, **options: Any) -> Intervention:
        return steering.SaeFeature(**options).fit(contrast, dictionary=other)

    with pytest.raises(WorkbenchError, match=f"no such feature.*0 to {WIDE - 1}"):
        fit(feature=WIDE)
    with pytest.raises(UnknownName, match="min_clamp"):
        fit(mode="minclamp")
    with pytest.raises(UnknownName, match="auroc"):
        fit(by="auc")
    for mode in ("clamp", "min_clamp", "scale"):
        with pytest.raises(WorkbenchError, match="'topk' have no score of their own.*mode='add'"):
            fit(replace(dictionary, activation="topk"), mode=mode)
    with pytest.raises(UnknownName, match=r"L9\.resid_post"):
        fit(replace(dictionary, site="L9.resid_post"))
    with pytest.raises(WorkbenchError, match="encoder_row.*not what encode computes"):
        fit(Unfolded(**vars(replace(dictionary, input_bias=torch.ones(D)))))
    silent = replace(dictionary, bias=torch.full((WIDE,), -100.0))
    with pytest.raises(WorkbenchError, match="never fires"):
        fit(silent, feature=3)
    with pytest.raises(WorkbenchError, match="no feature is more active"):
        fit(silent)
    assert fit(silent, feature=3, largest=50).params["largest"] == 50.0
    with pytest.raises(WorkbenchError, match="above 0"):
        fit(largest=-1.0)


def test_a_feature_without_a_score_of_its_own_is_chosen_and_added() -> None:
    contrast, dictionary = coded()
    plain = steering.SaeFeature().fit(contrast, dictionary=dictionary)
    topk = steering.SaeFeature().fit(contrast, dictionary=replace(dictionary, activation="topk"))
    assert topk.params == plain.params and torch.equal(shift(topk), shift(plain))


# --- data that are too few ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean_centring", "linear_probe", "conceptor", "linear_act"])
def test_one_pair_is_enough_for_some(name: str) -> None:
    edit = registry.get("steering", name)().fit(planted(1, 1, paired=True))
    assert torch.isfinite(applied(edit, draws(110, 3, D))).all()


@pytest.mark.parametrize(
    "name", ["mean_centring", "linear_probe", "conceptor", "linear_act", "mass_mean", "angular"]
)
def test_fewer_pairs_than_the_width_are_enough_for_all(name: str) -> None:
    edit = registry.get("steering", name)().fit(planted(5, 5, paired=True))
    assert torch.isfinite(applied(edit, draws(111, 3, D))).all()
