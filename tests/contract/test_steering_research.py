"""Methods from recent papers: what each one's formula promises, on planted rows and on tiny models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import PolynomialCountSketch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import steering
from workbench.errors import EditDidNothing, EditError, PromptError, UnknownName, WorkbenchError
from workbench.interventions import random_control
from workbench.interventions.select_direction import select_direction
from workbench.linalg import mean_difference
from workbench.operations import Context, operation
from workbench.records import Prompts
from workbench.rules.ode import Ode, barrier, direction
from workbench.seeds import derive
from workbench.steering import (
    ActAdd,
    AuSteer,
    MeanDifference,
    OdeSteer,
    Pid,
    StyliTruth,
    TaskVector,
)
from workbench.steering.pid import control
from workbench.tasks.locked import Locked
from workbench.tensors import Contrast, Intervention

D, PAIRS = 12, 40


@cache
def llama() -> Any:
    return tiny.model("llama")


def fit(method: Any, prompts: Any, sites: Any = None, **options: Any) -> Intervention:
    return steering.fit(method, llama(), prompts, sites, progress=False, **options)


def pairs(n: int = 6) -> Prompts:
    asked = [f"{a}+{b}=" for a in (1, 23, 4) for b in (5, 66)][:n]
    return wb.prompts.pairs(
        positive=[f"sum {p}" for p in asked], negative=[f"say {p}" for p in asked]
    )


def planted(
    sites: tuple[str, ...] = ("L0.resid_post", "L1.resid_post"), d: int = D, seed: int = 0
) -> Contrast:
    """Pairs that share an offset and differ by a direction of each site."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    negative = {site: draw(PAIRS, d) + 2 * draw(d) for site in sites}
    positive = {site: rows + draw(d) + 0.3 * draw(PAIRS, d) for site, rows in negative.items()}
    return Contrast(positive, negative, True)


def applied(edit: Intervention, site: str, h: Tensor) -> Tensor:
    rule = Ode.change if edit.params.get("rule") == "ode" else None
    tensors = {name: tensor.to(h.dtype) for name, tensor in edit.tensors[site].items()}
    return operation(edit.operation)(h, tensors, edit.strength, Context(edit.params, rule=rule))


# --- ActAdd ---------------------------------------------------------------------------------------

SITE = "L1.resid_pre"


def one_pair(positive: str = "sum 12", negative: str = "say 34") -> Prompts:
    return wb.prompts.pairs(positive=[positive], negative=[negative])


def test_act_add_turns_one_prompt_into_the_other() -> None:
    edit = fit("act_add", one_pair(), SITE)
    moved = llama().run("say 34", [SITE], edit)
    wanted = llama().run("sum 12", [SITE])
    torch.testing.assert_close(moved[SITE], wanted[SITE], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved.logits, wanted.logits, atol=1e-4, rtol=1e-4)
    assert (llama().run("say 34").logits - wanted.logits).abs().max() > 0.01


def test_act_add_leaves_out_position_0_and_equal_positions() -> None:
    """BOS is position 0 of both; `s` and the space are equal too, but read what was before them."""
    edit = fit("act_add", one_pair(), ["L0.resid_pre", SITE])
    at = [site for site in edit.sites if site.startswith("L0")]
    assert at == [f"L0.resid_pre[pos={i}]" for i in (2, 3, 5, 6)]
    assert f"{SITE}[pos=0]" not in edit.sites and f"{SITE}[pos=4]" in edit.sites


def test_act_add_adds_its_dose_at_the_first_positions_of_the_prompt_alone() -> None:
    edit = fit("act_add", one_pair("ab", "cd"), SITE)
    prompt, tail = "a longer prompt", [10, 11]
    before = llama().run([prompt], [SITE], completions=[tail])[SITE]
    after = llama().run([prompt], [SITE], edit.at(2.5), completions=[tail])[SITE]
    for i, change in enumerate((after - before)[0]):
        vector = edit.tensors.get(f"{SITE}[pos={i}]", {}).get("shift", torch.zeros(32))
        torch.testing.assert_close(change, 2.5 * vector, atol=1e-5, rtol=1e-4)
    short = llama().run(["a", prompt], [SITE], edit)  # shorter than the pair, and left-padded
    torch.testing.assert_close(short[SITE][1, -3:], before[0, -5:-2], atol=1e-5, rtol=1e-5)


def test_act_add_pads_the_shorter_text_with_spaces() -> None:
    own, by_hand = (fit("act_add", one_pair(text, "say so"), SITE) for text in ("sum", "sum   "))
    assert own.sites == by_hand.sites
    for site in own.sites:
        torch.testing.assert_close(own.tensors[site]["shift"], by_hand.tensors[site]["shift"])
    with pytest.raises(WorkbenchError, match="spaces do not make.*6 tokens with up to 2 spaces"):
        fit(ActAdd(spaces=2), one_pair("sum", "say so"), SITE)


