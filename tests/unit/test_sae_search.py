"""Searching and steering with features on real runs: scores against the long way round, edits, bad input."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.contract.fakes import lens_dictionary
from workbench import sae
from workbench.comparison import stats
from workbench.comparison.table import Table
from workbench.errors import PromptError, UnknownName, WorkbenchError
from workbench.patching.head import Head
from workbench.records import Prompt
from workbench.sae import asking, reading, scorers
from workbench.sae.dictionary import Dictionary
from workbench.sae.ranking import FeatureRanking, search
from workbench.shapes import Tensor
from workbench.tensors import Fingerprint, Intervention

SITE = "L1.resid_post"
TEXTS = ["ab 12", "c 3d e", "fgh", "i+j=7k", "9lm no", "pq=r 4"]
ANSWERS, FOILS = "abcdef", "uvwxyz"


@cache
def dictionary(architecture: str = "jumprelu") -> Dictionary:
    return lens_dictionary(32, SITE, 48, architecture)


def asked() -> list[Prompt]:
    """Prompts of unequal lengths with labels, answers and foils."""
    return [
        Prompt(t, label=i % 2 == 0, meta={"answer": a, "foil": f})
        for i, (t, a, f) in enumerate(zip(TEXTS, ANSWERS, FOILS, strict=True))
    ]


def found(scorer: Any, prompts: Any = None, whose: Dictionary | None = None, **options: Any) -> Any:
    options = {"top": 48, "progress": False} | options
    prompts = asked() if prompts is None else prompts
    return search(scorer, whose or dictionary(), tiny.model(), prompts, **options)


def by_feature(ranking: FeatureRanking, column: str = "score") -> Tensor:
    frame = ranking.frame().set_index("feature").sort_index()
    return torch.tensor(frame[column].to_numpy(), dtype=torch.float64)


def codes(prompt: Prompt, special: bool = False) -> Tensor:
    """Activations of a prompt's tokens, alone in its batch."""
    rows = tiny.model().run(prompt, [SITE])[SITE][0]
    return dictionary().encode(rows if special else rows[1:])


def difference(prompt: Prompt, *edits: Intervention) -> float:
    """Logit of the answer less that of the foil."""
    logits = tiny.model().run(prompt, edits=edits).logits[0, -1].double()
    ids = [tiny.tokenizer().convert_tokens_to_ids(prompt.meta[k]) for k in ("answer", "foil")]
    return float(logits[ids[0]] - logits[ids[1]])


def adding(write: Tensor, at: str = "all-bos") -> Intervention:
    return Intervention("custom", "affine", {SITE: {"shift": write}}).within(at)


# scores, the long way round


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_differences_are_those_of_class_means(pool: str) -> None:
    per_case = torch.stack(
        [codes(p).mean(0) if pool == "mean" else codes(p).amax(0) for p in asked()]
    )
    expected = per_case[::2].mean(0) - per_case[1::2].mean(0)
    ranking = found(scorers.ActivationDifference(pool=pool))
    torch.testing.assert_close(by_feature(ranking), expected.double(), atol=1e-5, rtol=1e-4)


def test_pairs_are_compared_with_each_other() -> None:
    pairs = wb.prompts.pairs(positive=TEXTS[:3], negative=TEXTS[3:])
    ranking = found("activation_difference", pairs)
    per_case = torch.stack([codes(p).mean(0) for p in pairs])
    sides = [[i for i, p in enumerate(pairs) if p.label is one] for one in (True, False)]
    differences = (per_case[sides[0]] - per_case[sides[1]]).double()
    torch.testing.assert_close(by_feature(ranking), differences.mean(0), atol=1e-5, rtol=1e-4)
    assert set(ranking.columns["n"]) == {3}
    row = ranking.at(ranking.features[0])
    expected = stats.mean_interval(differences[:, ranking.features[0]].numpy())
    np.testing.assert_allclose(
        [row["low"], row["high"]], [expected.low, expected.high], rtol=0.05, atol=1e-4
    )


def test_areas_are_those_of_the_rank_test() -> None:
    from scipy.stats import mannwhitneyu

    per_case = torch.stack([codes(p).mean(0) for p in asked()]).numpy()
    expected = mannwhitneyu(per_case[::2], per_case[1::2], axis=0).statistic / 9
    np.testing.assert_allclose(by_feature(found("auroc")), expected, atol=1e-6)


