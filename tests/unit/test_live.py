"""The interactive engine gives what a fresh run gives, bit for bit, and runs only what it must."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from tests import tiny

PROMPTS = ["abc def", "hello 12345"]
RECORD = ["L*.resid_post", "L1.z", "L0.resid_pre"]
PARTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_norm_out")
WHOLE = range(3)


def shift(site: str, strength: float = 1.0, scope: str = "all", seed: int = 5) -> wb.Intervention:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    scope_ = wb.Scope.parse(scope)
    return wb.Intervention("custom", "affine", {site: {"shift": vector}}, strength, scope=scope_)


def single(site: str, operation: str, size: int, strength: float = 1.0, **names) -> wb.Intervention:
    tensors = {site: {name: torch.full((size,), value) for name, value in names.items()}}
    return wb.Intervention("custom", operation, tensors, strength)


def same(live: wb.Live, edits, record=RECORD, logits="last") -> range:
    """Assert that a live run equals a fresh one in every bit; the blocks it ran."""
    fresh = live.model.run(live.tokens, record, edits, logits=logits)
    trace = live.run(edits, record, logits=logits)
    assert torch.equal(trace.logits, fresh.logits)
    assert list(trace.values) == list(fresh.values)
    assert all(torch.equal(trace.values[k], v) for k, v in fresh.values.items())
    assert trace.receipts == fresh.receipts
    return live.reran


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_edits_that_come_move_and_go(family: str) -> None:
    live, low, high = (
        wb.Live(tiny.model(family), PROMPTS),
        shift("L0.resid_post"),
        shift("L2.mlp_out"),
    )
    assert same(live, []) == WHOLE
    assert same(live, [low]) == range(1, 3)
    assert same(live, [low, high]) == range(2, 3)
    assert same(live, [low, high.at(3.0)]) == range(2, 3)
    assert same(live, [high.at(3.0), low]) == range(3, 3)  # different layers: order means nothing
    assert same(live, [low.within("prompt-bos"), high.at(3.0)]) == range(1, 3)
    assert same(live, [high.at(3.0)]) == range(1, 3)
    assert same(live, [shift("embed"), high]) == WHOLE
    assert same(live, [shift("embed"), high, shift("final_norm")]) == range(3, 3)
    assert same(live, [shift("embed"), high]) == range(3, 3)
    assert same(live, [shift("embed"), high], logits="all") == range(3, 3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_kind_of_edit_resumes_exactly(family: str) -> None:
    model = tiny.model(family)
    live, below = wb.Live(model, PROMPTS), shift("L0.resid_post")
    kinds = {
        "L1.resid_mid": shift("L1.resid_mid"),
        "L1.pattern": single("L1.pattern", "affine", 1, scale=-0.5),
        "L1.attn_scores": replace(
            single("L1.attn_scores", "score_bias", 4, bias=0.7), params={"keys": "span(1, 3)"}
        ),
        "L1.k_cache": single("L1.k_cache", "scale_keys", 1, factor=0.5),
        "L1.q": single("L1.q", "affine", 1, scale=0.5),
        "L1.router_logits": single("L1.router_logits", "route", 4, bias=2.0),
        "L1.expert": single("L1.expert", "affine", 1, scale=-1.0),
    }
    kinds["L1.router_logits"].tensors["L1.router_logits"]["bias"][1:] = 0
    offered = set(model.sites(write=True))
    same(live, [below])
    for site, edit in kinds.items():
        if site in offered:
            assert same(live, [below, edit]) == range(1, 3)
            assert same(live, [below, edit.at(0.5)]) == range(1, 3)


STEP = st.tuples(
    st.integers(0, 2), st.sampled_from(PARTS), st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["all", "prompt", "last_prompt", "span(1, 4)"]),
)  # fmt: skip
LISTS = st.lists(st.lists(STEP, max_size=3), min_size=2, max_size=4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2_moe"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(lists=LISTS, read=st.sampled_from(["last", "all"]), record=st.booleans())
def test_any_sequence_of_lists_equals_fresh_runs(family, lists, read, record) -> None:
    live = wb.Live(tiny.model(family), PROMPTS)
    for steps in lists:
        edits = [shift(f"L{n}.{part}", s, scope, seed=n) for n, part, s, scope in steps]
        same(live, edits, ["L1.resid_post", "L2.pattern"] if record else [], read)


def test_equal_content_runs_nothing_again() -> None:
    live = wb.Live(tiny.model(), PROMPTS)
    first = live.run([shift("L1.resid_post")], "L2.resid_post")
    again = live.run([shift("L1.resid_post").named("another record")], "L2.resid_post")
    assert live.reran == range(3, 3)
    assert again.logits is first.logits and again.receipts[0].edit == "another record"
    assert same(
        live, [shift("L1.resid_post"), shift("L0.mlp_out", 0.0)], ["L2.resid_post"]
    ) == range(3, 3)


def test_a_vector_changed_in_place_is_noticed() -> None:
    live, edit = wb.Live(tiny.model(), PROMPTS), shift("L1.resid_post")
    same(live, [edit])
    edit.tensors["L1.resid_post"]["shift"].mul_(2)
    assert same(live, [edit]) == range(2, 3)


def test_a_kept_tensor_that_a_caller_wrote_into_is_noticed() -> None:
    live, edit = wb.Live(tiny.model(), PROMPTS), shift("L1.mlp_out")
    same(live, [edit])
    live.run([edit], RECORD)["L0.resid_post"].zero_()
    same(live, [edit])
    live.run([edit]).logits.zero_()
    assert same(live, [edit]) == range(3, 3)


def test_changed_weights_are_noticed() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    live = wb.Live(model, PROMPTS)
    same(live, [shift("L2.mlp_out")])
    model.hf.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert same(live, [shift("L2.mlp_out")]) == WHOLE


def test_recording_keeps_what_did_not_run_and_adds_what_was_not_there() -> None:
    live, edit = wb.Live(tiny.model(), PROMPTS), shift("L2.mlp_out")
    same(live, [edit])
    assert same(live, [edit.at(2.0)]) == range(2, 3)
    assert same(live, [edit.at(2.0)], ["L1.mlp_post"]) == range(1, 3)
    assert same(live, [edit.at(2.0)], ["L1.pattern"]) == range(1, 3)
    # a tapped layer runs another kernel, so going back to untapped is a change of its last bits
    assert same(live, [edit.at(2.0)], []) == range(1, 3)


def test_receipts_below_stay_and_a_failed_run_leaves_the_last_good_one() -> None:
    live, good = wb.Live(tiny.model(), PROMPTS), [shift("L0.mlp_out"), shift("L2.mlp_out")]
    same(live, good)
    nothing = replace(shift("L1.mlp_out"), tensors={"L1.mlp_out": {"shift": torch.zeros(32)}})
    with pytest.raises(wb.WorkbenchError, match="changed nothing"):
        live.run([*good, nothing])
    assert same(live, good) == range(3, 3)
    assert same(live, [good[0], good[1].at(2.0)]) == range(2, 3)


def test_an_exception_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    before = {name: (type(m), set(m.__dict__)) for name, m in model.hf.named_modules()}
    live = wb.Live(model, PROMPTS)
    live.run([shift("L1.mlp_out")])
    for module in (model.hf.model.layers[2].mlp, model.hf.lm_head):
        with monkeypatch.context() as patch:
            patch.setattr(type(module), "forward", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                live.run([shift("L1.mlp_out", 2.0)])
            with pytest.raises(ZeroDivisionError):
                live.sweep(shift("L1.mlp_out"), [1.0, 2.0])
    assert {name: (type(m), set(m.__dict__)) for name, m in model.hf.named_modules()} == before
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.hf.modules())
    same(live, [shift("L1.mlp_out", 2.0)])


def test_where_direct_calls_are_not_exact_stand_ins_take_over() -> None:
    live = wb.Live(tiny.model("gemma2"), PROMPTS)
    live._upper._exact = False
    for edits in (
        [],
        [shift("L1.mlp_out")],
        [shift("L1.mlp_out"), shift("L0.resid_pre")],
        [shift("embed")],
    ):
        same(live, edits)
    assert same(live, [shift("embed"), shift("L2.resid_post")]) == range(3, 3)


def test_hooks_of_the_user_fire_once_a_block_that_runs() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    fired: list[int] = []
    for n, layer in enumerate(model.hf.model.layers):
        layer.register_forward_hook(lambda _m, _a, out, n=n: (fired.append(n), out * 1.01)[1])
    live = wb.Live(model, PROMPTS)
    same(live, [shift("L1.mlp_out")])
    same(live, [shift("L1.mlp_out", 2.0)])
    fired.clear()
    live.run([shift("L1.mlp_out", 3.0)])
    assert fired == [1, 2]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_sweep_equals_its_runs(family: str) -> None:
    model, strengths = tiny.model(family), [0.0, 1.0, -2.0]
    edit, other = shift("L1.resid_post"), shift("L2.attn_out")
    live = wb.Live(model, PROMPTS, [other])
    swept = live.sweep(edit, strengths, "L2.resid_post")
    assert swept.logits.shape[:2] == (3, 2) and swept["L2.resid_post"].shape[:2] == (3, 2)
    for row, strength in enumerate(strengths):
        alone = model.run(PROMPTS, "L2.resid_post", [other, edit.at(strength)], logits="last")
        torch.testing.assert_close(swept.logits[row], alone.logits, atol=1e-5, rtol=1e-5)
        site = "L2.resid_post"
        torch.testing.assert_close(swept[site][row], alone[site], atol=1e-5, rtol=1e-5)


def test_a_sweep_takes_the_place_of_its_edit_and_counts_the_others() -> None:
    model, edit, low = tiny.model(), shift("L1.resid_post", 1.0), shift("L0.mlp_out")
    live = wb.Live(model, PROMPTS, [edit, low])
    swept = live.sweep(edit, [2.0, 3.0])
    alone = model.run(PROMPTS, (), [edit.at(3.0), low], logits="last")
    torch.testing.assert_close(swept.logits[1], alone.logits, atol=1e-5, rtol=1e-5)
    by_site = {r.site: r for r in swept.receipts}
    assert by_site["L0.mlp_out"].positions == 2 * alone.receipts[1].positions
    assert by_site["L0.mlp_out"].change == pytest.approx(2**0.5 * alone.receipts[1].change)
    assert same(live, [edit, low], []) == range(3, 3)  # the sweep left the kept run alone
    with pytest.raises(wb.WorkbenchError, match="no strengths"):
        live.sweep(edit, [])


def test_a_sweep_sees_what_changed_since_the_last_run() -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    low, edit = shift("L0.mlp_out"), shift("L1.resid_post")
    live = wb.Live(model, PROMPTS, [low])
    live.sweep(edit, [1.0])
    low.tensors["L0.mlp_out"]["shift"].mul_(2)
    model.hf.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    alone = model.run(PROMPTS, (), [low, edit], logits="last")
    torch.testing.assert_close(
        live.sweep(edit, [1.0]).logits[0], alone.logits, atol=1e-5, rtol=1e-5
    )


def test_per_row_strengths_and_values_follow_the_batch_of_a_sweep() -> None:
    model = tiny.model()
    value = model.run(PROMPTS, "L0.resid_post")["L0.resid_post"] * 1.5
    patch = wb.Intervention("custom", "set", {"L0.resid_post": {"value": value}})
    rows = shift("L0.mlp_out").at(torch.tensor([1.0, 2.0]))
    edit = shift("L1.resid_post")
    swept = wb.Live(model, PROMPTS, [patch, rows]).sweep(edit, [1.0, 4.0])
    alone = model.run(PROMPTS, (), [patch, rows, edit.at(4.0)], logits="last")
    torch.testing.assert_close(swept.logits[1], alone.logits, atol=1e-5, rtol=1e-5)


def test_a_completion_counts_as_generated() -> None:
    model, edit = tiny.model(), shift("L1.resid_post", 1.0, "generated")
    live = wb.Live(model, ["ab"], completions=[[7, 8, 9]])
    trace, fresh = (
        live.run([edit]),
        model.run(["ab"], (), [edit], completions=[[7, 8, 9]], logits="last"),
    )
    assert torch.equal(trace.logits, fresh.logits) and trace.receipts[0].positions == 3


def test_runs_leave_no_garbage_for_the_collector() -> None:
    live, edit = wb.Live(tiny.model(), PROMPTS), shift("L1.resid_post")
    live.run([edit]), live.run([edit.at(2.0)], RECORD), live.model.run(PROMPTS, RECORD, [edit])
    gc.collect()
    live.run([edit.at(3.0)], RECORD), live.model.run(PROMPTS, RECORD, [edit])
    assert gc.collect() == 0


def test_the_shipped_model() -> None:
    model = wb.load("reasoner", proof=False)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    live = wb.Live(model, ["12+34=", "5*6="])
    for layer in (0, model.n_layers // 2, model.n_layers - 1):
        for strength in (1.0, 2.0):
            edit = wb.Intervention(
                "custom", "affine", {f"L{layer}.mlp_out": {"shift": vector}}, strength
            )
            same(live, [edit], ["L*.resid_post"])


def test_another_backend_runs_in_full_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wb.load(tiny.module("llama"), tiny.tokenizer(), proof=False)
    monkeypatch.setattr(model.backend, "name", "elsewhere", raising=False)
    live = wb.Live(model, PROMPTS)
    assert "elsewhere" in live.note
    assert same(live, [shift("L1.mlp_out")]) == WHOLE
    assert same(live, [shift("L2.mlp_out")]) == WHOLE
    assert live.sweep(shift("L2.mlp_out"), [1.0, 2.0]).logits.shape[:2] == (2, 2)
