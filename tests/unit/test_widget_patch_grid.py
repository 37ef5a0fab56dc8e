"""PatchGrid: its runs against runs by hand, its edits, its code, its mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.locate import ActivationPatching, WriteNorms
from workbench.locate.base import Axis, Cases, Localiser, Scores, layer_axis, pos_axis
from workbench.patching.cases import cases_of
from workbench.patching.find import find
from workbench.patching.map import Map
from workbench.tensors import Intervention
from workbench_widgets import PatchGrid
from workbench_widgets.frames import unpack
from workbench_widgets.patch_grid import maps

N_LAYERS = 3


@dataclass(frozen=True)
class Patching(Localiser):
    """Denoising of the stream, a run per place: slow and plain."""

    needs: ClassVar[Any] = ("run", "dims", "decode")
    reads: ClassVar[Any] = ("answer", "foil", "corrupted")
    direction: str = "denoising"

    def find(
        self, cases: Cases, *, run: Callable[..., Any], dims: Any, decode: Callable[[int], str]
    ) -> Scores:
        asked = cases.swapped if self.direction == "denoising" else cases
        assert asked.corrupted is not None and cases.corrupted is not None
        record = "L*.resid_pre"
        own, other = (run(side, record=record) for side in (asked.clean, asked.corrupted))
        width, n = cases.clean.ids.shape[1], dims.n_layers
        shift = {
            f"L{i}.resid_pre": asked.aligned(other[f"L{i}.resid_pre"]) - own[f"L{i}.resid_pre"]
            for i in range(n)
        }
        axes = (layer_axis(n), pos_axis(cases, decode))

        def edit(layer: int, pos: int) -> Intervention:
            site = f"L{layer}.resid_pre[pos={pos}]"
            if pos == 3:
                raise WorkbenchError(
                    "edit", "moves about", expected="a place", got="no", do="leave"
                )
            mean = shift[f"L{layer}.resid_pre"][:, pos].mean(0)
            return Intervention("custom", "affine", {site: {"shift": mean}}, name="patch")

        def metric(tokens: Any, edits: Any = ()) -> torch.Tensor:
            logits = run(tokens, edits=edits, logits="last").logits[:, -1]
            return cases.metric(logits, "logit_difference")

        grid = torch.stack(
            [
                torch.stack(
                    [self._patched(cases, asked, run, layer, pos) for pos in range(width)], 1
                )
                for layer in range(n)
            ],
            1,
        )
        clean, corrupted = metric(cases.clean), metric(cases.corrupted)
        start = corrupted if self.direction == "denoising" else clean
        end = clean if self.direction == "denoising" else corrupted
        recovered = (grid - start[:, None, None]) / (end - start)[:, None, None]
        control = Scores({"recovered": recovered[:, :1] * 0 + 0.25}, (Axis("layer", (0,)), axes[1]),
                         {"recovered": "fraction"})  # fmt: skip
        return Scores(
            {"recovered": recovered, "logit_difference": grid},
            axes,
            {"recovered": "fraction", "logit_difference": "logits"},
            caption="made for a test",
            edit=edit,
            also={"control": control},
        )

    def _patched(self, cases: Cases, asked: Cases, run: Any, layer: int, pos: int) -> torch.Tensor:
        site = f"L{layer}.resid_pre"
        values = asked.aligned(run(asked.corrupted, record=[site])[site])
        patch = Intervention(
            "custom", "set", {f"{site}[pos={pos}]": {"value": values}}, conditional=True
        )
        logits = run(asked.clean, edits=[patch], logits="last").logits[:, -1]
        return cases.metric(logits, "logit_difference")


Patching.__module__ = "workbench.locate.activation_patching"


def pairs(n: int = 3) -> Any:
    sides = [("abc", "xbc"), ("add", "ydd"), ("a-c", "z-c")][:n]
    clean, corrupted = zip(*sides, strict=True)
    return wb.prompts.counterfactuals(
        clean=clean, corrupted=corrupted, answers=["d", "e", "d"][:n], foils="q"
    )


@cache
def found_on(model: wb.Model, direction: str = "denoising") -> Map:
    return find(Patching(direction), model, pairs(), progress=False)


def p_of(found: dict[str, Any], run: str, text: str) -> float:
    (row,) = [row for row in found["tokens"] if row["text"] == text]
    return row["p"][found["runs"].index(run)]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_an_opened_place_shows_the_runs_made_by_hand(direction: str) -> None:
    model = tiny.model()
    grid = PatchGrid.of(found_on(model, direction), model, pairs(), top=96).choose(layer=1, pos=1)
    found = grid.frame["opened"]
    assert found["runs"] == ["base", "source", "patched", "edited"]
    cases = cases_of(model, pairs())
    base, source = (
        (cases.corrupted, cases.clean)
        if direction == "denoising"
        else (cases.clean, cases.corrupted)
    )
    site = "L1.resid_pre"
    values = model.run(source, record=[site])[site]
    patch = Intervention("custom", "set", {f"{site}[pos=1]": {"value": values}})
    by_hand = {
        "base": model.run(base, logits="last"),
        "source": model.run(source, logits="last"),
        "patched": model.run(base, edits=[patch], logits="last"),
        "edited": model.run(base, edits=[grid.to_record()], logits="last"),
    }
    for i, (run, trace) in enumerate(by_hand.items()):
        p = trace.logits[:, -1].softmax(-1)
        assert p_of(found, run, "m") == pytest.approx(
            float(p[:, tiny_id(model, "m")].mean()), abs=1e-5
        )
        assert cases.answer is not None
        own = p.gather(-1, cases.answer[:, None]).mean()
        (row,) = [row for row in found["tokens"] if row["mark"] == "answer"]
        assert row["own"] and row["p"][i] == pytest.approx(float(own), abs=1e-5)
        gap = cases.metric(trace.logits[:, -1], "logit_difference")
        assert found["difference"][i][0] == pytest.approx(float(gap.mean()), abs=1e-4)
    assert p_of(found, "base", "m") != pytest.approx(p_of(found, "patched", "m"), abs=1e-4)
    # the foil is one token for all cases, so that it is no row of its own further down
    assert [row["mark"] for row in found["tokens"]].count("foil") == 1
    assert [row["text"] for row in found["tokens"]].count("q") == 1


def tiny_id(model: wb.Model, text: str) -> int:
    (id_,) = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return id_


def test_a_patch_recovers_what_the_map_says() -> None:
    """The cell's number is re-obtained from the opened runs of each case."""
    model = tiny.model()
    found = found_on(model)
    grid = PatchGrid.of(found, model, pairs())
    for case in range(3):
        opened = grid.choose(layer=0, pos=1, case=case).frame["opened"]
        base, source, patched, _ = (gap[0] for gap in opened["difference"])
        one = grid.frame["one"][0, 0, 1]
        assert one == pytest.approx((patched - base) / (source - base), abs=1e-3)
        assert opened["cases"] == 1 and len(opened["tokens"][0]["p"]) == 4


