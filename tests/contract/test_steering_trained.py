"""Edits that are trained: the ReFT family and PerFit, their identities, and what they learn."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
import workbench.steering.reft as reft
import workbench.steering.training as training
from tests import tiny
from workbench import registry, steering
from workbench.errors import UnknownName, WorkbenchError
from workbench.operations import Context, affine
from workbench.records import Prompt, Prompts
from workbench.steering.ace import Ace
from workbench.steering.lo_reft import LoReft
from workbench.steering.per_fit import PerFit
from workbench.steering.training import Example, completion_loss, train
from workbench.tensors import Contrast, Fingerprint, Intervention

SITE = "L1.resid_post"
D, RANK = 24, 3
FORMS = list(reft.FORMS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change(tensors: Any, h: Tensor) -> Tensor:
    return affine(h, tensors, 1.0, Context()) - h


def learned(form: reft.Form, seed: int = 3) -> dict[str, Tensor]:
    """Tensors of one site as training might leave them: nothing orthonormal, nothing zero."""
    tensors = reft.start(form, RANK, {SITE: D}, seed=0)
    return {k: v + 0.5 * draw(*v.shape, seed=seed + i) for i, (k, v) in enumerate(tensors.items())}


# --- the family ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_its_formula(form: reft.Form) -> None:
    raw = learned(form)
    turn = raw[f"{SITE}::rotation"]
    if form not in reft.FREE:
        turn = reft.orthonormal(turn)
    h, b, w = draw(5, D, seed=9), raw[f"{SITE}::bias"], raw.get(f"{SITE}::weight", turn)
    read = {
        "loreft": lambda: h @ w.T + b - h @ turn.T,
        "noreft": lambda: h @ w.T + b - h @ turn.T,
        "consreft": lambda: b - h @ turn.T,
        "lobireft": lambda: b.expand(5, RANK),
        "direft": lambda: h @ w.T + b,
        "nodireft": lambda: h @ w.T + b,
    }[form]()
    torch.testing.assert_close(change(reft.folded(form, raw)[SITE], h), read @ turn)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "consreft"])
def test_a_form_starts_as_no_edit(form: reft.Form) -> None:
    start = reft.folded(form, reft.start(form, RANK, {SITE: D}, seed=4))[SITE]
    assert change(start, 10 * draw(6, D)).abs().max() < 1e-5


def test_consreft_starts_as_an_ablation_of_its_subspace() -> None:
    tensors = reft.folded("consreft", reft.start("consreft", RANK, {SITE: D}, seed=4))[SITE]
    h = draw(6, D)
    assert ((h + change(tensors, h)) @ tensors["up"].T).abs().max() < 1e-5
    assert change(tensors, h).norm() > 0.5


@pytest.mark.parametrize("form", FORMS)
def test_only_the_free_forms_leave_orthonormality(form: reft.Form) -> None:
    tensors = reft.folded(form, learned(form))[SITE]
    if form == "lobireft":
        return
    gap = tensors["up"] @ tensors["up"].T - torch.eye(RANK)
    assert (float(gap.abs().max()) < 1e-5) is (form not in reft.FREE)


@pytest.mark.parametrize("form", FORMS)
def test_the_change_lies_in_the_rows_of_the_rotation(form: reft.Form) -> None:
    """(I - R^T R) dh = 0, with R replaced by an orthonormal basis of its rows where it has none."""
    raw = learned(form)
    basis = reft.orthonormal(raw[f"{SITE}::rotation"])
    moved = change(reft.folded(form, raw)[SITE], 5 * draw(7, D))
    torch.testing.assert_close(moved @ basis.T @ basis, moved, atol=1e-4, rtol=1e-4)
    assert moved.norm() > 1


def test_direft_and_loreft_are_one_set_of_maps() -> None:
    raw = learned("loreft")
    turn = reft.orthonormal(raw[f"{SITE}::rotation"])
    other = {**raw, f"{SITE}::weight": raw[f"{SITE}::weight"] - turn}
    h = draw(5, D)
    one, two = reft.folded("loreft", raw)[SITE], reft.folded("direft", other)[SITE]
    torch.testing.assert_close(change(one, h), change(two, h))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_rank_one_consreft_with_the_right_bias_is_ace(alpha: float) -> None:
    positive, negative = draw(30, D, seed=1) + 2, draw(30, D, seed=2)
    ace = Ace(alpha=alpha).fit(Contrast({SITE: positive}, {SITE: negative}, True))
    r = positive.mean(0) - negative.mean(0)
    bias = (r / r.norm()) @ negative.mean(0) + alpha * r.norm()
    tensors = reft.fold("consreft", (r / r.norm())[None], None, bias[None])
    h = 4 * draw(9, D, seed=5)
    torch.testing.assert_close(
        change(tensors, h), change(ace.tensors[SITE], h), atol=1e-4, rtol=1e-4
    )


def test_orthonormal_rows_stay_as_they_are() -> None:
    rows = reft.orthonormal(draw(4, D).double())
    torch.testing.assert_close(reft.orthonormal(rows), rows)


# --- the loop ------------------------------------------------------------------------------------


def examples(model: wb.Model, *pairs: tuple[str, str]) -> list[Example]:
    encode = model.tokenizer.encode
    return [Example(Prompt(p), tuple(encode(c, add_special_tokens=False))) for p, c in pairs]


def test_the_loss_is_hugging_faces_own_and_padding_is_not_in_it() -> None:
    model = tiny.model("llama")
    many = examples(model, ("12+34=", "46"), ("a much longer prompt, 7+8=", "15."), ("b", "cdef"))
    tails = [list(e.ids) for e in many]
    together = completion_loss(
        model.run([e.prompt for e in many], completions=tails, logits="all"), many
    )
    total = 0.0
    for e in many:
        ids = model.tokens([e.prompt], [list(e.ids)]).ids
        labels = ids.clone()
        labels[:, : -len(e.ids)] = -100
        with torch.no_grad():
            total += float(model.hf(input_ids=ids, labels=labels).loss) * len(e.ids)
    assert float(together) == pytest.approx(total / sum(map(len, tails)), abs=1e-5)


def planted_run(hidden: Tensor, site: str = SITE) -> Any:
    """A model of one site whose activation for a prompt is a row of `hidden`."""

    def run(prompts: Sequence[Prompt], *, edits: Sequence[Intervention] = (), **_: Any) -> Any:
        h = hidden[[p.meta["row"] for p in prompts]]
        for edit in edits:
            h = affine(h, edit.tensors[site], edit.strength, Context(edit.params))
        return SimpleNamespace(h=h)

    return run


def to_targets(targets: Tensor) -> training.Loss:
    def loss(trace: Any, chosen: Sequence[Example]) -> Tensor:
        wanted = targets[[e.prompt.meta["row"] for e in chosen]]
        return (trace.h - wanted).square().sum(-1).mean()

    return loss


def rows(n: int, **meta: Any) -> list[Example]:
    return [
        Example(Prompt("p", meta={"row": i, "completion": "x", **meta}), (1,)) for i in range(n)
    ]


def shift_edit(tensors: Any) -> Intervention:
    return Intervention("custom", "affine", {SITE: {"shift": tensors["v"]}})


def fit_shift(hidden: Tensor, targets: Tensor, **options: Any) -> training.Trained:
    settings = dict(steps=300, lr=0.05, batch=8, progress=False) | options
    return train(
        shift_edit,
        {"v": torch.zeros(D)},
        rows(len(hidden)),
        planted_run(hidden),
        loss=to_targets(targets),
        **settings,
    )


def test_a_planted_shift_is_found() -> None:
    hidden, shift = draw(20, D), draw(D, seed=7)
    trained = fit_shift(hidden, hidden + shift)
    torch.testing.assert_close(trained.tensors["v"], shift, atol=1e-2, rtol=0)
    assert len(trained.losses) == 300 and trained.losses[-1] < 1e-3 * trained.losses[0]
    assert not trained.tensors["v"].requires_grad


def test_a_step_is_one_of_adamw() -> None:
    """The first step moves each coordinate by lr against its gradient's sign, after the decay."""
    hidden, shift = draw(8, D), draw(D, seed=7)
    begun = {"v": torch.full((D,), 2.0)}
    options = dict(steps=1, lr=0.1, batch=8, weight_decay=0.5, progress=False)
    run, loss = planted_run(hidden), to_targets(hidden + shift)
    after = train(shift_edit, begun, rows(8), run, loss=loss, **options).tensors["v"]
    torch.testing.assert_close(after, 2 * (1 - 0.1 * 0.5) - 0.1 * (2 - shift).sign())
    assert torch.equal(begun["v"], torch.full((D,), 2.0))


