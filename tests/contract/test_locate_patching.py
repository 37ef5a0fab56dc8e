"""What patches and ablations mean: identities, hand-made runs, and edits that give the same again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.contract.test_locate_methods import cases as four
from workbench import locate
from workbench.locate import ActivationPatching, HeadAblation, PathPatching
from workbench.locate.base import Cases
from workbench.locate.sides import Sides, position, randomised, strongest
from workbench.patching.cases import cases_of
from workbench.patching.map import Map

CLEAN, CORRUPTED = "ab cab cab c", "ab cxb cab c"
CHANGED = 5
"""The position, with the beginning of sequence, at which the two differ."""
QUICK: dict[str, Any] = {"control": "none"}


def one() -> wb.Prompts:
    return wb.prompts.counterfactuals(clean=[CLEAN], corrupted=[CORRUPTED], answers="a", foils="x")


def found(method: locate.Localiser, prompts: Any = None, family: str = "llama") -> Map:
    prompts = four() if prompts is None else prompts
    return locate.find(method, tiny.model(family), prompts, progress=False)


def scores(made: Map, measure: str | None = None) -> Tensor:
    return made.scores.values[measure or made.measures[0]]


def metric(prompts: Any, edits: Any = (), family: str = "llama", kind: str = "logit_difference"):
    """The metric of some prompts under edits, each as its own side's cases ask."""
    model = tiny.model(family)
    cases = cases_of(model, four() if prompts is None else prompts)
    clean, corrupted = (
        cases.metric(model.run(side, edits=edits, logits="last").logits[:, -1], kind)
        for side in (cases.clean, cases.corrupted)
    )
    return clean, corrupted


# activation patching


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_one_changed_token_is_everything_at_the_bottom_and_nothing_elsewhere(
    family: str, direction: Any
) -> None:
    made = found(ActivationPatching(direction=direction, per="case", **QUICK), family=family)
    grid = scores(made)
    for case, changed in enumerate((5, 5, 5, 5)):
        torch.testing.assert_close(grid[case, 0, changed], torch.tensor(1.0), atol=1e-3, rtol=0)
        elsewhere = [p for p in range(13) if p != changed]
        torch.testing.assert_close(grid[case, 0, elsewhere], torch.zeros(12), atol=1e-3, rtol=0)
        # before the change the runs are the same at every layer
        assert float(grid[case, :, :changed].abs().max()) < 1e-3


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_whole_stream_at_the_last_position_is_the_other_run(direction: Any) -> None:
    made = found(ActivationPatching("resid_post", direction, per="case", **QUICK))
    torch.testing.assert_close(scores(made)[:, 2, 12], torch.ones(4), atol=1e-3, rtol=0)
    clean, corrupted = metric(None)
    torch.testing.assert_close(made.scores.reference["clean"], clean)
    torch.testing.assert_close(made.scores.reference["corrupted"], corrupted)
    whole = scores(made, "logit_difference")[:, 2, 12]
    torch.testing.assert_close(whole, clean if direction == "denoising" else corrupted)


@pytest.mark.parametrize("kind", ["logit_difference", "logprob", "probability"])
def test_the_fraction_is_the_metric_between_the_two_runs(kind: str) -> None:
    made = found(ActivationPatching(metric=kind, **QUICK))
    clean, corrupted = metric(None, kind=kind)
    gap = clean - corrupted
    moved = scores(made, kind) - corrupted[:, None, None]
    torch.testing.assert_close(scores(made), moved / gap.mean(), atol=1e-5, rtol=1e-4)
    own = found(ActivationPatching(metric=kind, per="case", **QUICK))
    torch.testing.assert_close(scores(own), moved / gap[:, None, None], atol=1e-4, rtol=1e-3)
    grid = made.grid()
    expected = moved.mean(0) / gap.mean()
    np.testing.assert_allclose(grid, expected, atol=1e-5, rtol=1e-3)


