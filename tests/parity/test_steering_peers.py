"""Our directions against those of steering-vectors and repeng, on one model and the same pairs.

Both libraries need an older transformers or numpy than ours. `make peers` runs them in an environment of
their own and writes the golden files that these tests read.

What a row of theirs is, and which site of ours it belongs to: `tests/peers/golden.py`.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import workbench as wb
from workbench import registry, steering
from workbench.tensors import Contrast

GOLDEN = wb.data_path() / "golden" / "steering"
EPS = 1e-5


@pytest.fixture(scope="module")
def model():
    return wb.load("reasoner")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "vectors.safetensors")


@pytest.fixture(scope="module")
def about():
    return json.loads((GOLDEN / "about.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def contrast(model, about) -> Contrast:
    data = wb.prompts.pairs(
        positive=[p for p, _ in about["pairs"]], negative=[n for _, n in about["pairs"]]
    )
    acts = model.record(data, ["L*.resid_post", "final_norm"], progress=False)
    return acts.contrast()


def unit(v: torch.Tensor) -> torch.Tensor:
    return v.double() / v.double().norm(dim=-1, keepdim=True)


def shifts(method, contrast: Contrast, sites: list[str]) -> torch.Tensor:
    fitted = method.fit(contrast).tensors
    return torch.stack([fitted[site]["shift"] for site in sites])


def blocks(model) -> list[str]:
    return [f"L{y}.resid_post" for y in range(model.n_layers)]


def repeng_sites(model) -> list[str]:
    return [*blocks(model)[:-1], "final_norm"]


def test_both_sides_ran_the_same_model(model, golden, about):
    ours = model.run(about["last_logits_of"], logits="last").logits[0, -1]
    torch.testing.assert_close(ours, golden["last_logits"], atol=1e-5, rtol=1e-5)


def test_the_files_are_small_and_say_what_wrote_them(about):
    assert sum(f.stat().st_size for f in GOLDEN.iterdir()) < 200_000
    assert {"steering-vectors", "repeng", "transformers", "numpy", "torch"} <= set(
        about["versions"]
    )


def test_mean_difference_is_that_of_steering_vectors(model, golden, contrast):
    """The vector itself, length included."""
    theirs = golden["steering_vectors.mean"]
    ours = shifts(steering.MeanDifference(), contrast, blocks(model))
    assert float((ours - theirs).norm(dim=-1).max() / theirs.norm(dim=-1).min()) < EPS


def test_pca_is_that_of_steering_vectors(model, golden, contrast):
    """Theirs has unit length; ours that of the mean difference. Directions and signs agree."""
    theirs = golden["steering_vectors.pca"]
    ours = shifts(steering.Pca(), contrast, blocks(model))
    torch.testing.assert_close(unit(ours), unit(theirs), atol=1e-4, rtol=0)


def test_the_shift_of_one_layer_is_not_another_layers(model, golden, contrast):
    """An offset of one layer would be seen: neighbours are further apart than the tolerance."""
    theirs = golden["steering_vectors.pca"]
    ours = shifts(steering.Pca(), contrast, blocks(model))
    assert float((unit(ours[1:]) - unit(theirs[:-1])).abs().amax(-1).min()) > 1e-2


def test_uncentred_pca_is_repengs_pca_center(model, golden, contrast):
    """Its rows are half-differences of both signs, whose mean is zero: that is uncentred PCA."""
    theirs = golden["repeng.pca_center"]
    ours = shifts(steering.Pca(), contrast, repeng_sites(model))
    torch.testing.assert_close(unit(ours), unit(theirs), atol=1e-4, rtol=0)


def test_centred_pca_is_repengs_pca_diff(model, golden, contrast):
    """Up to the sign: theirs is voted by pairs, ours follows the mean difference."""
    theirs = golden["repeng.pca_diff"]
    ours = shifts(steering.Pca(centred=True), contrast, repeng_sites(model))
    cosine = (unit(ours) * unit(theirs)).sum(-1)
    torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine), atol=1e-6, rtol=0)


def test_repengs_last_row_is_the_final_norms_output(model, golden, contrast):
    """Not the last block's: adding it there is adding it in other units."""
    last = golden["repeng.pca_center"][-1]
    site = f"L{model.n_layers - 1}.resid_post"
    at_block = shifts(steering.Pca(), contrast, [site])[0]
    assert float((unit(at_block) * unit(last)).sum()) < 0.9999


def test_logistic_is_that_of_steering_vectors(model, golden, contrast):
    """Theirs fits pairs less their own mean, without standardising or intercept.

    On such rows, which are symmetric, an intercept is zero. What is left is their solver's tolerance.
    """
    theirs = golden["steering_vectors.logistic"]
    probe = registry.get("steering", "linear_probe")(standardised=False)
    ours = shifts(probe, less_the_pairs_mean(contrast, blocks(model)), blocks(model))
    apart = 1 - (unit(ours) * unit(theirs)).sum(-1)
    assert float(apart.abs().max()) < 5e-5
    defaults = shifts(registry.get("steering", "linear_probe")(), contrast, blocks(model))
    assert float((unit(defaults) * unit(theirs)).sum(-1).min()) < 0.99  # another method


def less_the_pairs_mean(contrast: Contrast, sites: list[str]) -> Contrast:
    halves = {s: (contrast.positive[s].double() - contrast.negative[s].double()) / 2 for s in sites}
    return Contrast(halves, {s: -half for s, half in halves.items()}, True, contrast.model)
