"""TransferMap's Python side: a forecast of planted numbers, what is chosen of it, its files, its mistakes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import workbench as wb
from tests import tiny
from workbench import sae
from workbench.errors import UnknownName, WorkbenchError
from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dashboards.corpus import Corpus
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens
from workbench.sae.transfer.forecasts import Forecast
from workbench.sae.transfer.raw import coordinates
from workbench.sae.transfer.shifts import Shift
from workbench_widgets import TransferMap
from workbench_widgets.frames import unpack
from workbench_widgets.transfer_map import reading

HOSTILE = "<img src=x onerror=window.hit=1>"
SOURCES = ("add", "sort", "judge")
TARGETS = ("add", "sub", "mul", "sort", "judge")
WIDTH, NAME, D = 24, "tiny", 32
# of each source: feature j adds TERMS[s][t, k] for its k-th dimension
DIMS = {"add": (3, 7, 1, 20), "sort": (7, 2), "judge": (5, 6, 9)}
CHANGE = np.array(
    [
        [0.3, -0.2, 0.1, 0.02, math.nan],
        [0.05, 0.1, 0.15, 0.4, 0.2],
        [math.nan] * 5,
    ]
)


def forecast(measured: bool = True, names: tuple[str, ...] = TARGETS, **changes: Any) -> Forecast:
    """Planted numbers: what a feature adds is known, and a score is their sum."""
    rng = np.random.default_rng(0)
    sources = tuple(name for name in SOURCES)
    terms = {s: rng.uniform(0.1, 1, (len(names), len(DIMS[s]))) for s in sources}
    scores = np.stack([terms[s].sum(1) for s in sources])
    shifts = {}
    for s in sources:
        delta = torch.zeros(WIDTH)
        delta[list(DIMS[s])] = torch.arange(len(DIMS[s]), 0, -1).float()
        shifts[s] = Shift(DIMS[s], delta, None, "query_tokens", 40, NAME, s)
    random = rng.uniform(0, 1, (50, *scores.shape))
    made = Forecast(
        sources, names, scores, scores - 0.1, scores + 0.2, random, {}, shifts, "sum of activation",
        provenance={"kind": "act", "n_prompts": dict.fromkeys(names, 16)}, terms=terms,
    )  # fmt: skip
    if measured:
        made = dataclasses.replace(
            made, measured=CHANGE, measured_low=CHANGE - 0.05, measured_high=CHANGE + 0.05
        )
    return dataclasses.replace(made, **changes)


def board(labels: str = "digit", features: tuple[int, ...] = (1, 2, 3, 5, 6, 7)) -> Dashboard:
    """Features over ten tokens of two prompts; feature 6 never fires, 9 and 20 are not there."""
    n, text = len(features), "add 1+2=3\n"
    ids = np.arange(10)
    corpus = Corpus(ids, np.repeat([0, 1], 5), np.tile(np.arange(5), 2), dict(enumerate(text)))
    dense = np.zeros((10, n), np.float32)
    for i, feature in enumerate(features):
        if feature != 6:
            dense[4, i], dense[7, i] = feature, feature / 2
    rows = np.array([[-1, -1] if f == 6 else [4, 7] for f in features])
    values = np.array([[0, 0] if f == 6 else [f, f / 2] for f in features], np.float32)
    none = np.full((n, 0), -1)
    return Dashboard(
        NAME, "L1.resid_post", "tiny", 10, list(features), (dense > 0).mean(0), dense.max(0), dense.max(0),
        np.zeros((n, 4), int), rows, values, corpus, np.tile([1, 2], (n, 1)), np.ones((n, 2), np.float32),
        np.tile([3, 4], (n, 1)), -np.ones((n, 2), np.float32), none, none.astype(np.float32), none,
        none.astype(np.float32),
        [f"{labels} {f}" for f in features], np.ones(n, np.float32), np.zeros(n, np.float32),
        sparse.csc_array(dense), dict(enumerate(text)),
    )  # fmt: skip


def dictionary(architecture: str = "jumprelu", width: int = WIDTH, name: str = NAME) -> Dictionary:
    """Random weights of one of SAELens' modules."""
    config = {
        "architecture": architecture, "d_in": D, "d_sae": width, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    }  # fmt: skip
    config |= {"k": 4} if architecture == "topk" else {}
    module = sae_lens().SAE.from_dict(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in module.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (key[0] == "W") + 1e-3)
    module = module.eval().requires_grad_(False)
    site = "L1.resid_post"
    return Dictionary(module, site, site, tiny.model("gpt2").fingerprint, name)