def test_act_add_takes_the_mean_of_several_pairs() -> None:
    first, second = fit("act_add", one_pair("ab", "cd"), SITE), fit("act_add", one_pair(), SITE)
    two = wb.prompts.pairs(positive=["ab", "sum 12"], negative=["cd", "say 34"])
    both = fit("act_add", two, SITE)
    for site in both.sites:
        parts = [one.tensors.get(site, {}).get("shift", torch.zeros(32)) for one in (first, second)]
        want = (parts[0] + parts[1]) / 2
        torch.testing.assert_close(both.tensors[site]["shift"], want, atol=1e-6, rtol=1e-4)


def test_act_add_refuses_what_it_cannot_read() -> None:
    with pytest.raises(WorkbenchError, match="one vector per position"):
        fit("act_add", one_pair(), "L1.z")
    with pytest.raises(WorkbenchError, match="needs pairs of prompts"):
        fit("act_add", wb.prompts.classes(positive=["ab", "abc"], negative=["cd"]), SITE)
    with pytest.raises(WorkbenchError, match="same activations"):
        fit("act_add", one_pair("ab", "ab"), SITE)
    rows = planted((SITE,))
    with pytest.raises(WorkbenchError, match="rows alone"):
        ActAdd().fit(rows, run=llama().run, encode=list)
    chat = tuple(
        (wb.Prompt(messages=({"role": "user", "content": text},)),) for text in ("ab", "cd")
    )
    with pytest.raises(WorkbenchError, match="chat prompt"):
        ActAdd().fit(replace(rows, prompts=chat), run=llama().run, encode=list)


# --- PID ------------------------------------------------------------------------------------------


def plant(a: float, w: float, kp: float, ki: float, kd: float, steps: int = 400) -> list[float]:
    """Errors of e' = a e - a u + w under the controller, from e = 1."""
    errors = [1.0]
    for _ in range(steps):
        u = control(errors, kp, ki, kd)
        errors.append(a * errors[-1] - a * u + w)
        if abs(errors[-1]) > 1e9:
            break
    return errors


def test_p_alone_is_the_mean_difference_bit_for_bit() -> None:
    contrast = planted()
    pid = Pid(kp=1, ki=0, kd=0, sequential=False).fit(contrast)
    plain = MeanDifference().fit(contrast)
    for site in plain.sites:
        assert torch.equal(pid.tensors[site]["shift"], plain.tensors[site]["shift"])
    other = Pid(sequential=False).fit(contrast)
    gap = other.tensors[site]["shift"] - plain.tensors[site]["shift"]
    assert gap.norm() > 0.01 * plain.tensors[site]["shift"].norm()


def test_a_constant_error_has_no_derivative_and_a_linear_integral() -> None:
    r = torch.tensor([1.0, -2.0])
    for k in range(5):
        errors = [r] * (k + 1)
        assert not control(errors, 0, 0, 7.0).any()
        assert torch.equal(control(errors, 0, 1.0, 0), k * r)


def test_the_derivative_is_the_change_since_the_site_below() -> None:
    assert control([1.0, 4.0], 0, 0, 2.0) == 6.0
    assert control([5.0], 0, 0, 2.0) == 0.0  # r(-1) = r(0)


def test_p_leaves_a_plateau_that_pi_removes() -> None:
    a, w, kp = 0.9, 0.3, 0.5
    assert plant(a, w, kp, 0, 0)[-1] == pytest.approx(w / (1 - a * (1 - kp)), abs=1e-9)
    assert plant(a, w, kp, 0, 0)[-1] == pytest.approx(0.5455, abs=1e-4)
    assert abs(plant(a, w, kp, 0.2, 0)[-1]) < 1e-9


def test_pi_is_stable_up_to_its_limit_and_a_derivative_rescues_it_above() -> None:
    a, kp = 0.9, 0.5
    limit = 1 / a - 1 + kp
    assert abs(plant(a, 0.0, kp, limit - 0.02, 0, 3000)[-1]) < 1e-3
    assert abs(plant(a, 0.0, kp, limit + 0.02, 0, 3000)[-1]) > 1e3
    assert abs(plant(a, 0.0, kp, limit + 0.02, 0.1, 3000)[-1]) < 1e-3


@pytest.mark.parametrize("a", [0.3, 0.8, 1.0, 1.2])
def test_default_gains_are_stable(a: float) -> None:
    gains = Pid()
    assert abs(plant(a, 0.3, gains.kp, gains.ki, gains.kd)[-1]) < 1e-6


