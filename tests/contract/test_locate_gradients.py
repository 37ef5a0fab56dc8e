"""Attribution patching, edges and behaviours: against the patches they estimate, and by planting."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests import tiny
from workbench import locate
from workbench.locate.attribution_patching import AttributionPatching
from workbench.locate.base import Cases, Patch
from workbench.locate.behaviour_attribution import BehaviourAttribution
from workbench.patching.cases import cases_of
from workbench.patching.edges import Edges
from workbench.patching.gradients import Gradients
from workbench.patching.patcher import Patched

CLEAN = ("ab cab cab c", "de fde fde", "gh igh igh i")
CORRUPTED = ("ab cxb cab c", "de fye fde", "gh izh igh i")


def cases(**more: Any) -> wb.Prompts:
    given: dict[str, Any] = dict(clean=CLEAN, corrupted=CORRUPTED) | more
    return wb.prompts.counterfactuals(answers=["a", "d", "g"], foils=["x", "y", "z"], **given)


def found(method: Any, prompts: Any = None, family: str = "llama", **handed: Any) -> Any:
    model = family if isinstance(family, wb.Model) else tiny.model(family)
    return locate.find(method, model, prompts or cases(), progress=False, **handed)


@cache
def linear() -> wb.Model:
    """A model that is linear in its embeddings: no norms, no MLPs, every position looks everywhere."""
    hf: Any = tiny.module("llama")
    hf.model.norm = nn.Identity()
    for block in hf.model.layers:
        block.input_layernorm, block.post_attention_layernorm = nn.Identity(), nn.Identity()
        with torch.no_grad():
            block.self_attn.q_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    return wb.load(hf, tiny.tokenizer(), proof=False)  # keys without queries move nothing


# --- attribution patching -----------------------------------------------------------------------


@pytest.mark.parametrize("part", ["resid_pre", "z", "all"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_in_a_linear_model_every_estimate_is_the_patch(part: str, direction: Any) -> None:
    method = AttributionPatching(part=part, direction=direction, exact=1000)
    checked = found(method, family=linear()).also["exact"].scores.values
    assert float(checked["exact"].nan_to_num().abs().max()) > 1e-3
    known = ~checked["exact"].isnan()
    torch.testing.assert_close(
        checked["estimate"][known], checked["exact"][known], rtol=1e-3, atol=1e-5
    )


def test_the_error_falls_with_the_size_of_the_change() -> None:
    """Twenty small changes, in float64: ten times smaller, ten times smaller relative error."""
    model = wb.load(tiny.module("gpt2").double(), tiny.tokenizer())
    tokens = model.tokens(["ab cab cab c"] * 20)
    read = lambda logits: logits[:, 5] - logits[:, 9]  # noqa: E731
    values, grads, base = Gradients(model, False)(tokens, "L1.resid_pre", read)
    a, g = values["L1.resid_pre"], grads["L1.resid_pre"]
    u = torch.randn(a.shape, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    u = u * a.norm(dim=-1, keepdim=True) / u.norm(dim=-1, keepdim=True)
    errors = []
    for size in (0.1, 0.01, 0.001):
        patch = [Patch("L1.resid_pre", a + size * u)]
        exact = Patched(model, False)(tokens, [patch], read)[0] - base
        estimate = size * (u * g).sum((1, 2))
        errors.append(float((estimate - exact).norm() / exact.norm()))
    assert errors[0] < 0.5
    np.testing.assert_allclose(errors[1:], [errors[0] / 10, errors[0] / 100], rtol=0.3)


def test_estimates_and_their_exact_patches_meet_as_the_change_gets_smaller() -> None:
    """The method itself, with a source run that is part of the way from the base run."""
    model = tiny.model()
    both = cases_of(model, cases())

    def errors(size: float) -> tuple[float, torch.Tensor]:
        def run(tokens: Any, record: Any = (), **options: Any) -> wb.Trace:
            trace, base = model.run(tokens, record, **options), model.run(both.corrupted, record)
            between = {s: torch.lerp(base[s], v, size) for s, v in trace.values.items()}
            return replace(trace, values=between)

        checked = found(AttributionPatching(part="mlp_out"), run=run).also["exact"].scores.values
        off = checked["error"].nan_to_num().norm() / checked["exact"].nan_to_num().norm()
        agree = checked["exact"].nanmean(0).sign() == checked["estimate"].nanmean(0).sign()
        return float(off), agree

    (whole, _), (some, _), (little, agree) = map(errors, (1.0, 0.2, 0.02))
    assert whole > 2 * some and little == pytest.approx(some / 10, rel=0.3)
    assert bool(agree.all())


def test_steps_in_half_precision_are_added_up_in_full() -> None:
    """Gradients that are the same at every step: their mean over many steps is that gradient."""

    model = wb.load(tiny.module("llama").bfloat16(), tiny.tokenizer())

    def constant(tokens: Any, sites: Any, loss: Any, **_: Any) -> Any:
        values, grads, losses = Gradients(model, False)(tokens, sites, loss)
        return values, {s: (g * 0 + 0.7).bfloat16() for s, g in grads.items()}, losses

    plain, many = (
        found(AttributionPatching(steps=n, exact=0), family=model, gradients=constant)
        for n in (0, 100)
    )
    torch.testing.assert_close(
        plain.scores.values["effect"], many.scores.values["effect"], equal_nan=True,
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(("path", "layers"), [("values", (0, 1, 2)), ("inputs", (0,))])
def test_steps_add_up_to_what_lies_between_the_runs(path: Any, layers: tuple[int, ...]) -> None:
    """Integrated gradients are complete: positions of a layer sum to source minus base."""
    made = found(AttributionPatching(steps=24, path=path, exact=0))
    gap = made.scores.reference["clean"] - made.scores.reference["corrupted"]
    plain = found(AttributionPatching(exact=0)).scores.values["effect"].nansum(-1)
    summed = made.scores.values["effect"].nansum(-1)
    for layer in layers:
        torch.testing.assert_close(summed[:, layer], gap, rtol=0.005, atol=0.001)
    assert float((plain[:, 0] - gap).abs().max()) > 5 * float((summed[:, 0] - gap).abs().max())


def test_it_takes_two_forwards_and_a_backward() -> None:
    model = tiny.model()
    calls: list[int] = []
    handle = model.hf.register_forward_hook(lambda *_: calls.append(1))
    try:
        for part in ("resid_pre", "z", "all"):
            calls.clear()
            found(AttributionPatching(part=part, exact=0))
            assert len(calls) + 1 <= 4, part
    finally:
        handle.remove()


@pytest.mark.parametrize("part", ["resid_pre", "z", "mlp_post", "all"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_exact_patch_is_activation_patching(part: str, direction: Any) -> None:
    """The same places, labels and values, also where pairs differ in length."""
    prompts = cases(corrupted=("zab cxb cab c", "de fye fde", "gh izh igh i"), align="end")
    made = found(AttributionPatching(part=part, direction=direction, exact=4), prompts)
    checked = made.also["exact"]
    rows = checked.at().set_index(["place", "measure"])["mean"]
    top = made.top(4)
    np.testing.assert_allclose(
        [rows[place, "estimate"] for place in checked.scores.axes[0].labels],
        top["mean"],
        rtol=1e-5,
    )
    if part == "mlp_post":
        return
    other = found(
        locate.ActivationPatching(part=part, direction=direction, control="none"), prompts
    )
    assert [axis.labels for axis in other.scores.axes] == [a.labels for a in made.scores.axes]
    base = other.scores.reference["corrupted" if direction == "denoising" else "clean"]
    for i, place in enumerate(checked.scores.axes[0].labels):
        where = {axis: top[axis][i] for axis in made.axes}
        row = other.at(**where).set_index("measure")["mean"]["logit_difference"]
        known = ~checked.scores.values["exact"][:, i].isnan()
        change = row - float(base[known].mean())
        np.testing.assert_allclose(rows[place, "exact"], change, rtol=1e-3, atol=1e-5)


def test_one_neuron_patched_is_one_neuron() -> None:
    """All neurons of a layer together give the first-order effect of the MLP's output."""
    neurons = found(AttributionPatching(part="mlp_post", exact=0)).scores.values["effect"]
    outs = found(AttributionPatching(part="mlp_out", positions="all", exact=0))
    torch.testing.assert_close(neurons.sum(-1), outs.scores.values["effect"], rtol=1e-3, atol=1e-5)
    # and the patch of the strongest one leaves the others as they are
    made = found(AttributionPatching(part="mlp_post", exact=1))
    layer, neuron = (int(made.top(1)[name][0]) for name in ("layer", "neuron"))
    model, both = tiny.model(), cases_of(tiny.model(), cases())
    assert both.corrupted is not None
    site = f"L{layer}.mlp_post"
    clean, into = (model.run(side, record=[site])[site] for side in (both.clean, both.corrupted))
    values = into.clone()
    values[..., neuron] = both.swapped.aligned(clean)[..., neuron]
    variants = [[Patch(site, values)], []]
    read = lambda logits: both.metric(logits, "logit_difference")  # noqa: E731
    one, base = Patched(model, False)(both.corrupted, variants, read)
    exact = made.also["exact"].scores.values["exact"][:, 0]
    torch.testing.assert_close(exact, one - base, rtol=1e-4, atol=1e-6)
    assert float(exact.abs().max()) > 1e-4


