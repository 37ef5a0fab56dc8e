"""Maps: their numbers against those of one place at a time, their places by name, and their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.comparison.stats import mean_interval, mean_intervals
from workbench.locate.base import Axis, Localiser, Scores
from workbench.patching.find import needed
from workbench.patching.map import Map

NAN = float("nan")


@dataclass(frozen=True)
class Handed(Localiser):
    """Gives the scores it is handed."""

    needs = ()
    size: int = 3

    def find(self, _cases: Any, *, scores: Scores) -> Scores:
        return scores


def scores(effect: Any, /, **changes: Any) -> Scores:
    """One measure over layers and parts, `[case, 2, 3]`, where nothing else is said."""
    plain: dict[str, Any] = {
        "values": {"effect": effect},
        "axes": (Axis("layer", (0, 1)), Axis("part", ("a", "b<", "c"), ("A", "B<", "C"))),
        "units": {"effect": "logits"},
        "caption": "What was handed.",
    }
    return Scores(**plain | changes)


def mapped(effect: Any = None, /, **changes: Any) -> Map:
    given = scores(torch.arange(24.0).reshape(4, 2, 3) if effect is None else effect, **changes)
    prompts = ["a"] * len(next(iter(given.values.values())))
    return locate.find(Handed(), tiny.model(), prompts, scores=given)


def some_values(seed: int = 0) -> torch.Tensor:
    """Four patterns of missing values: none, some, all but one, all."""
    values = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(seed)) + 1
    values[:2, 0, 1] = NAN
    values[1:, 1, 0] = NAN
    values[:, 1, 2] = NAN
    values[3, 0, 2] = float("inf")
    return values


# numbers


def test_intervals_of_many_places_are_those_of_each() -> None:
    values = np.random.default_rng(0).normal(1, 2, (12, 8))
    values[:3, 1] = values[5:, 2] = values[1:, 3] = values[:, 4] = NAN
    values[:, 5] = 0.1 + 0.2  # where nothing varies there is no rounding either
    values[0, 6] = np.inf
    mean, low, high, n = mean_intervals(values)
    for place, column in enumerate(values.T):
        one = mean_interval(column)
        assert n[place] == one.n
        np.testing.assert_allclose(mean[place], one.mean, rtol=1e-12)
        width = 0 if place == 5 else 0.04 * (one.high - one.low)  # the draws are others
        np.testing.assert_allclose([low[place], high[place]], [one.low, one.high], atol=width)
    assert np.isnan(low[[3, 4]]).all() and np.isnan(mean[4]) and n.tolist()[3:5] == [1, 0]
    assert low[5] == high[5] == 0.1 + 0.2


def test_intervals_do_not_depend_on_other_places() -> None:
    values = np.random.default_rng(1).normal(size=(7, 2500))
    many, few = mean_intervals(values), mean_intervals(values[:, 1700:1703])
    for a, b in zip(many, few, strict=True):
        np.testing.assert_allclose(a[1700:1703], b, rtol=1e-12)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    values = np.random.default_rng(2).normal(size=(8, 2000))
    _, low, high, _ = mean_intervals(values)
    assert 0.93 < ((low < 0) & (high > 0)).mean() < 0.97


def test_rows_are_places_with_the_values_that_are_known() -> None:
    values = some_values()
    found = mapped(values)
    assert len(found) == 6 and found.axes == ("layer", "part") and found.measures == ["effect"]
    for row in found.frame().to_dict("records"):
        column = values[:, row["layer"], ["a", "b<", "c"].index(row["part"])].double().numpy()
        known = column[np.isfinite(column)]
        assert row["n"] == len(known)
        wanted = known.mean() if len(known) else NAN
        np.testing.assert_allclose(row["mean"], wanted, rtol=1e-12)
        assert np.isnan(row["low"]) == (len(known) < 2)
    assert found.frame()["n"].tolist() == [6, 4, 5, 1, 6, 0]


def test_the_grid_holds_the_means_of_a_measure() -> None:
    values = some_values()
    both = {"effect": values, "other": values * 2}
    found = mapped(values, values=both, units={"effect": "logits", "other": "nats"})
    np.testing.assert_allclose(found.grid("other"), 2 * found.grid(), rtol=1e-6)
    assert found.grid().shape == (2, 3) and np.isnan(found.grid()[1, 2])
    np.testing.assert_array_equal(found.grid().ravel(), found.frame()["mean"][:6])
    assert (found.frame()["unit"][6:] == "nats").all()
    with pytest.raises(wb.WorkbenchError, match="unknown measure"):
        found.grid("third")


# places


def test_the_largest_places_come_first_and_unknown_ones_last() -> None:
    values = torch.tensor([[[1.0, -5.0, NAN], [3.0, 0.0, -3.0]]]).repeat(3, 1, 1)
    found = mapped(values)
    assert found.top(4)["mean"].tolist() == [-5, 3, -3, 1]
    assert np.isnan(found.top(100)["mean"].iloc[-1]) and len(found.top(100)) == 6
    with pytest.raises(wb.WorkbenchError, match="unknown measure"):
        found.top(1, "third")


def test_a_place_is_found_by_its_labels() -> None:
    found = mapped()
    assert found.at(layer=1, part="c")["mean"].tolist() == [found.grid()[1, 2]]
    assert found.at(layer=np.int64(1))["part"].tolist() == ["a", "b<", "c"]
    for place, match in (
        ({"head": 1}, "unknown axis"),
        ({"layer": 2}, "unknown layer"),
        ({"part": "d"}, "unknown part"),
    ):
        with pytest.raises(wb.WorkbenchError, match=match):
            found.at(**place)


def test_an_edit_is_asked_for_by_all_its_axes_and_nothing_else() -> None:
    asked: list[Mapping[str, Any]] = []
    shift = {"L1.resid_post": {"shift": torch.ones(32)}}

    def edit(**place: Any) -> wb.Intervention:
        asked.append(place)
        return wb.Intervention("custom", "affine", shift)

    found = mapped(edit=edit)
    best = found.top(1).iloc[0]  # numpy's numbers become the axes' own
    found.edit(**{name: best[name] for name in found.axes})
    assert asked == [{"layer": 1, "part": "c"}] and type(asked[0]["layer"]) is int
    for place, match in (
        ({"layer": 1}, "unknown part"),
        ({"layer": 5, "part": "a"}, "unknown layer"),
        ({"layer": 1, "part": "a", "head": 3}, "unknown axis"),
    ):
        with pytest.raises(wb.WorkbenchError, match=match):
            found.edit(**place)
    with pytest.raises(wb.WorkbenchError, match="changes nothing"):
        mapped().edit(layer=1, part="a")


# figures


def test_a_figure_is_of_one_measure_and_frames_it() -> None:
    found = mapped(reference={"base": torch.tensor([1.0, 3.0]), "none": torch.tensor([NAN])})
    figure = found.figure()
    assert figure.spec["reference"] == {"base": 2.0} == found.provenance["reference"]
    assert (figure.spec["measure"], figure.spec["unit"]) == ("effect", "logits")
    np.testing.assert_allclose(figure.plot().data[0].z, found.grid(), rtol=1e-6)
    with pytest.raises(wb.WorkbenchError, match="unknown measure"):
        found.figure("third")


@pytest.mark.parametrize("kind", ["heat", "lines"])
def test_text_in_a_figure_is_text(kind: str) -> None:
    """Plotly reads its labels as a little HTML: a token such as <s> would be a tag, and vanish."""
    drawn = mapped(figure=kind, units={"effect": "a<b"}).figure().plot()
    written = json.dumps(drawn.to_dict(), default=str)
    assert "B&lt;" in written and "B<" not in written
    assert "a&lt;b" in written and "a<b" not in written


@pytest.mark.parametrize("panels", [1, 40])
def test_any_number_of_panels_is_drawn(panels: int) -> None:
    axes = (Axis("layer", tuple(range(panels))), Axis("query", (0, 1)), Axis("<key>", (0, 1)))
    values = torch.arange(8.0 * panels).reshape(2, panels, 2, 2)
    drawn = mapped(values, axes=axes).figure().plot()
    assert len(drawn.data) == panels


def test_a_map_shows_its_largest_places() -> None:
    found = mapped(some_values())
    assert repr(found).startswith("Map(test_map of in-memory: 2 layer x 3 part, 6 cases)")
    assert "<table" in found._repr_html_() and "one prompt" in repr(found)


def test_scores_that_do_not_fit_are_refused() -> None:
    for changes in (
        {"axes": (Axis("layer", (0, 1)),)},
        {"units": {}},
        {"values": {}, "units": {}},
    ):
        with pytest.raises(wb.WorkbenchError, match="do not fit"):
            scores(torch.zeros(1, 2, 3), **changes)


# what a method is handed


def test_what_a_method_does_not_take_is_refused() -> None:
    with pytest.raises(wb.WorkbenchError, match=r"locate.LogitLens\(positions=...\)"):
        locate.find("logit_lens", tiny.model(), ["ab"], positions="all")


def test_what_no_model_has_is_asked_for() -> None:
    class Asking(Handed):
        needs = ("judge",)  # type: ignore[assignment]

    with pytest.raises(wb.WorkbenchError, match="needs judge"):
        needed(Asking(), tiny.model(), {}, False)


def test_callers_in_inference_mode_get_usable_numbers() -> None:
    with torch.inference_mode():
        found = locate.find("attribution_patching", tiny.model(), pairs(), progress=False)
    assert not found.scores.values["effect"].is_inference()
    again = locate.find("attribution_patching", tiny.model(), pairs(), progress=False)
    np.testing.assert_array_equal(found.grid(), again.grid())


def pairs() -> wb.Prompts:
    return wb.prompts.counterfactuals(
        clean=["abcab", "bca"], corrupted=["abdab", "bda"], answers="c", foils="d"
    )


# files


def assert_same(one: Map, other: Map) -> None:
    assert one.frame().equals(other.frame())
    assert (one.units, one.axes, one.measures) == (other.units, other.axes, other.measures)
    assert json.loads(json.dumps(one.provenance)) == other.provenance
    assert repr(one) == repr(other) and one._repr_html_() == other._repr_html_()
    for name, values in one.scores.values.items():
        known = torch.where(values.isfinite(), values.float(), NAN)
        torch.testing.assert_close(other.scores.values[name], known, equal_nan=True, rtol=0, atol=0)
    for name in one.measures:
        assert str(one.figure(name).plot()) == str(other.figure(name).plot())
    assert set(one.also) == set(other.also) == set(other.scores.also)
    for name in one.also:
        assert_same(one.also[name], other.also[name])


def test_a_map_comes_back_from_its_file(tmp_path: Path) -> None:
    found = mapped(some_values(), reference={"base": torch.tensor([1.0, NAN])})
    assert_same(found, Map.load(found.save(tmp_path / "map.json")))
    with pytest.raises(wb.WorkbenchError, match="changes nothing"):
        Map.load(tmp_path / "map.json").edit(layer=0, part="a")


@pytest.mark.parametrize(
    "method", ["logit_lens", "direct_logit_attribution", "attribution_patching"]
)
def test_methods_maps_come_back_but_for_their_edits(method: str, tmp_path: Path) -> None:
    found = locate.find(method, tiny.model(), pairs(), progress=False)
    back = Map.load(found.save(tmp_path / "map.json"))
    assert_same(found, back)
    if found.scores.edit is not None:
        best = found.top(1).iloc[0]
        with pytest.raises(wb.WorkbenchError, match="keeps no edits"):
            back.edit(**{name: best[name] for name in found.axes})
    assert_same(back, Map.load(back.save(tmp_path / "again.json")))


def test_a_maps_file_is_a_table_of_its_rows(tmp_path: Path) -> None:
    """Of one case all intervals are missing, and come back as numbers that are missing."""
    for values in (some_values(), some_values()[:1]):
        found = mapped(values)
        rows = wb.Table.load(found.save(tmp_path / "map.json"))
        assert type(rows) is wb.Table and rows.frame().equals(found.frame())


def test_a_table_is_no_map(tmp_path: Path) -> None:
    table = wb.Table({"layer": [0], "mean": [1.0]})
    with pytest.raises(wb.WorkbenchError, match="not a saved map"):
        Map.load(table.save(tmp_path / "table.json"))
