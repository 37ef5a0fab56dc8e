"""Forecasts over domains: planted use of shifted features, controls, measured changes, files, figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests import tiny
from tests.unit.test_sts import QUERIES, SHOWN, small
from workbench import sae
from workbench.comparison.correlation import r_of_draws, relabelled_p, specific
from workbench.errors import FileRefused, UnknownName, WorkbenchError
from workbench.records import Prompt
from workbench.sae.transfer.forecasts import ACTIVE, ALL, LOWEST, POOLED, Forecast
from workbench.sae.transfer.paired import Effects, Setting
from workbench.sae.transfer.readings import Readings
from workbench.sae.transfer.shifts import Shift

NAMES = ("one", "two", "three", "four", "five", "six")
USES = (0.1, 0.9, 0.4, 0.6, 0.2, 0.7)
MOVED = list(range(10))


def planted(names: tuple[str, ...] = NAMES) -> Readings:
    """Domains that use features 0 to 9, which every source moves, as far as `USES` says, and 90 others as it
    comes.
    """
    effects = {}
    for name in names:
        rng = torch.Generator().manual_seed(NAMES.index(name))
        active = 2 * torch.rand(1, 100, generator=rng) + 0.1 * torch.rand(12, 100, generator=rng)
        active[:, MOVED] = 0.02 * active[:, MOVED] + USES[NAMES.index(name)]
        moved = 0.01 * torch.rand(12, 100, generator=rng)
        moved[:, MOVED] += 0.5
        stats_of = [{p: (x**p).to_sparse() for p in (1, 2)} for x in (active, moved)]
        tokens = torch.full((12,), 5)
        effects[name] = Effects(*stats_of, torch.zeros(100), tokens, torch.ones(12))
    return Readings(effects, "planted", Setting())


@cache
def forecast() -> Forecast:
    return planted().forecast(draws=300)


def measured(noise: float = 0.0) -> np.ndarray:
    """Changes in proportion to the planted use, of either sign."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], (6, 6))
    return signs * (0.2 * np.array(USES) + noise * rng.normal(size=(6, 6)))


# scores and controls


def test_scores_are_monotone_in_the_planted_use_of_the_shifted_features() -> None:
    found = forecast()
    assert all(set(shift.dims) == set(MOVED) for shift in found.shifts.values())
    for row in found.scores:
        assert np.argsort(row).tolist() == np.argsort(USES).tolist()
    expected = planted().effects["two"].active[1].to_dense()[:, MOVED].sum(1).mean()
    assert found.scores[0, 1] == pytest.approx(float(expected), rel=1e-5)
    assert (found.low < found.scores).all() and (found.scores < found.high).all()


def test_the_order_of_domains_changes_nothing() -> None:
    turned = planted(NAMES[::-1]).forecast(draws=300)
    found = forecast()
    np.testing.assert_allclose(turned.scores[::-1, ::-1], found.scores)
    np.testing.assert_allclose(turned.random[:, ::-1, ::-1], found.random)
    np.testing.assert_allclose(turned.controls[LOWEST][::-1, ::-1], found.controls[LOWEST])


def test_random_features_stay_in_their_band_and_the_planted_ones_do_not() -> None:
    table = forecast().against(measured()).report().frame()
    pooled = table[table["source"] == POOLED].iloc[0]
    assert pooled["r"] > 0.99 and pooled["p"] <= 1e-4 and pooled["random_p"] < 0.02
    assert pooled["random_low"] < 0 < pooled["random_high"] < 0.9
    # other random features, of another seed, are held against the same band
    other = planted().forecast(draws=300, seed=1).random
    own = np.eye(6, dtype=bool)
    r = r_of_draws(np.where(own, np.nan, other), np.abs(measured()))
    inside = ((r >= pooled["random_low"]) & (r <= pooled["random_high"])).mean()
    assert inside > 0.85 and abs(pooled[f"r {LOWEST}"]) < 0.9