def test_tokens_and_control_of_a_place_are_named() -> None:
    model = tiny.model()
    grid = PatchGrid.of(found_on(model), model, pairs()).choose(layer=0, pos=1)
    opened = grid.frame["opened"]
    assert opened["tokens_at"] == {"clean": ["a"], "corrupted": ["x", "y", "z"]}
    assert opened["site"] == "L0.resid_pre" and not opened["does_nothing"]
    assert [(row["of"], row["mean"]) for row in opened["beside"]] == [("control", 0.25)]
    same = grid.choose(layer=0, pos=2, case=0).frame["opened"]
    assert same["tokens_at"] == {"clean": ["b"], "corrupted": ["b"]} and same["does_nothing"]
    assert same["beside"][0]["mean"] == 0.25
    assert grid.choose(layer=1, pos=2).frame["opened"]["beside"] == []


def test_a_place_without_an_edit_says_why_and_shows_its_patch() -> None:
    model = tiny.model()
    grid = PatchGrid.of(found_on(model), model, pairs()).choose(layer=1, pos=3)
    opened = grid.frame["opened"]
    assert (
        opened["runs"] == ["base", "source", "patched"] and opened["no_edit"] == "edit: moves about"
    )
    with pytest.raises(WorkbenchError, match="moves about"):
        grid.to_record()


def test_texts_that_name_places_are_read() -> None:
    place = {"layer": 3, "pos": -2}
    for label in ("L3.resid_pre pos -2", "resid_pre L3 pos -2", "L3 pos -2"):
        assert maps._says(label, place)
    for label in ("L3.resid_pre pos 2", "L13 pos -2", "L3", "control"):
        assert not maps._says(label, place)
    assert maps._says("L3.z head 1", {"layer": 3, "head": 1})
    assert not maps._says("attn_out L3 pos -2", {"part": "mlp_out", **place})