def test_influences_have_the_spread_of_two_samples() -> None:
    draw = torch.Generator().manual_seed(0)
    classes = (torch.arange(60) < 20).float()
    values = torch.randn(60, 3, generator=draw) + 2 * classes[:, None]
    for name in ("activation_difference", "auroc"):
        cls = type(found(name).scores)
        made = _of_values(name, values, classes)
        assert isinstance(made, cls)
        spread = made.values.double().std(0) / 60**0.5
        drawn = []
        for _ in range(300):
            some = [torch.randint(0, n, (n,), generator=draw) for n in (20, 40)]
            again = torch.cat([values[:20][some[0]], values[20:][some[1]]])
            drawn.append(_of_values(name, again, classes).scores)
        torch.testing.assert_close(spread, torch.stack(drawn).std(0), rtol=0.2, atol=0.0)


def _of_values(name: str, values: Tensor, classes: Tensor) -> scorers.FeatureScores:
    cases = torch.arange(len(values))
    block = scorers.Block(values, cases, torch.zeros_like(cases))
    scorer = wb.registry.get("scorers", name)(draws=1)
    return scorer.score(n_cases=len(values), codes=lambda: [block], labels=scorers.Labels(classes))


def test_f1_precision_and_recall_count_tokens_that_overlap_a_match() -> None:
    ranking = found(scorers.TokenMatch(r"\d+d?"))
    on = torch.cat([codes(p) for p in asked()]) > 0
    match = torch.cat([torch.tensor([c.isdigit() for c in t]) for t in TEXTS])
    match[len(TEXTS[0]) + 3] = True  # the d behind the 3
    hits = (on & match[:, None]).sum(0).double()
    expected = {
        "score": 2 * hits / (on.sum(0) + match.sum()),
        "precision": hits / on.sum(0).clamp(min=1),
        "recall": hits / match.sum(),
        "density": on.double().mean(0),
    }
    for column, values in expected.items():
        torch.testing.assert_close(by_feature(ranking, column), values, atol=1e-6, rtol=1e-6)


def test_plain_text_is_no_expression() -> None:
    plain = found(scorers.TokenMatch("i+j", regex=False))
    assert float(by_feature(plain, "recall").max()) <= 1
    assert plain.provenance["measure"] == "F1 of 'i+j'"
    with pytest.raises(WorkbenchError, match="matches no token"):
        found(scorers.TokenMatch("i+j"))


def test_attribution_is_the_slope_along_each_feature() -> None:
    """Against central differences of the logit difference, at every position but the first."""
    prompts, ranking = asked()[:2], found("attribution", asked()[:2])
    for j in ranking.features[:4]:
        slopes = []
        for prompt in prompts:
            own, step = codes(prompt)[:, j], 1e-2
            change = torch.zeros(len(own) + 1, 32)
            change[1:] = own[:, None] * dictionary().decoder[j]
            sides = [_with(prompt, step * change), _with(prompt, -step * change)]
            slopes.append((sides[0] - sides[1]) / (2 * step))
        assert np.mean(slopes) == pytest.approx(ranking.at(j)["score"], abs=2e-3, rel=2e-2)
        assert abs(ranking.at(j)["score"]) > 0.005


def _with(prompt: Prompt, change: Tensor) -> float:
    edits = [
        Intervention("custom", "affine", {f"{SITE}[pos={i}]": {"shift": row}})
        for i, row in enumerate(change)
        if bool(row.any())
    ]
    return difference(prompt, *edits)


def test_over_many_steps_contributions_add_up_to_all_features_at_once() -> None:
    prompt = asked()[0]
    total = found(scorers.Attribution(steps=16), [prompt]).scores.scores.sum()
    whole = torch.zeros(len(prompt.text or "") + 1, 32)
    whole[1:] = codes(prompt) @ dictionary().decoder
    effect = difference(prompt) - _with(prompt, -whole)
    assert float(total) == pytest.approx(effect, rel=1e-3)
    plain = float(found(scorers.Attribution(), [prompt]).scores.scores.sum())
    assert abs(plain - effect) > 5 * abs(float(total) - effect)


