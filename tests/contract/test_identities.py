"""The identities every edit keeps, for every operation on every architecture family.

A new operation or family gets its tests by being listed in `OPERATIONS` or in tests/tiny.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests import tiny
from workbench import sites
from workbench.model.model import Model
from workbench.scopes import Scope
from workbench.tensors import Intervention

PROMPTS = ["12+34=", "a longer prompt, 7*8=?", "b"]
LONG = PROMPTS[1]
# a shift of every key cancels in the softmax where positions are not rotary, and a scaling of every
# value where a norm follows, so edits of keys and values act on some of them
FIRST = Scope.span(0, 1)


def _edit(model: Model, operation: str, site: str, tensors: dict, **kw) -> Intervention:
    return Intervention("custom", operation, {site: tensors}, **kw)


def _noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _plane(d: int) -> dict[str, torch.Tensor]:
    q, _ = torch.linalg.qr(_noise(d, 2))
    return {"b1": q[:, 0].contiguous(), "b2": q[:, 1].contiguous()}


OPERATIONS: dict[str, Callable[[Model], Intervention]] = {
    "shift": lambda m: _edit(m, "affine", "L1.resid_post", {"shift": _noise(m.d_model)}),
    "low_rank": lambda m: _edit(
        m,
        "affine",
        "L1.attn_out",
        {"down": _noise(2, m.d_model), "up": _noise(2, m.d_model, seed=2)},
    ),
    "diagonal": lambda m: _edit(m, "affine", "L1.mlp_out", {"scale": _noise(m.d_model)}),
    "shift_mid": lambda m: _edit(m, "affine", "L1.resid_mid", {"shift": _noise(m.d_model)}),
    "shift_embed": lambda m: _edit(m, "affine", "embed", {"shift": _noise(m.d_model)}),
    "shift_head": lambda m: _edit(m, "affine", "L1.z[head=2]", {"shift": _noise(m.dims.d_head)}),
    "shift_all_heads": lambda m: _edit(
        m, "affine", "L1.z", {"shift": _noise(m.dims.d_head * m.n_heads)}
    ),
    "shift_query": lambda m: _edit(m, "affine", "L1.q", {"shift": _noise(m.dims.d_head)}),
    "shift_key": lambda m: _edit(
        m, "affine", "L1.k[head=0]", {"shift": _noise(m.dims.d_head)}, scope=FIRST
    ),
    "shift_value": lambda m: _edit(m, "affine", "L1.v", {"shift": _noise(m.dims.d_head)}),
    "shift_neuron": lambda m: _edit(m, "affine", "L1.mlp_post[neuron=5]", {"shift": _noise(1)}),
    "set": lambda m: _edit(m, "set", "L1.resid_pre", {"value": _noise(m.d_model)}, strength=0.5),
    "rotate": lambda m: _edit(m, "rotate", "L1.resid_post", _plane(m.d_model), strength=40.0),
    "block": lambda m: _edit(
        m,
        "block",
        "L1.resid_post",
        {"w_in": _noise(6, m.d_model), "b_in": _noise(6), "w_out": _noise(m.d_model, 6)},
    ),
    "pattern": lambda m: _edit(m, "affine", "L1.pattern[head=1]", {"scale": torch.tensor([-0.5])}),
    "score_bias": lambda m: _edit(
        m,
        "score_bias",
        "L1.attn_scores",
        {"bias": _noise(m.n_heads)},
        params={"keys": "span(0, 2)"},
    ),
    "scale_keys": lambda m: _edit(m, "scale_keys", "L1.k_cache", {"factor": torch.tensor(3.0)}),
    "scale_values": lambda m: _edit(
        m, "scale_keys", "L1.v_cache", {"factor": torch.tensor(0.3)}, scope=FIRST
    ),
    "route": lambda m: _edit(
        m, "route", "L1.router_logits", {"bias": 5 * _noise(m.dims.n_experts)}
    ),
    "shift_expert": lambda m: _edit(
        m, "affine", "L1.expert[expert=(0, 1, 2)]", {"shift": _noise(1)}
    ),
    "shift_final": lambda m: _edit(m, "affine", "final_norm", {"shift": _noise(m.d_model)}),
    "shift_logits": lambda m: _edit(m, "affine", "logits", {"shift": _noise(m.dims.n_vocab)}),
}
LACKING = {f: {"router_logits", "expert"} for f in tiny.DENSE}
LACKING |= {f: {"mlp_pre", "mlp_post"} for f in tiny.MOE}
LACKING["gpt_neox"] |= {"resid_mid"}


def _part(operation: str) -> str:
    return sites.parse(OPERATIONS[operation](tiny.model("llama")).sites[0], 3)[0].part


CASES = [
    (family, name)
    for family in tiny.FAMILIES
    for name in OPERATIONS
    if _part(name) not in LACKING[family]
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[Model, Intervention]:
    family, name = request.param
    model = tiny.model(family)
    return model, OPERATIONS[name](model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families_lack_only_what_they_cannot_have(family: str) -> None:
    model = tiny.model(family)
    have = {s.split(".", 1)[-1] for s in model.sites(write=True)}
    assert set(sites.PARTS) - have == LACKING[family]


def test_1_strength_zero_is_no_edit_bit_for_bit(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    base, zero = model.run(PROMPTS), model.run(PROMPTS, edits=[edit.at(0.0)])
    assert torch.equal(base.logits, zero.logits)
    real = model.run(PROMPTS, edits=[edit])
    assert (base.logits - real.logits).abs().max() > 1e-4, "the edit itself must do something"


def test_1b_zero_rows_of_a_sweep_are_no_edit(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    rows = [LONG] * 3
    swept = model.run(rows, edits=[edit.at(torch.tensor([0.0, 1.0, 0.0]))]).logits
    same = model.run(rows).logits
    tolerance = _rounding(model, edit)
    for row in (0, 2):
        assert (swept[row] - same[row]).abs().max() <= tolerance
    assert (swept[1] - same[1]).abs().max() > 1e-4


def test_2_nothing_is_left_behind(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    before = _state(model)
    model.run(PROMPTS, edits=[edit], record=["L*.resid_post"])
    assert _same_state(before, _state(model))

    with pytest.raises(RuntimeError, match="planted"):
        model.generate(PROMPTS, [edit], max_new_tokens=3, on_token=_planted)
    assert _same_state(before, _state(model))


def test_3_with_and_without_cache_agree(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    cached = model.generate(PROMPTS, [edit], max_new_tokens=6)
    plain = model.generate(PROMPTS, [edit], max_new_tokens=6, use_cache=False)
    again = model.run(PROMPTS, edits=[edit], completions=[g.ids for g in cached])
    for i, (a, b) in enumerate(zip(cached, plain, strict=True)):
        assert a.ids == b.ids
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)
        n = len(a.ids)
        read = again.logits[i, -n - 1 : -1].log_softmax(-1)
        replayed = read.gather(1, torch.tensor(a.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(a.logprobs), replayed, atol=1e-4)


def test_4_a_padded_batch_equals_its_rows(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    together = model.run(PROMPTS, edits=[edit])
    for i, prompt in enumerate(PROMPTS):
        alone = model.run(prompt, edits=[edit]).logits[0]
        assert (together.logits[i, -len(alone) :] - alone).abs().max() <= 1e-4


def test_5_nothing_below_or_before_changes(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    cut = 4
    edit = edit.within(Scope.span(cut, 99))
    watched = [s for s in model.sites() if "resid" in s]
    base = model.run(LONG, record=watched)
    changed = model.run(LONG, record=watched, edits=[edit])
    layer = sites.parse(edit.sites[0], model.n_layers)[0].layer
    for text in watched:
        a, b = base[text], changed[text]
        below = layer is not None and (sites.parse(text, model.n_layers)[0].layer or 0) < layer
        if edit.sites[0] in ("final_norm", "logits") or below:
            assert torch.equal(a, b), text
        elif (
            "cache" not in edit.sites[0]
        ):  # keys are edited by key position: later queries see them
            assert (a[:, :cut] - b[:, :cut]).abs().max() <= _rounding(model, edit), text


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    "part", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z"]
)
def test_6_the_change_is_the_promised_one_once(family: str, part: str) -> None:
    model = tiny.model(family)
    site = f"L1.{part}"
    if site not in model.sites():
        assert part in LACKING[family]
        return
    width = model.dims.d_head if part == "z" else model.d_model
    v = _noise(width)
    edit = Intervention("custom", "affine", {site: {"shift": v}}, 2.0, scope=Scope.span(2, 4))
    before, after = (
        model.run(LONG, record=[site])[site],
        model.run(LONG, record=[site], edits=[edit]),
    )
    expected = before.clone()
    expected[:, 2:4] += 2.0 * v
    assert torch.equal(after[site], expected)
    (receipt,) = after.receipts
    heads = model.n_heads if part == "z" else 1
    assert (receipt.fired, receipt.positions) == (1, 2)
    assert receipt.change == pytest.approx(2.0 * float(v.norm()) * (2 * heads) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_6b_a_resid_mid_write_reaches_the_skip_connection(family: str) -> None:
    model = tiny.model(family)
    if "L1.resid_mid" not in model.sites():
        assert "resid_mid" in LACKING[family]
        return
    shift = {"shift": _noise(model.d_model)}
    mid, attn = (
        model.run(LONG, edits=[Intervention("custom", "affine", {s: shift})]).logits
        for s in ("L1.resid_mid", "L1.attn_out")
    )
    assert torch.allclose(mid, attn, atol=1e-5)


def test_9_what_the_caller_gave_is_unchanged(case: tuple[Model, Intervention]) -> None:
    model, edit = case
    before = {k: v.clone() for k, v in edit.tensors[edit.sites[0]].items()}
    tokens = model.tokens(PROMPTS)
    ids = tokens.ids.clone()
    model.run(tokens, edits=[edit])
    assert torch.equal(tokens.ids, ids)
    assert all(torch.equal(v, edit.tensors[edit.sites[0]][k]) for k, v in before.items())


@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(0, 8),
    length=st.integers(1, 12),
    strength=st.floats(-4, 4).filter(lambda s: abs(s) > 0.1),
    pads=st.integers(0, 6),
)
def test_scopes_mean_the_same_alone_and_padded(
    start: int, length: int, strength: float, pads: int
) -> None:
    """Any span, any strength, any amount of padding: the row is the same as alone."""
    model = tiny.model("llama")
    edit = Intervention(
        "custom",
        "affine",
        {"L1.resid_post": {"shift": _noise(model.d_model)}},
        strength,
        scope=Scope.span(start, start + length),
    )
    alone = model.run("12+34=56+7", edits=[edit])
    padded = model.run(["12+34=56+7", "x" * (10 + pads)], edits=[edit])
    assert (padded.logits[0, pads:] - alone.logits[0]).abs().max() <= 1e-5


def test_two_threads_take_turns() -> None:
    """Edits of one call never act on another, and the module is as before when both are done."""
    model = tiny.model()
    plain, before = model.run(LONG).logits, _state(model)
    edits = [OPERATIONS[name](model) for name in ("pattern", "scale_keys", "shift")]
    expected = [model.run(LONG, edits=[e]).logits for e in edits] + [plain]
    wrong: list[int] = []

    def work(at: int) -> None:
        for _ in range(20):
            got = model.run(LONG, edits=edits[at : at + 1]).logits
            wrong.extend([at] * (not torch.equal(got, expected[at])))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert _same_state(before, _state(model))


def test_an_edit_of_an_expert_counts_only_routed_tokens() -> None:
    model = tiny.model("mixtral")
    read = model.run(LONG, ["L1.expert"])["L1.expert"]
    routed = read.any(-1)[0].sum(0)  # tokens per expert
    for expert in range(4):
        edit = Intervention(
            "custom", "affine", {f"L1.expert[expert={expert}]": {"shift": torch.ones(48)}}
        )
        (receipt,) = model.run(LONG, edits=[edit]).receipts
        assert receipt.change == pytest.approx(float(routed[expert] * 48) ** 0.5, rel=1e-4)


def test_sharpened_scores_leave_masked_positions_masked() -> None:
    model = tiny.model()
    edit = Intervention("custom", "affine", {"L1.attn_scores": {"scale": torch.ones(1)}}, 1.0)
    trace = model.run(LONG, ["L1.pattern"], [edit])
    assert trace["L1.pattern"].triu(1).abs().max() == 0
    assert trace.receipts[0].change < 1e6


@pytest.mark.parametrize("part", ["resid_post", "z", "q", "v", "mlp_post", "attn_out"])
def test_gradients_reach_what_was_recorded(part: str) -> None:
    hf = tiny.module("gpt2").requires_grad_(True)
    trace = wb.load(hf, tiny.tokenizer()).run(LONG, [f"L1.{part}"], grad=True)
    (gradient,) = torch.autograd.grad(trace.logits.sum(), trace[f"L1.{part}"])
    assert gradient.abs().max() > 0


def _rounding(model: Model, edit: Intervention) -> float:
    """0 where equality is bit for bit; else a rounding error.

    A tapped attention layer runs eager attention instead of sdpa. Experts multiply the tokens routed
    to them as one matrix, so another token's routing changes the order of additions.
    """
    tapped = ("pattern", "attn_scores", "k_cache", "v_cache")
    eager = any(part in edit.sites[0] for part in tapped)
    return 1e-5 if eager or model.dims.n_experts else 0.0


def _planted(step: int, rows: list[int], ids: list[int]) -> None:
    raise RuntimeError("planted")


def _state(model: Model) -> dict[str, object]:
    hf = model.hf
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())
    return {
        "weights": {k: v.clone() for k, v in hf.state_dict().items()},
        "hooks": hooks,
        "overrides": [n for n, m in hf.named_modules() if "forward" in m.__dict__],
        "configs": {n: id(m.config) for n, m in hf.named_modules() if hasattr(m, "config")},
        "attention": hf.config._attn_implementation,
        "training": [m.training for m in hf.modules()],
    }


def _same_state(a: dict, b: dict) -> bool:
    weights = all(torch.equal(v, b["weights"][k]) for k, v in a["weights"].items())
    return weights and all(a[k] == b[k] for k in a if k != "weights")