PLACES = [
    ("resid_pre", {"layer": 1, "pos": 7}),
    ("resid_mid", {"layer": 1, "pos": 12}),
    ("attn_out", {"layer": 0, "pos": 5}),
    ("mlp_out", {"layer": 2, "pos": 12}),
    ("z", {"layer": 0, "head": 2}),
    ("v", {"layer": 0, "head": 1}),
    ("all", {"part": "attn_out", "layer": 1, "pos": 12}),
]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("part", "place"), PLACES)
def test_a_place_of_one_case_is_given_again_by_its_edit(
    part: Any, place: dict[str, Any], direction: Any
) -> None:
    made = found(ActivationPatching(part, direction, **QUICK), one())
    edit = made.edit(**place)
    clean, corrupted = metric(one(), [edit])
    again = corrupted if direction == "denoising" else clean
    index = [axis.labels.index(place[axis.name]) for axis in made.scores.axes]
    ours = scores(made, "logit_difference")[(0, *index)]
    torch.testing.assert_close(again[0], ours, atol=1e-5, rtol=1e-4)
    plain = metric(one())[1 if direction == "denoising" else 0]
    assert float((ours - plain[0]).abs()) > 1e-3, "the place must matter, or this shows nothing"


def test_an_edit_of_many_cases_is_their_mean_change() -> None:
    made = found(ActivationPatching(**QUICK))
    edit = made.edit(layer=1, pos=8)
    assert edit.sites == ("L1.resid_pre[pos=8]",) and edit.method == "activation_patching"
    model, cases = tiny.model(), cases_of(tiny.model(), four())
    clean, corrupted = (
        model.run(side, ["L1.resid_pre"])["L1.resid_pre"] for side in (cases.clean, cases.corrupted)
    )
    shift = edit.tensors["L1.resid_pre[pos=8]"]["shift"]
    torch.testing.assert_close(shift, (clean - corrupted)[:, 8].mean(0))
    with pytest.raises(wb.WorkbenchError, match="changes nothing"):
        made.edit(layer=1, pos=2)


def test_heads_at_each_position_and_all_parts_have_their_axes() -> None:
    each = found(ActivationPatching("z", positions="each", **QUICK))
    assert each.axes == ("layer", "head", "pos") and each.grid().shape == (3, 4, 13)
    parts = found(ActivationPatching("all", **QUICK))
    assert parts.axes == ("part", "layer", "pos")
    plain = found(ActivationPatching("attn_out", **QUICK))
    np.testing.assert_allclose(parts.grid()[1], plain.grid(), atol=1e-5)
    whole = found(ActivationPatching("attn_out", positions="all", **QUICK))
    assert whole.axes == ("layer",)
    # one position after the other is not all of them at once
    assert np.abs(whole.grid() - plain.grid().sum(-1)).max() > 1e-3


def by_hand(align: Any, direction: str, layer: int, at: int) -> float:
    """Patch resid_pre of clean position `at` between prompts of different lengths, with plain hooks."""
    model = tiny.model()
    prompts = lengths(align)
    cases = cases_of(model, prompts)
    assert cases.corrupted is not None
    n, m = cases.clean.lengths[0], cases.corrupted.lengths[0]
    other = at if align == "start" else at + m - n
    base, source = cases.corrupted.ids, cases.clean.ids
    to, out_of = other, at
    if direction == "noising":
        base, source, to, out_of = source, base, at, other
    kept: dict[str, Tensor] = {}
    block = model.hf.model.layers[layer]

    def keep(_m: Any, args: Any, kwargs: Any) -> None:
        kept["h"] = (args[0] if args else kwargs["hidden_states"]).clone()

    def put(_m: Any, args: Any, kwargs: Any) -> Any:
        h = (args[0] if args else kwargs["hidden_states"]).clone()
        h[:, to] = kept["h"][:, out_of]
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

    with torch.no_grad():
        handle = block.register_forward_pre_hook(keep, with_kwargs=True)
        model.hf(source)
        handle.remove()
        handle = block.register_forward_pre_hook(put, with_kwargs=True)
        logits = model.hf(base).logits[:, -1]
        handle.remove()
    return float(cases.metric(logits, "logit_difference")[0])