@pytest.mark.parametrize("positions", ["all", "last", "span(2, 4)"])
def test_an_ablation_is_the_edit_that_switches_the_feature_off(positions: str) -> None:
    ranking = found(scorers.Ablation(candidates=4), positions=positions)
    scope = {"all": "all-bos", "last": "last_prompt"}.get(positions, positions)
    assert len(ranking) == 4
    for j in ranking.features:
        off = ranking.edit(j, "scale", scope=scope).at(-1.0)
        losses = [difference(p) - difference(p, off) for p in asked()]
        assert np.mean(losses) == pytest.approx(ranking.at(j)["score"], abs=1e-4)


def test_ablations_of_named_features_stand_beside_the_same_amount_along_others() -> None:
    ranking = found(scorers.Ablation(features=(5, 9)), positions="last")
    assert sorted(ranking.features) == [5, 9]
    assert not np.allclose(ranking.columns["control"], ranking.columns["score"], atol=1e-4)
    handed = asking.Asked(
        dictionary(), tiny.model(), asked(), wb.Scope.last_prompt(), progress=False
    )
    own, other = 5, 9
    codes_last = torch.stack([codes(p)[-1, own] for p in asked()])
    moved = handed.switched_off("logit_difference", [own], along=[other])[:, 0]
    ways = dictionary().decoder
    way = ways[other] * ways[own].norm() / ways[other].norm()
    for prompt, active, effect in zip(asked(), codes_last, moved, strict=True):
        edit = adding(-active * way, "last_prompt")
        loss = difference(prompt) - difference(prompt, edit) if float(active) else 0.0
        assert loss == pytest.approx(float(effect), abs=1e-4)


def test_logit_effects_are_the_heads_own() -> None:
    last = lens_dictionary(32, "L2.resid_post", 48)
    ranking, j = found("logit_effect", whose=last), 3
    end = tiny.model().run([p.text for p in asked()], ["L2.resid_post"])["L2.resid_post"][:, -1]
    ids = [torch.tensor(tiny.tokenizer().convert_tokens_to_ids(list(t))) for t in (ANSWERS, FOILS)]
    way, _ = Head(tiny.model()).readout(end, ids[0], ids[1])
    assert ranking.at(j)["score"] == pytest.approx(float((way @ last.decoder[j]).mean()), rel=1e-4)
    named = found(scorers.LogitEffect("q"), whose=last)
    by_id = found(scorers.LogitEffect(tiny.tokenizer().convert_tokens_to_ids("q")), whose=last)
    assert named.columns["score"] == by_id.columns["score"] != ranking.columns["score"]


def test_a_metric_of_ones_own_is_attributed() -> None:
    def first(logits: Tensor, cases: Tensor) -> Tensor:
        assert logits.shape[0] == len(cases)
        return logits[:, 10] * (cases == 2)

    ranking = found(scorers.Attribution(metric=first), TEXTS)
    only = found(scorers.Attribution(metric=lambda logits, _: logits[:, 10]), [TEXTS[2]])
    torch.testing.assert_close(6 * by_feature(ranking), by_feature(only), atol=1e-4, rtol=1e-3)
    assert ranking.at(0)["unit"] == "the metric's own" and "first" in repr(ranking)
    exact = found(scorers.Ablation(metric=first, candidates=2), TEXTS)
    assert exact.features == ranking.features[:2] or set(exact.features) <= set(ranking.features)


# where and how much is read


def test_special_tokens_count_only_where_asked() -> None:
    for special in (False, True):
        ranking = found("auroc", special=special)
        on = torch.cat([codes(p, special) for p in asked()]) > 0
        torch.testing.assert_close(by_feature(ranking, "density"), on.double().mean(0))


@pytest.mark.parametrize("name", ["activation_difference", "attribution", "ablation"])
def test_small_parts_give_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(name)
    for module in (reading, asking):
        monkeypatch.setattr(module, "PART_BYTES", 8 * 48 * 4)
    parts = found(name)
    assert parts.features == whole.features
    np.testing.assert_allclose(parts.columns["score"], whole.columns["score"], atol=1e-5)
    np.testing.assert_allclose(parts.columns["control"], whole.columns["control"], atol=1e-5)
    torch.testing.assert_close(parts.scores.values, whole.scores.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["attribution", "ablation", "logit_effect"])
