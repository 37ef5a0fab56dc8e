"""A sweep of methods gives what fitting and running each of them alone gives, and can be stopped."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests import tiny
from workbench import registry, steering
from workbench.activations.record import record
from workbench.errors import EditError, FileRefused, WorkbenchError
from workbench.interventions.control import random_control
from workbench.records import Prompts
from workbench.steering.base import SteeringMethod, sites_of
from workbench.sweep.fitted import MULTIPLES
from workbench.sweep.methods import BASE, PROMPTING, MethodPoint, MethodSweep, sweep
from workbench.sweep.strength_by_layer import Cell
from workbench.sweep.told import told
from workbench.tensors import Contrast, Intervention

PROMPTS = ["abc", "hello there", "900+7="]
METRICS = ("length", "kl_nats")
METHODS = ("mean_difference", "ace")


def pairs() -> Prompts:
    asked = [f"{a}+{b}=" for a in (1, 23, 4) for b in (5, 66, 78)]
    return wb.prompts.pairs(
        positive=[f"sum {p}" for p in asked], negative=[f"say {p}" for p in asked]
    )


def swept(methods=METHODS, **options) -> MethodSweep:
    options = {
        "prompts": PROMPTS,
        "metrics": METRICS,
        "strengths": (-1, 0, 1.5),
        "max_new_tokens": 5,
    } | options
    return MethodSweep(tiny.model(), pairs(), methods, **options)


def fitted(name: str) -> Intervention:
    return steering.fit(name, tiny.model(), pairs(), progress=False)


def same(a: MethodSweep, b: MethodSweep) -> bool:
    return set(a.done) == set(b.done) and all(a.done[p] == b.done[p] for p in a.done)


@dataclass(frozen=True)
class Shy(SteeringMethod):
    """A method that acts in one layer only."""

    def fit(self, contrast: Contrast) -> Intervention:
        where = {s: p for s, p, _ in sites_of(contrast, "Shy") if s == "L1.resid_post"}
        tensors = {s: {"shift": rows.mean(0)} for s, rows in where.items()}
        return Intervention("shy", "affine", tensors, model=contrast.model)


@dataclass(frozen=True)
class Placeless(SteeringMethod):
    """A method that reads no rows."""

    sites = ""

    def fit(self, contrast: Contrast) -> Intervention:
        assert not contrast.positive
        shift = torch.ones(32)
        return Intervention("placeless", "affine", {"L0.resid_pre": {"shift": shift}})


@dataclass(frozen=True)
class Broken(SteeringMethod):
    """A method with a mistake in it."""

    def fit(self, contrast: Contrast) -> Intervention:  # noqa: ARG002
        raise IndexError("planted")


def test_a_cell_is_what_compare_says_of_the_fitted_edit() -> None:
    found = swept(prompting="say ")
    edit = fitted("ace").only("L2.resid_post").at(1.5)
    arms = [wb.Arm("x", [edit]), wb.Arm("told", prefix="say ")]
    table = wb.compare(arms, tiny.model(), PROMPTS, METRICS, max_new_tokens=5, progress=False)
    frame = table.frame()
    for point, name in (
        (BASE, "base"),
        (PROMPTING, "told"),
        (MethodPoint("ace", 2, 1.5), "x"),
        (MethodPoint("ace", 2, 1.5, True), "x (random control)"),
    ):
        cell = found.cell(point)
        assert not cell.error
        for metric in METRICS:
            want = frame[(frame.arm == name) & (frame.metric == metric)].value.tolist()
            assert cell.values[metric] == pytest.approx(want, abs=1e-5), (name, metric)
        assert [g.ids for g in cell.generations] == [g.ids for g in table.read(name)]


def test_the_edit_of_a_point_is_the_one_that_fit_gives() -> None:
    found = swept()
    for name in METHODS:
        want, got = fitted(name), found.edit_at(MethodPoint(name, 1, -1.0))
        assert got is not None and got.strength == -1.0 and got.sites == ("L1.resid_post",)
        for key, tensor in want.tensors["L1.resid_post"].items():
            assert torch.equal(tensor, got.tensors["L1.resid_post"][key])
        twin = found.edit_at(MethodPoint(name, 1, 1.0, True))
        control = random_control(want.only("L1.resid_post"), 0)
        assert twin is not None and control is not None
        for key, tensor in control.tensors["L1.resid_post"].items():
            assert torch.equal(tensor, twin.tensors["L1.resid_post"][key])
        assert found.unit(name) == want.unit
    assert found.edit_at(BASE) is None


def test_methods_that_read_the_same_share_one_recording(monkeypatch) -> None:
    asked = []

    def counted(model, prompts, sites, pool, **options):
        asked.append((tuple(sites), pool))
        return record(model, prompts, sites, pool, **options)

    monkeypatch.setattr("workbench.interventions.fit.record", counted)
    found = swept(["mean_difference", "ace", "random_direction"])
    found.run(progress=False)
    assert len(asked) == len(set(asked))
    assert asked.count((("L*.resid_post",), "last")) == 1


def test_every_cell_is_computed_once_and_a_row_in_one_call(monkeypatch) -> None:
    found, calls, real = swept(), [], tiny.model().generate

    def counted(prompts, **options):
        calls.append(len(prompts))
        return real(prompts, **options)

    monkeypatch.setattr(tiny.model(), "generate", counted)
    found.run(progress=False)
    found.run(progress=False)
    # the base; two methods, three layers, edit and control, two strengths in one call
    assert calls == [3] + [2 * 3] * (2 * 3 * 2)
    assert len(found.done) == len(found.points()) == 1 + 2 * 3 * 2 * 2
    assert found.cell(MethodPoint("ace", 1, 0.0)) is found.cell(BASE)


def test_none_among_the_layers_is_the_whole_edit() -> None:
    found = swept("mean_difference", layers=[2, None])
    assert found.layers == [2, None]
    whole = found.edit_at(MethodPoint("mean_difference", None, 1.5))
    assert whole is not None and len(whole.sites) == 3
    texts = tiny.model().generate(PROMPTS, whole, max_new_tokens=5)
    cell = found.cell(MethodPoint("mean_difference", None, 1.5))
    assert [g.ids for g in cell.generations] == [t.ids for t in texts]


def test_a_method_without_sites_has_no_layers() -> None:
    found = swept({"placeless": Placeless(), "ace": "ace"})
    layers = {
        p.method: {q.layer for q in found.points() if q.method == p.method} for p in found.points()
    }
    assert layers["placeless"] == {None} and layers["ace"] == {0, 1, 2}
    assert not found.cell(MethodPoint("placeless", None, 1.5)).error


def test_a_method_that_fails_says_so_and_the_others_go_on() -> None:
    found = swept({"broken": Broken(), "shy": Shy(), "ace": "ace"})
    found.run(progress=False)
    errors = {p: c.error for p, c in found.done.items()}
    assert "planted" in errors[MethodPoint("broken", 0, 1.5)]
    assert "layer 0" in errors[MethodPoint("shy", 0, 1.5)]
    assert not errors[MethodPoint("shy", 1, 1.5)] and not errors[MethodPoint("ace", 0, 1.5)]
    assert found.unit("broken") == ""
    assert len(found.table().provenance["errors"]) == 12 + 8


def test_an_edit_that_fails_in_any_way_says_so_and_the_others_go_on(monkeypatch) -> None:
    """A rule is anybody's file too."""
    real = tiny.model().generate

    def failing(prompts, **options):
        if any(edit.method == "ace" for edit in options.get("edits", ())):
            raise IndexError("planted")
        return real(prompts, **options)

    monkeypatch.setattr(tiny.model(), "generate", failing)
    found = swept(strengths=None, target_kl_nats=0.05)
    found.run(progress=False)
    assert any("ace was not calibrated" in note and "planted" in note for note in found.notes)
    for point, cell in found.done.items():
        assert ("planted" in cell.error) == (point.method == "ace" and not point.control)


