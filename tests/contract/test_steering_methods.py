"""What every steering method keeps that needs rows alone; then the truths of the first of them.

`test_steering_on_model.py` holds what every method keeps on a model.
"""

from __future__ import annotations

import copy
import re
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

from workbench import registry
from workbench.errors import UnknownName, WorkbenchError
from workbench.interventions import store
from workbench.operations import Context, operation
from workbench.steering import Ace, DirectionalAblation, MeanDifference, Pca, RandomDirection
from workbench.tensors import Contrast, Fingerprint, Intervention

SITES = ("L1.resid_post", "L2.resid_post")
D, PAIRS = 24, 40
MODEL = Fingerprint("planted", "none", D, 4, "0")

ENTRIES = [e for e in registry.entries("steering") if not e.cls().needs and e.cls.sites]
every_method = pytest.mark.parametrize("method", ENTRIES, ids=lambda e: e.name)


def planted(seed: int = 0, noise: float = 0.15) -> tuple[Contrast, dict[str, Tensor]]:
    """Pairs that differ by one planted direction per site, plus noise and a large shared offset."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    truth = {site: torch.nn.functional.normalize(draw(D), dim=0) for site in SITES}
    positive, negative = {}, {}
    for site in SITES:
        shared = draw(PAIRS, D) + 3 * draw(D)
        positive[site] = shared + 2 * truth[site] + noise * draw(PAIRS, D)
        negative[site] = shared + noise * draw(PAIRS, D)
    return Contrast(positive, negative, True, MODEL), truth


def swapped(contrast: Contrast) -> Contrast:
    return replace(contrast, positive=contrast.negative, negative=contrast.positive)


def applied(edit: Intervention, site: str, h: Tensor) -> Tensor:
    rule = None
    if edit.operation == "adaptive":
        rule = registry.get("rules", edit.params["rule"]).change
    context = Context(params=edit.params, rule=rule)
    return operation(edit.operation)(h, edit.tensors[site], edit.strength, context)


def effect(edit: Intervention, seed: int = 5) -> Tensor:
    """Everything an edit does to some activations, at all its sites."""
    h = 4 * torch.randn(2, 7, D, generator=torch.Generator().manual_seed(seed))
    untouched = torch.zeros_like(h)
    return torch.stack(
        [applied(edit, site, h) - h if site in edit.sites else untouched for site in SITES]
    )


@every_method
def test_it_edits_recorded_sites_and_knows_its_model(method: registry.Entry) -> None:
    edit = method.cls().fit(planted()[0])
    assert edit.sites and set(edit.sites) <= set(SITES)
    assert edit.method == method.name
    assert edit.model == MODEL
    assert all((applied(edit, s, torch.ones(1, 1, D)) != 1).any() for s in edit.sites)


@every_method
def test_fitting_twice_gives_the_same_bits(method: registry.Entry) -> None:
    first, second = (method.cls().fit(planted()[0]) for _ in range(2))
    assert first.sites == second.sites
    for site in first.sites:
        for name, tensor in first.tensors[site].items():
            assert torch.equal(tensor, second.tensors[site][name])


@every_method
def test_fitting_leaves_its_data_alone(method: registry.Entry) -> None:
    contrast, _ = planted()
    before = copy.deepcopy(contrast)
    edit = method.cls().fit(contrast)
    for tensors in edit.tensors.values():
        for tensor in tensors.values():
            tensor.add_(1)  # nor may the edit share memory with the data
    for site in SITES:
        assert torch.equal(contrast.positive[site], before.positive[site])
        assert torch.equal(contrast.negative[site], before.negative[site])


@every_method
def test_applying_leaves_activation_and_tensors_alone(method: registry.Entry) -> None:
    edit = method.cls().fit(planted()[0])
    h = torch.randn(2, 3, D)
    before_h, before, site = h.clone(), copy.deepcopy(edit.tensors), edit.sites[0]
    applied(edit, site, h)
    assert torch.equal(h, before_h)
    for name, tensor in edit.tensors[site].items():
        assert torch.equal(tensor, before[site][name])


@every_method
def test_strength_zero_is_no_edit(method: registry.Entry) -> None:
    edit = method.cls().fit(planted()[0]).at(0.0)
    assert edit.is_zero
    assert not effect(edit).any()


@every_method
def test_its_effect_is_linear_in_strength(method: registry.Entry) -> None:
    edit = method.cls().fit(planted()[0])
    if edit.operation == "rotate":  # an angle: two halves make the whole
        half, h = edit.at(edit.strength / 2), torch.randn(1, 3, D)
        twice = applied(half, SITES[0], applied(half, SITES[0], h))
        torch.testing.assert_close(twice, applied(edit, SITES[0], h), atol=1e-5, rtol=1e-4)
        return
    torch.testing.assert_close(effect(edit.at(0.5)), effect(edit) / 2, atol=1e-5, rtol=1e-4)


@every_method
def test_saved_and_loaded_it_is_the_same(method: registry.Entry, tmp_path) -> None:
    edit = method.cls().fit(planted()[0]).at(-1.25).within("generated-bos").named("mine")
    back = store.load(store.save(edit, tmp_path / "edit.safetensors"))
    assert torch.equal(effect(back), effect(edit))
    assert replace(back, tensors={}) == replace(edit, tensors={})


@every_method
def test_options_are_frozen(method: registry.Entry) -> None:
    with pytest.raises(FrozenInstanceError):
        method.cls().needs_something = True


@every_method
def test_its_docstring_has_every_section(method: registry.Entry) -> None:
    import importlib

    said = importlib.import_module(method.cls.__module__).__doc__ or ""
    for section in ("Shapes:", "Units:", "Source:", "Differs from the paper:"):
        assert re.search(rf"^{section}", said, re.MULTILINE), section
    assert method.citation.url.startswith("https://") and method.citation.url in said.replace(
        "\n    ", ""
    )


def test_no_two_methods_do_the_same() -> None:
    contrast, _ = planted(noise=0.5)
    effects = {e.name: effect(e.cls().fit(contrast)) for e in ENTRIES}
    names = list(effects)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            gap = float((effects[a] - effects[b]).norm() / effects[a].norm())
            assert gap > 0.01, f"{a} and {b} do the same"


# --- bad data -------------------------------------------------------------------------------------


@every_method
def test_an_empty_class_is_an_error(method: registry.Entry) -> None:
    contrast, _ = planted()
    none = {site: rows[:0] for site, rows in contrast.negative.items()}
    with pytest.raises(WorkbenchError, match="negative class is empty"):
        method.cls().fit(replace(contrast, negative=none))


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_an_error(method: registry.Entry, bad: float) -> None:
    contrast, _ = planted()
    contrast.positive[SITES[1]][3, 2] = bad
    with pytest.raises(WorkbenchError, match="L2.resid_post.*NaN or infinite.*1 such rows of 40"):
        method.cls().fit(contrast)


@every_method
def test_identical_classes_have_no_direction(method: registry.Entry) -> None:
    contrast, _ = planted()
    with pytest.raises(WorkbenchError, match="no direction"):
        method.cls().fit(replace(contrast, negative=dict(contrast.positive)))


@every_method
def test_classes_at_different_sites_are_an_error(method: registry.Entry) -> None:
    contrast, _ = planted()
    one = {SITES[0]: contrast.negative[SITES[0]]}
    with pytest.raises(WorkbenchError, match="do not share their sites"):
        method.cls().fit(replace(contrast, negative=one))


def test_pca_refuses_rows_that_are_not_paired() -> None:
    contrast, _ = planted()
    with pytest.raises(WorkbenchError, match="needs pairs"):
        Pca().fit(replace(contrast, paired=False))


def test_centring_equal_differences_leaves_nothing() -> None:
    rows = {"L0.resid_post": torch.arange(12.0).reshape(4, 3)}
    moved = {"L0.resid_post": rows["L0.resid_post"] + torch.tensor([1.0, 0.0, 2.0])}
    with pytest.raises(WorkbenchError, match="centring leaves nothing"):
        Pca(centred=True).fit(Contrast(moved, rows, True))


def test_an_ablation_source_must_be_recorded() -> None:
    with pytest.raises(UnknownName, match="L1.resid_post"):
        DirectionalAblation(source="L9.resid_post").fit(planted()[0])


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_ace_wants_a_finite_target(alpha: float) -> None:
    with pytest.raises(WorkbenchError, match="not finite"):
        Ace(alpha=alpha).fit(planted()[0])


# --- planted truths -------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize("options", [MeanDifference(), Pca()], ids=["mean_difference", "pca"])
def test_a_planted_direction_is_found_with_its_sign(options) -> None:
    contrast, truth = planted()
    edit = options.fit(contrast)
    for site in SITES:
        assert cosine(edit.tensors[site]["shift"], truth[site]) > 0.99


def test_centred_pca_loses_a_planted_direction() -> None:
    contrast, truth = planted()
    found = Pca(centred=True).fit(contrast)
    assert all(abs(cosine(found.tensors[s]["shift"], truth[s])) < 0.5 for s in SITES)


def test_uncentred_pca_survives_random_pair_order() -> None:
    """The paper's form: pairs in random order, which an uncentred second moment cannot see."""
    contrast, _ = planted()
    flip = torch.arange(PAIRS) % 2 == 0
    mixed = {
        name: {s: torch.where(flip[:, None], a[s], b[s]) for s in SITES}
        for name, a, b in (
            ("positive", contrast.positive, contrast.negative),
            ("negative", contrast.negative, contrast.positive),
        )
    }
    plain, random_order = Pca().fit(contrast), Pca().fit(replace(contrast, **mixed))
    for site in SITES:
        found = cosine(plain.tensors[site]["shift"], random_order.tensors[site]["shift"])
        assert abs(found) > 0.9999