def test_random_features_are_as_many_and_alive() -> None:
    readings = planted()
    dead = {p: x.to_dense() for p, x in readings.effects["one"].active.items()}
    for one in dead.values():
        one[:, 50:] = 0
    effects = {
        name: replace(e, active={p: x.to_sparse() for p, x in dead.items()})
        for name, e in readings.effects.items()
    }
    found = replace(readings, effects=effects)
    assert found.alive() == tuple(range(50))
    dims = [2, 3, 4]
    random = found.forecast(shifts={"one": dims}, draws=50).random[:, 0, 0]
    means = dead[1].mean(0)[:50].numpy()
    sums = sorted(means)
    assert random.min() >= sum(sums[:3]) - 1e-6 and random.max() <= sum(sums[-3:]) + 1e-6
    assert random.min() > 0 and random.std() > 0


def test_the_most_active_features_of_a_source_are_a_control() -> None:
    readings, found = planted(), forecast()
    mean = (readings.effects["three"].active[1].to_dense() ** 2).mean(0)
    dims = torch.argsort(mean, descending=True)[:10].tolist()
    assert list(readings.most_active("three", 10)) == dims and not set(dims) & set(MOVED)
    expected = readings.effects["two"].active[1].to_dense()[:, dims].sum(1).mean()
    assert found.controls[ACTIVE][2, 1] == pytest.approx(float(expected), rel=1e-5)
    assert f"r {ACTIVE}" in found.against(measured()).report().columns
    everywhere = readings.most_active("no domain", 10)
    assert len(everywhere) == 10 and list(everywhere) != dims


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_all_features_are_a_control_that_knows_nothing_of_the_source(reduce: str) -> None:
    found = planted().forecast(draws=20, reduce=reduce)
    everything = planted().effects["two"].active[1].to_dense().sum(1).mean()
    expected = float(everything) / (100 if reduce == "mean" else 1)
    np.testing.assert_allclose(found.controls[ALL][:, 1], expected, rtol=1e-5)
    assert f"r {ALL}" in found.against(measured()).report().columns


def test_mean_and_power_are_those_of_the_scores() -> None:
    total = planted().forecast(power=2, draws=20)
    mean = planted().forecast(power=2, reduce="mean", draws=20)
    np.testing.assert_allclose(total.scores, 10 * mean.scores)
    np.testing.assert_allclose(total.random, 10 * mean.random)
    squares = planted().effects["two"].active[2].to_dense()[:, MOVED].sum(1).mean()
    assert total.scores[0, 1] == pytest.approx(float(squares), rel=1e-5)
    assert total.unit == "sum of activation^2"


def test_given_dimensions_take_the_place_of_demonstrations() -> None:
    effects = {n: replace(e, moved=None, null=None) for n, e in planted().effects.items()}
    readings = replace(planted(), effects=effects)
    with pytest.raises(WorkbenchError, match="no domain has demonstrations"):
        readings.forecast()
    found = readings.forecast(shifts={"one": MOVED}, draws=20)
    np.testing.assert_allclose(found.scores[0], forecast().scores[0])
    actual = Shift(tuple(MOVED), torch.ones(100), None, "models", 1, "planted", "one")
    again = readings.forecast(shifts={"one": actual}, draws=20)
    np.testing.assert_allclose(again.scores, found.scores)
    with pytest.raises(WorkbenchError, match="another dictionary"):
        readings.forecast(shifts={"one": [100]})


# against measured changes


def test_a_row_of_the_report_is_scipys_on_other_targets() -> None:
    changes = measured(noise=0.3)
    table = forecast().against(changes).report().frame()
    others = [0, 2, 3, 4, 5]
    theirs = stats.pearsonr(forecast().scores[1, others], np.abs(changes)[1, others])
    row = table[table["source"] == "two"].iloc[0]
    assert row["n"] == 5 and row["r"] == pytest.approx(theirs.statistic)
    assert (row["low"], row["high"]) == pytest.approx(tuple(theirs.confidence_interval()))
    own = forecast().against(changes).report(own=True).frame()
    assert own[own["source"] == "two"].iloc[0]["n"] == 6 and own.iloc[-1]["n"] == 36