def test_a_method_that_trains_shows_no_bar_of_its_own(capsys) -> None:
    found = swept({"learned": registry.get("steering", "tr_ra")(steps=2)}, strengths=(1,))
    found.run(progress=False)
    steering.fit(registry.get("steering", "tr_ra")(steps=2), tiny.model(), pairs(), progress=False)
    assert not capsys.readouterr().err


def test_a_strength_that_overflows_costs_the_others_nothing() -> None:
    found = swept("mean_difference", strengths=(1, 1e38), target="a")
    found.run(progress=False)
    assert found.done[MethodPoint("mean_difference", 1, 1e38)].error
    cell = found.done[MethodPoint("mean_difference", 1, 1.0)]
    assert not cell.error and set(cell.values) == set(found.metrics)


# -- the next token ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["a", ["a", "b", "c"], lambda p: p.text[0]])
def test_the_targets_probability_is_the_models_own(target) -> None:
    model = tiny.model()
    found = swept(metrics=None, target=target, prompting="say ")
    wanted = ["a", "b", "c"] if isinstance(target, list) else ["a"] * 3
    wanted = ["a", "h", "9"] if callable(target) else wanted
    ids = [model.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in wanted]
    edit = fitted("ace").only("L1.resid_post").at(1.5)
    base = model.run(PROMPTS, logits="last").logits[:, -1].double().log_softmax(-1)
    for point, prompts, edits in (
        (BASE, PROMPTS, []),
        (PROMPTING, ["say " + p for p in PROMPTS], []),
        (MethodPoint("ace", 1, 1.5), PROMPTS, [edit]),
    ):
        cell = found.cell(point)
        own = model.run(prompts, edits=edits, logits="last").logits[:, -1].double().log_softmax(-1)
        want = own[range(3), ids].exp().tolist()
        assert cell.values["target_probability"] == pytest.approx(want, abs=1e-5)
        kl = (own.exp() * (own - base)).sum(-1).tolist()
        assert cell.values["next_token_kl_nats"] == pytest.approx(kl, abs=1e-5)
        assert cell.generations == ()