def test_the_closed_loop_agrees_with_the_open_one_at_the_first_layer_alone() -> None:
    closed = fit(Pid(), pairs())
    opened = fit(Pid(sequential=False), pairs())
    gaps = [
        float((closed.tensors[s]["shift"] - opened.tensors[s]["shift"]).norm())
        for s in ("L0.resid_post", "L1.resid_post", "L2.resid_post")
    ]
    assert gaps[0] < 1e-5 and min(gaps[1:]) > 1e-2
    assert len(closed.params["error_norms"]) == 3
    assert closed.params["error_norms"][0] == pytest.approx(opened.params["error_norms"][0])


def test_the_closed_loop_measures_what_the_edits_below_leave_over() -> None:
    """kp = 1 moves the mean of layer 0 onto its target; the error above is what that leaves."""
    closed = fit(Pid(kp=1, ki=0, kd=0), pairs())
    below = closed.only("L0.resid_post")
    many = pairs()
    target = llama().record([p for p in many if p.label], "L1.resid_post", progress=False)
    source = [p for p in many if not p.label]
    moved = llama().record(
        source, ["L0.resid_post", "L1.resid_post"], edits=[below], progress=False
    )
    want = mean_difference(target["L1.resid_post"], moved["L1.resid_post"]).float()
    torch.testing.assert_close(closed.tensors["L1.resid_post"]["shift"], want, atol=1e-5, rtol=1e-4)


def test_sites_are_controlled_in_depth_order_however_they_are_recorded() -> None:
    contrast = planted(("L0.resid_post", "L1.resid_post"))
    back = {s: dict(reversed(getattr(contrast, s).items())) for s in ("positive", "negative")}
    there, here = (Pid(sequential=False).fit(c) for c in (contrast, replace(contrast, **back)))
    for site in there.sites:
        assert torch.equal(there.tensors[site]["shift"], here.tensors[site]["shift"])


def test_pid_can_ablate_instead() -> None:
    contrast = planted()
    added, removed = (
        Pid(sequential=False, injector=injector).fit(contrast) for injector in ("add", "ablate")
    )
    for site in added.sites:
        u = torch.nn.functional.normalize(added.tensors[site]["shift"], dim=0)
        left = applied(removed, site, torch.randn(3, 5, D)) @ u
        assert left.abs().max() < 1e-5


def test_pid_refuses_what_it_cannot_use() -> None:
    with pytest.raises(WorkbenchError, match="closed loop has no model"):
        Pid().fit(planted())
    with pytest.raises(WorkbenchError, match="Pid\\(kp\\).*not finite"):
        Pid(kp=float("nan"), sequential=False).fit(planted())
    with pytest.raises(WorkbenchError, match="controls nothing"):
        Pid(kp=0, ki=0, kd=0, sequential=False).fit(planted())
    with pytest.raises(WorkbenchError, match="last position"):
        fit(Pid(), pairs(), pool="mean")


# --- ODESteer -------------------------------------------------------------------------------------

ODE_SITE = "L0.resid_post"
FORMS = {"folded": 400, "sketched": 100}
every_form = pytest.mark.parametrize("components", FORMS.values(), ids=FORMS)


def walk(**options: Any) -> Intervention:
    return OdeSteer(**{"components": 400, **options}).fit(planted((ODE_SITE,)))


def exact(edit: Intervention) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in edit.tensors[ODE_SITE].items()}


def some(n: int = 6, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(n, D, generator=generator, dtype=torch.float64)


@every_form
def test_the_barrier_is_the_librarys_sketch_and_probe(components: int) -> None:
    from sklearn.linear_model import LogisticRegression

    contrast = planted((ODE_SITE,))
    edit = OdeSteer(components=components).fit(contrast)
    assert ("factor" in edit.tensors[ODE_SITE]) == (components == FORMS["sketched"])
    sketch = PolynomialCountSketch(
        gamma=0.1,
        degree=2,
        coef0=1,
        n_components=components,
        random_state=derive(0, "ode_steer", ODE_SITE) % 2**32,
    )
    rows = torch.cat([contrast.positive[ODE_SITE], contrast.negative[ODE_SITE]]).double()
    features = sketch.fit_transform(torch.nn.functional.normalize(rows).numpy())
    labels = np.repeat([1, 0], PAIRS)
    probe = LogisticRegression(max_iter=1000).fit(features, labels)
    want = probe.decision_function(sketch.transform(torch.nn.functional.normalize(some()).numpy()))
    got = barrier(some(), edit.tensors[ODE_SITE], edit.params)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)


@every_form
def test_one_euler_step_is_one_addition(components: int) -> None:
    edit, h = walk(components=components, steps=1, path=3.0), some()
    v = direction(h, exact(edit), edit.params)
    torch.testing.assert_close(applied(edit, ODE_SITE, h), h + 3.0 * v)
    torch.testing.assert_close(v.norm(dim=-1), torch.ones(6, dtype=torch.float64))


