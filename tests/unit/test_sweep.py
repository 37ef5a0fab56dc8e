"""A sweep's cells are what the model gives at that strength and layer, each computed once."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import EditError, PromptError, WorkbenchError
from workbench.sweep import BASE, Point, StrengthByLayer

PROMPTS = ["abc", "hello there", "900+7="]


def edit(part: str = "resid_post", layers=(0, 1, 2)) -> wb.Intervention:
    tensors = {
        f"L{y}.{part}": {"shift": torch.randn(32, generator=torch.Generator().manual_seed(y))}
        for y in layers
    }
    return wb.Intervention("custom", "affine", tensors, 1.0, name="shift")


def swept(given=None, family: str = "llama", **options) -> StrengthByLayer:
    options = {
        "metrics": ("length", "kl_nats"),
        "max_new_tokens": 5,
        "strengths": (-2, 0, 2),
    } | options
    return StrengthByLayer(tiny.model(family), PROMPTS, given or edit(), **options)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cell_is_what_compare_says(family: str) -> None:
    sweep, model = swept(family=family), tiny.model(family)
    arm = wb.Arm("x", [edit().only("L1.resid_post").at(2.0)])
    table = wb.compare(
        [arm], model, PROMPTS, ("length", "kl_nats"), max_new_tokens=5, progress=False
    )
    frame = table.frame()
    for point, name in (
        (BASE, "base"), (Point(1, 2.0), "x"), (Point(1, 2.0, True), "x (random control)")
    ):  # fmt: skip
        cell = sweep.cell(point)
        for metric, values in cell.values.items():
            want = frame[(frame.arm == name) & (frame.metric == metric)].value.tolist()
            assert values == pytest.approx(want)
        assert [g.ids for g in cell.generations] == [g.ids for g in table.read(name)]


def test_cells_are_computed_once_and_strength_0_is_the_base(monkeypatch) -> None:
    sweep, calls, real = swept(), [], tiny.model("llama").generate

    def counted(*args, **options):
        calls.append(options["arm"])
        return real(*args, **options)

    monkeypatch.setattr(tiny.model("llama"), "generate", counted)
    for point in [*sweep.points(), *sweep.points(), Point(2, 0.0), Point(1, 0.0, True)]:
        sweep.cell(point)
    assert len(calls) == len(set(calls)) == len(sweep.points()) == 1 + 2 * 3 * 2
    assert sweep.cell(Point(2, 0.0)) is sweep.cell(BASE)


def test_a_callable_is_asked_once_per_layer() -> None:
    asked = []

    def fitted(layer: int) -> wb.Intervention:
        asked.append(layer)
        return edit(layers=(layer,))

    sweep, other = swept(fitted, layers=(2, 0)), swept()
    for point in sweep.points():
        assert sweep.cell(point).values == other.cell(point).values
    assert sweep.layers == [0, 2] and sorted(asked) == [0, 2]


def test_an_edit_that_overflows_is_a_cell_that_says_so() -> None:
    sweep = swept(strengths=(1, 1e38))
    assert "infinite or NaN" in sweep.cell(Point(0, 1e38)).error
    assert sweep.cell(Point(0, 1.0)).error == ""
    assert set(sweep.table().columns["strength"]) == {1.0}


def test_the_table_has_a_row_per_setting_prompt_and_metric() -> None:
    sweep = swept()
    for point in sweep.points():
        sweep.cell(point)
    frame = sweep.table().frame()
    assert len(frame) == len(sweep.points()) * 3 * 2
    assert set(frame.kind) == {"base", "edit", "control"}
    row = frame[(frame.kind == "edit") & (frame.layer == 2) & (frame.strength == -2)]
    want = sweep.cell(Point(2, -2.0)).values["kl_nats"]
    assert row[row.metric == "kl_nats"].value.tolist() == want
    assert sweep.table().provenance["not_computed"] == 0


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"layers": [7]}, WorkbenchError, "no such layers"),
        ({"layers": []}, WorkbenchError, "no such layers"),
        ({"strengths": []}, WorkbenchError, "no strengths"),
        ({"strengths": [float("nan")]}, WorkbenchError, "no strengths"),
        ({"strengths": range(1000)}, WorkbenchError, "too many cells"),
        ({"metrics": ("accuracy",)}, WorkbenchError, "no task"),
        ({"max_new_tokens": 4000}, PromptError, "longer than the context"),
        ({"given": edit(layers=(0,)).__class__("custom", "affine", {"embed": {"shift": torch.ones(32)}})},
         EditError, "not in one layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_at_once(options, error, said: str) -> None:
    with pytest.raises(error, match=said):
        swept(**options)