def test_a_case_alone_has_the_value_that_it_has_in_a_batch(name: str) -> None:
    method = wb.registry.get("scorers", name)()
    if name == "ablation":
        method = scorers.Ablation(features=(1, 2, 3))
    together, i = found(method), 4
    alone = found(method, asked()[i : i + 1])
    torch.testing.assert_close(
        together.scores.values[i], alone.scores.values[0], atol=1e-4, rtol=1e-3
    )


def test_counterfactuals_are_read_on_their_clean_side() -> None:
    cases = wb.prompts.counterfactuals(
        clean=TEXTS, corrupted=TEXTS[::-1], answers=list(ANSWERS), foils=list(FOILS), align="end"
    )
    assert found("attribution", cases).columns["score"] == found("attribution").columns["score"]


def test_pairs_of_which_too_few_are_whole_are_compared_as_classes() -> None:
    pairs = list(wb.prompts.pairs(positive=TEXTS[:4], negative=TEXTS[2:]))
    kept = {True: (0, 1), False: (2, 3)}
    labels = [p.label if p.pair in kept[bool(p.label)] else None for p in pairs]
    ranking = found("activation_difference", pairs, labels=labels)
    sides = [[TEXTS[0], TEXTS[1]], [TEXTS[4], TEXTS[5]]]
    means = [torch.stack([codes(Prompt(t)).mean(0) for t in side]).mean(0) for side in sides]
    torch.testing.assert_close(
        by_feature(ranking), (means[0] - means[1]).double(), atol=1e-5, rtol=1e-4
    )
    assert "labels shuffled" in repr(ranking) and set(ranking.columns["n"]) == {4}


def test_a_transcoder_is_attributed_where_it_writes() -> None:
    coder = lens_dictionary(32, "L1.mlp_norm_out", 48, "transcoder", target="L1.mlp_out")
    ranking = found(scorers.Ablation(candidates=2), whose=coder, positions="last")
    j = ranking.features[0]
    for prompt, value in zip(asked(), ranking.scores.values[:, 0], strict=True):
        trace = tiny.model().run(prompt, ["L1.mlp_norm_out"])
        active = coder.encode(trace["L1.mlp_norm_out"][0, -1:])[0, j]
        write = {"L1.mlp_out": {"shift": -active * coder.decoder[j]}}
        off = Intervention("custom", "affine", write).within("last_prompt")
        loss = difference(prompt) - difference(prompt, off) if float(active) else 0.0
        assert loss == pytest.approx(float(value), abs=1e-4)


def test_the_model_and_the_dictionary_stay_as_they_are() -> None:
    before = [p.clone() for p in dictionary().sae.parameters()]
    print_of = tiny.model().fingerprint
    for name in wb.registry.names("scorers"):
        found(name)
    assert tiny.model().fingerprint == print_of
    assert all(
        torch.equal(a, b) for a, b in zip(before, dictionary().sae.parameters(), strict=True)
    )


# the ranking


def test_the_furthest_from_neutral_come_first() -> None:
    for name in ("activation_difference", "auroc"):
        ranking = found(name, top=10)
        off = np.abs(np.array(ranking.columns["score"]) - ranking.provenance["neutral"])
        assert len(ranking) == 10 and bool((np.diff(off) <= 1e-9).all())
        assert ranking.top(3)["feature"].tolist() == ranking.features[:3]
        neutral = ranking.provenance["neutral"]
        up, down = ranking.top(above=neutral), ranking.top(below=neutral)
        assert len(up) and len(down) and len(up) + len(down) == 10
        assert bool((up["score"] > neutral).all()) and bool((down["score"] < neutral).all())


def test_it_shows_itself_and_comes_back_from_a_file(tmp_path: Path) -> None:
    ranking = found("activation_difference", top=6)
    assert "48 features" in repr(ranking) and "labels shuffled" in repr(ranking)
    assert "<table" in ranking._repr_html_() and str(ranking.features[0]) in ranking._repr_html_()
    drawn = ranking.figure().plot()
    assert list(drawn.data[0].y) == [str(j) for j in ranking.features]
    np.testing.assert_allclose(drawn.data[0].x, ranking.columns["score"], atol=1e-6)
    back = FeatureRanking.load(ranking.save(tmp_path / "ranking.json"))
    assert back.columns == ranking.columns and back.features == ranking.features
    assert isinstance(back, FeatureRanking) and isinstance(back, Table)
    j = back.features[0]
    with pytest.raises(WorkbenchError, match="has no dictionary"):
        back.edit(j)
    one, two = ranking.edit(j), back.edit(j, dictionary=dictionary())
    assert torch.equal(one.tensors[SITE]["shift"], two.tensors[SITE]["shift"])