@every_form
@pytest.mark.parametrize("steps", [1, 10, 400])
def test_the_norm_grows_by_an_exact_law(components: int, steps: int) -> None:
    """Every step is at right angles to the activation, so |a_N|^2 = |a_0|^2 + T^2 / N."""
    edit, h = walk(components=components, steps=steps, path=4.0), some()
    reached = applied(edit, ODE_SITE, h).square().sum(-1)
    torch.testing.assert_close(reached, h.square().sum(-1) + 16.0 / steps, atol=1e-6, rtol=1e-6)


@every_form
def test_the_field_is_the_gradient_that_autograd_finds(components: int) -> None:
    edit = walk(components=components)
    h = some().requires_grad_()
    barrier(h, exact(edit), edit.params).sum().backward()
    assert h.grad is not None
    want = torch.nn.functional.normalize(h.grad, dim=-1)
    torch.testing.assert_close(direction(h.detach(), exact(edit), edit.params), want)


@every_form
def test_a_fine_walk_only_goes_up(components: int) -> None:
    edit = walk(components=components, path=0.02, steps=1)
    h, heights = some(), []
    for _ in range(200):
        heights.append(barrier(h, exact(edit), edit.params))
        h = applied(edit, ODE_SITE, h)
    climbed = torch.stack(heights).diff(dim=0)
    assert climbed.min() > -1e-9 and (heights[-1] - heights[0]).min() > 0.01


def test_the_path_is_as_long_as_it_says() -> None:
    one, h, length = walk(path=0.05, steps=1), some(), torch.zeros(6, dtype=torch.float64)
    whole = applied(walk(path=5.0, steps=100), ODE_SITE, h)
    for _ in range(100):
        new = applied(one, ODE_SITE, h)
        length, h = length + (new - h).norm(dim=-1), new
    torch.testing.assert_close(length, torch.full_like(length, 5.0))
    torch.testing.assert_close(h, whole)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
def test_a_linear_barrier_steers_along_its_probe(steps: int, solver: str) -> None:
    probe = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    params = {"path": 5.0, "steps": steps, "solver": solver, "normalised": False}
    found = Ode.change(some(), {"shift": probe, "intercept": torch.tensor(0.0)}, params)
    want = (5.0 * torch.nn.functional.normalize(probe, dim=0)).expand(6, D)
    torch.testing.assert_close(found, want, atol=1e-8, rtol=1e-8)


def test_better_solvers_come_closer_at_the_same_number_of_steps() -> None:
    h = some()
    fine = applied(walk(steps=2000, solver="rk4"), ODE_SITE, h)
    errors = {
        solver: float((applied(walk(steps=8, solver=solver), ODE_SITE, h) - fine).norm())
        for solver in ("euler", "midpoint", "rk4")
    }
    assert errors["rk4"] < errors["midpoint"] / 4 < errors["euler"] / 16


def test_folded_and_sketched_barriers_of_one_sketch_are_one() -> None:
    method, contrast = OdeSteer(components=400), planted((ODE_SITE,))
    folded = method.fit(contrast)
    sketched = _unfolded(method, contrast)
    values = [
        barrier(some(), tensors, folded.params) for tensors in (folded.tensors[ODE_SITE], sketched)
    ]
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)