def lengths(align: Any) -> wb.Prompts:
    return wb.prompts.counterfactuals(
        clean=["ab cab c"], corrupted=["xyz cb ab q"], answers="a", foils="x", align=align
    )


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("align", ["start", "end"])
def test_different_lengths_are_matched_as_said(align: Any, direction: Any) -> None:
    made = found(ActivationPatching(direction=direction, **QUICK), lengths(align))
    values = scores(made, "logit_difference")[0]
    assert values.shape == (3, 9)
    for layer, at in ((0, 1), (1, 4), (2, 8)):
        expected = by_hand(align, direction, layer, at)
        assert float(values[layer, at]) == pytest.approx(expected, abs=1e-4)
    edit = made.edit(layer=1, pos=4)
    base_is_longer = direction == "denoising"
    at = 4 + (3 if align == "end" and base_is_longer else 0)
    assert edit.sites == (f"L1.resid_pre[pos={at}]",)
    side = metric(lengths(align), [edit])[1 if direction == "denoising" else 0]
    assert float(side[0]) == pytest.approx(float(values[1, 4]), abs=1e-4)


@pytest.mark.parametrize(("align", "own"), [("start", slice(9, 12)), ("end", slice(0, 3))])
def test_where_the_source_has_no_such_position_the_base_keeps_its_values(
    align: Any, own: slice
) -> None:
    two = Sides.of(cases_of(tiny.model(), lengths(align)), "denoising")
    base, source = torch.zeros(1, 12, 2), torch.arange(1.0, 10).reshape(1, 9, 1).expand(1, 9, 2)
    new = two.put(base, source)
    assert new[:, own].eq(0).all()
    rest = [c for c in range(12) if c not in range(12)[own]]
    torch.testing.assert_close(new[:, rest], source)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_cases_that_are_matched_at_other_columns_each_are_what_they_are_alone(
    direction: Any,
) -> None:
    sides = [("ab cab c", "xyz cb ab q"), ("q ab c c", "q xb c c")]

    def at(picked: list[tuple[str, str]]) -> Tensor:
        clean, corrupted = zip(*picked, strict=True)
        prompts = wb.prompts.counterfactuals(
            clean=clean, corrupted=corrupted, answers="a", foils="x", align="start"
        )
        made = found(ActivationPatching(direction=direction, per="case", **QUICK), prompts)
        return scores(made, "logit_difference")

    together, alone = at(sides), torch.cat([at([one]) for one in sides])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_which_of_the_two_answers_is_called_right_does_not_change_the_fraction() -> None:
    turned = wb.prompts.counterfactuals(
        clean=[CLEAN], corrupted=[CORRUPTED], answers="x", foils="a"
    )
    a, b = (found(ActivationPatching(**QUICK), prompts) for prompts in (one(), turned))
    torch.testing.assert_close(scores(a), scores(b), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores(a, "logit_difference"), -scores(b, "logit_difference"))


def test_columns_without_a_counterpart_are_unknown() -> None:
    turned = wb.prompts.counterfactuals(
        clean=["xyz cb ab q"], corrupted=["ab cab c"], answers="a", foils="x", align="end"
    )
    for direction in ("denoising", "noising"):
        values = scores(found(ActivationPatching(direction=direction, **QUICK), turned))[0]
        assert values[:, :3].isnan().all() and values[:, 3:].isfinite().all()


def test_the_control_takes_the_strongest_places_and_changes_of_their_size() -> None:
    made = found(ActivationPatching(top=3, seed=4))
    control = made.also["control"].scores
    top = made.top(3)
    labels = [f"L{r.layer}.resid_pre pos {r.pos}" for r in top.itertuples()]
    assert list(control.axes[0].labels) == labels
    np.testing.assert_allclose(control.values["patch"].mean(0), top["mean"], rtol=1e-4, atol=1e-6)
    size, mean = control.values["random, size"], control.values["random"]
    # draws of either sign cancel in the mean and not in the size
    assert (size >= mean.abs() - 1e-6).all() and float((size - mean.abs()).max()) > 1e-3
    other = found(ActivationPatching(top=3, seed=5)).also["control"].scores
    assert float((other.values["random"] - mean).abs().max()) > 1e-4
    torch.testing.assert_close(other.values["patch"], control.values["patch"])
    again = found(ActivationPatching(top=3, seed=4)).also["control"].scores
    assert torch.equal(again.values["random"], mean)