def test_only_other_targets_count_in_the_pooled_tests() -> None:
    """Own changes are large, and left out: of the null that relabels targets too."""
    changes = np.abs(measured(noise=0.3))
    huge = changes + 50 * np.eye(6)
    scores = forecast().scores + np.random.default_rng(1).normal(size=(6, 6))
    given = replace(forecast(), scores=scores)
    table = [given.against(y).report().frame().iloc[-1] for y in (changes, huge)]
    for column in ("r", "p", "relabelled_p", "specific_r", "specific_p", f"r {ALL}"):
        assert table[0][column] == pytest.approx(table[1][column]), column
    x, y = (np.where(np.eye(6, dtype=bool), np.nan, v) for v in (scores, changes))
    row = table[0]
    assert (row["specific_r"], row["specific_p"]) == pytest.approx(specific(x, y))
    assert row["relabelled_p"] == pytest.approx(relabelled_p(x, y))
    assert f"r = {row['specific_r']:.2f}, p =" in given.against(changes).figure().caption
    each = given.against(changes).report().frame().iloc[:-1]
    assert each["specific_r"].isna().all()


def test_the_size_of_changes_is_forecast_and_not_their_sign() -> None:
    against = forecast().against(measured())
    signed = against.report(absolute=False).frame().iloc[-1]
    assert abs(signed["r"]) < 0.5 < against.report().frame().iloc[-1]["r"]


@dataclass
class Measured:
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: np.ndarray
    low: np.ndarray
    high: np.ndarray


def test_measured_changes_are_found_by_name() -> None:
    change = measured()
    turned = Measured(NAMES[::-1], NAMES, change[::-1], change[::-1] - 0.1, change[::-1] + 0.1)
    found = forecast().against(turned)
    np.testing.assert_allclose(found.measured, change)
    np.testing.assert_allclose(found.measured_high, change + 0.1)
    some = forecast().against({"two": {"one": 0.1, "six": -0.3}})
    assert some.measured is not None and np.isfinite(some.measured).sum() == 2
    assert some.measured[1, 5] == -0.3
    with pytest.raises(WorkbenchError, match="another shape"):
        forecast().against(change[:2])
    with pytest.raises(WorkbenchError, match="in common"):
        forecast().against({"seven": {"one": 0.1}})
    with pytest.raises(WorkbenchError, match="nothing is measured"):
        forecast().report()
    with pytest.raises(WorkbenchError, match="holds no changes.*int"):
        forecast().against(5)
    with pytest.raises(WorkbenchError, match="none is a source"):
        planted().forecast(shifts={})


def test_frames_and_words() -> None:
    found = forecast().against(measured())
    frame = found.frame()
    assert len(frame) == 36 and frame["measured"][1] == pytest.approx(measured()[0, 1])
    assert (frame["random_low"] < frame["random_high"]).all()
    assert "r = 1.00" in repr(found) and "n = 30" in repr(found)
    assert "not held against" in repr(forecast())
    assert POOLED in repr(found.report()) and "<table" in found.report()._repr_html_()


def test_a_mix_is_in_proportion_to_scores_and_says_what_it_does_not_know() -> None:
    mix = forecast().mix("one")
    expected = forecast().scores[0] / forecast().scores[0].sum()
    np.testing.assert_allclose(mix.frame()["share"], expected)
    assert forecast().mix().frame()["share"].sum() == pytest.approx(1)
    assert "not measured" in repr(mix)
    with pytest.raises(UnknownName, match="seven"):
        forecast().mix("seven")
    negative = replace(forecast(), scores=-forecast().scores)
    with pytest.raises(WorkbenchError, match="negative"):
        negative.mix()