def row_of(one: TransferMap, source: str, target: str) -> tuple[int, int]:
    return SOURCES.index(source), TARGETS.index(target)


# what is shown


def test_the_frame_holds_the_forecast_and_the_measurement() -> None:
    given = forecast()
    frame = TransferMap(given).frame
    for name, want in (
        ("score", given.scores),
        ("score_low", given.low),
        ("score_high", given.high),
        ("random_low", np.quantile(given.random, 0.025, axis=0)),
        ("random_high", np.quantile(given.random, 0.975, axis=0)),
        ("change", CHANGE),
        ("change_low", CHANGE - 0.05),
    ):
        assert np.allclose(frame[name], want, atol=1e-6, equal_nan=True), name
    assert frame["score"].shape == (3, 5) and frame["mix"].shape == (4, 5)
    assert "opened" not in frame


def test_ranks_are_those_of_scores_minus_those_of_sizes() -> None:
    scores = np.array([[9.0, 1, 2, 3, 4], [4, 3, 2, 1, 5], [1, 1, 1, 1, 1]])
    found = reading.ranks(forecast(scores=scores))
    # add: sub, mul and sort were measured (sizes 0.2, 0.1, 0.02), and forecast in the other order
    assert found[0, 1:4].tolist() == [1 - 3, 2 - 2, 3 - 1]
    assert np.isnan(found[0, [0, 4]]).all(), "the source itself, and what was not measured"
    assert found[1, [0, 1, 2, 4]].tolist() == [3 - 1, 2 - 2, 1 - 3, 4 - 4]
    assert np.isnan(found[2]).all()
    assert np.isnan(reading.ranks(forecast(measured=False))).all()


def test_the_words_are_the_reports() -> None:
    given = forecast()
    report = given.report().frame().set_index("source")
    stats = TransferMap(given).frame["stats"]
    assert len(stats) == 4
    for name, found in zip((*SOURCES[:2], None, "all sources"), stats, strict=True):
        if name is None:
            assert found["r"] is None and "No correlation over 0 targets" in found["words"][0]
            continue
        row, said = report.loc[name], " | ".join(found["words"]).replace("−", "-")
        assert found["r"] == pytest.approx(row["r"])
        assert f"r = {row['r']:.2f}" in said and f"p = {row['p']:.2g}" in said
        assert f"Spearman {row['spearman']:.2f}" in said
        assert f"r from {row['random_low']:.2f} to {row['random_high']:.2f}" in said
    assert "[" not in stats[0]["words"][0], "three pairs have no interval"
    assert f"[{report.loc['sort', 'low']:.2f}".replace("-", "−") in stats[1]["words"][0]
    assert "each source standardised" in stats[3]["words"][0] and "exact" in stats[0]["words"][1]


@pytest.mark.parametrize(("r", "where"), [(0.9, "above"), (0.1, "inside"), (-0.9, "below")])
def test_it_says_where_r_lies_among_random_features(r: float, where: str) -> None:
    row = {"source": "add", "n": 8, "r": r, "low": 0.0, "high": 1.0, "p": 0.5, "exact": True}
    row |= {"spearman": r, "random_low": -0.5, "random_high": 0.5, "random_p": 0.25}
    assert f"is {where} this band" in reading.in_words(row)[-1]
    controls = {"r least shifted": -0.25, "r most active": 0.5, "r unknown": math.nan}
    said = reading.in_words(row | controls)[-1]
    assert said == "r of other features: least shifted −0.25, most active 0.50"


def test_the_mix_is_the_forecasts() -> None:
    given = forecast()
    mix = TransferMap(given).frame["mix"]
    assert mix.sum(1).tolist() == pytest.approx([1] * 4)
    assert mix[1].tolist() == pytest.approx(given.mix("sort").columns["share"])
    assert mix[3].tolist() == pytest.approx(given.mix().columns["share"])
    signed = TransferMap(forecast(scores=given.scores - 2)).frame["mix"]
    assert np.isnan(signed).all()


def test_a_forecast_alone_is_shown_without_a_measurement() -> None:
    one = TransferMap(forecast(measured=False))
    assert not one.meta["measured"] and one.frame["stats"] == [None] * 4
    assert np.isnan(one.frame["change"]).all() and "not measured" in repr(one)
    record = one.choose("add", "sub").to_record()
    assert math.isnan(record.change) and not math.isnan(record.score)
    assert "No measured changes" in one._still()