@pytest.mark.parametrize("options", [MeanDifference(), Pca(), RandomDirection()])
def test_vectors_are_as_long_as_the_class_difference(options) -> None:
    contrast, _ = planted()
    edit = options.fit(contrast)
    for site in SITES:
        gap = contrast.positive[site].mean(0) - contrast.negative[site].mean(0)
        torch.testing.assert_close(edit.tensors[site]["shift"].norm(), gap.norm())


@pytest.mark.parametrize("options", [MeanDifference(), Pca()], ids=["mean_difference", "pca"])
def test_swapping_the_classes_flips_the_sign(options) -> None:
    contrast, _ = planted()
    there, back = effect(options.fit(contrast)), effect(options.fit(swapped(contrast)))
    torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-4)


def test_swapping_the_classes_does_not_change_an_ablation() -> None:
    contrast, _ = planted()
    ablation = DirectionalAblation()
    there, back = effect(ablation.fit(contrast)), effect(ablation.fit(swapped(contrast)))
    torch.testing.assert_close(there, back)


def test_swapping_the_classes_swaps_the_targets_of_ace() -> None:
    contrast, _ = planted()
    there, back = (
        effect(Ace(alpha=1.0).fit(contrast)),
        effect(Ace(alpha=0.0).fit(swapped(contrast))),
    )
    torch.testing.assert_close(there, back, atol=1e-4, rtol=1e-4)