def _unfolded(method: OdeSteer, contrast: Contrast) -> dict[str, Tensor]:
    """The sketch that a folded fit folds: `_folded` is replaced by one that keeps it."""
    kept: dict[str, Tensor] = {}

    class Keeping(OdeSteer):
        def _folded(self, weights: Any, index: Any, sign: Any, intercept: float) -> Any:
            at = torch.stack([index // 256, index % 256], 1).double()
            kept.update(factor=weights, at=at, sign=sign, intercept=torch.tensor(intercept))
            return {}

    Keeping(components=method.components).fit(contrast)
    return kept


def test_component_indices_survive_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    d = 100
    negative = torch.randn(30, d, generator=generator)
    positive = negative + torch.randn(d, generator=generator)
    contrast = Contrast({ODE_SITE: positive}, {ODE_SITE: negative}, True)
    edit = OdeSteer(components=8000).fit(contrast)
    tensors = edit.tensors[ODE_SITE]
    assert tensors["at"].max() < 256 and (tensors["at"][:, 0] * 256).max() > 4000
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert torch.equal(half["at"].float(), tensors["at"])
    h = 4 * torch.randn(3, d, generator=generator)
    full = Ode.change(h, tensors, edit.params)
    rough = Ode.change(h.bfloat16(), half, edit.params)
    assert torch.nn.functional.cosine_similarity(full, rough.float()).min() > 0.99
    assert random_control(edit) is not None


def test_ode_walks_up_on_held_out_rows_and_a_random_walk_does_not() -> None:
    whole = planted((ODE_SITE,))
    half = {s: {ODE_SITE: getattr(whole, s)[ODE_SITE][::2]} for s in ("positive", "negative")}
    edit = OdeSteer(path=2.0, components=400).fit(replace(whole, **half))
    control_edit = random_control(edit)
    assert control_edit is not None
    rows = whole.negative[ODE_SITE][1::2].double()
    start = barrier(rows, edit.tensors[ODE_SITE], edit.params).mean()
    ends = [
        barrier(applied(one, ODE_SITE, rows), edit.tensors[ODE_SITE], edit.params).mean()
        for one in (edit, control_edit)
    ]
    assert ends[0] - start > 4 * abs(ends[1] - start)


@pytest.mark.parametrize(
    "options", [{"path": 0}, {"steps": 0}, {"components": 1}, {"components": 10**6}, {"gamma": 0}]
)
def test_ode_refuses_options_without_a_meaning(options: dict[str, int]) -> None:
    with pytest.raises(WorkbenchError, match="out of range"):
        OdeSteer(**options).fit(planted())


def test_ode_names_its_solvers() -> None:
    params = {"path": 1.0, "steps": 1, "solver": "eular", "normalised": False}
    with pytest.raises(UnknownName, match="euler"):
        Ode.change(some(), {"shift": torch.ones(D)}, params)


# --- AUSteer --------------------------------------------------------------------------------------

MLP = ("L0.mlp_out", "L1.mlp_out")


def with_a_steady_unit(sign: float = 1.0) -> Contrast:
    contrast = planted(MLP)
    noise = torch.randn(2, PAIRS, D, generator=torch.Generator().manual_seed(9))
    positive = {s: contrast.negative[s] + n for s, n in zip(MLP, noise, strict=True)}
    positive["L1.mlp_out"][:, 5] = contrast.negative["L1.mlp_out"][:, 5] + sign * 0.01
    return replace(contrast, positive=positive)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_unit_that_always_goes_one_way_is_found(sign: float) -> None:
    edit = AuSteer(n_units=1).fit(with_a_steady_unit(sign))
    assert edit.sites == ("L1.mlp_out",)
    want = torch.zeros(D)
    want[5] = sign
    assert torch.equal(edit.tensors["L1.mlp_out"]["scale"], want)


def test_momenta_do_not_change_with_a_layers_size() -> None:
    contrast = planted(MLP)
    larger = {
        side: {s: v * (1000 if s == MLP[0] else 1) for s, v in getattr(contrast, side).items()}
        for side in ("positive", "negative")
    }
    there, here = (AuSteer().fit(c) for c in (contrast, replace(contrast, **larger)))
    for site in MLP:
        assert torch.equal(there.tensors[site]["scale"], here.tensors[site]["scale"])


def test_swapping_the_classes_flips_the_momenta() -> None:
    contrast = planted(MLP)
    back = replace(contrast, positive=contrast.negative, negative=contrast.positive)
    for site in MLP:
        there, here = (AuSteer().fit(c).tensors[site]["scale"] for c in (contrast, back))
        assert torch.equal(there, -here)


def test_equal_momenta_go_to_the_lowest_layer_and_coordinate() -> None:
    negative = {site: torch.zeros(4, D) for site in reversed(MLP)}
    positive = {site: torch.ones(4, D) for site in reversed(MLP)}
    edit = AuSteer(n_units=D + 2).fit(Contrast(positive, negative, True))
    assert edit.tensors[MLP[0]]["scale"].tolist() == [1.0] * D
    assert edit.tensors[MLP[1]]["scale"].tolist() == [1.0, 1.0] + [0.0] * (D - 2)


def test_units_are_scaled_by_alpha_and_a_zero_stays_zero() -> None:
    edit = AuSteer(n_units=1).fit(with_a_steady_unit()).at(8.0)
    h = torch.randn(2, 3, D)
    h[0, 0, 5] = 0
    moved = applied(edit, "L1.mlp_out", h)
    torch.testing.assert_close(moved[..., 5], 9 * h[..., 5])
    assert moved[0, 0, 5] == 0
    assert torch.equal(moved[..., :5], h[..., :5])
    assert torch.equal(applied(edit.at(0.0), "L1.mlp_out", h), h)


def test_au_steer_refuses_unpaired_rows_and_more_units_than_there_are() -> None:
    with pytest.raises(WorkbenchError, match="needs pairs"):
        AuSteer().fit(replace(planted(MLP), paired=False))
    for n in (0, 2 * D + 1):
        with pytest.raises(WorkbenchError, match=f"1 to {2 * D} over 2 sites"):
            AuSteer(n_units=n).fit(planted(MLP))


# --- StyliTruth -----------------------------------------------------------------------------------

HEADS, WIDTH = 4, 8
Z = ("L0.z", "L1.z")


class Dims:
    n_heads, d_head = HEADS, WIDTH


def at_heads(known: dict[tuple[str, int], int], n: int = PAIRS, seed: int = 0) -> Contrast:
    """Pairs that differ by noise, and at the `known` heads by a clear subspace of that rank."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    positive, negative = {}, {}
    for site in Z:
        rows = draw(n, HEADS, WIDTH)
        moved = rows + 0.3 * draw(n, HEADS, WIDTH)
        for (where, head), rank in known.items():
            if where == site:
                moved[:, head] = rows[:, head] + (2 + draw(n, rank)) @ draw(rank, WIDTH)
        positive[site], negative[site] = moved.flatten(1), rows.flatten(1)
    return Contrast(positive, negative, True)


def head_rows(contrast: Contrast, site: str, head: int) -> Tensor:
    return contrast.positive[site].unflatten(1, (HEADS, WIDTH))[:, head]


def test_probes_find_the_heads_that_know() -> None:
    style, truth = at_heads({("L0.z", 2): 2}), at_heads({("L1.z", 3): 2}, seed=1)
    method = StyliTruth(n_style_heads=1, n_truth_heads=1)
    assert method.fit(style, dims=Dims).sites == ("L0.z[head=2]",)
    both = method.fit(style, dims=Dims, truth=truth)
    assert both.sites == ("L0.z[head=2]", "L1.z[head=3]")


def shared(n: int = PAIRS, rank: int = 3) -> tuple[Contrast, Contrast, str]:
    """Style and truth known by one and the same head, in subspaces that overlap."""
    where = {("L0.z", 2): rank}
    return at_heads(where, n), at_heads(where, n, seed=1), "L0.z[head=2]"


ONE = {"n_style_heads": 1, "n_truth_heads": 1}


def bases(method: StyliTruth, style: Contrast, truth: Contrast, site: str) -> tuple[Tensor, Tensor]:
    both = method.fit(style, dims=Dims, truth=truth).tensors[site]["down"]
    own = len(method.fit(style, dims=Dims).tensors[site]["down"])
    return both[:own], both[own:]


def test_truth_is_orthogonal_to_style() -> None:
    style, truth, site = shared()
    own, free = bases(StyliTruth(**ONE), style, truth, site)
    alone = StyliTruth(**ONE).fit(truth, dims=Dims).tensors[site]["down"]
    assert (alone @ own.mT).abs().max() > 0.2  # what deflation has to remove
    assert len(own) == 3 and len(free) == 3
    assert (free @ own.mT).abs().max() < 1e-6
    torch.testing.assert_close(free @ free.mT, torch.eye(3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_fewer_pairs_than_directions_keep_truth_orthogonal(n: int) -> None:
    style, truth, site = shared(n, rank=6)  # few pairs tell no head from another: all are edited
    own, free = bases(StyliTruth(rank=WIDTH), style, truth, site)
    assert len(own) == min(n, 6) and len(free) == min(n, WIDTH - len(own))
    assert (free @ own.mT).abs().max() < 1e-6


def test_without_truncation_truth_overlaps_with_style() -> None:
    """Behind the rank of the deflated differences, singular vectors are arbitrary."""
    style, truth, site = shared(5, rank=6)
    own, free = bases(StyliTruth(rank=WIDTH, tolerance=0.0), style, truth, site)
    assert len(free) > WIDTH - len(own)
    assert (free @ own.mT).abs().max() > 0.05


def test_a_style_edit_leaves_truth_alone() -> None:
    style, truth, site = shared()
    _, free = bases(StyliTruth(**ONE), style, truth, site)
    h = torch.randn(2, 5, 1, WIDTH)
    edit = StyliTruth(**ONE, gamma_truth=0).fit(style, dims=Dims, truth=truth)
    change = applied(edit, site, h) - h
    assert change.norm() > 0.1
    assert (change @ free.mT).abs().max() < 1e-4


def test_at_the_positive_mean_nothing_is_edited() -> None:
    style, _, site = shared()
    edit = StyliTruth(**ONE).fit(style, dims=Dims)
    there = head_rows(style, "L0.z", 2).mean(0)[None, None, None]
    torch.testing.assert_close(applied(edit, site, there), there, atol=1e-5, rtol=1e-5)


def test_a_capped_gain_moves_onto_the_positive_mean_and_no_further() -> None:
    style, _, site = shared()
    h = torch.randn(2, 5, 1, WIDTH)
    mean = head_rows(style, "L0.z", 2).mean(0)
    for gamma, cap, share in ((1e6, 1.0, 1.0), (1e6, 0.25, 0.25)):
        edit = StyliTruth(**ONE, gamma_style=gamma, cap=cap).fit(style, dims=Dims)
        v = edit.tensors[site]["down"]
        want = (1 - share) * (h @ v.mT) + share * (mean @ v.mT)
        torch.testing.assert_close(applied(edit, site, h) @ v.mT, want, atol=1e-4, rtol=1e-4)


def test_uncapped_gains_are_the_papers() -> None:
    style, _, site = shared()
    edit = StyliTruth(**ONE, gamma_style=0.5, cap=None).fit(style, dims=Dims)
    positive = head_rows(style, "L0.z", 2).double()
    negative = style.negative["L0.z"].unflatten(1, (HEADS, WIDTH))[:, 2].double()
    _, sizes, v = torch.linalg.svd(positive - negative, full_matrices=False)
    h = torch.randn(WIDTH)
    want = h.double()
    for i in range(3):
        kappa = (positive.mean(0) - h.double()) @ v[i]
        want = want + 0.5 * sizes[i] / WIDTH**0.5 * kappa * v[i]
    torch.testing.assert_close(applied(edit, site, h[None]).double()[0], want, atol=1e-3, rtol=1e-4)


def test_the_released_strength_is_an_option() -> None:
    style, _, site = shared()
    edit = StyliTruth(**ONE, compat="released").fit(style, dims=Dims)
    v = edit.tensors[site]["down"]
    positive = head_rows(style, "L0.z", 2).mean(0)
    w = v @ (positive - style.negative["L0.z"].unflatten(1, (HEADS, WIDTH))[:, 2].mean(0))
    h = torch.randn(WIDTH)
    want = h + (w * (1 + 0.5 * w.sign() * (v @ positive - v @ h))) @ v
    torch.testing.assert_close(applied(edit, site, h[None])[0], want, atol=1e-4, rtol=1e-4)


def test_styli_truth_edits_a_model_with_both_parts() -> None:
    sides = [("sum", "say"), ("yes", "not")]
    style, truth = (
        wb.prompts.pairs(
            positive=[f"{a} {i}=" for i in range(8)], negative=[f"{b} {i}=" for i in range(8)]
        )
        for a, b in sides
    )
    true = llama().record(list(truth), "L*.z", progress=False).contrast()
    edit = fit(StyliTruth(n_style_heads=3, n_truth_heads=3), style, truth=true)
    assert 3 <= len(edit.sites) <= 6
    base, moved = (llama().run("say 3=", edits=e).logits for e in ([], [edit]))
    assert (base - moved).abs().max() > 1e-3


def test_styli_truth_refuses_what_it_cannot_use() -> None:
    style = at_heads({("L0.z", 2): 2})
    with pytest.raises(WorkbenchError, match="all heads of a layer"):
        StyliTruth().fit(planted(d=HEADS * WIDTH), dims=Dims)
    with pytest.raises(WorkbenchError, match="needs pairs"):
        StyliTruth().fit(replace(style, paired=False), dims=Dims)
    elsewhere = Contrast({"L0.z": style.positive["L0.z"]}, {"L0.z": style.negative["L0.z"]}, True)
    with pytest.raises(WorkbenchError, match="elsewhere than the style"):
        StyliTruth().fit(style, dims=Dims, truth=elsewhere)
    for options in ({"rank": 0}, {"n_style_heads": 0}, {"cap": -1.0}, {"tolerance": float("nan")}):
        with pytest.raises(WorkbenchError, match="too small|not finite"):
            StyliTruth(**options).fit(style, dims=Dims)


# --- task vectors ---------------------------------------------------------------------------------

LAST = "L2.resid_post"


def states(*prompts: str, site: str = LAST) -> Contrast:
    """The prompts' own states, against others."""
    rows = llama().record(list(prompts), site, progress=False)[site]
    return Contrast({site: rows}, {site: rows + 1}, False)


def test_a_prompts_own_state_is_no_edit() -> None:
    edit = TaskVector().fit(states("ab=", site="L1.resid_post"))
    with pytest.raises(EditDidNothing, match="changed nothing"):
        llama().run("ab=", edits=edit)


def test_at_the_last_layer_the_next_token_is_the_tasks() -> None:
    edit = TaskVector().fit(states("abc 5=", "xy 8="))
    trace = llama().run(["12+3=", "a longer one="], edits=edit, logits="last")
    torch.testing.assert_close(trace.logits[0], trace.logits[1], atol=1e-5, rtol=1e-5)
    alone = TaskVector().fit(states("abc 5="))
    own = llama().run("abc 5=", logits="last").logits
    got = llama().run("12+3=", edits=alone, logits="last").logits
    torch.testing.assert_close(own, got, atol=1e-4, rtol=1e-4)


def test_only_the_last_prompt_position_is_replaced() -> None:
    site = "L1.resid_post"
    edit = TaskVector().fit(states("abc 5=", site=site))
    before, after = (llama().run("12=3=", [site], e)[site][0] for e in ([], [edit]))
    torch.testing.assert_close(after[-1], edit.tensors[site]["value"])
    assert torch.equal(before[:-1], after[:-1])


def test_a_task_is_not_calibrated_past_its_state() -> None:
    edit = TaskVector().fit(states("abc 5=", site="L1.resid_post"))
    with pytest.raises(EditError, match="strength ends at 1"):
        wb.calibrate(edit, llama(), "12+3=", 50.0, n_tokens=2, progress=False)


def test_several_separators_get_the_state() -> None:
    sides = wb.prompts.classes(positive=["a=b c=", "d=e f="], negative=["c=", "f="])
    edit = fit(TaskVector(separator="="), sides, "L1.resid_post")
    site = "L1.resid_post"
    before, after = (llama().run("1=2=3", [site], e)[site][0] for e in ([], [edit]))
    replaced = (before != after).any(-1)
    assert replaced.tolist() == [False, False, True, False, True, False]
    torch.testing.assert_close(after[2], edit.tensors[site]["value"])
    with pytest.raises(WorkbenchError, match="not one token"):
        fit(TaskVector(separator="=="), sides)
    with pytest.raises(WorkbenchError, match="needs a tokenizer"):
        TaskVector(separator="=").fit(planted())


# --- choosing a direction to ablate ---------------------------------------------------------------


@cache
def reasoner() -> Any:
    return wb.load("reasoner")


def locked(n: int = 120, seed: int = 1) -> list[Any]:
    return list(Locked().make(n, seed=seed))


@cache
def selection() -> Any:
    """With wider limits than the paper's, within which the reasoner has no direction (see below)."""
    limits = {"max_kl_nats": 0.2, "least_induced": -2.9}
    return select_direction(reasoner(), locked(400), "#no", progress=False, **limits)


def refused(prompts: list[Any], *edits: Intervention) -> float:
    texts = reasoner().generate(prompts, edits, max_new_tokens=3)
    return sum(t.text.startswith("#no") for t in texts) / len(texts)


def test_ablating_the_chosen_direction_lifts_refusals_and_a_random_one_does_not() -> None:
    found = selection()
    held_out = [p for p in locked(120, seed=9) if p.label]
    control_edit = random_control(found.edit, seed=3)
    assert control_edit is not None
    plain, without, random = (
        refused(held_out, *edits) for edits in ((), (found.edit,), (control_edit,))
    )
    assert plain > 0.9 and random > 0.8
    assert without < plain - 0.4


def test_the_chosen_candidate_keeps_the_limits_and_ablates_best() -> None:
    found = selection()
    inside = [c for c in found.candidates if c.kl_nats <= 0.2 and c.induced >= -2.9]
    assert found.chosen in inside and not found.chosen.dropped
    assert found.chosen.ablated == min(c.ablated for c in inside)
    assert all(c.dropped for c in found.candidates if c not in inside)
    assert found.positive > 3 and found.negative < -2  # what the scores are compared with
    assert found.chosen.ablated < found.positive - 2
    assert {c.position for c in found.candidates} == {-1, -2}  # the shared end of all prompts


def test_the_papers_limits_say_where_no_direction_induces_refusal() -> None:
    """The reasoner's refusal can be removed along one direction, but one length does not cause it."""
    with pytest.raises(WorkbenchError, match="no candidate is within the limits.*8 candidates"):
        select_direction(reasoner(), locked(), "#no", progress=False)


def test_the_ablation_leaves_nothing_of_the_direction_in_the_stream() -> None:
    found = selection()
    edit = found.edit
    assert set(edit.sites) == {
        f"L{n}.{part}" for n in range(6) for part in ("resid_pre", "attn_out", "mlp_out")
    }
    v = edit.tensors["L0.resid_pre"]["down"][0]
    trace = reasoner().run("locked add 2 2?\n", ["L*.resid_post"], edit)
    assert all((trace[f"L{n}.resid_post"] @ v).abs().max() < 1e-4 for n in range(6))


def test_select_direction_refuses_what_it_cannot_judge() -> None:
    many = locked(20)
    with pytest.raises(PromptError, match="too small"):
        select_direction(reasoner(), [p for p in many if p.label], "#no", progress=False)
    with pytest.raises(WorkbenchError, match="is no token"):
        select_direction(reasoner(), many, [10**6], progress=False)
    with pytest.raises(WorkbenchError, match="not a share"):
        select_direction(reasoner(), many, "#no", drop_layers=1, progress=False)
    for n in (0, -2):
        with pytest.raises(WorkbenchError, match="no number of tokens"):
            select_direction(reasoner(), many, "#no", positions=n, progress=False)
    with pytest.raises(PromptError, match="shorter than the positions"):
        select_direction(reasoner(), many, "#no", positions=200, progress=False)