def test_the_record_is_the_maps_edit_at_the_sliders_strength() -> None:
    model = tiny.model()
    found = found_on(model)
    grid = PatchGrid.of(found, model, pairs()).choose(layer=2, pos=1, strength=0.5)
    wanted = found.edit(layer=2, pos=1)
    made = grid.to_record()
    (site,) = wanted.tensors
    assert made.strength == 0.5 and made.sites == wanted.sites
    assert torch.equal(made.tensors[site]["shift"], wanted.tensors[site]["shift"])
    at_zero = grid.choose(layer=2, pos=1, strength=0).frame["opened"]
    assert at_zero["kl"][3] == 0 and at_zero["tokens"][0]["p"][0] == at_zero["tokens"][0]["p"][3]
    grid.ask(strength=1.0)
    assert grid.frame["opened"]["kl"][3] > 0


def test_a_method_is_run_on_the_worker() -> None:
    model = tiny.model()
    grid = PatchGrid(model, pairs(), Patching())
    found = found_on(model)
    assert np.allclose(grid.found.grid(), found.grid())
    assert np.allclose(grid.frame["mean"][0], found.grid(), atol=1e-6)
    low = np.asarray(found.columns["low"]).reshape(2, 3, 4)
    assert np.allclose(grid.frame["low"], low, atol=1e-6)
    assert [a["name"] for a in grid.meta["axes"]] == ["layer", "pos"]
    assert repr(grid).startswith(
        "PatchGrid(activation_patching: 3 layer x 4 pos, 3 cases; recovered"
    )


def test_a_method_that_changes_nothing_shows_its_numbers_alone() -> None:
    model = tiny.model()
    grid = PatchGrid(model, ["abc", "abd"], "write_norms").choose(layer=1, pos=2)
    opened = grid.frame["opened"]
    assert opened["runs"] == ["base"] and opened["difference"] == [None]
    assert grid.meta["measures"][0]["name"] == "attention" and not grid.meta["edits"]
    with pytest.raises(WorkbenchError, match="changes nothing"):
        grid.to_record()
    scope: dict[str, Any] = {"model": model}
    exec(grid.to_code(), scope)
    assert np.allclose(scope["found"].grid(), grid.found.grid())
    unpacked = unpack(grid.precompute(places=2).sweep)
    assert len(unpacked["opened"]) == 3 and unpacked["grid"] == [1.0]


def test_padded_cases_are_patched_at_their_own_columns() -> None:
    """Left padding: a label counts from the end, and a case without that place is left alone."""
    model = tiny.model()
    cases = wb.prompts.counterfactuals(
        clean=["abc", "hello"], corrupted=["xbc", "jello"], answers=["d", "e"], foils="q"
    )
    found = find(Patching(), model, cases, progress=False)
    grid = PatchGrid.of(found, model, cases)
    own = cases_of(model, cases)
    at = int((~own.clean.mask[0]).sum()) + 1 - own.clean.ids.shape[1]
    assert found.scores.axes[1].labels[0] == -6
    opened = grid.choose(layer=0, pos=at).frame["opened"]
    assert opened["tokens_at"] == {"clean": ["a", "l"], "corrupted": ["x", "l"]}
    padded = grid.choose(layer=0, pos=-6, case=0).frame["opened"]
    assert padded["tokens_at"]["clean"] == [] and padded["does_nothing"]


def test_lengths_that_differ_are_patched_as_the_user_aligned_them() -> None:
    model = tiny.model()
    cases = wb.prompts.counterfactuals(
        clean=["abcd"], corrupted=["xd"], answers=["d"], foils="q", align="end"
    )

    def edit(layer: int) -> Intervention:
        shift = torch.ones(32)
        return Intervention("custom", "affine", {f"L{layer}.resid_post": {"shift": shift}})

    axes = (layer_axis(3), Axis("pos", (3, 4)))
    found = handmade(model, cases, lambda layer, pos: edit(layer), axes)
    opened = PatchGrid.of(found, model, cases).choose(layer=0, pos=4).frame["opened"]
    assert opened["tokens_at"] == {"clean": ["d"], "corrupted": ["d"]}
    assert opened["does_nothing"]  # the embedding of the same token at another position: rotary
    opened = PatchGrid.of(found, model, cases).choose(layer=2, pos=4).frame["opened"]
    by_hand = dict(zip(opened["runs"], opened["difference"], strict=True))
    assert abs(by_hand["patched"][0] - by_hand["base"][0]) > 1e-3