# an opened pair


def test_an_opened_pair_lists_the_features_that_carry_its_score() -> None:
    given = forecast()
    one = TransferMap(given, board()).choose("add", "mul")
    s, t = row_of(one, "add", "mul")
    opened = one.frame["opened"]
    assert (opened["source"], opened["target"]) == (s, t)
    rows = opened["contributions"]
    terms = dict(zip(DIMS["add"], given.terms["add"][t], strict=True))
    assert [row["feature"] for row in rows] == sorted(terms, key=lambda j: -terms[j])
    assert sum(row["value"] for row in rows) == pytest.approx(given.scores[s, t], rel=1e-3)
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=1e-3)
    assert {row["feature"]: row["shift"] for row in rows} == {3: 4.0, 7: 3.0, 1: 2.0, 20: 1.0}
    assert opened["rest"] == "All 4 shifted features of the source."
    few = TransferMap(given, board(), top=2).choose("add", "mul").frame["opened"]
    left = 100 * (1 - sum(row["share"] for row in rows[:2]))
    assert len(few["contributions"]) == 2 and f"others add {left:.3g} %" in few["rest"]


def test_features_come_with_their_examples_or_say_why_not() -> None:
    one = TransferMap(forecast(), board(), examples=1).choose("add", "mul")
    features = one.frame["opened"]["features"]
    about = features["3"]
    assert about["label"] == "digit 3" and about["largest"] == 3 and about["promoted"] == ["d", "d"]
    (example,) = about["examples"]
    assert example["pieces"] == list("add 1") and example["values"] == [0, 0, 0, 0, 3]
    assert (example["peak"], example["position"]) == (4, 4)
    assert "active on 20 % of 10 tokens" in about["numbers"]
    assert "not on the dashboard" in features["20"]["why"]
    never = TransferMap(forecast(), board()).choose("judge", "mul").frame["opened"]["features"]
    assert "active on no token" in never["6"]["why"] and never["6"]["examples"] == []
    without = TransferMap(forecast()).choose("add", "mul").frame["opened"]["features"]
    assert without["3"]["why"] == "no dashboard was given"


def test_a_forecast_without_terms_lists_features_by_their_shift() -> None:
    one = TransferMap(forecast(terms={})).choose("add", "sub")
    opened = one.frame["opened"]
    assert [row["feature"] for row in opened["contributions"]] == list(DIMS["add"])
    assert {row["value"] for row in opened["contributions"]} == {None}
    assert "by their shift" in opened["why"] and opened["rest"].startswith("All 4")


def test_contributions_of_what_there_is_not_are_refused() -> None:
    for source, target in (("sub", "add"), ("add", "nowhere")):
        with pytest.raises(UnknownName, match="Forecast.contributions"):
            forecast().contributions(source, target)
    with pytest.raises(WorkbenchError, match="does not know what each feature adds"):
        forecast(terms={}).contributions("add", "sub")


def test_only_another_pair_asks_for_a_frame() -> None:
    one = TransferMap(forecast(), board()).choose("add", "mul")
    seq = one.seq
    one.choose("add", "mul", feature=7, strength=0.5)
    assert one.seq == seq
    one.choose("add", "sub")
    assert one.seq > seq and one.frame["opened"]["target"] == 1


# what it gives


def test_the_record_says_what_is_chosen() -> None:
    given = forecast()
    one = TransferMap(given, board(), dictionary()).choose("add", "sub", feature=7, strength=-0.5)
    record, (s, t) = one.to_record(), row_of(one, "add", "sub")
    assert (record.source, record.target, record.feature) == ("add", "sub", 7)
    assert set(record.features) == set(DIMS["add"])
    assert (record.score, record.low, record.high) == tuple(
        a[s, t] for a in (given.scores, given.low, given.high)
    )
    assert (record.change, record.change_low) == (-0.2, pytest.approx(-0.25))
    first = one.choose("add", "sub").to_record()
    assert first.feature == first.features[0], "the one that adds most"
    numpys = one.choose("add", "sub", feature=np.int64(7), strength=np.float32(0.5))  # type: ignore[arg-type]
    assert type(numpys.spec["feature"]) is int and numpys.to_record().edit.strength == 0.5  # type: ignore[union-attr]


