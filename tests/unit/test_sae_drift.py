"""Model diffing: a planted edit is found, nothing changes where nothing did, noise keeps its promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import sae
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.rl import TrainedArm
from workbench.sae import diffing, reading
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens
from workbench.shapes import Tensor
from workbench.tensors import Arm, Intervention

PROMPTS = ["ab cab cab c", "de fdeab cab ", "gh ij kl", "x+y=z, and more", "01234 56", "q" * 20]
SITE = "L1.resid_post"
N = 64


def made(seed: int = 0, site: str = SITE) -> Dictionary:
    """Random unit directions around the mean of what the tiny model holds, each sometimes active."""
    lens, draw = sae_lens(), torch.Generator().manual_seed(seed)
    module = lens.JumpReLUSAE(lens.JumpReLUSAEConfig(d_in=32, d_sae=N))
    rows = tiny.model().record(PROMPTS, SITE, pool="all", progress=False)[SITE]
    with torch.no_grad():
        module.W_dec.copy_(torch.nn.functional.normalize(torch.randn(N, 32, generator=draw), dim=1))
        module.W_enc.copy_(module.W_dec.T)
        module.b_dec.copy_(rows.mean(0))
        module.b_enc.zero_()
        module.threshold.copy_(((rows - rows.mean(0)) @ module.W_enc).quantile(0.9, 0))
    return Dictionary(module.eval(), site, site, tiny.model().fingerprint, "made")


def adds(dictionary: Dictionary, feature: int, size: float = 3.0) -> Intervention:
    shift = size * dictionary.decoder[feature]
    return Intervention("custom", "affine", {dictionary.site: {"shift": shift}}, name="planted")


def other_model(seed: int = 5) -> wb.Model:
    return wb.load(tiny.module("llama", seed), tiny.tokenizer())


def drift(*args: Any, **options: Any) -> sae.Drift:
    return sae.drift(*args, progress=False, **options)


@pytest.mark.parametrize("feature", [0, 17, 63])
def test_a_planted_feature_is_found_first(feature: int) -> None:
    model, dictionary = tiny.model(), made()
    edit = adds(dictionary, feature)
    found = drift(dictionary, model, model, PROMPTS, edits_after=[edit])
    assert found.top(1)["feature"][0] == feature
    assert found.top(1, by="direction")["feature"][0] == feature
    row = found.top(1).iloc[0]
    assert row["low"] > row["noise"] > 0 and row["direction"] == pytest.approx(1, abs=1e-4)
    back = drift(dictionary, model, model, PROMPTS, edits_before=[edit])
    assert back.top(1)["feature"][0] == feature
    assert back.top(1)["change"][0] == pytest.approx(-row["change"], rel=1e-5)


def test_numbers_are_those_of_the_codes() -> None:
    """Change, densities and means against a plain count over all tokens."""
    model, dictionary = tiny.model(), made()
    edit = adds(dictionary, 3)
    found = drift(dictionary, model, model, PROMPTS, edits_after=[edit]).frame()
    acts = [model.record(PROMPTS, SITE, pool="all", edits=e, progress=False) for e in ([], [edit])]
    keep = torch.tensor(acts[0].positions) > 0
    owners = np.array([PROMPTS.index(p.text or "") for p in acts[0].rows])[keep.numpy()]
    one, two = (dictionary.encode(a[SITE][keep]).numpy() for a in acts)
    each = np.stack([(two - one)[owners == i].mean(0) for i in range(len(PROMPTS))])
    np.testing.assert_allclose(found["change"], each.mean(0), atol=1e-5)
    for name, codes in (("before", one), ("after", two)):
        np.testing.assert_allclose(found[f"density_{name}"], (codes > 0).mean(0), atol=1e-9)
        alive = (codes > 0).any(0)
        mean = codes.sum(0)[alive] / (codes > 0).sum(0)[alive]
        np.testing.assert_allclose(found[f"mean_{name}"][alive], mean, rtol=1e-5)
        assert found[f"mean_{name}"][~alive].isna().all()


def test_the_same_model_twice_is_exactly_no_drift() -> None:
    model, dictionary = tiny.model(), made()
    found = drift(dictionary, model, model, PROMPTS, control=model)
    frame = found.frame()
    alive = frame["state"] == "active"
    assert alive.sum() > N // 2
    for column in ("change", "low", "high", "control"):
        assert (frame[column] == 0).all(), column
    assert (frame["control_rotation"][alive] == 0).all()
    assert (frame["rotation"][alive] == 0).all() and (frame["floor"][alive] == 0).all()
    assert found.rotated == found.appeared == found.vanished == [] and found.fits
    assert found.fvu["before"] == found.fvu["after"] == found.fvu["control"]
    assert "0 of 64 features change beyond noise" in repr(found)


def test_appearing_and_vanishing_features() -> None:
    """Feature 5 is out of reach and an edit brings it; feature 6 is taken away by its opposite."""
    model, dictionary = tiny.model(), made()
    with torch.no_grad():
        dictionary.sae.threshold[5] = 50.0
    edits = [adds(dictionary, 5, 100.0)]
    found = drift(dictionary, model, model, PROMPTS, edits_after=edits)
    assert found.appeared[0] == 5 and 5 not in found.vanished
    assert found.frame()["density_before"][5] == 0
    back = drift(dictionary, model, model, PROMPTS, edits_before=edits)
    assert back.vanished[0] == 5 and 5 not in back.appeared
    gone = drift(dictionary, model, model, PROMPTS, edits_after=[adds(dictionary, 6, -100.0)])
    assert 6 in gone.vanished and not gone.fits
    assert "WARNING" in repr(gone) and "FVU" in repr(gone)


def test_a_turned_input_is_a_rotation_and_a_shift_is_none() -> None:
    """The plane of two directions that the encoder does not read is turned by 90 degrees."""
    model, dictionary = tiny.model(), made()
    rows = model.record(PROMPTS, SITE, pool="all", progress=False)[SITE]
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
    unread, plane = axes[2:], axes[:2]
    with torch.no_grad():
        # features read, and write, all but the plane of the two largest axes
        kept = dictionary.sae.W_dec @ unread.T @ unread
        dictionary.sae.W_enc.copy_(kept.T)
        scores = (rows - dictionary.sae.b_dec) @ dictionary.sae.W_enc
        dictionary.sae.threshold.copy_(scores.quantile(0.8, 0))
    turn = Intervention("custom", "rotate", {SITE: {"b1": plane[0], "b2": plane[1]}}, strength=90.0)
    found = drift(dictionary, model, model, PROMPTS, edits_after=[turn]).frame()
    alive = found["state"] == "active"
    # what features answer to has turned, though hardly any of their answers has changed
    np.testing.assert_allclose(found["change"][alive], 0, atol=1e-3)
    assert (found["rotation"][alive] > 10).mean() > 0.9
    moved = Intervention("custom", "affine", {SITE: {"shift": 9 * plane[0]}})
    still = drift(dictionary, model, model, PROMPTS, edits_after=[moved]).frame()
    assert (still["rotation"][alive] < 0.1).all()


def test_rotation_is_the_angle_of_weighted_means() -> None:
    """Against plain loops over tokens, where an edit turns a plane of the activations."""
    model, dictionary = tiny.model(), made()
    plane = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(2)))[0].T
    turn = Intervention("custom", "rotate", {SITE: {"b1": plane[0], "b2": plane[1]}}, strength=40.0)
    found = drift(dictionary, model, model, PROMPTS, edits_after=[turn]).frame()
    acts = [model.record(PROMPTS, SITE, pool="all", edits=e, progress=False) for e in ([], [turn])]
    keep = torch.tensor(acts[0].positions) > 0
    one, two = (a[SITE][keep].double() for a in acts)
    first, second = (dictionary.encode(h.float()).double() for h in (one, two))
    owners = torch.tensor([PROMPTS.index(p.text or "") for p in acts[0].rows])[keep]
    z = 3.3604  # of 1 - 0.025 / 64
    for j in range(N):
        w = torch.minimum(first[:, j], second[:, j])[:, None]
        u, v = ((w * (h - h.mean(0))).sum(0) for h in (one, two))
        if not float(w.sum()):
            assert np.isnan(found["rotation"][j])
            continue
        angle = float(torch.rad2deg(torch.arccos(torch.cosine_similarity(u, v, dim=0))))
        assert found["rotation"][j] == pytest.approx(angle, abs=0.05)
        moves = w * ((two - two.mean(0)) - (one - one.mean(0)))
        spread = sum(float(moves[owners == i].sum(0).square().sum()) for i in range(len(PROMPTS)))
        floor = 2 * np.degrees(np.arctan(z * spread**0.5 / float((u + v).norm())))
        assert found["floor"][j] == pytest.approx(floor, abs=0.05)


def rotated(turned: Tensor, seed: int, prompts: int = 40, tokens: int = 8) -> np.ndarray:
    """Which features rotate beyond the floor, where `turned` `[d, d]` and noise change random rows."""
    dictionary, draw = made(), torch.Generator().manual_seed(seed)
    mean, where = dictionary.sae.b_dec.detach(), torch.arange(prompts).repeat_interleave(tokens)
    rows = 2 * torch.randn(prompts * tokens, 32, generator=draw)
    # what each model adds at random in each prompt, along a line
    noise = torch.randn(2, prompts, 1, generator=draw)[:, where] * torch.eye(32)[0]
    sums = diffing._Sums(dictionary, dictionary, None, 0)
    parts = []
    for values in (rows + noise[0], rows @ turned.T + noise[1]):
        h = mean + values
        ids = torch.zeros_like(where)
        parts.append(reading.Part(h, dictionary.encode(h), ids, where, ids))
    sums.add(*parts)
    return sums.rotation > sums.floor


def test_the_floor_holds_all_rotations_by_chance_and_few_that_are_real() -> None:
    """Models that differ at random in every prompt; then, beyond it, by a turn that all prompts share."""
    plain = torch.eye(32)
    assert sum(rotated(plain, seed).any() for seed in range(40)) <= 5  # at most 2 expected
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    skew = turn - turn.T
    small = torch.linalg.matrix_exp(0.25 * skew)  # no feature's input is left where it was
    assert rotated(small, 0, prompts=800).mean() > 0.9
    assert not rotated(small, 0, prompts=8).any()


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, after = made(), other_model()
    together = drift(dictionary, tiny.model(), after, PROMPTS).frame()
    monkeypatch.setattr(reading, "PART_BYTES", 1)
    alone = drift(dictionary, tiny.model(), after, PROMPTS).frame()
    for column in (
        "change",
        "low",
        "high",
        "noise",
        "density_after",
        "mean_before",
        "rotation",
        "floor",
    ):
        np.testing.assert_allclose(together[column], alone[column], rtol=1e-4, atol=1e-4)


def test_the_noise_band_holds_all_features_in_95_percent_of_data_sets() -> None:
    """Differences without any effect: some feature leaves the band in about 1 of 20 data sets."""
    draw, left = np.random.default_rng(0), 0
    scale = draw.gamma(1.0, size=20)
    for _ in range(200):
        changes = (draw.standard_t(5, size=(16, 20)) * scale).astype(np.float32)
        left += bool((np.abs(changes.mean(0)) > diffing._noise(changes, 1)).any())
    assert 2 <= left <= 22  # 10 expected; Binomial(200, 0.05) lies here in 99.9 %
    few = diffing._noise(np.ones((3, 4), np.float32), 0)
    assert np.isinf(few).all()  # three prompts agree by chance in a quarter of the data sets


def test_two_dictionaries_are_matched_one_to_one() -> None:
    """The second is the first in another order: cosines of 1, and no change; by chance far less."""
    model, dictionary = tiny.model(), made()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    second = made()
    with torch.no_grad():
        for name in ("W_dec", "b_enc", "threshold"):
            getattr(second.sae, name).copy_(getattr(dictionary.sae, name)[order])
        second.sae.W_enc.copy_(dictionary.sae.W_enc[:, order])
    found = drift(dictionary, model, model, PROMPTS, second=second)
    frame = found.frame()
    assert order[torch.tensor(frame["match"].tolist())].tolist() == list(range(N))
    np.testing.assert_allclose(frame["cosine"], 1, atol=1e-6)
    np.testing.assert_allclose(frame["change"], 0, atol=1e-6)
    assert found.chance_cosine is not None and np.median(found.chance_cosine) < 0.6
    assert "of random directions" in repr(found)
    with pytest.raises(WorkbenchError, match="cannot be matched"):
        drift(dictionary, model, model, PROMPTS, second=replace(second, site="L0.resid_post"))


def test_arms_and_trained_arms_are_models_with_edits() -> None:
    model, dictionary = tiny.model(), made()
    edit, after = adds(dictionary, 2), other_model()
    plain = drift(dictionary, model, model, PROMPTS, edits_after=[edit]).frame()
    armed = drift(dictionary, model, Arm("steered", (edit,)), PROMPTS).frame()
    assert armed.equals(plain)
    ended = drift(dictionary, model, TrainedArm(after, ()), PROMPTS).frame()
    assert ended.equals(drift(dictionary, model, after, PROMPTS).frame())
    twin = drift(dictionary, model, after, PROMPTS, control=other_model(7))
    assert twin.control_change is not None and np.abs(twin.control_change).max() > 0
    assert "than any does in the control" in repr(twin)


def test_a_transcoder_has_no_reconstruction_to_judge() -> None:
    dictionary = replace(made(), target="L2.mlp_out")
    found = drift(dictionary, tiny.model(), other_model(), PROMPTS)
    assert found.fvu == {} and found.fits and found.frame()["direction"].isna().all()


def test_figures_and_files(tmp_path: Any) -> None:
    model, dictionary = tiny.model(), made()
    found = drift(dictionary, model, model, PROMPTS, edits_after=[adds(dictionary, 9)])
    assert found.figure().plot().data[0].y[0] == "9"
    for of in ("mean", "density"):
        plot = found.scatter(of).plot()
        assert sum(len(trace.x) for trace in plot.data) == N
    assert "<table" in found._repr_html_()
    assert sae.Drift.load(found.save(tmp_path / "drift.json")).frame().equals(found.frame())
    with pytest.raises(UnknownName, match="order"):
        found.top(by="size")
    with pytest.raises(UnknownName, match="quantity"):
        found.scatter("medians")


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (dict(prompts=["ab"]), WorkbenchError, "too few prompts"),
        (dict(prompts=[]), PromptError, "there are none"),
        (dict(after=Arm("a", prefix="x")), WorkbenchError, "a decoder or a prefix"),
        (dict(before=Arm("a"), after=Arm("b")), WorkbenchError, "neither side has a model"),
        (dict(before="other"), WorkbenchError, "another model"),
        (dict(completions=[[5]]), PromptError, "one per prompt"),
    ],
)
def test_bad_input(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    model = tiny.model()
    asked: dict[str, Any] = {"before": model, "after": model, "prompts": PROMPTS} | change
    if asked["before"] == "other":
        asked["before"] = other_model()
    with pytest.raises(kind, match=words):
        drift(made(), **asked)


def test_models_of_other_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_model()
    monkeypatch.setattr(other, "tokenizer", type("T", (), {"get_vocab": lambda self: {"a": 0}})())
    with pytest.raises(WorkbenchError, match="other vocabularies"):
        drift(made(), tiny.model(), other, PROMPTS)