def test_full_strength_moves_the_negative_mean_onto_the_positive() -> None:
    contrast, _ = planted()
    edit = MeanDifference().fit(contrast)
    for site in SITES:
        moved = applied(edit, site, contrast.negative[site][None])[0].mean(0)
        torch.testing.assert_close(moved, contrast.positive[site].mean(0), atol=1e-5, rtol=1e-5)


def test_ablation_leaves_no_projection_and_is_idempotent() -> None:
    contrast, _ = planted()
    edit = DirectionalAblation().fit(contrast)
    h = torch.randn(3, 5, D)
    for site in SITES:
        direction = edit.tensors[site]["down"][0]
        once = applied(edit, site, h)
        assert (once @ direction).abs().max() < 1e-5
        torch.testing.assert_close(applied(edit, site, once), once, atol=1e-5, rtol=1e-5)


def test_an_ablation_source_is_removed_everywhere() -> None:
    contrast, _ = planted()
    edit = DirectionalAblation(source=SITES[1]).fit(contrast)
    own = DirectionalAblation().fit(contrast)
    for site in SITES:
        assert torch.equal(edit.tensors[site]["down"], own.tensors[SITES[1]]["down"])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.25, -2.0])
def test_ace_sets_every_projection_to_its_target(alpha: float) -> None:
    contrast, _ = planted()
    edit = Ace(alpha=alpha).fit(contrast)
    h = 5 * torch.randn(4, 6, D)
    for site in SITES:
        direction = edit.tensors[site]["down"][0]
        low, high = (
            (rows[site].mean(0) @ direction) for rows in (contrast.negative, contrast.positive)
        )
        reached = applied(edit, site, h) @ direction
        want = (low + alpha * (high - low)).expand_as(reached)
        torch.testing.assert_close(reached, want, atol=1e-4, rtol=1e-4)


def test_random_directions_differ_by_seed_and_by_site() -> None:
    contrast, _ = planted()
    a, b = RandomDirection(seed=1).fit(contrast), RandomDirection(seed=2).fit(contrast)
    assert abs(cosine(a.tensors[SITES[0]]["shift"], b.tensors[SITES[0]]["shift"])) < 0.9
    assert abs(cosine(a.tensors[SITES[0]]["shift"], a.tensors[SITES[1]]["shift"])) < 0.9
    assert a.params["seed"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_fitted_in_full_precision(dtype: torch.dtype) -> None:
    contrast, truth = planted()
    half = {
        name: {s: v.to(dtype) for s, v in rows.items()}
        for name, rows in (("positive", contrast.positive), ("negative", contrast.negative))
    }
    edit = MeanDifference().fit(replace(contrast, **half))
    assert edit.tensors[SITES[0]]["shift"].dtype == torch.float32
    assert cosine(edit.tensors[SITES[0]]["shift"], truth[SITES[0]]) > 0.99


def test_the_folder_lists_its_classes() -> None:
    from workbench import steering

    assert {"MeanDifference", "Pca", "Ace", "DirectionalAblation", "RandomDirection"} <= set(
        dir(steering)
    )
    with pytest.raises(AttributeError, match="MeanDifference"):
        getattr(steering, "MeanDiference")  # noqa: B009