def handmade(model: wb.Model, prompts: Any, edit: Any, axes: Any = None, method: Any = None) -> Map:
    """A map of numbers without a method."""
    from workbench.patching.map import as_map

    cases = cases_of(model, prompts)
    axes = axes or (layer_axis(3),)
    sizes = [len(axis.labels) for axis in axes]
    values = torch.arange(len(cases) * int(np.prod(sizes))).float().reshape(len(cases), *sizes)
    method = method or Patching()
    return as_map(Scores({"m": values}, axes, {"m": "x"}, edit=edit), cases, method, model)


def test_panels_are_axes_before_the_last_two() -> None:
    model = tiny.model()
    axes = (Axis("part", ("attn", "mlp")), layer_axis(3), Axis("head", (0, 1, 2, 3)))
    grid = PatchGrid.of(handmade(model, pairs(), None, axes, WriteNorms()), model, pairs())
    assert grid.frame["mean"].shape == (1, 2, 3, 4)
    grid.view = {"panel": [1]}
    assert "part mlp" in grid._still()
    assert grid.choose(part="mlp", layer=2, head=3).place == {"part": "mlp", "layer": 2, "head": 3}
    assert grid.choose(part="mlp", layer=2, head=3).frame["opened"]["tokens_at"] == {}


def test_precomputed_places_are_those_of_fresh_runs() -> None:
    model = tiny.model()
    grid = PatchGrid.of(found_on(model), model, pairs()).choose(layer=2, pos=0)
    sweep = unpack(grid.precompute([0.0, 2.0], places=3).sweep)
    assert sweep["grid"] == [0.0, 1.0, 2.0] and "2,0" in sweep["opened"]
    assert len(sweep["opened"]) == 4
    assert np.allclose(sweep["cases"].mean(0)[0], grid.found.grid(), atol=1e-5)
    (layer, pos) = map(int, next(iter(sweep["opened"])).split(","))
    fresh = PatchGrid.of(found_on(model), model, pairs()).choose(layer=layer, pos=pos, strength=2)
    assert sweep["opened"][f"{layer},{pos}"][2] == fresh.frame["opened"]
    with pytest.raises(WorkbenchError, match="needs strengths"):
        grid.precompute([])


@pytest.mark.parametrize("case", [-1, 3, "x", 1.0, True])
def test_a_case_there_is_not_is_said(case: Any) -> None:
    grid = PatchGrid.of(found_on(tiny.model()), tiny.model(), pairs())
    with pytest.raises(WorkbenchError, match="no such case"):
        grid.choose(layer=0, pos=0, case=case)
    grid.ask(case=case)
    assert "no such case" in grid.status["msg"]
    grid.ask(case=None)
    assert grid.status["state"] == "idle"


def test_mistakes_are_said_in_words() -> None:
    model = tiny.model()
    found = found_on(model)
    grid = PatchGrid.of(found, model, pairs())
    with pytest.raises(UnknownName, match="axis"):
        grid.choose(layer=0, position=1)
    with pytest.raises(UnknownName, match="pos"):
        grid.choose(layer=0, pos=9)
    with pytest.raises(WorkbenchError, match="no place chosen"):
        grid.to_record()
    grid.ask(place=[0, 9])
    assert "no such place" in grid.status["msg"]
    grid.ask(place=[0, 1], strength="much")
    assert "finite number" in grid.status["msg"]
    with pytest.raises(WorkbenchError, match="3 cases"):
        PatchGrid.of(found, model, pairs(2))
    with pytest.raises(WorkbenchError, match="n_layers"):
        PatchGrid.of(
            found, wb.load(tiny.module("llama", num_hidden_layers=2), tiny.tokenizer()), pairs()
        )
    with pytest.raises(WorkbenchError, match="a Map"):
        PatchGrid.of("activation", model, pairs())  # type: ignore[arg-type]
    with pytest.raises(WorkbenchError, match="have no answer"):
        PatchGrid(model, ["a", "b"], Patching())
    with pytest.raises(UnknownName):
        PatchGrid(model, pairs(), "activation_pathing")
    with pytest.raises(UnknownName, match="no such method"):
        PatchGrid(model, pairs(), 7)  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        PatchGrid(model, "a" * 4000, "write_norms")