@pytest.mark.parametrize("target", ["ab", "", 10**6, -1, ["a"], lambda p: "ab"])
def test_a_target_that_is_not_the_next_token_of_every_prompt_is_refused(target) -> None:
    with pytest.raises(WorkbenchError, match="target="):
        swept(target=target)


# -- strengths ---------------------------------------------------------------------------------


def test_strengths_are_multiples_of_the_calibrated_one() -> None:
    found = swept("mean_difference", strengths=None, target_kl_nats=0.05)
    edit = fitted("mean_difference").only("L1.resid_post")
    unit = wb.calibrate(edit, tiny.model(), PROMPTS, 0.05, tolerance=0.1, progress=False).strength
    assert found.strengths["mean_difference"] == pytest.approx([m * unit for m in MULTIPLES])


def test_a_method_that_cannot_be_calibrated_gets_multiples_of_one_and_a_note() -> None:
    found = swept("directional_ablation", strengths=None, target_kl_nats=50)
    assert found.strengths["directional_ablation"] == [0.25, 0.5, 1.0]
    assert any("directional_ablation" in note and "calibrate" in note for note in found.notes)


def test_one_layer_and_one_strength_need_no_list() -> None:
    found = swept(layers=1, strengths=2)
    assert found.layers == [1] and set(map(tuple, found.strengths.values())) == {(2.0,)}


def test_strengths_and_sites_may_differ_by_method() -> None:
    found = swept(strengths={"ace": [0.5], "mean_difference": [2, 3]}, sites={"ace": "L1.mlp_out"})
    assert found.strengths == {"mean_difference": [2.0, 3.0], "ace": [0.5]}
    edit = found.edit_at(MethodPoint("ace", 1, 0.5))
    assert edit is not None and edit.sites == ("L1.mlp_out",)


# -- stopped and resumed -----------------------------------------------------------------------


def interrupt_after(monkeypatch, n: int) -> None:
    real, calls = tiny.model().generate, []

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(tiny.model(), "generate", stopping)


@pytest.mark.parametrize("strengths", [(-1, 1.5), None])
def test_stopped_and_resumed_it_equals_one_that_ran_through(
    monkeypatch, tmp_path: Path, strengths
) -> None:
    options = {"strengths": strengths, "target": "a", "target_kl_nats": 0.05}
    through = swept(**options)
    through.run(progress=False)
    first = swept(path=tmp_path / "s", **options)
    first.points()  # calibrates, which generates too
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.warns(UserWarning, match="stopped with"):
            first.run(progress=False)
    assert 0 < len(first.done) < len(first.points())
    second = swept(path=tmp_path / "s", **options)
    with monkeypatch.context() as patch:
        calls: list[int] = []
        real = tiny.model().generate
        patch.setattr(tiny.model(), "generate", lambda *a, **o: (calls.append(1), real(*a, **o))[1])
        second.run(progress=False)
    assert len(calls) == 1 + 12 - 4  # rows that were finished are not computed again
    assert same(through, second)
    frames = through.table().frame(), second.table().frame()
    assert frames[0].equals(frames[1])


def test_a_finished_folder_needs_no_model_run_at_all(monkeypatch, tmp_path: Path) -> None:
    first = swept(path=tmp_path, strengths=None, target_kl_nats=0.05)
    first.run(progress=False)
    second = swept(path=tmp_path, strengths=None, target_kl_nats=0.05)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        patch.setattr("workbench.interventions.fit.record", None)
        second.run(progress=False)
    assert same(first, second)
    assert first.notes == second.notes