@pytest.mark.parametrize("held", [True, False])
def test_a_saved_forecast_comes_back_whole(tmp_path: Path, held: bool) -> None:
    found = forecast().against(measured()) if held else forecast()
    again = Forecast.load(found.save(tmp_path / "f.safetensors"))
    assert (again.sources, again.targets, again.unit) == (found.sources, found.targets, found.unit)
    np.testing.assert_array_equal(again.scores, found.scores)
    np.testing.assert_array_equal(again.random, found.random)
    assert again.shifts["two"].dims == found.shifts["two"].dims
    torch.testing.assert_close(again.shifts["two"].delta, found.shifts["two"].delta)
    assert (again.measured is not None) == held and dict(again.provenance) == found.provenance
    whole = (tmp_path / "f.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.safetensors").write_bytes(b"no forecast")
    for name in ("half", "none", "missing"):
        with pytest.raises(FileRefused):
            Forecast.load(tmp_path / f"{name}.safetensors")


def test_figures_show_the_line_its_interval_and_the_random_band() -> None:
    found = forecast().against(measured(noise=0.02))
    one = found.figure("two")
    assert "r = 0.9" in one.caption and "random features" in one.caption and "n = 5" in one.caption
    plot = one.plot()
    names = [trace.name for trace in plot.data]
    assert {"random features", "95 % interval of r", "two"} <= set(names)
    points = next(trace for trace in plot.data if trace.name == "two")
    changes = np.abs(found.measured[1, [0, 2, 3, 4, 5]])  # type: ignore[index]
    np.testing.assert_allclose(points.y, changes)
    pooled = found.figure().plot()
    line = next(trace for trace in pooled.data if str(trace.name).startswith("r = "))
    slope = (line.y[-1] - line.y[0]) / (line.x[-1] - line.x[0])
    assert slope == pytest.approx(found.report().frame().iloc[-1]["r"], abs=1e-6)
    with pytest.raises(UnknownName, match="seven"):
        found.figure("seven")
    flat = forecast().against(np.zeros((6, 6)))
    assert (
        "no correlation" in flat.figure("two").caption and len(flat.figure("two").plot().data) == 1
    )


# reading domains of a model


def domains() -> dict[str, sae.Domain]:
    other = [Prompt(text="sort 3 1 2?\n", answer="123")]
    return {
        "add": sae.Domain(QUERIES[:2], SHOWN),
        "sort": sae.Domain(["sort 5 4?\n", "sort 9 8 1?\n", "sort 2 1?\n"], other),
        "max": sae.Domain(QUERIES[2:]),
    }


@pytest.mark.parametrize("kind", ["act", "icl"])
def test_a_forecast_is_the_score_of_each_target_on_each_shift(kind: str) -> None:
    model, given = tiny.model(), domains()
    if kind == "icl":
        given["max"] = replace(given["max"], demonstrations=SHOWN)
    found = sae.forecast(small(), model, given, kind=kind, n=4, draws=10, progress=False)
    assert found.sources == (("add", "sort") if kind == "act" else ("add", "sort", "max"))
    shift = sae.shift_dims(
        small(), model, given["sort"].queries, given["sort"].demonstrations, n=4, progress=False
    )
    assert found.shifts["sort"].dims == shift.dims
    for j, domain in enumerate(given.values()):
        shown = domain.demonstrations
        options: dict[str, Any] = {"kind": kind, "demonstrations": shown, "progress": False}
        score = sae.sts(small(), model, domain.queries, shift, **options)
        i = found.sources.index("sort")
        assert found.scores[i, j] == pytest.approx(score.mean, rel=1e-4)
        assert found.low[i, j] == pytest.approx(score.low, rel=1e-3)


def test_domains_are_refused_in_words() -> None:
    model = tiny.model()
    with pytest.raises(WorkbenchError, match="no domains"):
        sae.forecast(small(), model, {}, progress=False)
    with pytest.raises(WorkbenchError, match="'max'.*no interval"):
        sae.forecast(small(), model, {"max": sae.Domain(QUERIES[:1], SHOWN)}, progress=False)
    with pytest.raises(UnknownName, match="power"):
        sae.forecast(small(), model, domains(), power=3, progress=False)
    with pytest.raises(WorkbenchError, match="demonstrations"):
        sae.forecast(small(), model, domains(), kind="icl", progress=False)
    with pytest.raises(UnknownName, match="domain"):
        planted().shift("seven")