def test_the_edit_switches_the_feature_off() -> None:
    model, made = tiny.model("gpt2"), dictionary()
    one = TransferMap(forecast(), None, made).choose("add", "sub", feature=7, strength=-1)
    edit = one.to_record().edit
    assert edit is not None and edit.params["feature"] == 7 and edit.strength == -1
    rows = {
        name: model.record(["abc"], "L1.resid_post", pool="all", edits=edits, progress=False)
        for name, edits in (("base", []), ("edited", [edit]))
    }
    code = made.encode(rows["base"]["L1.resid_post"])[:, 7]
    assert (code > 0).any()
    moved = rows["edited"]["L1.resid_post"] - rows["base"]["L1.resid_post"]
    assert torch.allclose(moved, -code[:, None] * made.decoder[7], atol=1e-4)
    assert TransferMap(forecast()).choose("add", "sub").to_record().edit is None


def test_features_that_depend_on_one_another_are_added() -> None:
    made = dictionary("topk")
    one = TransferMap(forecast(), board(), made).choose("add", "sub", feature=7, strength=2)
    assert one.meta["edit"] == "add"
    edit = one.to_record().edit
    assert edit is not None and edit.strength == 2
    shift = edit.tensors["L1.resid_post"]["shift"]
    assert torch.allclose(shift, 7 * made.decoder[7], atol=1e-5), "largest activation 7"
    assert one.choose("add", "sub", feature=20).to_record().edit is None, "not on the dashboard"
    assert TransferMap(forecast(), None, made).meta["edit"] == ""


def test_coordinates_are_no_features_to_edit() -> None:
    model = tiny.model("gpt2")
    control = coordinates(model, "L1.resid_post")
    shifts = {
        s: dataclasses.replace(shift, delta=torch.ones(control.n_features), dictionary=control.name)
        for s, shift in forecast().shifts.items()
    }
    one = TransferMap(forecast(shifts=shifts), None, control).choose("add", "sub")
    assert one.meta["edit"] == "" and one.to_record().edit is None


def test_the_code_gives_the_same_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = forecast()
    one = TransferMap(given, board(), dictionary(), tiny.model("gpt2"))
    one.choose("sort", "mul", feature=2, strength=-1)
    names: dict[str, Any] = {}
    exec(one.to_code(), names)
    record = one.to_record()
    assert names["score"] == pytest.approx(record.score)
    assert names["change"] == pytest.approx(record.change)
    assert names["features"] == list(record.features) == names["carried"]["feature"].tolist()
    assert record.edit is not None
    mine, its = (e.tensors["L1.resid_post"] for e in (record.edit, names["edit"]))
    assert all(torch.equal(mine[k], its[k]) for k in mine) and names["edit"].strength == -1
    assert names["forecast"].terms["sort"].tolist() == given.terms["sort"].tolist()
    one.to_code()
    assert len(list(tmp_path.glob("forecasts/*"))) == 1, "the same forecast is written once"
    wider = dataclasses.replace(given, measured_low=CHANGE - 0.2)
    exec(TransferMap(wider).to_code(), names)
    assert np.allclose(names["forecast"].measured_low, CHANGE - 0.2, equal_nan=True)
    assert len(list(tmp_path.glob("forecasts/*"))) == 2, "another one beside it"
    alone = TransferMap(given)
    exec(alone.to_code(), names)
    assert names["forecast"].sources == SOURCES


def test_precompute_keeps_pairs_and_their_features() -> None:
    one = TransferMap(forecast(), board()).choose("judge", "sub")
    one.precompute(features=1)
    sweep = unpack(one.sweep)
    assert len(sweep["grid"]) == len(sweep["pairs"]) == 15
    shown = one.choose("add", "mul").frame["opened"]
    assert sweep["pairs"]["0,2"]["contributions"] == shown["contributions"]
    assert set(sweep["features"]) == {str(j) for dims in DIMS.values() for j in dims}
    # the chosen pair's features are whole whatever the limit; feature 7 adds to the most pairs
    assert all(sweep["features"][str(j)]["examples"] for j in (5, 7))
    briefs = [about for about in sweep["features"].values() if "running kernel" in about["why"]]
    assert briefs and all(one["label"] and not one["examples"] for one in briefs)
    few = one.choose("add", None).precompute([("add", "sub"), ("sort", "add")])
    assert list(unpack(few.sweep)["pairs"]) == ["0,1", "1,0"]
    assert len(few.sweep) < 20_000


def test_the_strongest_pairs_are_kept_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench_widgets.transfer_map.widget.PAIRS_KEPT", 4)
    given = forecast()
    pairs = unpack(TransferMap(given).precompute().sweep)["pairs"]
    kept = sorted(given.scores[int(k.split(",")[0]), int(k.split(",")[1])] for k in pairs)
    assert kept == pytest.approx(np.sort(given.scores, axis=None)[-4:].tolist())