def test_a_random_change_keeps_the_norm_of_every_place() -> None:
    draw = torch.Generator().manual_seed(0)
    base, change = (torch.randn(2, 5, 3, 8, generator=draw) for _ in range(2))
    change[0, 1] = 0
    new = randomised(base, change, 7)
    torch.testing.assert_close((new - base).norm(dim=-1), change.norm(dim=-1))
    assert torch.equal(new[0, 1], base[0, 1])
    cosine = torch.cosine_similarity(new - base, change, dim=-1)[change.norm(dim=-1) > 0]
    assert float(cosine.abs().mean()) < 0.6
    # padding in front changes nothing
    wide = torch.cat([torch.zeros(2, 4, 3, 8), change], 1)
    moved = randomised(torch.zeros_like(wide), wide, 7)[:, 4:]
    torch.testing.assert_close(moved, randomised(torch.zeros_like(change), change, 7))


def test_the_strongest_places_leave_unknown_ones_out() -> None:
    values = torch.tensor([[[1.0, -5.0], [float("nan"), 2.0]], [[1.0, -5.0], [float("nan"), 0.0]]])
    assert list(strongest(values, 2)) == [(0, 1), (0, 0)]
    # a place that no case has is no place; one that some case has is
    assert list(strongest(values, 9)) == [(0, 1), (0, 0), (1, 1)]
    values[0, 1, 0] = 0.5
    assert list(strongest(values, 9))[-1] == (1, 0)


# path patching