def test_an_edit_of_a_row_is_as_large_as_what_was_read() -> None:
    ranking = found("activation_difference")
    j = next(j for j in ranking.features if ranking.at(j)["largest"] > 0)
    largest = torch.cat([codes(p) for p in asked()])[:, j].max()
    assert ranking.edit(j).params["largest"] == pytest.approx(float(largest))
    assert ranking.edit(np.int64(j), largest=3.0).params["largest"] == 3.0
    with pytest.raises(WorkbenchError, match="does not hold this feature"):
        found("activation_difference", top=3).edit(ranking.features[-1])


# steering


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("mode", ["add", "clamp", "min_clamp", "scale"])
def test_modes_change_the_code_and_keep_the_error(architecture: str, mode: str) -> None:
    whose, prompt = dictionary(architecture), TEXTS[3]
    rows = tiny.model().run(prompt, [SITE])[SITE][0]
    active = whose.encode(rows)
    j = int((active > 0).float().var(0).argmax())  # on at some positions only
    edit = sae.steer(whose, j, mode=mode, level=0.5, largest=rows)
    size = float(active[:, j].max())
    steered = tiny.model().run(prompt, [SITE], [edit])[SITE][0]
    to = {
        "add": active[:, j] + size,
        "clamp": torch.full((len(rows),), 0.5 * size),
        "min_clamp": active[:, j].clamp(min=0.5 * size),
        "scale": 2 * active[:, j],
    }[mode]
    new = active.clone()
    new[:, j] = to
    error = rows - whose.decode(active)
    torch.testing.assert_close(steered, whose.decode(new) + error, atol=2e-5, rtol=1e-4)
    assert 0 < int((active[:, j] > 0).sum()) < len(rows)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk", "rescaled"])
def test_a_decoder_row_is_what_a_unit_writes(architecture: str) -> None:
    options = {"rescale_acts_by_decoder_norm": True} if architecture == "rescaled" else {}
    kind = "topk" if architecture == "rescaled" else architecture
    whose = lens_dictionary(32, SITE, 48, kind, **options)
    writes = whose.decode(torch.eye(48)) - whose.decode(torch.zeros(1, 48))
    torch.testing.assert_close(whose.decoder, writes, atol=1e-5, rtol=1e-5)
    rows = tiny.model().record(TEXTS, SITE, pool="all", progress=False)
    edit = sae.steer(whose, 5, largest=rows)
    size = float(whose.encode(rows[SITE])[:, 5].max())
    torch.testing.assert_close(edit.tensors[SITE]["shift"], size * writes[5], atol=1e-5, rtol=1e-4)


def test_features_that_depend_on_one_another_can_only_be_added() -> None:
    topk = dictionary("topk")
    assert sae.steer(topk, 3, largest=2.0).operation == "affine"
    for mode in ("clamp", "min_clamp", "scale"):
        with pytest.raises(WorkbenchError, match=r"'topk' have no score of their own.*mode='add'"):
            sae.steer(topk, 3, mode=mode, largest=2.0)


def test_a_transcoder_is_added_where_it_writes() -> None:
    coder = lens_dictionary(32, "L1.mlp_norm_out", 48, "transcoder", target="L1.mlp_out")
    assert sae.steer(coder, 3, largest=1).sites == ("L1.mlp_out",)
    with pytest.raises(WorkbenchError, match="reads one site and writes another"):
        sae.steer(coder, 3, mode="scale")


def test_a_dictionary_that_normalises_rows_steers_and_attributes_nothing() -> None:
    normed = lens_dictionary(32, SITE, 48, normalize_activations="layer_norm")
    with pytest.raises(WorkbenchError, match="length of each row"):
        sae.steer(normed, 3, largest=1)
    with pytest.raises(WorkbenchError, match="normalises each row"):
        found("attribution", whose=normed)
    assert len(found("auroc", whose=normed)) == 48


