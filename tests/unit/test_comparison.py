"""Comparisons: statistics with known answers, complete arms, tables that say it plainly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.comparison.metrics.base import Evidence
from workbench.comparison.run import compare
from workbench.comparison.stats import holm, mean_interval, paired_difference, wilson
from workbench.comparison.table import Table
from workbench.decoding import Sample
from workbench.errors import FileRefused, UnknownName, WorkbenchError
from workbench.records import Generation, Prompt
from workbench.tensors import Arm, Intervention

SITE = "L1.resid_post"
PROMPTS = ["abc", "hello there", "900+7=", "Q", "some more", "x y z"]


def vector(seed: int = 0, unit: str = "units") -> Intervention:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return Intervention("custom", "affine", {SITE: {"shift": shift}}, strength=2.0, unit=unit)


def go(
    arms, metrics=("length", "kl_nats"), prompts=PROMPTS, family: str = "llama", **options
) -> Table:
    options = {"max_new_tokens": 6, "progress": False} | options
    return compare(arms, tiny.model(family), prompts, metrics, **options)


@pytest.fixture(scope="module")
def table() -> Table:
    return go([Arm("steered <i>&", [vector()])], ("length", "kl_nats", "perplexity", "distinct_n"))


# --- statistics -----------------------------------------------------------------------------------


def test_wilson_gives_published_intervals() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert (wilson(81, 263).low, wilson(81, 263).high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert (wilson(0, 20).low, wilson(0, 20).high) == pytest.approx((0, 0.1611), abs=1e-4)


def test_holm_gives_known_corrections() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert holm([]) == []


@pytest.mark.parametrize("n", [8, 25])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        found = mean_interval(rng.normal(3, 1, n), seed=trial)
        hits += found.low <= 3 <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_paired_intervals_see_what_prompts_share() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 40)
    base, arm = hard + rng.normal(0, 0.1, 40), hard + 0.5 + rng.normal(0, 0.1, 40)
    found = paired_difference(arm, base)
    assert 0.4 < found.low < 0.5 < found.high < 0.6
    assert found.p < 0.01
    back = paired_difference(base, arm)
    assert (back.mean, back.low) == pytest.approx((-found.mean, -found.high), abs=0.02)


def test_the_sign_flip_test_is_exact_for_few_prompts() -> None:
    assert paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p == pytest.approx(2 / 2**3)
    assert paired_difference([1.0, 0.0], [1.0, 0.0]).p == 1.0


def test_under_no_difference_p_values_are_uniform() -> None:
    rng = np.random.default_rng(2)
    small = [
        paired_difference(rng.normal(size=12), rng.normal(size=12)).p < 0.05 for _ in range(300)
    ]
    assert 0.02 <= np.mean(small) <= 0.085


def test_pairs_with_a_missing_value_are_left_out() -> None:
    found = paired_difference([1.0, math.nan, 3.0], [0.0, 5.0, math.nan])
    assert (found.mean, found.n) == (1.0, 1)
    assert math.isnan(found.low)


def test_unanimous_proportions_are_not_certain() -> None:
    none = paired_difference([0.0] * 10, [0.0] * 10, proportion=True)
    assert none.low == pytest.approx(-0.3085, abs=1e-4) and none.high == -none.low
    every = paired_difference([1.0] * 10, [0.0] * 10, proportion=True)
    assert every.high == 1.0 and every.low == pytest.approx(1 - 2 * 0.3085, abs=1e-3)


# --- arms -----------------------------------------------------------------------------------------


def test_the_baseline_and_the_control_are_added() -> None:
    found = go([Arm("steered", [vector()])])
    assert found.arms == ["base", "steered", "steered (random control)"]
    control = found.provenance["arms"]["steered (random control)"]["edits"][0]
    steered = found.provenance["arms"]["steered"]["edits"][0]
    assert control["params"]["control_seed"] == 0
    for key in ("sites", "scope", "strength", "operation"):
        assert control[key] == steered[key]


def test_a_baseline_of_another_name_is_recognised_and_comes_first() -> None:
    found = go([Arm("steered", [vector()]), Arm("plain")], control=False)
    assert found.arms == ["plain", "steered"]
    assert set(found.summary()["against"]) == {"plain"}


def test_a_control_of_what_has_no_direction_is_noted() -> None:
    edit = Intervention("custom", "score_bias", {"L0.attn_scores": {"bias": torch.tensor(3.0)}})
    edit = replace(edit, params={"keys": "bos"})
    found = go([Arm("sink", [edit])])
    assert found.arms == ["base", "sink"]
    assert "no random control for sink" in found.provenance["notes"][0]
    assert "no random control for sink" in repr(found)


def test_a_control_that_would_be_its_arm_is_noted() -> None:
    zero = Intervention("custom", "set", {SITE: {"value": torch.zeros(32)}})
    found = go([Arm("zeroed", [zero])], ("length",))
    assert found.arms == ["base", "zeroed"]
    assert "no random control for zeroed" in repr(found)


def test_two_arms_of_one_name_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="two arms have one name.*'a'"):
        go([Arm("a", [vector(0)]), Arm("a", [vector(1)])])


def test_mixed_units_are_refused_until_calibrated() -> None:
    one, other = vector(0, "degrees"), vector(1, "fractions")
    with pytest.raises(WorkbenchError, match="different units.*wb.calibrate"):
        go([Arm("one", [one]), Arm("other", [other])])
    model = tiny.model("llama")
    calibrated = [wb.calibrate(e, model, PROMPTS, 0.02, progress=False) for e in (one, other)]
    found = go([Arm("one", [calibrated[0]]), Arm("other", [calibrated[1]])])
    assert len(found.arms) == 5
    # another strength than the calibrated one is not calibrated
    stale = calibrated[0].at(calibrated[0].strength * 2)
    with pytest.raises(WorkbenchError, match="not calibrated at their present strength"):
        go([Arm("one", [stale]), Arm("other", [calibrated[1]])])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e.within("prompt"), "not calibrated at"),
        (lambda e: replace(e, tensors={"L0.resid_post": e.tensors[SITE]}), "not calibrated at"),
        (lambda e: recorded(e, 2.0), "different targets.*1.0, 2.0"),
    ],
)
def test_a_calibration_holds_for_its_scope_sites_and_target_only(change, said: str) -> None:
    from workbench.comparison.arms import refuse_mixed_units

    one, other = recorded(vector(0, "degrees"), 1.0), recorded(vector(1, "fractions"), 1.0)
    refuse_mixed_units([Arm("one", [one]), Arm("other", [other])])
    with pytest.raises(WorkbenchError, match=said):
        refuse_mixed_units([Arm("one", [change(one)]), Arm("other", [other])])


def recorded(edit: Intervention, target: float) -> Intervention:
    """The edit as if calibrated."""
    record = {"strength": edit.strength, "scope": "all", "sites": [SITE]}
    return replace(edit, params={"calibration": record | {"target_kl_nats": target}})


def test_one_unit_may_have_any_strengths() -> None:
    assert len(go([Arm("1", [vector()]), Arm("2", [vector().at(4.0)])]).arms) == 5


def test_a_prefix_is_read_by_the_arm_and_not_by_the_base() -> None:
    found = go([Arm("told", prefix="zzz ")], ("kl_nats", "perplexity"))
    values = found.frame().set_index(["arm", "metric", "prompt"])["value"].sort_index()
    assert (values["base", "kl_nats"] == 0).all()
    assert (values["told", "kl_nats"] > 1e-4).all()
    assert {g.prompt.text for g in found.generations if g.arm == "told"} == set(PROMPTS)
    model = tiny.model("llama")
    assert found.read("told", 2)[0].ids == model.generate("zzz 900+7=", max_new_tokens=6)[0].ids


def test_a_prefix_goes_into_the_first_user_message() -> None:
    from workbench.comparison.arms import prefixed

    turns = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    prompt = Prompt(messages=turns)
    assert prefixed(prompt, "p ").messages[1]["content"] == "p u"
    assert turns[1]["content"] == "u"


def test_an_arm_may_have_its_own_model_with_the_same_words() -> None:
    other = wb.load(tiny.module("llama", seed=9), tiny.tokenizer())
    found = go([Arm("tuned", model=other)], ("kl_nats",))
    values = found.frame().groupby("arm")["value"].mean()
    assert values["base"] == 0 and values["tuned"] > 0.01


def test_an_arm_with_other_words_is_refused() -> None:
    class Other:
        name = "other"
        tokenizer = type("T", (), {"get_vocab": lambda _: {"a": 0}})()

    with pytest.raises(WorkbenchError, match="another vocabulary"):
        go([Arm("other", model=Other())])


# --- the numbers ----------------------------------------------------------------------------------


def test_values_are_those_of_each_generation_alone(table: Table) -> None:
    model = tiny.model("llama")
    values = table.frame().set_index(["arm", "metric", "prompt"])["value"].sort_index()
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate(prompt, edits=[vector()], max_new_tokens=6)[0]
        assert table.read("steered <i>&", i)[0].ids == alone.ids
        n = len(alone.ids)
        logits = [
            model.run(prompt, edits=edits, completions=[alone.ids])
            .logits[0, -n - 1 : -1]
            .log_softmax(-1)
            for edits in ([vector()], [])
        ]
        kl = wb.registry.get("metrics", "kl_nats")().measure(alone, Evidence(*logits))
        assert values["steered <i>&", "kl_nats", i] == pytest.approx(kl, abs=1e-4)
        nll = -logits[1].gather(1, torch.tensor(alone.ids)[:, None]).mean()
        assert values["steered <i>&", "perplexity", i] == pytest.approx(float(nll.exp()), rel=1e-3)


def test_the_base_has_no_divergence_from_itself(table: Table) -> None:
    base = table.frame().query("arm == 'base' and metric == 'kl_nats'")
    assert (base["value"] == 0).all()


def test_arms_share_prompts_and_seeds(table: Table) -> None:
    frame = table.frame()
    assert list(frame.columns) == ["arm", "prompt", "seed", "metric", "value", "unit"]
    assert (frame.groupby(["arm", "metric"])["prompt"].apply(list).map(tuple).nunique()) == 1
    assert len(frame) == 3 * 6 * 4
    assert len(table.generations) == 3 * 6


def test_seeds_are_drawn_apart_and_counted_once_per_prompt() -> None:
    found = go([], ("length", "distinct_n"), seeds=(0, 1, 2), decoder=Sample(temperature=1.5))
    assert len({g.ids for g in found.read("base", 0)}) > 1
    assert (found.summary()["n"] == len(PROMPTS)).all()
    again = go([], ("length", "distinct_n"), seeds=(0, 1, 2), decoder=Sample(temperature=1.5))
    assert again.frame().equals(found.frame())


def test_accuracy_judges_by_the_tasks_checker() -> None:
    model = wb.load("reasoner")
    prompts = wb.tasks.make("add", n=8, seed=0)
    found = compare([], model, prompts, ("accuracy",), max_new_tokens=90, progress=False)
    want = [float(wb.tasks.check(g.prompt, g.text)) for g in found.generations]
    assert found.columns["value"] == tuple(want)


def test_accuracy_without_tasks_is_refused_in_words() -> None:
    with pytest.raises(WorkbenchError, match="no task whose checker"):
        go([], ("accuracy",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ("length", "accuracy")}, "no task whose checker"),
        ({"arms": [Arm("a", [vector().at(torch.ones(6))])]}, "one strength per row"),
        ({"seeds": []}, "has no seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    options, said: str, monkeypatch
) -> None:
    def never(*_, **__):
        raise AssertionError("it ran")

    monkeypatch.setattr(tiny.model("llama"), "generate", never)
    with pytest.raises(WorkbenchError, match=said):
        go(**{"arms": [], "metrics": ("length",)} | options)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UnknownName, match="kl_nats"):
        go([], ("kl_nat",))
    with pytest.raises(WorkbenchError, match="no metrics"):
        go([], ())


# --- what is shown --------------------------------------------------------------------------------


def test_the_summary_says_mean_interval_and_difference(table: Table) -> None:
    summary = table.summary().set_index(["metric", "arm"])
    kl = summary.loc["kl_nats", "steered <i>&"]
    assert kl["low"] <= kl["mean"] <= kl["high"]
    assert kl["difference"] == pytest.approx(kl["mean"])
    assert kl["unit"] == "nats/token"
    assert math.isnan(summary.loc["kl_nats", "base"]["difference"])
    other = table.summary(against="steered <i>& (random control)").set_index(["metric", "arm"])
    want = kl["mean"] - summary.loc["kl_nats", "steered <i>& (random control)"]["mean"]
    assert other.loc["kl_nats", "steered <i>&"]["difference"] == pytest.approx(want)
    with pytest.raises(UnknownName, match="steered"):
        table.summary(against="stered")


def made_up(differences: list[float]) -> Table:
    n = len(differences)
    return Table(
        {
            "arm": ["base"] * n + ["arm"] * n,
            "prompt": [*range(n)] * 2,
            "seed": [0] * 2 * n,
            "metric": ["m"] * 2 * n,
            "value": [float(i % 3) for i in range(n)]
            + [i % 3 + d for i, d in enumerate(differences)],
            "unit": ["u"] * 2 * n,
        }
    )


def test_a_difference_is_highlighted_only_where_its_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(0)
    clear, unclear = (
        made_up((1 + rng.normal(0, 0.5, 20)).tolist()),
        made_up(rng.normal(0.1, 1, 20).tolist()),
    )
    assert clear.summary()["differs"].tolist() == [False, True]
    assert unclear.summary()["differs"].tolist() == [False, False]
    assert "wb-differs'" in clear._repr_html_() and "*" in repr(clear).splitlines()[4]
    assert "wb-differs'" not in unclear._repr_html_() and "*" not in repr(unclear).splitlines()[4]


def test_few_prompts_never_highlight() -> None:
    assert not made_up([5.0, 5.1, 5.2]).summary()["differs"].any()


@pytest.mark.parametrize("unit", ["nats/token", "fraction"])
def test_one_prompt_has_no_interval_and_no_highlight(unit: str) -> None:
    one = made_up([1.0])
    one = Table(dict(one.columns) | {"unit": [unit] * 2})
    for shown in (repr(one), one._repr_html_()):
        assert "nan" not in shown
        assert "one prompt: no interval" in shown
    assert not one.summary()["differs"].any()
    assert "wb-differs'" not in one._repr_html_()
    assert "One prompt: no interval" in one.figure().caption
    assert "nan" not in str(one.figure().plot().data[0].customdata)


def seeded(apart: float) -> Table:
    """20 prompts under 3 seeds: the base moves by `apart` from seed to seed, the arm is 1 above."""
    rows = [(p, s, apart * s + 0.01 * p) for s in range(3) for p in range(20)]
    prompts, seeds, values = (list(column) for column in zip(*rows, strict=True))
    return Table(
        {
            "arm": ["base"] * 60 + ["arm"] * 60,
            "prompt": prompts * 2,
            "seed": seeds * 2,
            "metric": ["m"] * 120,
            "value": values + [v + 1 for v in values],
            "unit": ["u"] * 120,
        }
    )


def test_a_difference_inside_the_seed_spread_is_not_highlighted() -> None:
    for apart, differs in ((0.9, True), (1.1, False)):
        table = seeded(apart)
        assert table.summary()["seed_sd"].tolist() == pytest.approx([apart] * 2)
        assert table.summary()["differs"].tolist() == [False, differs]
        assert ("wb-differs'" in table._repr_html_()) is differs


class Well(HTMLParser):
    """Counts open tags, so that markup that does not close is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:  # noqa: ARG002
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