# pictures and words


def test_the_still_is_small_and_escaped() -> None:
    names = (*TARGETS[:4], HOSTILE)
    one = TransferMap(forecast(names=names), board(HOSTILE)).choose("add", "mul", feature=3)
    still = one._still()
    assert len(still.encode()) < 20_000 and "<img" not in still and "<script" not in still
    assert "digit" not in still and "&lt;img src" in still
    assert f"{one.frame['score'][0, 2]:.3g}" in still and "adds to the score" in still
    one.view = {"colour": 1, "pooled": True}
    assert "measured change of accuracy" in one._still() and "all" not in one.meta["targets"]
    assert "pairs" in one._still()


def test_its_repr_says_the_main_number() -> None:
    one = TransferMap(forecast())
    r = one.frame["stats"][-1]["r"]
    assert f"3 sources x 5 targets, r {r:.3g}".replace("-", "−") in repr(one)


# what it refuses


def test_what_it_has_not_is_refused_in_words() -> None:
    one = TransferMap(forecast(), board())
    for arguments in (("adding", "sub"), ("add", "subb")):
        with pytest.raises(UnknownName, match="TransferMap"):
            one.choose(*arguments)
    with pytest.raises(WorkbenchError, match="does not list this feature"):
        one.choose("add", "sub", feature=2)
    with pytest.raises(WorkbenchError, match="a target as well"):
        one.choose("add", feature=3)
    with pytest.raises(WorkbenchError, match="finite number"):
        one.choose("add", "sub", strength=math.nan)
    with pytest.raises(WorkbenchError, match="no pair chosen"):
        TransferMap(forecast()).to_record()
    with pytest.raises(UnknownName, match="unknown target"):
        one.precompute([("add", "nowhere")])
    for grid in (["add"], 3, []):
        with pytest.raises(WorkbenchError, match="no pairs to keep"):
            one.precompute(grid)  # type: ignore[arg-type]


def test_a_place_that_the_browser_made_up_is_an_error_in_words() -> None:
    one = TransferMap(forecast())
    one.ask(source=7, target=0)
    assert one.status["state"] == "error" and "no such source" in one.status["msg"]
    assert one.frame["score"].shape == (3, 5), "the last frame stays"
    one.ask(source=0, target=True)
    assert "no such target" in one.status["msg"]


def test_another_dictionary_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="dashboard of another dictionary"):
        TransferMap(forecast(), dataclasses.replace(board(), dictionary_name="other"))
    with pytest.raises(WorkbenchError, match="25 features"):
        TransferMap(forecast(), None, dictionary(width=25))
    for wrong in (
        ({"add": 1},), (forecast(), dictionary()), (forecast(), None, board()),
    ):  # fmt: skip
        with pytest.raises(WorkbenchError, match="expected a (Forecast|Dashboard|Dictionary)"):
            TransferMap(*wrong)  # type: ignore[arg-type]
    elsewhere = dataclasses.replace(board(), site="L0.resid_post")
    with pytest.raises(WorkbenchError, match="at L0.resid_post"):
        TransferMap(forecast(), elsewhere, dictionary())
    # a folder is no other dictionary
    moved = dataclasses.replace(board(), dictionary_name=f"/here/{NAME}")
    TransferMap(forecast(), moved, dictionary(name=f"there/{NAME}"))


# a real one


def test_a_forecast_of_a_model_is_shown() -> None:
    model, made = tiny.model("gpt2"), dictionary()
    domains = {
        "a": sae.Domain(["abc=", "xyz=", "foo="], [wb.Prompt("q=", answer="1")]),
        "b": sae.Domain(["1+2=", "3+4=", "9+9="], [wb.Prompt("5+5=", answer="10")]),
    }
    given = sae.forecast(made, model, domains, kind="icl", n=3, draws=20, progress=False)
    shown = sae.dashboard(made, model, ["abc=", "1+2=3"], progress=False)
    one = TransferMap(given, shown, made, model).choose("b", "a")
    rows = one.frame["opened"]["contributions"]
    assert sum(row["value"] for row in rows) == pytest.approx(given.scores[1, 0], rel=1e-3)
    assert [row["feature"] for row in rows] == list(one.to_record().features)
    assert set(one.to_record().features) == set(given.shifts["b"].dims)