def test_a_direct_path_writes_what_the_output_matrix_makes_of_the_head() -> None:
    model, layer = tiny.model(), 0
    two = Sides.of(cases_of(model, four()), "noising")
    read = ["L0.z", "L2.resid_post"]
    base, source = model.run(two.base, read), model.run(two.source, ["L0.z"])
    weight = model.hf.model.layers[layer].self_attn.o_proj.weight
    for head in range(4):
        edit = found(PathPatching()).edit(layer=layer, head=head)
        delta = (source["L0.z"] - base["L0.z"])[:, :, head].mean(0)
        expected = delta @ weight[:, head * 8 : head * 8 + 8].T
        for site, weights in edit.tensors.items():
            pos = int(site.partition("pos=")[2][:-1])
            torch.testing.assert_close(weights["shift"], expected[pos], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_the_last_layer_a_path_with_its_mlp_is_the_plain_patch(
    family: str, direction: Any
) -> None:
    path = found(PathPatching(mlps="recomputed", direction=direction), family=family)
    plain = found(ActivationPatching("z", direction, **QUICK), family=family)
    torch.testing.assert_close(scores(path)[:, 2], scores(plain)[:, 2], atol=1e-4, rtol=1e-3)
    assert float((scores(path)[:, 0] - scores(plain)[:, 0]).abs().max()) > 1e-2
    for side, expected in zip(("clean", "corrupted"), metric(None, family=family), strict=True):
        torch.testing.assert_close(path.scores.reference[side], expected)
    frozen = found(PathPatching(direction=direction), family=family)
    assert float((scores(path)[:, 2] - scores(frozen)[:, 2]).abs().max()) > 1e-3


def test_the_last_mlp_has_a_direct_path_only() -> None:
    path = found(PathPatching(senders="mlps"))
    plain = found(ActivationPatching("mlp_out", "noising", positions="all", **QUICK))
    assert path.axes == ("layer",)
    torch.testing.assert_close(scores(path)[:, 2], scores(plain)[:, 2], atol=1e-4, rtol=1e-3)
    stream = found(PathPatching(("L2.resid_post",), "mlps"))
    torch.testing.assert_close(scores(stream), scores(path), atol=1e-4, rtol=1e-3)


def test_through_the_whole_stream_above_it_a_path_is_the_plain_patch() -> None:
    path = found(PathPatching(receivers=("L1.resid_pre",), mlps="recomputed"))
    plain = found(ActivationPatching("z", "noising", **QUICK))
    torch.testing.assert_close(scores(path)[:, 0], scores(plain)[:, 0], atol=1e-4, rtol=1e-3)
    assert float(scores(path)[:, 0].abs().max()) > 1e-2
    assert scores(path)[:, 1:].eq(0).all(), "no path leads down"


def test_a_head_reads_through_its_queries_keys_and_values() -> None:
    """All three at once are the head's own output, wherever one way alone falls short."""
    ways = tuple(f"L2.{part}[head={h}]" for part, h in (("q", 3), ("k", 1), ("v", 1)))
    together = found(PathPatching(receivers=ways))
    # query heads 2 and 3 share key-value head 1, so that both hear its keys and values
    pair = found(PathPatching(receivers=("L2.q[head=2]", *ways)))
    direct = found(PathPatching(receivers=("L2.z[head=2]", "L2.z[head=3]")))
    torch.testing.assert_close(scores(pair), scores(direct), atol=1e-4, rtol=1e-3)
    assert float((scores(pair) - scores(together)).abs().max()) > 1e-3
    assert scores(together)[:, 2].eq(0).all() and float(scores(together).abs().max()) > 1e-3
    own = tuple(f"L2.{part}[head=3]" for part in "qkv")
    a = found(PathPatching(receivers=own), family="gpt2")
    b = found(PathPatching(receivers=("L2.z[head=3]",)), family="gpt2")
    torch.testing.assert_close(scores(a), scores(b), atol=1e-4, rtol=1e-3)
    single = found(PathPatching(receivers=own[:1]), family="gpt2")
    assert float((scores(single) - scores(b)).abs().max()) > 1e-3


def test_what_attention_adds_is_heard_through_its_heads() -> None:
    heads = tuple(f"L2.z[head={h}]" for h in range(4))
    whole, parts = (found(PathPatching(receivers=r)) for r in (("L2.attn_out",), heads))
    torch.testing.assert_close(scores(whole)[:, :2], scores(parts)[:, :2], atol=1e-4, rtol=1e-3)
    assert float(scores(whole)[:, :2].abs().max()) > 1e-3
    # a head of that very layer writes there, and nothing behind it is frozen
    plain = found(ActivationPatching("z", "noising", **QUICK))
    torch.testing.assert_close(scores(whole)[:, 2], scores(plain)[:, 2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("lower", ["L1.z[head=0]", "L1.attn_out", "L1.mlp_out"])
def test_a_receiver_does_not_pass_on_to_the_next(lower: str) -> None:
    """What a lower receiver makes of the sender would reach the upper one on no direct path."""
    upper = "L2.z[head=3]"
    together, alone = (
        found(PathPatching(receivers=r), one()).edit(layer=0, head=1)
        for r in ((lower, upper), (upper,))
    )
    for site, weights in alone.tensors.items():
        torch.testing.assert_close(together.tensors[site]["shift"], weights["shift"])


def test_what_is_frozen_does_not_pass_anything_on() -> None:
    """Between layers 0 and 2 stand the heads and the MLPs of layer 1."""
    whole = PathPatching(receivers=("L2.resid_pre",))
    model = tiny.model()
    two = Sides.of(cases_of(model, one()), "noising")
    edit = found(whole, one()).edit(layer=0, head=2)
    z = [model.run(side, ["L0.z"])["L0.z"][:, :, 2] for side in (two.base, two.source)]
    weight = model.hf.model.layers[0].self_attn.o_proj.weight[:, 16:24]
    expected = (z[1] - z[0])[0] @ weight.T
    assert set(edit.sites) == {f"L2.resid_pre[pos={p}]" for p in range(CHANGED, 13)}
    for p in range(CHANGED, 13):
        shift = edit.tensors[f"L2.resid_pre[pos={p}]"]["shift"]
        torch.testing.assert_close(shift, expected[p], atol=1e-5, rtol=1e-3)
    freed = found(replace(whole, mlps="recomputed"), one()).edit(layer=0, head=2)
    assert float((freed.tensors[edit.sites[-1]]["shift"] - expected[-1]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"receivers": ("L2.q[head=1]", "L2.v[head=0]")}, {"mlps": "recomputed"}]
)
def test_a_path_of_one_case_is_given_again_by_its_edit(options: dict[str, Any]) -> None:
    made = found(PathPatching(**options), one())
    clean, _ = metric(one(), [made.edit(layer=0, head=1)])
    ours = scores(made, "logit_difference")[0, 0, 1]
    torch.testing.assert_close(clean[0], ours, atol=1e-5, rtol=1e-4)
    assert float((ours - metric(one())[0][0]).abs()) > 1e-4


def test_a_path_that_leads_nowhere_is_no_edit() -> None:
    made = found(PathPatching(receivers=("L1.q[head=1]",)))
    for layer in (1, 2):  # queries are made before a head of that layer writes
        with pytest.raises(wb.WorkbenchError, match=f"no path leads from layer {layer}"):
            made.edit(layer=layer, head=0)


# head ablation


def test_a_zeroed_head_is_the_model_without_its_column_of_the_output_matrix() -> None:
    made = found(HeadAblation(**QUICK))
    hf = tiny.module("llama")
    model = wb.load(hf, tiny.tokenizer())
    cases = cases_of(model, four())
    whole = cases.metric(model.run(cases.clean, logits="last").logits[:, -1], "logit_difference")
    for layer, head in ((0, 1), (2, 3)):
        weight = hf.model.layers[layer].self_attn.o_proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[:, head * 8 : head * 8 + 8] = 0
        logits = model.run(cases.clean, logits="last").logits[:, -1]
        without = cases.metric(logits, "logit_difference")
        with torch.no_grad():
            weight.copy_(kept)
        torch.testing.assert_close(
            scores(made)[:, layer, head], whole - without, atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(made.scores.reference["whole"], whole)


@pytest.mark.parametrize("value", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_ablation_is_given_again_by_its_edit(value: Any, family: str) -> None:
    made = found(HeadAblation(value, **QUICK), family=family)
    for layer, head in ((0, 2), (1, 1)):
        clean, _ = metric(None, [made.edit(layer=layer, head=head)], family)
        ours = scores(made, "logit_difference")[:, layer, head]
        torch.testing.assert_close(clean, ours, atol=1e-5, rtol=1e-4)
        assert float(scores(made)[:, layer, head].abs().max()) > 1e-3


def test_a_resampled_head_says_what_it_says_in_the_other_cases() -> None:
    made = found(HeadAblation("resample", draws=10, **QUICK))
    model = tiny.model()
    cases = cases_of(model, four())
    z = model.run(cases.clean, ["L1.z"])["L1.z"]
    drops = []
    for turn in (1, 2, 3):
        edit = wb.Intervention(
            "custom", "set", {"L1.z[head=2]": {"value": z.roll(-turn, 0)[:, :, 2:3]}}
        )
        drops.append(metric(None, [edit])[0])
    expected = torch.stack(drops).mean(0)
    torch.testing.assert_close(
        scores(made, "logit_difference")[:, 1, 2], expected, atol=1e-5, rtol=1e-4
    )
    few = found(HeadAblation("resample", draws=1, seed=0, **QUICK))
    assert any(
        torch.allclose(scores(few, "logit_difference")[:, 1, 2], one, atol=1e-5) for one in drops
    )


def test_means_and_other_cases_are_counted_from_the_end() -> None:
    """Padding never stands in: a case shorter than its neighbour keeps its own values in front."""
    short = wb.Prompts([wb.Prompt("b cab c", answer="a"), wb.Prompt("zz ab cab c", answer="a")])
    model = tiny.model()
    cases = cases_of(model, short, ("answer",))
    z = model.run(cases.clean, ["L0.z"])["L0.z"]
    n = cases.clean.lengths[0]
    pads = z.shape[1] - n
    turned = z.roll(1, 0)
    turned[1, :pads] = z[1, :pads]
    edit = wb.Intervention("custom", "set", {"L0.z[head=1]": {"value": turned[:, :, 1:2]}})
    expected = cases.metric(
        model.run(cases.clean, edits=[edit], logits="last").logits[:, -1], "logit_difference"
    )
    made = found(HeadAblation("resample", **QUICK), short)
    torch.testing.assert_close(
        scores(made, "logit_difference")[:, 0, 1], expected, atol=1e-5, rtol=1e-4
    )
    averaged = z.clone()
    averaged[:, pads:] = z[:, pads:].mean(0)
    edit = wb.Intervention("custom", "set", {"L0.z[head=1]": {"value": averaged[:, :, 1:2]}})
    logits = model.run(cases.clean, edits=[edit], logits="last").logits[:, -1]
    made = found(HeadAblation("mean", **QUICK), short)
    torch.testing.assert_close(
        scores(made, "logit_difference")[:, 0, 1],
        cases.metric(logits, "logit_difference"),
        atol=1e-5,
        rtol=1e-4,
    )
    mean = made.edit(layer=0, head=1)
    assert set(mean.sites) == {f"L0.z[head=1, pos={p}]" for p in range(-n, 0)}
    value = mean.tensors["L0.z[head=1, pos=-2]"]["value"]
    torch.testing.assert_close(value, z[:, -2, 1].mean(0))


def test_the_control_of_an_ablation_is_a_change_of_its_size() -> None:
    for value in ("zero", "mean", "resample"):
        made = found(HeadAblation(value, top=2))
        control = made.also["control"].scores
        patch = control.values["patch"].mean(0)
        np.testing.assert_allclose(patch, made.top(2)["mean"], rtol=1e-3, atol=1e-5)
        assert float(control.values["random, size"].min()) > 0


# bad input


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ActivationPatching("resid"), "part"),
        (lambda: ActivationPatching(direction="forwards"), "direction"),
        (lambda: ActivationPatching(positions="some"), "positions"),
        (lambda: ActivationPatching(control="all"), "control"),
        (lambda: ActivationPatching(metric="loss"), "metric"),
        (lambda: ActivationPatching(per="row"), "per"),
        (lambda: PathPatching(senders="neurons"), "senders"),
        (lambda: PathPatching(mlps="gone"), "mlps"),
        (lambda: PathPatching(metric="loss"), "metric"),
        (lambda: HeadAblation("noise"), "value"),
        (lambda: HeadAblation(control="all"), "control"),
        (lambda: HeadAblation(metric="loss"), "metric"),
    ],
)
def test_an_unknown_option_is_refused_at_once(make: Any, said: str) -> None:
    with pytest.raises(wb.errors.UnknownName, match=said):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ActivationPatching(top=0),
        lambda: HeadAblation(top=-1),
        lambda: HeadAblation("resample", draws=0),
    ],
)
def test_nothing_of_something_is_refused(make: Any) -> None:
    with pytest.raises(wb.WorkbenchError, match="takes nothing"):
        make()