@pytest.mark.parametrize(
    "other",
    [
        {"strengths": (1,)},
        {"layers": [1]},
        {"metrics": ("length",)},
        {"prompts": ["abc"]},
        {"max_new_tokens": 4},
        {"target": "a"},
        {"prompting": "say "},
        {"control_seed": 1},
        {"decoder": wb.decoding.Sample()},
        {"sites": "L*.mlp_out"},
        {"methods": ("ace",)},
    ],
)
def test_a_sweep_of_other_settings_in_the_folder_is_refused(tmp_path: Path, other) -> None:
    swept(path=tmp_path)
    swept(path=tmp_path)
    with pytest.raises(FileRefused, match="other settings"):
        swept(**{"path": tmp_path, **other})


def test_a_folder_of_something_else_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(FileRefused, match="no sweep"):
        swept(path=tmp_path / "a")
    swept(path=tmp_path / "b").cell(BASE)
    file = tmp_path / "b" / "row-base.json"
    short = [{"values": {"length": [1.0]}, "error": "", "generations": []}]
    for damage in ("{", "[]", "null", "5", json.dumps([{"values": {}}]), json.dumps(short)):
        file.write_text(damage)
        with pytest.raises(FileRefused, match="damaged"):
            swept(path=tmp_path / "b").cell(BASE)


@pytest.mark.parametrize("damage", ["[]", "null", "5", "{}", '{"strengths": ["x"], "notes": []}'])
def test_damaged_strengths_and_settings_are_refused(tmp_path: Path, damage: str) -> None:
    options = {"strengths": None, "target_kl_nats": 0.05, "path": tmp_path}
    assert swept("ace", **options).strengths
    (tmp_path / "strengths-00.json").write_text(damage)
    with pytest.raises(FileRefused, match=r"damaged file strengths-00\.json.*delete that file"):
        _ = swept("ace", **options).strengths
    (tmp_path / "sweep.json").write_text(damage)
    with pytest.raises(FileRefused, match="damaged|other settings"):
        swept("ace", **options)


def test_a_method_that_failed_is_tried_again(monkeypatch, tmp_path: Path) -> None:
    """A mended method, or memory that is free by then: its old error must not stand for good."""
    options = {"strengths": None, "target_kl_nats": 0.05, "path": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(steering.MeanDifference, "fit", Broken.fit)
        first = swept("mean_difference", **options)
        first.run(progress=False)
    assert all(c.error for p, c in first.done.items() if p != BASE)
    second = swept("mean_difference", **options)
    second.run(progress=False)
    assert not any(cell.error for cell in second.done.values())
    assert len(second.strengths["mean_difference"]) == len(MULTIPLES)


# -- what is read off --------------------------------------------------------------------------


def test_the_best_point_has_the_best_mean_within_the_bounds() -> None:
    found = swept(metrics=("kl_nats", "distinct_n"), strengths=(0.5, 1, 4))
    found.run(progress=False)
    frame = found.table().frame()
    means = frame[frame.kind == "edit"].pivot_table(
        index=["method", "layer", "strength"], columns="metric", values="value"
    )
    best = found.best("distinct_n")
    assert not best.control
    assert means.loc[best[:3]].distinct_n == pytest.approx(means.distinct_n.max())
    bound = float(means.kl_nats.median())
    bounded = found.best("distinct_n", at_most={"kl_nats": bound}, method="ace")
    assert bounded.method == "ace" and means.loc[bounded[:3]].kl_nats <= bound
    fit = means[(means.kl_nats <= bound)].loc["ace"]
    assert means.loc[bounded[:3]].distinct_n == pytest.approx(fit.distinct_n.max())
    with pytest.raises(WorkbenchError, match="better and worse"):
        found.best("kl_nats")
    with pytest.raises(WorkbenchError, match="no cell"):
        found.best("distinct_n", at_most={"kl_nats": -1})
    with pytest.raises(WorkbenchError, match="nearest"):
        found.best("distinct")


def test_of_equals_the_best_moves_the_model_least() -> None:
    """Not the one with the smaller number: strengths of two methods are in two units."""
    found = swept(control=False)
    nats = {("ace", -1.0): 0.1, ("ace", 1.5): 0.01}
    for point in found.points()[1:]:
        kl = nats.get((point.method, point.strength), 0.5)
        found.done[point] = Cell({"length": [1.0], "kl_nats": [kl]})
    found._job.metrics["distinct_n"] = registry.get("metrics", "distinct_n")()
    for point in found.points()[1:]:
        found.done[point].values["distinct_n"] = [1.0]
    best = found.best("distinct_n")
    assert (best.method, best.strength) == ("ace", 1.5)


def test_the_table_has_every_setting_and_says_what_made_it() -> None:
    found = sweep(
        tiny.model(), pairs(), "ace", prompts=PROMPTS, metrics=METRICS, strengths=(1,),
        max_new_tokens=4, prompting="say ", progress=False,
    )  # fmt: skip
    table = found.table()
    frame = table.frame()
    assert set(frame.kind) == {"base", "prompting", "edit", "control"}
    assert len(frame) == 3 * 2 * (2 + 3 * 2)
    assert table.provenance["not_computed"] == 0
    assert table.provenance["strength_units"] == {"ace": fitted("ace").unit}
    assert len(table.generations) == 3 * 8
    assert steering.sweep is sweep


def test_notes_say_what_is_missing() -> None:
    flattered = MethodSweep(tiny.model(), pairs(), "ace", strengths=(1,))
    assert any("fitted on" in note for note in flattered.notes)
    assert any("prompting" in note for note in flattered.notes)
    assert not swept(prompting="say ").notes


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"methods": []}, "no method"),
        ({"methods": ["ace", "ace"]}, "twice"),
        ({"methods": {"base": "ace"}}, "base"),
        ({"methods": "acee"}, "nearest"),
        ({"layers": []}, "layers"),
        ({"layers": [7]}, "layers"),
        ({"strengths": []}, "strengths"),
        ({"strengths": {"ace": [float("nan")]}}, "strengths"),
        ({"strengths": {"pca": [1.0]}}, "nearest"),
        ({"handed": {"acee": {"dictionary": 1}}}, "nearest"),
        ({"prompting": "9" * 200}, "longer than the context"),
        ({"strengths": range(1, 400)}, "too many cells"),
        ({"metrics": []}, "nothing to measure"),
        ({"metrics": ["accuracy"]}, "no task"),
        ({"prompts": []}, "prompt"),
    ],
)
def test_bad_input(options, match) -> None:
    with pytest.raises(WorkbenchError, match=match):
        swept(**options)