def test_a_method_that_fails_says_so() -> None:
    @dataclass(frozen=True)
    class Broken(Localiser):
        def find(self, cases: Cases, **handed: Any) -> Scores:  # noqa: ARG002
            raise WorkbenchError("broken", "broke", expected="work", got="none", do="mend it")

    grid = PatchGrid(tiny.model(), ["a"], Broken())
    assert grid.status["state"] == "error" and "broke" in grid.status["msg"]
    with pytest.raises(WorkbenchError, match="no map yet"):
        _ = grid.found
    assert "not computed" in grid._still()


def test_code_gives_the_same_without_the_widget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = wb.load("reasoner")
    cases = wb.prompts.counterfactuals(
        clean=["add 12+34\n", "add 15+31\n"], corrupted=["add 52+34\n", "add 45+31\n"],
        answers=["2", "5"], foils=["4", "3"],
    )  # fmt: skip
    grid = PatchGrid(model, cases, "activation_patching").choose(layer=1, pos=5, strength=0.5)
    assert grid.frame["opened"]["beside"][0]["of"] == "control"
    scope: dict[str, Any] = {}
    exec(grid.to_code(), scope)
    assert torch.equal(scope["edit"].tensors[grid.to_record().sites[0]]["shift"],
                       grid.to_record().tensors[grid.to_record().sites[0]]["shift"])  # fmt: skip
    answer = cases_of(model, cases).answer
    assert answer is not None
    own = scope["p"].gather(-1, answer[:, None]).mean()
    (row,) = [row for row in grid.frame["opened"]["tokens"] if row["mark"] == "answer"]
    assert row["p"][3] == pytest.approx(float(own), abs=1e-5)


def test_the_still_is_small_and_escaped() -> None:
    model = tiny.model()
    axes = (Axis("part", ("<b>",)), layer_axis(60), Axis("pos", tuple(range(4)), ("<i>",) * 4))
    grid = PatchGrid.of(handmade(model, pairs(), None, axes), model, pairs())
    assert len(grid._still().encode()) < 20_000
    assert "<i>" not in grid._still() and "<b>" not in grid._still()
    opened = PatchGrid.of(found_on(model), model, pairs()).choose(layer=0, pos=1)._still()
    assert "patched" in opened and "logit difference" in opened and len(opened.encode()) < 20_000


@pytest.mark.parametrize(
    "name, runs",
    [
        ("attribution_patching", ["base", "source", "patched", "edited"]),
        ("path_patching", ["base", "source", "edited"]),
        ("head_ablation", ["base", "corrupted", "edited"]),
        ("write_norms", ["base", "corrupted"]),
    ],
)
def test_real_methods_open_on_their_own_base_run(name: str, runs: list[str]) -> None:
    model = tiny.model()
    grid = PatchGrid(model, pairs(), name)
    (place,) = maps.best(grid.found, 1)
    opened = grid.choose(**maps.labels(grid.found, place)).frame["opened"]
    assert opened["runs"] == runs
    cases = cases_of(model, pairs())
    options = grid.found.provenance["options"]
    base = cases.corrupted if options.get("direction") == "denoising" else cases.clean
    p = model.run(base, logits="last").logits[:, -1].softmax(-1)
    assert cases.answer is not None
    own = float(p.gather(-1, cases.answer[:, None]).mean())
    assert opened["tokens"][0]["p"][0] == pytest.approx(own, abs=1e-5)
    if "edited" in runs:
        edited = model.run(base, edits=[grid.to_record()], logits="last").logits[:, -1].softmax(-1)
        own = float(edited.gather(-1, cases.answer[:, None]).mean())
        assert opened["tokens"][0]["p"][-1] == pytest.approx(own, abs=1e-5)


def test_a_patch_of_a_head_is_the_maps_number() -> None:
    model = tiny.model()
    found = find(ActivationPatching(part="z", per="case"), model, pairs(), progress=False)
    grid = PatchGrid.of(found, model, pairs()).choose(layer=1, head=2, case=1)
    base, source, patched, _ = (gap[0] for gap in grid.frame["opened"]["difference"])
    one = grid.frame["one"][0, 1, 2]
    assert one == pytest.approx((patched - base) / (source - base), abs=1e-3) and one != 0
