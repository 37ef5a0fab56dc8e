"""Vector algebra on additions, and several edits composed under each policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench.errors import EditError, UnknownName
from workbench.interventions.compose import compose, meetings
from workbench.tensors import SUM_UNIT, Fingerprint, Intervention

SITES = ("L0.resid_post", "L1.resid_post")
D = 32


def vector(seed: int, sites: tuple[str, ...] = SITES, **fields: Any) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    tensors = {s: {"shift": torch.randn(D, generator=generator)} for s in sites}
    return Intervention("custom", "affine", tensors, **{"name": f"v{seed}", **fields})


def ablation(seed: int, sites: tuple[str, ...] = SITES, **fields: Any) -> Intervention:
    r = torch.nn.functional.normalize(vector(seed).tensors[SITES[0]]["shift"], dim=0)[None]
    tensors = {s: {"down": r, "up": -r} for s in sites}
    return Intervention("custom", "affine", tensors, **{"name": f"ablate{seed}", **fields})


def stream(*edits: Intervention, site: str = "L1.resid_post") -> Tensor:
    """The residual stream of a tiny model under edits."""
    return tiny.model("llama").run(["12+3=4", "abc"], record=[site], edits=edits)[site]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# --- algebra -------------------------------------------------------------------------------------


def test_a_number_scales_the_strength_of_any_edit() -> None:
    for edit in (vector(1), ablation(1)):
        assert (2 * edit).strength == (edit * 2).strength == 2.0
        assert (edit / 4).strength == 0.25
        assert (-edit).strength == -1.0 and (-(-1 * edit)).strength == 1.0
        assert (0 * edit).is_zero
        assert (3 * edit).tensors is edit.tensors


def test_per_row_strengths_are_scaled_row_by_row() -> None:
    edit = 2 * vector(1).at(torch.tensor([0.5, -1.0]))
    assert torch.equal(edit.strength, torch.tensor([1.0, -2.0]))


def test_two_a_minus_b_is_what_it_says() -> None:
    a, b = vector(1).at(0.5), vector(2).at(3.0)
    made = 2 * a - b
    assert made.strength == 1.0 and made.unit == SUM_UNIT
    for site in SITES:
        want = 2 * 0.5 * a.tensors[site]["shift"] - 3 * b.tensors[site]["shift"]
        torch.testing.assert_close(made.tensors[site]["shift"], want)
    assert made.name == "1 v1 + -3 v2"
    assert made.params["terms"] == [[1.0, "v1"], [-3.0, "v2"]]


def test_a_sum_steers_as_its_parts_do_together() -> None:
    a, b = vector(1), vector(2).at(-0.5)
    close(stream(a + b), stream(a, b))
    assert (stream(a + b) - stream()).norm() > 1


def test_sums_go_on() -> None:
    a, b, c = vector(1), vector(2), vector(3)
    made = (a + b) / 2 - c
    for site in SITES:
        x, y, z = (e.tensors[site]["shift"] for e in (a, b, c))
        torch.testing.assert_close(made.tensors[site]["shift"], (x + y) / 2 - z)
    assert made.params["terms"] == [[0.5, "v1"], [0.5, "v2"], [-1.0, "v3"]]


def test_sums_share_no_memory_and_save(tmp_path) -> None:
    a, b = vector(1), vector(2)
    before = a.tensors[SITES[0]]["shift"].clone()
    made = a + b
    made.tensors[SITES[0]]["shift"].add_(1)
    assert torch.equal(a.tensors[SITES[0]]["shift"], before)
    back = wb.load_edit(wb.save_edit(made, tmp_path / "sum.safetensors"))
    assert back.params == made.params and back.unit == SUM_UNIT


def test_a_sum_of_switched_off_edits_is_switched_off() -> None:
    off = vector(1).at(0.0), vector(2).at(0.0)
    for made in (off[0] + off[1], *compose(off, conflict="sum")):
        assert made.is_zero and torch.equal(stream(made), stream())
    (half,) = compose([off[0], vector(2)], conflict="sum")
    close(stream(half), stream(vector(2)))


MODEL = Fingerprint("a", "llama", D, 3, "0")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ablation(2), "more than add"),
        (vector(2, SITES[:1]), "different sites"),
        (vector(2, params={"stepwise": "rebalance"}), "more than add"),
        (vector(2).within("generated"), "different positions"),
        (vector(2, unit="degrees"), "different units"),
        (vector(2).at(torch.tensor([1.0, 2.0])), "strength per row"),
        (vector(2, model=replace(MODEL, weights="1")), "different models"),
        (
            Intervention("custom", "affine", {s: {"shift": torch.ones(D + 1)} for s in SITES}),
            "differ in width",
        ),
    ],
)
def test_what_has_no_sum_is_refused(other: Intervention, said: str) -> None:
    with pytest.raises(EditError, match=said):
        _ = vector(1, model=MODEL) + other
    with pytest.raises(EditError, match=said):
        _ = other - vector(1, model=MODEL)


@pytest.mark.parametrize("make", [lambda a: a + 1, lambda a: a * "2", lambda a: a / a])
def test_other_operands_are_type_errors(make: Any) -> None:
    with pytest.raises(TypeError):
        make(vector(1))


# --- where edits meet ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        ("L1.resid_post", "L1.resid_post", True),
        ("L1.resid_post", "L2.resid_post", False),
        ("L1.resid_post", "L1.resid_pre", False),
        ("L*.resid_post", "L1.resid_post", True),
        ("L0-1.resid_post", "L2.resid_post", False),
        ("blocks.1.hook_resid_post", "L1.resid_post", True),
        ("L1.z[head=3]", "L1.z", True),
        ("L1.z[head=3]", "L1.z[head=2]", False),
        ("L1.z[head=(0, 3)]", "L1.z[head=3]", True),
        ("L1.z[head=-1]", "L1.z[head=2]", True),
        ("L1.resid_post[pos=2]", "L1.resid_post[pos=5]", False),
        ("L1.resid_post[pos=2]", "L1.resid_post[pos=-1]", True),
    ],
)
def test_sites_meet(one: str, two: str, meet: bool) -> None:
    a, b = vector(1, (one,)), vector(2, (two,))
    assert bool(meetings(a, b)) is bool(meetings(b, a)) is meet


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        ("all", "generated", True),
        ("prompt", "generated", False),
        ("last_prompt", "generated", False),
        ("prompt", "last_prompt", True),
        ("span(0, 2)", "span(2, 4)", False),
        ("span(0, 3)", "span(2, 4)", True),
        ("bos", "span(1, 4)", False),
        ("bos", "span(0, 4)", True),
        ("all-bos", "bos", False),
        ("prompt|generated", "generated", True),
        ("tokens({3})", "generated", True),
        ("after(3)", "prompt", True),
    ],
)
def test_scopes_meet(one: str, two: str, meet: bool) -> None:
    a, b = vector(1).within(one), vector(2).within(two)
    assert bool(meetings(a, b)) is bool(meetings(b, a)) is meet


# --- policies ------------------------------------------------------------------------------------


def test_order_keeps_the_list_and_edits_need_not_commute() -> None:
    push, erase = vector(1).only(SITES[1]), ablation(1).only(SITES[1])
    first, second = compose([erase, push]), compose([push, erase])
    assert [e.label for e in first] == ["ablate1", "v1"]
    r = erase.tensors[SITES[1]]["down"][0]
    length = float(push.tensors[SITES[1]]["shift"] @ r)
    unpadded = 0
    assert (stream(*second)[unpadded] @ r).abs().max() < 1e-4
    reached = stream(*first)[unpadded] @ r
    close(reached, torch.full_like(reached, length))
    assert abs(length) > 0.1


def test_error_names_the_edits_and_the_site() -> None:
    with pytest.raises(EditError, match="'v1' and 'v2' at L1.resid_post.*meet"):
        compose([vector(1), vector(2, ("L1.resid_post",))], conflict="error")
    apart = [vector(1).within("prompt"), vector(2).within("generated"), vector(3, ("L2.mlp_out",))]
    assert compose(apart, conflict="error") == apart


def test_sum_makes_one_edit_that_does_both() -> None:
    a, b = vector(1, ("L0.resid_post", "L1.resid_post")).at(2.0), vector(2, ("L1.resid_post",))
    apart = vector(3, ("L2.mlp_out",))
    made = compose([a, apart, b], conflict="sum")
    assert [e.label for e in made] == ["v1 + v2", "v3"]
    assert made[0].sites == ("L0.resid_post", "L1.resid_post")
    close(stream(*made), stream(a, apart, b))


def test_sum_joins_edits_that_a_third_one_connects() -> None:
    a, b = vector(1, ("L0.resid_post",)), vector(2, ("L1.resid_post",))
    (made,) = compose([a, b, vector(3)], conflict="sum")
    close(stream(made), stream(a, b, vector(3)))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ablation(2), "only additions"),
        (vector(2, params={"stepwise": "rebalance"}), "only additions"),
        (vector(2).within("prompt"), "scopes differ"),
        (vector(2).at(torch.ones(2)), "strength per row"),
        (vector(2, ("L*.resid_post",)), "is a part of"),
    ],
)
def test_sum_refuses_what_has_none(other: Intervention, said: str) -> None:
    with pytest.raises(EditError, match=said):
        compose([vector(1), other], conflict="sum")


def test_priority_keeps_the_first_at_every_site() -> None:
    first, second = vector(1, ("L1.resid_post",)), ablation(2)
    made = compose([first, second], conflict="priority")
    assert [(e.label, e.sites) for e in made] == [
        ("v1", ("L1.resid_post",)),
        ("ablate2", ("L0.resid_post",)),
    ]
    assert compose([second, first], conflict="priority") == [second]
    later = first.within("generated")
    assert compose([second.within("prompt"), later], conflict="priority")[1] == later


def test_an_unknown_policy_and_a_stranger_are_errors() -> None:
    with pytest.raises(UnknownName, match="unknown policy"):
        compose([vector(1)], conflict="merge")
    with pytest.raises(EditError, match="got str"):
        compose([vector(1), "v2"])