def test_html_is_escaped_well_formed_and_has_no_fixed_colours(table: Table) -> None:
    html = table._repr_html_()
    parsed = Well()
    parsed.feed(html)
    assert not parsed.open
    assert "steered <i>&" in parsed.text
    assert "<i>" not in html and "<script" not in html
    assert "white" not in html.replace("white-space", "") and "#fff" not in html


def test_text_says_what_html_says(table: Table) -> None:
    parsed = Well()
    parsed.feed(table._repr_html_())
    shown = " ".join(parsed.text)
    for word in ("kl_nats (nats/token)", "95 % interval", "in-memory", "6 prompts"):
        assert word in shown and word in repr(table)


def test_a_table_of_anything_else_is_shown_too() -> None:
    other = Table({"layer": [0, 1], "entropy": [1.0, 2.0]}, {"entropy": "nats"})
    assert repr(other) == "Table(2 rows; columns layer, entropy)"
    assert "2 rows" in other._repr_html_()
    assert len(other.frame()) == 2
    with pytest.raises(WorkbenchError, match="is no comparison"):
        other.summary()
    with pytest.raises(WorkbenchError, match="different lengths"):
        Table({"a": [1], "b": []})


def test_a_saved_table_comes_back_whole(table: Table, tmp_path) -> None:
    path = table.save(tmp_path / "t.json")
    json.loads(path.read_text())  # strictly JSON: no NaN
    back = Table.load(path)
    assert back.frame().equals(table.frame())
    assert back.generations == table.generations
    assert back.provenance == table.provenance
    assert repr(back) == repr(table)