def test_heads_and_positions_sum_up() -> None:
    each = found(AttributionPatching(part="z", positions="each", exact=0))
    heads = found(AttributionPatching(part="z", exact=0)).scores.values["effect"]
    outs = found(AttributionPatching(part="attn_out", positions="all", exact=0))
    assert each.axes == ("layer", "head", "pos")
    torch.testing.assert_close(each.scores.values["effect"].nansum(-1), heads, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(heads.sum(-1), outs.scores.values["effect"], rtol=1e-3, atol=1e-5)


def test_recovered_is_the_effect_over_the_mean_gap() -> None:
    made = found(AttributionPatching(exact=0)).scores
    gap = (made.reference["clean"] - made.reference["corrupted"]).mean()
    torch.testing.assert_close(
        made.values["recovered"] * gap,
        made.values["effect"],
        equal_nan=True,
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(part="zz"), "part"),
        (dict(direction="up"), "direction"),
        (dict(metric="loss"), "metric"),
        (dict(positions="some"), "positions"),
        (dict(path="weights"), "path"),
        (dict(steps=-1), "0 or more"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], said: str) -> None:
    from jaxtyping import TypeCheckError

    # the types are checked first in tests, not outside them
    with pytest.raises((wb.WorkbenchError, TypeCheckError), match=said):
        AttributionPatching(**options)