def test_every_example_is_seen_once_an_epoch() -> None:
    seen: list[int] = []

    def loss(trace: Any, chosen: Sequence[Example]) -> Tensor:
        seen.extend(e.prompt.meta["row"] for e in chosen)
        return trace.h.square().mean()

    start = {"v": torch.zeros(D)}
    train(shift_edit, start, rows(7), planted_run(draw(7, D)), loss=loss, steps=6, lr=0.1, batch=3,
          progress=False)  # fmt: skip
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7)) and seen[:7] != seen[7:]


def test_a_clipped_gradient_is_as_long_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> Any:
        lengths.append(float(self.param_groups[0]["params"][0].grad.norm()))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    hidden = draw(8, D)
    fit_shift(hidden, hidden + 100, steps=2, clip=0.3)
    assert lengths == pytest.approx([0.3, 0.3], abs=1e-4)
    fit_shift(hidden, hidden + 100, steps=1)
    assert lengths[-1] > 100


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    hidden, wanted = draw(20, D), draw(20, D, seed=3)
    one, two = (fit_shift(hidden, wanted, steps=9, seed=5) for _ in range(2))
    assert torch.equal(one.tensors["v"], two.tensors["v"])
    other = fit_shift(hidden, wanted, steps=9, seed=6)
    assert not torch.equal(one.tensors["v"], other.tensors["v"])


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    hidden = draw(8, D)
    wanted = hidden.clone()
    wanted[3, 2] = float("nan")
    with pytest.raises(WorkbenchError, match="not finite at step 0.*lower lr"):
        fit_shift(hidden, wanted)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("steps", 0, "more than 0"),
        ("lr", -1.0, "more than 0"),
        ("lr", float("inf"), "not finite"),
        ("batch", 0, "more than 0"),
        ("clip", 0.0, "more than 0"),
        ("weight_decay", -0.1, "0 or more"),
    ],
)
def test_options_out_of_range_are_errors(option: str, value: Any, said: str) -> None:
    with pytest.raises(WorkbenchError, match=rf"\({option}\).*{said}"):
        fit_shift(draw(8, D), draw(8, D), **{option: value})


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(WorkbenchError, match="examples.*out of range"):
        fit_shift(draw(0, D), draw(0, D))