def test_a_point_of_no_method_is_refused() -> None:
    for ask in (swept().cell, swept().edit_at):
        with pytest.raises(WorkbenchError, match="nearest"):
            ask(MethodPoint("acee", 0, 1.0))


def test_an_empty_class_is_told_in_every_cell() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = MethodSweep(
            tiny.model(), ["abc", "def"], "ace", prompts=PROMPTS, metrics=METRICS, strengths=(1,),
            max_new_tokens=3,
        )  # fmt: skip
        assert "empty" in found.cell(MethodPoint("ace", 0, 1.0)).error
    with pytest.raises(EditError, match="empty"):
        found.edit_at(MethodPoint("ace", 0, 1.0))


# -- what the folder compares ------------------------------------------------------------------


class Holder:
    """Something handed over that is no plain value."""

    def __init__(self, numbers: torch.Tensor, more: object = None):
        self.numbers, self.more = numbers, more


def bound(limit: int):
    return lambda _prompt, text: len(text) > limit


def doubling(x: int) -> int:
    return 2 * x


def tripling(x: int) -> int:
    return 3 * x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-7])),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (Holder(torch.zeros(2)), Holder(torch.ones(2))),
        (Holder(torch.zeros(2), bound(1)), Holder(torch.zeros(2), bound(2))),
        (doubling, tripling),
        (partial(doubling, 1), partial(doubling, 2)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        ({1, 2}, {1, 3}),
        ("ab", ["a", "b"]),
        (wb.decoding.Sample(temperature=0.5), wb.decoding.Sample(temperature=1.0)),
    ],
)
def test_what_differs_is_told_apart(one, other) -> None:
    assert told(one) == told(one) and told(one) != told(other)
    json.dumps(told(one))


def test_the_same_made_again_is_told_alike() -> None:
    assert told(Holder(torch.ones(2), bound(1))) == told(Holder(torch.ones(2), bound(1)))
    inside = Holder(torch.ones(1))
    inside.more = inside
    assert told(inside)["more"] == "itself"


def test_what_cannot_be_told_is_refused_in_words() -> None:
    with pytest.raises(WorkbenchError, match="leave path= out"):
        told([iter(())])


def test_other_things_handed_over_are_refused_by_the_folder(tmp_path: Path) -> None:
    def asked(number: float, **options) -> MethodSweep:
        holder = Holder(torch.full((2,), number))
        return swept(handed={"ace": {"dictionary": holder}}, **options)

    asked(1.0, path=tmp_path)
    asked(1.0, path=tmp_path)
    with pytest.raises(FileRefused, match="other settings"):
        asked(2.0, path=tmp_path)
    asked(2.0)