# --- edges --------------------------------------------------------------------------------------


def edged(family: str) -> tuple[wb.Model, Cases, Edges]:
    model = tiny.model(family)
    return model, cases_of(model, cases()), Edges(model, progress=False)


def circuits(edges: Edges, n: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, len(edges.pairs), generator=draw) < 0.5


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 5] - logits[:, 9] * logits[:, 7]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3"])
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(family: str) -> None:
    model, both, edges = edged(family)
    assert both.corrupted is not None
    n = len(edges.pairs)
    keep = torch.stack([torch.ones(n), torch.zeros(n), torch.zeros(n)]).bool()
    # all but one edge, which nothing reads at the last position of a one-token difference
    keep[2] = circuits(edges, 1)[0]
    whole, empty, some = edges.kept(both.clean, both.corrupted, keep, score)
    clean, corrupted = (
        score(model.run(side, logits="last").logits[:, -1]) for side in (both.clean, both.corrupted)
    )
    torch.testing.assert_close(whole, clean, rtol=0, atol=1e-4)
    torch.testing.assert_close(empty, corrupted, rtol=0, atol=1e-4)
    assert float((some - clean).abs().max()) > 1e-4 < float((some - corrupted).abs().max())
    # every input is made anew, from writes that do not differ
    again = edges.kept(both.clean, both.clean, circuits(edges, 3), score)
    torch.testing.assert_close(again, clean.expand_as(again), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_edges_into_one_receiver_cut_is_that_receiver_patched(family: str) -> None:
    """Queries of a head, keys and values of a key-value head, an MLP's input, and the last norm."""
    model, both, edges = edged(family)
    assert both.corrupted is not None
    sites = ("L1.q", "L1.k", "L1.v", "L1.mlp_norm_out", "final_norm")
    values = model.run(both.corrupted, record=sites).values
    pair = "h1" if family == "gpt2" else "kv1"
    receivers = ("L1.h2.q", f"L1.{pair}.k", f"L1.{pair}.v", "L1.mlp", "logits")
    heads = (2, 1, 1, None, None)
    patches = [[Patch(site, values[site], None, h)] for site, h in zip(sites, heads, strict=True)]
    into = [name.partition(" -> ")[2] for name in edges.names]
    keep = torch.tensor([[name != receiver for name in into] for receiver in receivers])
    cut = edges.kept(both.clean, both.corrupted, keep, score)
    patched = Patched(model, False)(both.clean, [*patches, []], score)
    torch.testing.assert_close(cut, patched[:-1], rtol=1e-4, atol=1e-5)
    assert ((patched[:-1] - patched[-1]).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_are_the_slopes_of_cut_edges(family: str) -> None:
    """Edges of every kind, cut to a write a little off the clean one, case by case."""
    model, both, edges = edged(family)
    assert both.corrupted is not None
    scores = edges.scores(both.clean, both.corrupted, score)
    own, other = edges._writes(both.clean), edges._writes(both.corrupted)
    which = list(range(0, len(edges.pairs), 5)) + [len(edges.pairs) - 1]
    keep = torch.ones(len(which), len(edges.pairs)).bool()
    keep[range(len(which)), which] = False
    cuts = torch.stack([edges._cut(row) for row in keep])
    base = score(model.run(both.clean, logits="last").logits[:, -1])
    step = 0.02
    ends = [
        torch.stack(
            [score(x) for x in edges._run(both.clean, own + s * step * (other - own), cuts)]
        )
        for s in (1, -1)
    ]
    slopes = ((ends[0] - ends[1]) / (2 * step)).T
    assert float(slopes.abs().max()) > 0.01 and base.shape == (3,)
    torch.testing.assert_close(slopes, scores[:, which], rtol=0.02, atol=5e-4)


def test_in_a_linear_model_a_score_is_what_cutting_the_edge_does() -> None:
    model = linear()
    both, edges = cases_of(model, cases()), Edges(model, progress=False)
    assert both.corrupted is not None
    read = lambda logits: both.metric(logits, "logit_difference")  # noqa: E731
    keep = ~torch.eye(len(edges.pairs)).bool()
    cut = edges.kept(both.clean, both.corrupted, keep, read)
    clean = read(model.run(both.clean, logits="last").logits[:, -1])
    for steps in (0, 3):
        scores = edges.scores(both.clean, both.corrupted, read, steps)
        torch.testing.assert_close((cut - clean).T, scores, rtol=1e-3, atol=1e-5)
    assert float(scores.abs().max()) > 1e-3


def test_steps_of_edges_are_midpoints_of_the_way_of_the_embeddings() -> None:
    """Edges into one MLP by hand: gradients a quarter and three quarters of the way, mean of both."""
    model, both, edges = edged("llama")
    assert both.corrupted is not None
    one, other = (model.run(t, record=["embed"])["embed"] for t in (both.clean, both.corrupted))
    norm: Any = model.hf.get_submodule("model.layers.1.post_attention_layernorm")
    slopes = []
    for share in (0.25, 0.75):
        sites, inputs = ["L1.resid_mid", "L1.mlp_norm_out"], torch.lerp(one, other, share)
        values, grads, _ = Gradients(model, False)(both.clean, sites, score, inputs)
        x = values["L1.resid_mid"].clone().requires_grad_()
        slopes += torch.autograd.grad(norm(x), x, grads["L1.mlp_norm_out"])
    change = edges._writes(both.corrupted) - edges._writes(both.clean)
    expected = torch.einsum("scpd,cpd->cs", change, (slopes[0] + slopes[1]) / 2)
    scores = edges.scores(both.clean, both.corrupted, score, steps=2)
    which = [i for i, name in enumerate(edges.names) if name.endswith("-> L1.mlp")]
    torch.testing.assert_close(scores[:, which], expected[:, : len(which)], rtol=1e-3, atol=1e-6)
    plain = edges.scores(both.clean, both.corrupted, score)
    assert float((plain - scores).abs().max()) > 1e-3


def test_names_of_edges_follow_the_forward_pass() -> None:
    _, _, edges = edged("llama")
    assert edges.names[0] == "embed -> L0.h0.q" and edges.names[-1] == "L2.mlp -> logits"
    assert "L0.h3 -> L0.mlp" in edges.names and "L1.h0 -> L2.kv1.v" in edges.names
    assert "L1.mlp -> L1.mlp" not in edges.names and "L2.h0 -> L1.mlp" not in edges.names
    assert len(set(edges.names)) == len(edges.names) == len(edges.pairs)
    _, _, others = edged("gpt2")
    assert "L0.h1 -> L2.h3.q" in others.names


def test_the_curve_starts_at_nothing_and_ends_at_the_model() -> None:
    method = locate.EdgeAttribution(points=4, draws=2, steps=1)
    curve = found(method).also["faithfulness"]
    names, sizes = (axis.labels for axis in curve.scores.axes)
    assert names == ("best edges", "random 1", "random 2") and sizes[0] == 1 and len(sizes) == 4
    np.testing.assert_allclose(curve.grid()[:, -1], 1, atol=1e-5)
    reference = curve.scores.reference
    assert float(reference["whole model"].mean()) == pytest.approx(1, abs=1e-5)
    assert float(reference["no edge"].abs().max()) == 0
    plot = curve.figure().plot()
    assert [line.y0 for line in plot.layout.shapes] == pytest.approx([1, 0], abs=1e-5)
    assert plot.layout.xaxis.type == "log"
    lines = {t.name: t.line.color for t in plot.data if t.name}
    assert lines["random 1"] == lines["random 2"] != lines["best edges"]
    best = next(t for t in plot.data if t.name == "best edges")
    np.testing.assert_allclose(best.y, curve.grid()[0], atol=1e-5)


def test_the_curve_in_the_metrics_unit_has_its_own_ends() -> None:
    """Lines at the model and at no edge stand where the clean and the corrupted run are."""
    made = found(locate.EdgeAttribution(points=3, draws=1, steps=0))
    curve = made.also["logit_difference"]
    plot = curve.figure().plot()
    model, both = tiny.model(), cases_of(tiny.model(), cases())
    ends = [
        float(both.metric(model.run(t, logits="last").logits[:, -1], "logit_difference").mean())
        for t in (both.clean, both.corrupted)
    ]
    assert [line.y0 for line in plot.layout.shapes] == pytest.approx(ends, abs=1e-4)
    share = (curve.grid() - ends[1]) / (ends[0] - ends[1])
    np.testing.assert_allclose(share, made.also["faithfulness"].grid(), atol=1e-4)
    assert curve.scores.units == {"logit_difference": "logits"}


def test_no_share_of_nothing() -> None:
    with pytest.raises(wb.WorkbenchError, match="same metric on average"):
        found(locate.EdgeAttribution(points=2, draws=0, steps=0), cases(corrupted=CLEAN))


def test_a_model_of_one_block_in_bfloat16_has_edges() -> None:
    model = wb.load(tiny.module("llama", num_hidden_layers=1).bfloat16(), tiny.tokenizer())
    curve = found(locate.EdgeAttribution(points=2, draws=0), family=model).also["logit_difference"]
    both = cases_of(model, cases())
    assert both.corrupted is not None
    logits = model.run(both.corrupted, logits="last").logits[:, -1]
    corrupted = both.metric(logits, "logit_difference")
    torch.testing.assert_close(curve.scores.reference["no edge"], corrupted, rtol=0, atol=0.02)


def test_the_figure_of_edges_shows_the_largest() -> None:
    made = found(locate.EdgeAttribution(points=2, draws=0, steps=0))
    plot = made.figure().plot()
    assert list(plot.data[0].y) == [t.replace(">", "&gt;") for t in made.top(30)["edge"]]
    assert "30 of 190" in plot.layout.title.text


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "mixtral"])
def test_blocks_of_another_kind_are_refused(family: str) -> None:
    with pytest.raises(wb.WorkbenchError, match="serial blocks with one norm"):
        Edges(tiny.model(family))