class Stop(KeyboardInterrupt):
    """What Ctrl-C raises, told from a real one."""


@pytest.mark.parametrize("method", ["lo_reft", "per_fit", "in_ra", "tr_ra"])
def test_a_training_cut_short_leaves_the_model_as_it_was(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama")
    before = model.run("12+34=").logits
    held = {n: (p._version, p.grad) for n, p in model.hf.named_parameters()}
    made = registry.get("steering", method)(rank=2) if method != "in_ra" else steering.InRa()
    block = model.hf.model.layers[0].mlp
    calls = iter(range(100))

    def forward(h: Tensor) -> Tensor:
        if next(calls) == 12:
            raise Stop
        return type(block).forward(block, h)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(Stop):
        fit(made, "L1.resid_post")
    monkeypatch.undo()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    assert {n: (p._version, p.grad) for n, p in model.hf.named_parameters()} == held
    assert torch.equal(model.run("12+34=").logits, before)


@pytest.mark.parametrize("method", ["lo_reft", "per_fit", "in_ra", "tr_ra", "cold_steer"])
def test_it_trains_where_the_caller_is_in_inference_mode(method: str) -> None:
    options = {"cold_steer": {"mode": "kernel"}, "in_ra": {"steps": 2}, "per_fit": {"rank": 2}}
    short = {"rank": 2, "steps": 2} if method in ("lo_reft", "tr_ra") else options[method]
    made = registry.get("steering", method)(**short)
    with torch.inference_mode():
        inside = fit(made)
    outside = fit(made)
    for site, tensors in outside.tensors.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(inside.tensors[site][name], tensor)


# --- LoReFT on a model ---------------------------------------------------------------------------


def taught(n: int = 9, users: bool = False) -> Prompts:
    """Pairs whose wanted completion is `9.` and whose unwanted one is `no`."""
    asked = [Prompt(f"{i}+{i + 3}=", meta={"user": i % 3} if users else {}) for i in range(n)]
    return wb.prompts.completions(asked, positive=["9."] * n, negative=["no"] * n)


def fit(method: Any, sites: Any = SITE, prompts: Prompts | None = None) -> Intervention:
    many = taught() if prompts is None else prompts
    return steering.fit(method, tiny.model("llama"), many, sites, progress=False)


def nats(edits: Any, n: int = 9) -> float:
    """Mean cross-entropy of the wanted completion under edits."""
    model = tiny.model("llama")
    many = examples(model, *((f"{i}+{i + 3}=", "9.") for i in range(n)))
    tails = [list(e.ids) for e in many]
    trace = model.run([e.prompt for e in many], edits=edits, completions=tails, logits="all")
    return float(completion_loss(trace, many))


@pytest.mark.parametrize("form", FORMS)
def test_training_makes_the_completions_likely(form: reft.Form) -> None:
    edit = fit(LoReft(form=form, rank=4, steps=40, lr=0.05, progress=False))
    assert edit.params["form"] == form
    assert edit.params["loss_end"] < edit.params["loss_start"] - 0.5
    assert nats([edit]) < nats([]) - 0.5
    if form != "consreft":  # the others begin as no edit, so with the model's own loss
        assert edit.params["loss_start"] == pytest.approx(nats([]), abs=1e-4)


def test_forms_differ_after_training() -> None:
    edits = {f: fit(LoReft(form=f, rank=4, steps=20, lr=0.05, progress=False)) for f in FORMS}
    h = 3 * draw(40, 32)
    moved = {f: change(e.tensors[SITE], h) for f, e in edits.items()}
    for i, a in enumerate(FORMS):
        for b in FORMS[i + 1 :]:
            assert (moved[a] - moved[b]).norm() > 0.01 * moved[a].norm(), (a, b)


def test_it_acts_on_the_first_and_the_last_prompt_position() -> None:
    model, edit = tiny.model("llama"), fit(LoReft(rank=2, steps=5, progress=False))
    assert str(edit.scope) == "span(0, 1)|last_prompt"
    options: dict[str, Any] = dict(record=[SITE], completions=[[5, 6]])
    plain, edited = (model.run(["12+34="], edits=e, **options)[SITE][0] for e in ([], [edit]))
    moved = (edited - plain).norm(dim=-1) > 1e-6
    assert moved.tolist() == [True, False, False, False, False, False, True, False, False]


def test_it_is_one_affine_edit_of_its_rank_at_every_site() -> None:
    edit = fit(LoReft(rank=5, steps=3, progress=False), ["L0.resid_post", "L2.mlp_out", "L1.z"])
    assert edit.operation == "affine" and edit.sites == ("L0.resid_post", "L2.mlp_out", "L1.z")
    for tensors in edit.tensors.values():
        assert tensors["up"].shape == tensors["down"].shape == (5, 32)
        assert tensors["shift"].shape == (32,)
        assert not any(t.requires_grad for t in tensors.values())


def test_its_random_control_keeps_sizes() -> None:
    edit = fit(LoReft(rank=2, steps=5, progress=False))
    control = wb.interventions.random_control(edit)
    assert control is not None
    for name, tensor in edit.tensors[SITE].items():
        torch.testing.assert_close(control.tensors[SITE][name].norm(), tensor.norm())
        assert not torch.allclose(control.tensors[SITE][name], tensor)


@pytest.mark.parametrize("method", [LoReft(), PerFit()], ids=["lo_reft", "per_fit"])
def test_without_completions_there_is_nothing_to_learn(method: Any) -> None:
    bare = wb.prompts.pairs(positive=["a", "b"], negative=["c", "d"])
    with pytest.raises(WorkbenchError, match="2 of 2 prompts without.*prompts.completions"):
        fit(method, prompts=bare)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LoReft(rank=10), "number of examples; expected 1 to 9; got 10; lower"),
        (LoReft(rank=33), "width of L1.resid_post; expected 1 to 32; got 33"),
        (LoReft(rank=0), "at least one direction"),
        (PerFit(rank=10), "PerFit.rank.*number of examples"),
        (PerFit(user=1, user_rank=4, rank=2), "user_rank.*number of examples; expected 1 to 3"),
    ],
)
def test_a_rank_that_does_not_fit_is_an_error(method: Any, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        fit(method, prompts=taught(users=True))


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(UnknownName, match="unknown form.*loreft"):
        fit(LoReft(form="lowreft"))


# --- PerFit --------------------------------------------------------------------------------------

USERS, EACH = 4, 30


def personal() -> tuple[Tensor, Tensor, dict[int, Tensor], Contrast]:
    """Rows of several users whose targets share one shift and add one of their own."""
    hidden = draw(USERS * EACH, D, seed=20)
    shared = 3 * torch.nn.functional.normalize(draw(D, seed=21), dim=0)
    own = 2 * torch.linalg.qr(draw(D, USERS, seed=22))[0].T
    own = own - own.mean(0)  # what all have in common is the shared shift by definition
    who = [i % USERS for i in range(len(hidden))]
    targets = hidden + shared + torch.stack([own[u] for u in who])
    prompts = tuple(
        Prompt("p", meta={"row": i, "user": u, "completion": "x"}) for i, u in enumerate(who)
    )
    model = Fingerprint("planted", "none", D, 4, "0")
    contrast = Contrast({SITE: targets}, {SITE: hidden}, True, model, (prompts, prompts))
    return shared, targets, dict(enumerate(own)), contrast


def perfit(contrast: Contrast, targets: Tensor, **options: Any) -> Intervention:
    settings = dict(steps=600, user_steps=600, lr=0.03, clip=None, batch=32, rank=1, user_rank=1)
    method = PerFit(**settings | options, progress=False)
    run = planted_run(contrast.negative[SITE])
    return method.fit(contrast, run=run, encode=lambda _: [1], loss=to_targets(targets))


def mean_change(edit: Intervention, hidden: Tensor) -> Tensor:
    return change(edit.tensors[SITE], hidden).mean(0)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_stage_one_finds_what_users_share_and_stage_two_the_rest() -> None:
    shared, targets, own, contrast = personal()
    hidden = contrast.negative[SITE]
    common = mean_change(perfit(contrast, targets), hidden)
    assert cosine(common, shared) > 0.98
    for user in (0, 2):
        whole = mean_change(perfit(contrast, targets, user=user), hidden[user::USERS])
        assert cosine(whole, shared + own[user]) > 0.98
        assert cosine(whole - common, own[user]) > 0.95
        assert abs(cosine(whole - common, own[(user + 1) % USERS])) < 0.6


def test_stage_one_does_not_depend_on_the_user() -> None:
    _, targets, _, contrast = personal()
    small = dict(steps=20, user_steps=20)
    alone = perfit(contrast, targets, **small)
    with_user = perfit(contrast, targets, user=1, **small)
    assert alone.params["collective_loss_end"] == with_user.params["collective_loss_end"]
    up, first = with_user.tensors[SITE]["up"], alone.tensors[SITE]["up"]
    assert torch.equal(up[:1], first)


def test_stage_two_begins_where_stage_one_ended() -> None:
    """Its zero edit is the identity: the first loss of stage 2 is the user's loss under stage 1."""
    _, targets, _, contrast = personal()
    hidden = contrast.negative[SITE]
    edit = perfit(contrast, targets, user=1, steps=20, user_steps=1, batch=EACH)
    common = perfit(contrast, targets, steps=20, batch=EACH)
    mine = slice(1, None, USERS)
    moved = hidden[mine] + change(common.tensors[SITE], hidden[mine])
    want = (moved - targets[mine]).square().sum(-1).mean()
    assert edit.params["user_loss_start"] == pytest.approx(float(want), rel=1e-4)


def test_both_stages_fold_into_one_edit_exactly() -> None:
    first = reft.folded("loreft", learned("loreft", seed=1))[SITE]
    second = reft.folded("loreft", learned("loreft", seed=11))[SITE]
    h = draw(6, D)
    one = h + change(first, h)
    two = one + change(second, one)
    both = reft.stacked(first, second)
    torch.testing.assert_close(h + change(both, h), two, atol=1e-4, rtol=1e-4)
    assert both["up"].shape == (2 * RANK, D)


def test_the_whole_change_lies_in_both_subspaces() -> None:
    _, targets, _, contrast = personal()
    edit = perfit(contrast, targets, user=0, rank=2, user_rank=2, steps=30, user_steps=30)
    basis = reft.orthonormal(edit.tensors[SITE]["up"])
    moved = change(edit.tensors[SITE], 3 * draw(8, D))
    torch.testing.assert_close(moved @ basis.T @ basis, moved, atol=1e-4, rtol=1e-4)


def test_a_personal_edit_on_a_model_helps_its_user() -> None:
    asked = [Prompt(f"{i}+{i + 3}=", meta={"user": "ab"[i % 2]}) for i in range(12)]
    texts = [("9.", "xy")[i % 2] for i in range(12)]
    many = wb.prompts.completions(asked, positive=texts, negative=["no"] * 12)
    options = dict(rank=4, steps=30, user_steps=30, lr=0.02, clip=None, progress=False)
    a, b, both = (fit(PerFit(user=u, **options), prompts=many) for u in ("a", "b", None))
    assert nats([a], 1) < nats([both], 1) < nats([b], 1)
    assert a.params["user_loss_end"] < a.params["user_loss_start"]


def test_an_unknown_user_is_named() -> None:
    _, targets, _, contrast = personal()
    with pytest.raises(UnknownName, match="unknown user.*got 9"):
        perfit(contrast, targets, user=9)
    with pytest.raises(UnknownName, match="no prompt has"):
        fit(PerFit(user="me"))