def test_missing_values_survive_saving(tmp_path) -> None:
    empty = Generation(Prompt(text="x"), "base", 0, (), "", (), "eos")
    columns = {"arm": ["base"], "prompt": [0], "seed": [0], "metric": ["perplexity"]}
    columns |= {"value": [math.nan], "unit": ["tokens"]}
    table = Table(columns, generations=(empty,))
    back = Table.load(table.save(tmp_path / "t.json"))
    assert math.isnan(back.columns["value"][0])
    assert "nan" in repr(back)


def test_files_that_are_no_tables_are_refused(tmp_path, table: Table) -> None:
    (tmp_path / "t.json").write_text('{"format": "other"}')
    for path in (tmp_path / "t.json", tmp_path / "none.json"):
        with pytest.raises(FileRefused, match="not a saved table"):
            Table.load(path)
    with pytest.raises(FileRefused, match="pickle"):
        Table.load(tmp_path / "t.pkl")
    whole = table.save(tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(whole[:-20])
    with pytest.raises(FileRefused, match="not a saved table"):
        Table.load(tmp_path / "t.json")


def test_csv_holds_every_row(table: Table, tmp_path) -> None:
    import pandas as pd

    read = pd.read_csv(table.to_csv(tmp_path / "t.csv"))
    pd.testing.assert_frame_equal(read, table.frame(), check_exact=False, check_dtype=False)


def test_provenance_is_enough_to_run_it_again(table: Table) -> None:
    known = table.provenance
    assert known["model"]["weights"] == tiny.model("llama").fingerprint.weights
    assert known["seeds"] == [0] and known["decoder"] == "Greedy()"
    assert known["max_new_tokens"] == 6 and known["n_prompts"] == 6
    assert {"torch", "transformers", "python"} <= set(known["versions"])
    assert known["date"].endswith("+00:00")
    assert json.loads(json.dumps(known, allow_nan=False)) == known


def test_the_figure_has_a_panel_with_units_per_metric(table: Table) -> None:
    figure = table.figure()
    plot = figure.plot()
    titles = [plot.layout[k].title.text for k in ("xaxis", "xaxis2", "xaxis3", "xaxis4")]
    units = ("tokens", "nats/token", "tokens", "fraction")
    metrics = ("length", "kl_nats", "perplexity", "distinct_n")
    assert titles == [f"{m} ({u})" for m, u in zip(metrics, units, strict=True)]
    kl = plot.data[1]
    summary = table.summary().query("metric == 'kl_nats'")
    assert [unescape(arm) for arm in kl.y] == table.arms
    assert not any("<i>" in arm for arm in kl.y)
    assert list(kl.x) == pytest.approx(summary["mean"].tolist())
    assert list(kl.error_x.array) == pytest.approx((summary["high"] - summary["mean"]).tolist())
    assert list(kl.error_x.arrayminus) == pytest.approx((summary["mean"] - summary["low"]).tolist())
    assert figure.frame().equals(table.summary())
    assert "95 % interval" in figure.caption