@pytest.mark.parametrize("text", ["L*.q[head=1]", "L1.q[head=(0, 1)]", "final_norm", "L1.q[pos=1]"])
def test_a_receiver_is_one_place(text: str) -> None:
    with pytest.raises(wb.WorkbenchError, match="is not one receiver"):
        found(PathPatching(receivers=(text,)))


@pytest.mark.parametrize("text", ["L0.q[head=4]", "L1.k[head=2]"])
def test_a_receiver_is_a_head_that_there_is(text: str) -> None:
    with pytest.raises(wb.WorkbenchError, match="head that the model lacks"):
        found(PathPatching(receivers=(text,)))


def test_receivers_are_a_tuple() -> None:
    with pytest.raises(Exception, match="L1.q"):
        PathPatching(receivers="L1.q[head=1]")  # pyright: ignore[reportArgumentType]


def test_cases_say_which_positions_belong_together() -> None:
    loose = replace(cases_of(tiny.model(), four()), columns=None)
    for method in (ActivationPatching(), PathPatching()):
        with pytest.raises(wb.WorkbenchError, match="belong together"):
            found(method, loose)


def test_cases_that_do_not_differ_have_nothing_between_them() -> None:
    same = wb.prompts.counterfactuals(clean=[CLEAN], corrupted=[CLEAN], answers="a", foils="x")
    for method in (ActivationPatching(**QUICK), PathPatching()):
        with pytest.raises(wb.WorkbenchError, match="same metric on average"):
            found(method, same)
    own = found(ActivationPatching(per="case"), same)
    assert scores(own).isnan().all() and not own.also


def test_one_case_has_no_mean_and_no_other_case() -> None:
    for value in ("mean", "resample"):
        with pytest.raises(wb.WorkbenchError, match="no other case"):
            found(HeadAblation(value), one())


def test_a_place_that_moves_from_case_to_case_is_no_edit() -> None:
    model = tiny.model()
    tokens = model.tokens(["abc", "abcdef"])
    assert position(tokens, torch.tensor([4, 1])) == 1
    assert position(tokens, torch.tensor([6, 6])) == -1
    with pytest.raises(wb.WorkbenchError, match="another position in every case"):
        position(tokens, torch.tensor([4, 3]))


def test_cases_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of(tiny.model(), four())
    assert cases.columns is not None and cases.corrupted is not None
    kept = [t.clone() for t in (cases.clean.ids, cases.corrupted.ids, cases.columns)]
    for method in (ActivationPatching(), PathPatching(), HeadAblation()):
        found(method, cases)
    now = (cases.clean.ids, cases.corrupted.ids, cases.columns)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert isinstance(cases, Cases)
