"""Methods that act on attention and routing: ZeroTuning, SinkTrack, SteerMoE."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import steering
from workbench.errors import EditError, UnknownName, WorkbenchError
from workbench.records import Prompt, Prompts
from workbench.rules.base import Around
from workbench.rules.sink import Sink
from workbench.rules.steer_moe import SteerMoe as SteerMoeRule
from workbench.steering import SinkTrack, SteerMoe, ZeroTuning
from workbench.tensors import Contrast, Fingerprint, Intervention

ASKED = ["12+34=", "a longer prompt, 7*8=?", "bcd"]


def pairs(completions: bool = False) -> Prompts:
    asked = [f"{a}+{b}=" for a in (1, 23, 4) for b in (5, 66)]
    if completions:
        texts = [str(i) for i in range(len(asked))]
        return wb.prompts.completions(asked, positive=texts, negative=["no"] * len(asked))
    return wb.prompts.pairs(
        positive=[f"sum {p}" for p in asked], negative=[f"say {p}" for p in asked]
    )


def fit(method: Any, model: Any, prompts: Prompts | None = None) -> Intervention:
    return steering.fit(method, model, prompts or pairs(), progress=False)


# --- ZeroTuning -----------------------------------------------------------------------------------


def patterns(edit: Intervention | None, site: str) -> Tensor:
    return tiny.model().run(ASKED[:1], [site], [] if edit is None else [edit])[site]


def biased(heads: list[float], layer: int = 0) -> Intervention:
    site = f"L{layer}.attn_scores"
    params = {"keys": "span(0, 1)"}
    return Intervention(
        "zero_tuning", "score_bias", {site: {"bias": torch.tensor(heads)}}, params=params
    )


@pytest.fixture(scope="module")
def tuned() -> Intervention:
    return fit(ZeroTuning(gamma=3.0, layers=(0,), fraction=1.0), tiny.model())


def test_a_bias_of_log_gamma_is_the_rescaling_of_the_paper(tuned: Intervention) -> None:
    bias = tuned.tensors["L0.attn_scores"]["bias"]
    torch.testing.assert_close(bias[bias != 0], torch.full_like(bias[bias != 0], math.log(3)))
    assert bool(bias.any())
    before, after = patterns(None, "L0.pattern"), patterns(tuned, "L0.pattern")
    gamma = bias.exp().reshape(-1, 1)
    scaled = before.clone()
    scaled[..., 0] *= gamma
    scaled /= (gamma - 1)[..., None] * before[..., :1] + 1
    torch.testing.assert_close(after, scaled, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after.sum(-1), torch.ones_like(after.sum(-1)))


def test_other_tokens_keep_their_ratios_and_the_first_row_stays(tuned: Intervention) -> None:
    before, after = patterns(None, "L0.pattern"), patterns(tuned, "L0.pattern")
    torch.testing.assert_close(after[:, :, 0], before[:, :, 0], atol=0, rtol=1e-6)
    ratio = after[:, :, 3, 1] / after[:, :, 3, 2]
    torch.testing.assert_close(ratio, before[:, :, 3, 1] / before[:, :, 3, 2], atol=0, rtol=1e-4)
    head = int(tuned.tensors["L0.attn_scores"]["bias"].argmax())
    assert float((after - before)[0, head, 3, 0]) > 1e-3


def test_gamma_towards_zero_masks_the_first_token() -> None:
    before = patterns(None, "L0.pattern")
    after = patterns(biased([-200.0] * 4), "L0.pattern")
    assert not after[:, :, 1:, 0].any()
    rest = before[:, :, 1:, 1:] / (1 - before[:, :, 1:, :1])
    torch.testing.assert_close(after[:, :, 1:, 1:], rest, atol=1e-6, rtol=1e-4)


def test_the_pairwise_gap_changes_as_the_formula_says(tuned: Intervention) -> None:
    head = int(tuned.tensors["L0.attn_scores"]["bias"].argmax())
    a, b = (patterns(e, "L0.pattern")[0, head, 4].double() for e in (None, tuned))
    gap = (a[1] - a[3]).abs()
    expected = gap * 2 * a[0] / (2 * a[0] + 1)  # gamma = 3
    assert float(gap - (b[1] - b[3]).abs()) == pytest.approx(float(expected), rel=1e-3)


def test_left_padding_moves_the_first_token_not_the_first_column(tuned: Intervention) -> None:
    model = tiny.model()
    together = model.run(ASKED, edits=[tuned], logits="last").logits[:, 0]
    for row, prompt in zip(together, ASKED, strict=True):
        alone = model.run([prompt], edits=[tuned], logits="last").logits[0, 0]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)


def test_strength_is_an_exponent_of_gamma(tuned: Intervention) -> None:
    nine = fit(ZeroTuning(gamma=9.0, layers=(0,), fraction=1.0), tiny.model())
    assert torch.equal(patterns(tuned.at(2.0), "L0.pattern"), patterns(nine, "L0.pattern"))
    assert "+1.099 nats" in tuned.unit


class PlantedRun:
    """Logits whose entropy falls with the bias of good heads and rises with that of bad ones."""

    def __init__(self, good: dict[tuple[int, int], float]):
        self.good, self.calls = good, 0

    def __call__(self, prompts: Any, edits: Any = (), **_: Any) -> Any:
        self.calls += 1
        sharp = 3.0
        for edit in edits:
            for site, tensors in edit.tensors.items():
                for head, bias in enumerate(tensors["bias"].tolist()):
                    effect = self.good.get((int(site[1]), head), 0.0)
                    sharp += effect * min(bias, math.log(3))  # no better beyond gamma = 3
        logits = torch.zeros(len(prompts), 1, 8)
        logits[..., 0] = sharp
        return type("Run", (), {"logits": logits})


class TwoLayers:
    n_layers, n_heads = 3, 2


@pytest.mark.parametrize("sign", [+1, -1])
def test_the_larger_group_of_heads_is_tuned_its_best_first(sign: int) -> None:
    prompts = (Prompt("a"), Prompt("b")), ()
    contrast = Contrast({}, {}, True, None, prompts)
    effects = {(0, 0): 1.0, (0, 1): 0.3, (1, 0): 0.7, (1, 1): -0.9}
    run = PlantedRun({head: sign * effect for head, effect in effects.items()})
    edit = ZeroTuning().fit(contrast, dims=TwoLayers, run=run, encode=lambda _: [])
    assert edit.params["heads"] == ["L0.0", "L1.0"]  # half of the four heads of two thirds of 3
    assert edit.params["group"] == ("up" if sign > 0 else "down")
    # upwards nothing is won beyond 3, where the first of equals is taken; downwards there is no end
    assert edit.params["gamma"] == pytest.approx(3.0 if sign > 0 else 1 / 6)
    assert edit.params["score"] > edit.params["score_before"]


def test_supervised_choice_raises_the_answers() -> None:
    model, prompts = tiny.model(), pairs(completions=True)
    edit = fit(ZeroTuning(select="answer", layers=(0, 1)), model, prompts)

    def logprob(edits: list[Intervention]) -> float:
        wanted = [p for p in prompts if p.label]
        ids = [
            model.tokenizer(p.meta["completion"], add_special_tokens=False)["input_ids"]
            for p in wanted
        ]
        logits = model.run(wanted, edits=edits, completions=ids).logits.double().log_softmax(-1)
        return sum(float(logits[i, -2, one[0]]) for i, one in enumerate(ids)) / len(ids)

    assert edit.params["score"] == pytest.approx(logprob([edit]), abs=1e-5)
    assert edit.params["score_before"] == pytest.approx(logprob([]), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "luck"}, "unknown choice"),
        ({"fraction": 0.0}, "fraction.*out of range"),
        ({"probe": 1.0}, "probe.*out of range"),
        ({"gammas": ()}, "gammas.*out of range"),
        ({"gamma": 1.0}, "gamma.*out of range"),
        ({"gamma": float("nan")}, "not finite"),
        ({"layers": (7,)}, "layers 0 to 2"),
        ({"select": "answer"}, "with completions"),
    ],
)
def test_zero_tuning_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    method = object.__new__(ZeroTuning)
    for name in ("select", "layers", "fraction", "probe", "gammas", "gamma", "max_prompts"):
        value = options.get(name, getattr(ZeroTuning(), name))
        object.__setattr__(method, name, value)  # past the annotations, as from a file
    with pytest.raises(WorkbenchError, match=message):
        fit(method, tiny.model())


# --- SinkTrack ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sink() -> Intervention:
    return fit("sink_track", tiny.model())


def test_sink_default_layers_follow_the_depth() -> None:
    assert SinkTrack()._chosen(32) == (4, 8, 12, 16, 20, 24)
    assert SinkTrack(every=5)._chosen(28) == (5, 10, 15, 20, 25)
    assert SinkTrack(last=None, every=4)._chosen(32)[-1] == 28
    assert SinkTrack()._chosen(6) == (2, 4)
    assert SinkTrack()._chosen(3) == (1,)
    assert SinkTrack(every=2)._chosen(5) == (2,)  # nobody reads position 0 after the last layer
    with pytest.raises(WorkbenchError, match="every 0"):
        SinkTrack(every=0)._chosen(12)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_projections_are_those_of_the_layer(family: str) -> None:
    """Fed with the normed stream, they give the layer's own keys and values before any norm of keys."""
    model = tiny.model(family)
    edit = fit("sink_track", model)
    made = edit.tensors["L1.z[pos=0]"]
    trace = model.run(ASKED[:1], ["L1.attn_norm_out", "L1.k", "L1.v"])
    for name in "kv":
        own = trace["L1.attn_norm_out"] @ made[f"w_{name}"].T + made.get(f"b_{name}", 0.0)
        torch.testing.assert_close(own, trace[f"L1.{name}"].flatten(2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_own_keys_and_a_mask_give_back_the_layer_itself(family: str) -> None:
    """With one token in the prompt the look at the prompt is what position 0 does anyway."""
    model = tiny.model(family)
    edit = fit(SinkTrack(normalise_info=True), model)
    one = model.run([Prompt("a")]).tokens
    alone = replace(one, ids=one.ids[:, :1], mask=one.mask[:, :1], prompt_lengths=(1,))
    site = "L1.z"
    before = model.run(alone, [site])[site]
    conditional = replace(edit, conditional=True)
    torch.testing.assert_close(
        model.run(alone, [site], [conditional])[site], before, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_queries_and_keys_are_normed_as_the_model_does(family: str) -> None:
    """At position 0 nothing is rotated: their product is the layer's own score of 0 for itself."""
    from workbench.rules.sink import _normed

    model = tiny.model(family)
    norms = fit(SinkTrack(normalise_info=True), model).tensors["L1.z[pos=0]"]
    trace = model.run(ASKED[:1], ["L1.q", "L1.k", "L1.attn_scores"])
    query, key = (_normed(trace[f"L1.{x}"], norms.get(f"{x}_norm"))[0, 0] for x in "qk")
    found = (query * key.repeat_interleave(4 // len(key), 0)).sum(-1)
    wanted = trace["L1.attn_scores"][0, :, 0, 0]
    torch.testing.assert_close(found / found[0], wanted / wanted[0], atol=1e-3, rtol=1e-3)


def test_position_zero_is_attention_over_the_whole_prompt(sink: Intervention) -> None:
    """Written out head by head, with the query heads of each group sharing a key head."""
    model = tiny.model()
    trace = model.run(ASKED[1:2], ["L1.resid_pre", "L1.q", "L1.z"], [sink])
    h, w = trace["L1.resid_pre"][0], sink.tensors["L1.z[pos=0]"]
    for head in range(4):
        at = slice((head // 2) * 8, (head // 2) * 8 + 8)
        keys, values = h @ w["w_k"][at].T, h @ w["w_v"][at].T
        pattern = (keys @ trace["L1.q"][0, 0, head] / math.sqrt(8)).softmax(0)
        torch.testing.assert_close(
            trace["L1.z"][0, 0, head], pattern @ values, atol=1e-5, rtol=1e-4
        )


def test_in_the_first_edited_layer_only_position_zero_changes(sink: Intervention) -> None:
    model = tiny.model()
    before, after = (model.run(ASKED[:1], ["L1.z"], e)["L1.z"] for e in ([], [sink]))
    assert torch.equal(after[:, 1:], before[:, 1:])
    assert float((after[:, 0] - before[:, 0]).abs().max()) > 1e-2


def test_position_zero_now_depends_on_later_tokens(sink: Intervention) -> None:
    model = tiny.model()

    def first(edits: list[Intervention]) -> list[Tensor]:
        runs = [model.run([text], ["L1.resid_post"], edits) for text in ("12+34=", "12+34?")]
        return [run["L1.resid_post"][0, 0] for run in runs]

    plain, steered = first([]), first([sink])
    assert torch.allclose(plain[0], plain[1], atol=1e-6)
    assert float((steered[0] - steered[1]).abs().max()) > 1e-3


def around(info: Tensor, query: Tensor, pads: int = 0) -> Around:
    n = info.shape[1]
    positions = torch.arange(n)[None] - pads
    values = {"L{layer}.resid_pre": info, "L{layer}.q": query}
    return Around(positions, positions, positions, torch.tensor([[n - pads]]), values)


def test_the_order_of_the_context_does_not_matter(sink: Intervention) -> None:
    draw = torch.Generator().manual_seed(0)
    info, query = torch.randn(1, 9, 32, generator=draw), torch.randn(1, 9, 4, 8, generator=draw)
    h, w = torch.randn(1, 9, 4, 8, generator=draw), sink.tensors["L1.z[pos=0]"]
    params = sink.params
    plain = Sink.change(h, w, params, around(info, query))
    order = [0, *(1 + torch.randperm(8, generator=draw)).tolist()]
    turned = Sink.change(h, w, params, around(info[:, order], query))
    torch.testing.assert_close(turned, plain, atol=1e-5, rtol=1e-5)
    assert not plain[:, 1:].any()
    # and padding is not looked at
    pads = torch.full((1, 3, 32), 50.0)
    shifted = [torch.cat([torch.zeros(1, 3, *t.shape[2:]), t], 1) for t in (query, h)]
    padded = Sink.change(
        shifted[1], w, params, around(torch.cat([pads, info], 1), shifted[0], pads=3)
    )
    torch.testing.assert_close(padded[:, 3:], plain, atol=1e-5, rtol=1e-5)


def test_steps_after_the_prompt_are_left_alone(sink: Intervention) -> None:
    texts = tiny.model().generate(ASKED, sink, max_new_tokens=5)
    (receipt,) = texts.receipts
    assert receipt.positions == len(ASKED)


def test_generated_tokens_are_not_part_of_the_information(sink: Intervention) -> None:
    model = tiny.model()
    runs = [
        model.run(ASKED[:1], ["L1.z"], [sink], completions=[ids])["L1.z"][0, 0]
        for ids in ([10, 11], [20, 30])
    ]
    torch.testing.assert_close(runs[0], runs[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layers", [(0,), (3,), ()])
def test_sink_track_refuses_layers_it_cannot_edit(layers: tuple[int, ...]) -> None:
    with pytest.raises(WorkbenchError, match="no such layers"):
        fit(SinkTrack(layers=layers), tiny.model())


def test_sink_track_refuses_projections_it_does_not_know() -> None:
    contrast = Contrast({}, {}, True, None)
    with pytest.raises(WorkbenchError, match="no key and value projections in layer 1"):
        SinkTrack().fit(
            contrast, dims=tiny.model().dims, parameters={"h.1.attn.wqkv": torch.ones(2)}
        )


def test_a_rule_may_read_its_own_layer_only(sink: Intervention) -> None:
    for reads in (["L0.resid_pre"], ["L{layer}.resid_post"], ["L{layer}.q[pos=0]"]):
        other = replace(sink, params={**sink.params, "reads": reads})
        with pytest.raises(WorkbenchError, match="own layer|names a layer"):
            tiny.model().run(ASKED[:1], edits=[other])


def test_live_runs_give_what_a_run_gives(sink: Intervention) -> None:
    from workbench.model.live import Live

    model = tiny.model()
    live = Live(model, ASKED)
    live.run([])
    for strength in (1.0, 0.25):
        edits = [sink.at(strength)]
        torch.testing.assert_close(
            live.run(edits).logits, model.run(ASKED, edits=edits, logits="last").logits
        )


# --- SteerMoE -------------------------------------------------------------------------------------

E, K = 6, 2


class Routed:
    n_experts, n_routed = E, K


def routed(seed: int = 0) -> Contrast:
    """Expert 1 of L0 is read by the positive class, expert 4 of L1 by the negative."""
    draw = torch.Generator().manual_seed(seed)
    sides = []
    for side in (0, 1):
        rows = {f"L{n}.router_logits": 0.3 * torch.randn(200, E, generator=draw) for n in (0, 1)}
        rows["L0.router_logits"][:, 1] += 2.0 * (side == 0)
        rows["L1.router_logits"][:, 4] += 2.0 * (side == 1)
        sides.append(rows)
    return Contrast(sides[0], sides[1], False, Fingerprint("planted", "none", 8, 2, "0"))


def changed(bias: list[float], h: Tensor, s: float = 1.0) -> Tensor:
    return h + s * SteerMoeRule.change(h, {"bias": torch.tensor(bias)}, {})


def test_planted_experts_are_found_and_other_layers_left_alone() -> None:
    edit = SteerMoe(n_activate=1, n_deactivate=0).fit(routed(), dims=Routed)
    assert edit.params["experts"] == {"L0.router_logits": [0, 1, 0, 0, 0, 0]}
    both = SteerMoe(n_activate=1, n_deactivate=1).fit(routed(), dims=Routed)
    assert both.params["experts"]["L1.router_logits"] == [0, 0, 0, 0, -1, 0]


def test_swapping_the_classes_swaps_the_sets() -> None:
    contrast = routed()
    back = replace(contrast, positive=contrast.negative, negative=contrast.positive)
    there = SteerMoe(2, 2).fit(contrast, dims=Routed).params["experts"]
    again = SteerMoe(2, 2).fit(back, dims=Routed).params["experts"]
    assert {s: [-x for x in v] for s, v in there.items()} == again


def test_differences_of_rates_sum_to_zero_in_a_layer() -> None:
    from workbench.steering.steer_moe import _rate

    contrast = routed()
    for site, rows in contrast.positive.items():
        rd = _rate(rows, K, E) - _rate(contrast.negative[site], K, E)
        assert float(rd.sum()) == pytest.approx(0, abs=1e-12)
        assert float(_rate(rows, K, E).sum()) == pytest.approx(K)
        assert float(rd.abs().max()) > 0.3


def test_activated_experts_are_always_chosen_and_deactivated_never() -> None:
    h = 3 * torch.randn(500, E, generator=torch.Generator().manual_seed(1))
    new = changed([1, 0, -1, 0, -1, 1], h)
    chosen = new.topk(K, -1).indices
    assert bool(((chosen == 0) | (chosen == 5)).all())
    off = changed([0, 0, -1, -1, -1, -1], h).topk(K, -1).indices
    assert bool(((off == 0) | (off == 1)).all())
    weights = new.softmax(-1)
    torch.testing.assert_close(weights[:, 0], weights[:, 5])  # they tie
    assert torch.equal(new[:, [1, 3]], h[:, [1, 3]])  # the others keep their logit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_margin_survives_the_dtype(dtype: torch.dtype) -> None:
    h = (40 + 3 * torch.randn(300, E, generator=torch.Generator().manual_seed(2))).to(dtype)
    new = h + SteerMoeRule.change(h, {"bias": torch.tensor([1.0, 0, 0, 0, 0, -1.0]).to(dtype)}, {})
    assert bool((new[:, :1] > new[:, 1:]).all()) and bool((new[:, 5:] < new[:, :5]).all())


def test_the_shift_of_the_paper_is_not_seen_by_the_softmax() -> None:
    h, bias = torch.randn(50, E, dtype=torch.float64), torch.tensor([1.0, 0, 0, -1, 0, 0]).double()
    s = h.log_softmax(-1)
    paper = s.clone()
    paper[:, 0], paper[:, 3] = s.max(-1).values + 0.01, s.min(-1).values - 0.01
    ours = h + SteerMoeRule.change(h, {"bias": bias}, {})
    torch.testing.assert_close(ours.softmax(-1), paper.softmax(-1))


def test_empty_sets_leave_routing_alone() -> None:
    h = torch.randn(5, E)
    assert torch.equal(changed([0.0] * E, h), h)
    with pytest.raises(WorkbenchError, match="no expert is chosen"):
        SteerMoe(n_activate=0, n_deactivate=0).fit(routed(), dims=Routed)


def test_no_layer_gets_more_than_it_can_use() -> None:
    edit = SteerMoe(n_activate=50, n_deactivate=50).fit(routed(), dims=Routed)
    for tensors in edit.tensors.values():
        assert int((tensors["bias"] > 0).sum()) <= K
        assert int((tensors["bias"] < 0).sum()) <= E - K


def test_experts_of_a_model_are_switched() -> None:
    model = tiny.model("mixtral")
    edit = fit("steer_moe", model)
    site = edit.sites[0]
    marks = edit.tensors[site]["bias"]
    chosen = model.run(ASKED, [site], [edit])[site].topk(2, -1).indices
    mask = model.tokens(ASKED).mask
    for expert, mark in enumerate(marks.tolist()):
        read = (chosen == expert).any(-1)[mask]
        if mark:
            assert bool(read.all()) if mark > 0 else not bool(read.any())
    assert marks.any()


def test_the_reasoner_with_experts_goes_on_with_half_a_switch() -> None:
    model = wb.load("reasoner-moe")
    sides = wb.prompts.pairs(
        positive=[f"add {n} {n + 21}?\n" for n in range(11, 17)],
        negative=[f"what is {n}?\n" for n in range(11, 17)],
    )
    edit = fit(SteerMoe(n_activate=2, n_deactivate=2), model, sides)
    plain, steered = (
        model.run(["add 12 30?\n"], edits=e, logits="last").logits for e in ([], [edit.at(0.5)])
    )
    assert not torch.equal(plain, steered)


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="does not choose among experts"):
        SteerMoe().fit(routed(), dims=tiny.model().dims)
    with pytest.raises(WorkbenchError, match="n_activate.*negative"):
        SteerMoe(n_activate=-1).fit(routed(), dims=Routed)


def test_rows_of_another_site_are_refused() -> None:
    contrast = routed()
    wide = [
        {s: torch.cat([r, r], 1) for s, r in rows.items()}
        for rows in (contrast.positive, contrast.negative)
    ]
    with pytest.raises(WorkbenchError, match="no router logits"):
        SteerMoe().fit(replace(contrast, positive=wide[0], negative=wide[1]), dims=Routed)


def test_names_are_what_they_are() -> None:
    with pytest.raises(UnknownName):
        steering.fit("zero_tunning", tiny.model(), pairs())
    with pytest.raises(EditError, match="width or depth"):
        tiny.model("mixtral").run(
            "a", edits=[replace(fit("steer_moe", wb.load("reasoner-moe")), name="x")]
        )