def test_sizes_come_from_numbers_rows_boards_and_rankings() -> None:
    acts = tiny.model().record(TEXTS, SITE, pool="all", progress=False)
    size = float(dictionary().encode(acts[SITE])[:, 5].max())
    board = SimpleNamespace(features=[2, 5], largest=torch.tensor([1.0, 7.0]))
    sources = {size: acts, 7.0: board, 4.0: 4, 3.0: torch.tensor(3.0), 2.0: np.float32(2)}
    for expected, given in sources.items():
        edit = sae.steer(dictionary(), 5, largest=given)
        assert edit.params["largest"] == pytest.approx(expected)
    for mode, level in (("scale", 1.0), ("clamp", 0)):
        assert sae.steer(dictionary(), 5, mode=mode, level=level).params["level"] >= 0
    for given in (None, board, "large"):
        with pytest.raises(WorkbenchError, match="largest activation is not known"):
            sae.steer(dictionary(), 6, largest=given)
    silent = lens_dictionary(32, SITE, 48)
    silent.sae.b_enc[5] = -100
    with pytest.raises(WorkbenchError, match="never active"):
        sae.steer(silent, 5, largest=acts)


def test_several_features_are_a_list_in_their_order() -> None:
    edits = sae.steer(dictionary(), [5, 2], mode="scale", scope="last_prompt")
    assert [e.params["feature"] for e in edits] == [5, 2]
    assert all(str(e.scope) == "last_prompt" for e in edits)
    assert [e.label for e in edits] == ["feature 5 of jumprelu 0", "feature 2 of jumprelu 0"]
    added = sae.steer(dictionary(), [5, 2], largest=2.0)
    rows = tiny.model().run("ab", [SITE])[SITE]
    moved = tiny.model().run("ab", [SITE], added)[SITE] - rows
    both = 2 * (dictionary().decoder[5] + dictionary().decoder[2])
    torch.testing.assert_close(moved, both.expand_as(moved), atol=1e-5, rtol=1e-4)


def test_live_and_generation_take_them() -> None:
    edits = sae.steer(dictionary(), [5, 2], mode="clamp", largest=3.0)
    plain = tiny.model().run("ab c", edits=edits).logits
    live = wb.Live(tiny.model(), "ab c", edits)
    torch.testing.assert_close(live.run().logits[:, -1], plain[:, -1], atol=1e-5, rtol=1e-4)
    made = tiny.model().generate("ab c", edits=edits, max_new_tokens=3)
    receipts = made.receipts[0] if isinstance(made.receipts[0], tuple) else made.receipts
    assert [r.fired for r in receipts] == [3, 3]


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
def test_every_backend_steers_alike(backend: str) -> None:
    edits = [*sae.steer(dictionary(), [5, 2], mode="clamp", largest=3.0)]
    edits.append(sae.steer(dictionary(), 7, largest=1.0))
    wanted = tiny.model().run("ab c", edits=edits).logits
    got = tiny.model("llama", backend).run("ab c", edits=edits).logits
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


# bad input


def _labelled(*labels: Any) -> list[Prompt]:
    return [Prompt(t, label=y) for t, y in zip(TEXTS, labels, strict=False)]