def test_edges_need_pairs_of_one_length_and_circuits_of_these_edges() -> None:
    prompts = cases(corrupted=("zab cxb cab c", "de fye fde", "gh izh igh i"), align="end")
    with pytest.raises(wb.WorkbenchError, match="equally long"):
        found("edge_attribution", prompts)
    _, both, edges = edged("llama")
    with pytest.raises(wb.WorkbenchError, match="190"):
        edges.kept(both.clean, both.clean, torch.ones(1, 3).bool(), score)
    with pytest.raises(wb.WorkbenchError, match="cannot be drawn"):
        locate.EdgeAttribution(points=1)
    with pytest.raises(wb.WorkbenchError, match="metric"):
        locate.EdgeAttribution(metric="loss")


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_edges_on_every_backend(backend: str) -> None:
    both, ours = edged("llama")[1:]
    assert both.corrupted is not None
    theirs = Edges(tiny.model("llama", backend), progress=False)
    keep = circuits(ours, 2)
    one, other = (e.kept(both.clean, both.corrupted, keep, score) for e in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    one, other = (e.scores(both.clean, both.corrupted, score) for e in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# --- behaviours ---------------------------------------------------------------------------------

TEXTS = ("ab cab cab cde fgh", "mn omn opq rst uvw", "zy xzy xwv uts rqp")
KINDS = ("adding", "doubting", "testing", "turning")


def marked(prompt: wb.Prompt) -> list[tuple[str, int, int]]:
    """Four behaviours with disjoint tokens, some twice; the last text has two of them."""
    all_of_them = [(kind, 2 + 4 * i, 4 + 4 * i) for i, kind in enumerate(KINDS)]
    return all_of_them[:2] if prompt.text == TEXTS[2] else [*all_of_them, ("adding", 17, 19)]


def behaviours(
    prompts: Any = TEXTS, segments: Any = marked, family: Any = "llama", **o: Any
) -> Any:
    method = BehaviourAttribution(**o)
    return found(method, wb.Prompts(map(wb.Prompt, prompts)), family, segments=segments)


def directions(**options: Any) -> torch.Tensor:
    """u' of the four behaviours at L1.mlp_out, read off the edits of a map."""
    made = behaviours(parts=("mlp_out",), **options)
    edits = [made.edit(behaviour=k, part="mlp_out", layer=1) for k in KINDS]
    return torch.stack([e.tensors["L1.mlp_out"]["shift"] for e in edits])


def test_four_behaviours_have_four_directions() -> None:
    own = directions(extend=0)
    cosine = torch.nn.functional.cosine_similarity(own[:, None], own[None], dim=-1)
    assert float((cosine - torch.eye(4)).max()) < 0.9
    torch.testing.assert_close(own.norm(dim=-1), own.norm(dim=-1)[:1].expand(4))
    # the published code's sums are one: adding and doubting, in three texts each, cannot be told apart
    shared = directions(extend=0, compat="released")
    torch.testing.assert_close(shared[0], shared[1])
    assert float((shared[0] - own[0]).abs().max()) > 1e-3


def test_a_direction_is_the_mean_over_texts_of_segment_means_minus_the_rest() -> None:
    model = tiny.model()
    trace = model.run(list(TEXTS), record=["L1.mlp_out"])
    a = trace["L1.mlp_out"]
    means = [[*a[0, 2:4], *a[0, 17:19]], [*a[1, 2:4], *a[1, 17:19]], [*a[2, 2:4]]]
    mu = torch.stack([torch.stack(rows).mean(0) for rows in means]).mean(0)
    u = mu - a.mean(1).mean(0)
    expected = u * a.mean((0, 1)).norm() / u.norm()
    torch.testing.assert_close(directions(extend=0)[0], expected, rtol=1e-4, atol=1e-6)
    # turning is in two of the three texts
    u = torch.stack([a[0, 14:16].mean(0), a[1, 14:16].mean(0)]).mean(0) - a.mean(1).mean(0)
    turning = u * a.mean((0, 1)).norm() / u.norm()
    torch.testing.assert_close(directions(extend=0)[3], turning, rtol=1e-4, atol=1e-6)
    # a segment that begins earlier for u
    assert float((directions(extend=2)[0] - expected).abs().max()) > 1e-4


def test_importance_is_the_slope_of_the_segments_loss() -> None:
    """One segment: adding a little of u' at its tokens moves its loss by that much of I."""
    spans = lambda _: [("adding", 6, 9)]  # noqa: E731
    made = behaviours(TEXTS[:1], spans, parts=("mlp_out",), extend=0)
    model, text = tiny.model(), TEXTS[0]
    edit = made.edit(behaviour="adding", part="mlp_out", layer=1).within("span(6, 9)")
    ids = model.tokens(text).ids[0]

    def loss(strength: float) -> torch.Tensor:
        logits = model.run(text, edits=[edit.at(strength)] if strength else []).logits[0]
        return -logits.log_softmax(-1)[range(5, 8), ids[6:9]].mean()

    slope = (
        float((loss(0.01) - loss(-0.01)) / 0.02) / 3
    )  # u' at each of three tokens, I at their mean
    value = float(made.at(layer=1).query("measure == 'importance'")["mean"].iloc[0])
    assert value == pytest.approx(abs(slope), rel=0.02, abs=1e-5) and value > 1e-4


def slope(model: wb.Model, read: Any, site: str, u: torch.Tensor, span: slice) -> torch.Tensor:
    """`u . gradient` of what is read of the first text, summed over a span."""
    tokens = model.tokens(TEXTS[0])
    _, grads, _ = Gradients(model, False)(tokens, site, lambda x, _: read(x), keep=0)
    return (grads[site][0, span] @ u.to(grads[site])).sum()


def test_a_small_step_towards_a_behaviour_moves_its_loss_by_the_slope() -> None:
    """In float64: a tenth of the step, a tenth of the relative error; the sign is the slope's."""
    model = wb.load(tiny.module("gpt2").double(), tiny.tokenizer())
    made = behaviours(family=model, parts=("attn_out", "mlp_out"), extend=0)
    ids = model.tokens(TEXTS[0]).ids[0]
    for part, layer in (("attn_out", 0), ("mlp_out", 1), ("mlp_out", 2)):
        edit = made.edit(behaviour="testing", part=part, layer=layer).within("span(10, 12)")
        site = f"L{layer}.{part}"

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return -logits.log_softmax(-1)[:, range(9, 11), ids[10:12]].mean(-1)

        told = float(slope(model, loss, site, edit.tensors[site]["shift"], slice(10, 12)))
        base, errors = float(loss(model.run(TEXTS[0]).logits)[0]), []
        for size in (0.1, 0.01, 0.001):
            moved = float(loss(model.run(TEXTS[0], edits=[edit.at(size)]).logits)[0]) - base
            errors.append(abs(size * told / moved - 1))
        assert errors[1] < 0.5 and told * moved > 0
        np.testing.assert_allclose(errors[1:], [errors[0] / 10, errors[1] / 10], rtol=0.5)


def test_in_a_linear_model_a_step_towards_a_behaviour_is_its_slope() -> None:
    """However long the step is; what is read are logits, since no loss is linear in them."""
    model = linear()
    made = behaviours(family=model, parts=("attn_out",), extend=0)
    edit = made.edit(behaviour="adding", part="attn_out", layer=1).within("span(2, 4)")
    read = lambda logits: 100 * logits[:, 4:, 5].sum(1)  # noqa: E731
    told = slope(model, read, "L1.attn_out", edit.tensors["L1.attn_out"]["shift"], slice(2, 4))
    assert abs(float(told)) > 1e-3
    base = read(model.run(TEXTS[0]).logits)[0]
    for size in (0.5, 1.0, 20.0):
        moved = read(model.run(TEXTS[0], edits=[edit.at(size)]).logits)[0] - base
        torch.testing.assert_close(moved, size * told, rtol=1e-3, atol=1e-5)


def test_texts_a_few_at_a_time_are_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.locate import behaviour_attribution

    together = behaviours().grid()
    monkeypatch.setattr(behaviour_attribution, "TOKENS", 1)
    np.testing.assert_allclose(behaviours().grid(), together, rtol=1e-4, atol=1e-7)


def test_absolute_values_after_the_sum_are_no_larger() -> None:
    each = behaviours().grid()
    after = behaviours(abs="after_sum").grid()
    assert (after <= each + 1e-6).all() and (after >= -1e-6).all()
    assert (after < each - 1e-5).any()
    # one segment each: no difference
    one = lambda _: [("adding", 6, 9)]  # noqa: E731
    np.testing.assert_allclose(
        behaviours(TEXTS[:1], one).grid(), behaviours(TEXTS[:1], one, abs="after_sum").grid()
    )


def test_every_segment_counts_alike_whatever_text_it_is_in() -> None:
    from workbench.locate.behaviour_attribution import _importance

    spans = [[("a", 1, 2), ("a", 3, 4), ("b", 5, 6)], [("a", 1, 2)], [("b", 1, 2)]]
    slopes = torch.tensor([[1.0, -2.0, 5.0], [-6.0, 0, 0], [7.0, 0, 0]])[..., None, None]
    each = _importance(slopes, spans, ("a", "b"), "per_segment").nanmean(0).flatten()
    torch.testing.assert_close(each, torch.tensor([(1 + 2 + 6) / 3, (5 + 7) / 2]))
    after = _importance(slopes, spans, ("a", "b"), "after_sum").nanmean(0).flatten()
    torch.testing.assert_close(after, torch.tensor([abs(1 - 2 - 6) / 3, (5 + 7) / 2]))


def test_shares_sum_to_one_per_behaviour() -> None:
    np.testing.assert_allclose(np.nansum(behaviours().grid("share"), axis=(1, 2)), 1, rtol=1e-4)


def test_any_modules_output_can_be_read() -> None:
    made = behaviours(parts=("mlp_out", "hf:model.layers.{layer}.mlp.up_proj:out"))
    named = behaviours(parts=("mlp_out", "hf:model.layers.{layer}.mlp:out"))
    assert made.scores.axes[1].labels[1] == "hf:model.layers.{layer}.mlp.up_proj:out"
    np.testing.assert_allclose(named.grid()[:, 0], named.grid()[:, 1], rtol=1e-5)
    assert not np.allclose(made.grid()[:, 0], made.grid()[:, 1])


def test_scaling_what_a_behaviour_adds_leaves_the_importance() -> None:
    """u' has the length of the mean output, whatever u's own is."""
    method = BehaviourAttribution(parts=("mlp_out",), extend=0)
    model = tiny.model()
    tokens = model.tokens(list(TEXTS))
    spans = [marked(p) for p in tokens.prompts]
    a = model.run(tokens, record=["L1.mlp_out"])["L1.mlp_out"].clone()
    mean, rest = a.mean((0, 1)), a - a.mean((0, 1))

    def direction(values: torch.Tensor) -> torch.Tensor:
        read = lambda some, record: {site: values for site in record}  # noqa: E731
        return method._directions(tokens, spans, KINDS, ["L1.mlp_out"], read)["L1.mlp_out"]

    torch.testing.assert_close(direction(a), direction(mean + 3 * rest), rtol=1e-4, atol=1e-6)


def test_the_one_module_that_is_read_ranks_first() -> None:
    """A model whose every write but one MLP's is tiny."""
    hf: Any = tiny.module("llama")
    with torch.no_grad():
        for i, block in enumerate(hf.model.layers):
            block.self_attn.o_proj.weight.mul_(1e-3)
            block.mlp.down_proj.weight.mul_(20 if i == 1 else 1e-3)
    model = wb.load(hf, tiny.tokenizer())
    top = behaviours(family=model, parts=("attn_out", "mlp_out")).top(4)
    assert set(zip(top["part"], top["layer"], strict=True)) == {("mlp_out", 1)}


def test_padding_leaves_behaviours_as_they_are() -> None:
    model = tiny.model()
    both = cases_of(model, wb.Prompts(map(wb.Prompt, TEXTS)))
    t = both.clean
    pads = torch.zeros(3, 4, dtype=t.ids.dtype)
    wide = replace(t, ids=torch.cat([pads, t.ids], 1), mask=torch.cat([pads.bool(), t.mask], 1))
    one, other = (
        found(BehaviourAttribution(), c, segments=marked).grid()
        for c in (both, replace(both, clean=wide))
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        (lambda _: [], "no text has a segment"),
        (lambda _: [("adding", 0, 3)], "something before it"),
        (lambda _: [("adding", 5, 5)], "no span"),
        (lambda _: [("adding", 5, 99)], "no span"),
    ],
)
def test_segments_that_are_none(segments: Any, said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=said):
        behaviours(segments=segments)


def test_segments_come_with_the_prompts_too() -> None:
    prompts = wb.Prompts(wb.Prompt(t, meta={"segments": marked(wb.Prompt(t))}) for t in TEXTS)
    np.testing.assert_array_equal(
        found(BehaviourAttribution(), prompts).grid(), behaviours().grid()
    )
    with pytest.raises(wb.WorkbenchError, match="nothing to read"):
        BehaviourAttribution(parts=())