BAD: dict[str, tuple[Any, str]] = {
    "no such scorer": (lambda: found("auroq"), "nearest: auroc"),
    "no labels": (lambda: found("auroc", TEXTS), "no prompt is labelled True"),
    "one class": (
        lambda: found("auroc", _labelled(True, True, True)),
        "no prompt is labelled False",
    ),
    "one case of a class": (
        lambda: found("activation_difference", _labelled(True, False, True)),
        "needs two classes",
    ),
    "labels of other prompts": (lambda: found("auroc", labels=[True]), "not one per prompt"),
    "no answers": (lambda: found("attribution", TEXTS), "no answer"),
    "an answer of two tokens": (
        lambda: found("attribution", [Prompt("ab", meta={"answer": "xy"})]),
        "is not one token",
    ),
    "a token of two": (lambda: found(scorers.LogitEffect("xy")), "is not one token"),
    "no match": (lambda: found(scorers.TokenMatch("Z")), "matches no token"),
    "matches everywhere": (lambda: found(scorers.TokenMatch(".")), "matches every token"),
    "no match where it counts": (
        lambda: found(scorers.TokenMatch("h"), positions="span(1, 2)"),
        "matches no token at the chosen",
    ),
    "broken expression": (lambda: scorers.TokenMatch("("), "no regular expression"),
    "empty expression": (lambda: scorers.TokenMatch("x*"), "matches the empty text"),
    "no such pool": (lambda: scorers.Auroc(pool="sum"), "nearest"),
    "no such metric": (lambda: scorers.Attribution(metric="loss"), "unknown metric"),
    "negative steps": (lambda: scorers.Attribution(steps=-1), "number of steps"),
    "no candidates": (lambda: found(scorers.Ablation(candidates=0)), "no number of features"),
    "a class of scorers": (lambda: found(scorers.Auroc), "is no scorer"),
    "feature beyond": (lambda: found(scorers.Ablation(features=(48,))), "no such feature"),
    "nothing asked for": (lambda: found("auroc", top=0), "no number of features"),
    "no such scope": (lambda: found("auroc", positions="lst"), "unknown scope"),
    "no such position": (
        lambda: found("auroc", positions="span(90, 99)"),
        "no token is at the chosen positions",
    ),
    "positions without attribution": (
        lambda: found("attribution", positions="span(90, 99)"),
        "no token is at the chosen positions",
    ),
    "only the first token": (
        lambda: found("attribution", positions="bos"),
        "special=True",
    ),
    "another width": (
        lambda: found("auroc", whose=lens_dictionary(16, SITE)),
        "another width",
    ),
    "another layer": (
        lambda: found("auroc", whose=lens_dictionary(32, "L9.resid_post")),
        "layers 0 to 2",
    ),
    "another model": (
        lambda: found("auroc", whose=_of_another_model()),
        "trained on another model",
    ),
    "not in the stream": (
        lambda: found("logit_effect", whose=lens_dictionary(32, "L1.mlp_norm_out")),
        "does not write into the residual stream",
    ),
    "steer beyond": (lambda: sae.steer(dictionary(), 48, largest=1), "no such feature"),
    "steer before": (lambda: sae.steer(dictionary(), -1, largest=1), "no such feature"),
    "steer beyond, by rows": (
        lambda: sae.steer(dictionary(), 48, largest=torch.ones(2, 32)),
        "not known",
    ),
    "steer by no rows": (
        lambda: sae.steer(dictionary(), 5, largest=torch.ones(0, 32)),
        "not known",
    ),
    "steer a word": (lambda: sae.steer(dictionary(), "5", largest=1), "names no feature"),
    "steer nothing": (lambda: sae.steer(dictionary(), []), "names no feature"),
    "steer no way": (lambda: sae.steer(dictionary(), 1, mode="ad", largest=1), "nearest: add"),
    "steer backwards": (lambda: sae.steer(dictionary(), 1, largest=-1), "not above 0"),
    "steer by NaN": (lambda: sae.steer(dictionary(), 1, largest=float("nan")), "not above 0"),
    "steer to infinity": (
        lambda: sae.steer(dictionary(), 1, mode="clamp", level=float("inf"), largest=1),
        "not finite",
    ),
}


def _of_another_model() -> Dictionary:
    from dataclasses import replace

    return replace(dictionary(), model=Fingerprint("other", "llama", 32, 3, "xyz"))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name: str) -> None:
    ask, said = BAD[name]
    with pytest.raises((WorkbenchError, UnknownName, PromptError)) as caught:
        ask()
    assert said in str(caught.value), str(caught.value)


def test_nan_in_the_activations_or_the_metric_is_refused() -> None:
    spoilt = lens_dictionary(32, SITE, 48)
    spoilt.sae.b_enc[3] = float("nan")
    with pytest.raises(WorkbenchError, match="not finite|no numbers|NaN"):
        found("activation_difference", whose=spoilt)
    with pytest.raises(WorkbenchError, match="NaN or infinite"):
        found(scorers.Attribution(metric=lambda logits, _: logits[:, 0] * float("nan")))


def test_another_model_is_read_where_forced() -> None:
    assert len(found("auroc", whose=_of_another_model(), force=True)) == 48
