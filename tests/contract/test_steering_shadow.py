"""Edits that run the model a second time: the second run itself, COLD-Steer, InRa and TrRa."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

import workbench as wb
from tests import tiny
from workbench import registry, steering
from workbench.errors import EditError, UnknownName, WorkbenchError
from workbench.interventions.control import random_control
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.model.positions import Frame
from workbench.model.run import handed_run
from workbench.model.shadow import Shadow, again, gradient, reaching, twin
from workbench.records import Prompts
from workbench.steering.cold_steer import folded
from workbench.steering.in_ra import inserted
from workbench.steering.tr_ra import mixed
from workbench.tensors import Contrast, Intervention, Trace

PROMPTS = ["12+34=", "a longer prompt, 7*8=?", "bcd"]
SITE = "L1.resid_post"
COLD, IN_RA, TR_RA = steering.ColdSteer, steering.InRa, steering.TrRa


def asked(same: bool = False) -> Prompts:
    """Pairs that differ in one word; each side answers its own way, or both the same way."""
    texts = [f"{a}+{b}=" for a in (1, 23, 4) for b in (5, 66)]
    sides = wb.prompts.pairs(
        positive=[f"sum {t}" for t in texts], negative=[f"say {t}" for t in texts]
    )
    words = [f"ok {p.pair}" if same else (f"{p.pair}9." if p.label else "no") for p in sides]
    return Prompts(
        wb.Prompt(p.text, label=p.label, pair=p.pair, meta={"completion": word})
        for p, word in zip(sides, words, strict=True)
    )


def fit(method: Any, model: Model, sites: Any = None, prompts: Any = None, **handed: Any):
    return steering.fit(method, model, prompts or asked(), sites, progress=False, **handed)


@cache
def exact(family: str = "gpt2") -> Model:
    """A model in float64. GPT-2's norms and attention stay in it; Llama's norms go through float32."""
    return wb.load(tiny.module(family).double(), tiny.tokenizer())


@cache
def cold(**options: Any) -> Intervention:
    return fit(COLD(layer=1, **options), tiny.model())


def change(model: Model, edit: Intervention, prompts: Any = "a longer prompt, 7*8=?") -> Tensor:
    """What the edit adds to its own site."""
    (site,) = edit.sites
    return model.run(prompts, [site], edit)[site] - model.run(prompts, [site])[site]


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- the second run -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_second_run_holds_what_the_first_holds(family: str) -> None:
    model = tiny.model(family)
    sites = ["embed", SITE, "L2.z", "L1.mlp_out", "final_norm", "logits"]
    trace = model.run(PROMPTS, sites)
    real = trace.tokens.mask
    for site in sites:
        value = Shadow(model.backend).values(site, trace.tokens.ids, trace.tokens.mask)
        torch.testing.assert_close(value[real], trace[site][real], atol=1e-5, rtol=1e-5)


def test_the_second_run_leaves_the_module_as_it_was() -> None:
    model = tiny.model()
    before = {n: (id(m), dict(m.__dict__)) for n, m in model.hf.named_modules()}
    fit(COLD(layer=1), model)
    model.generate(PROMPTS, cold(), max_new_tokens=2)
    model.generate(PROMPTS, in_ra(), max_new_tokens=2)
    for name, module in model.hf.named_modules():
        was, held = before[name]
        assert id(module) == was
        assert module.__dict__.keys() == held.keys()
        assert all(module.__dict__[k] is v for k, v in held.items() if k != "training")


def test_a_twin_shares_weights_and_has_no_hooks() -> None:
    hf = tiny.module("llama")
    hf.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    made = twin(hf)
    assert [p.data_ptr() for p in made.parameters()] == [p.data_ptr() for p in hf.parameters()]
    made(input_ids=torch.tensor([[1, 5]]))
    made.model.layers[2].register_forward_hook(lambda *_: 1 / 0)
    del made.model.layers._modules["0"]
    assert len(hf.model.layers) == 3 and not hf.model.layers[2]._forward_hooks


def test_a_tied_weight_is_changed_at_both_places() -> None:
    hf = tiny.module("gpt2")
    new = torch.zeros_like(hf.transformer.wte.weight)
    made = twin(hf, {id(hf.transformer.wte.weight): new})
    assert made.transformer.wte.weight is new and made.lm_head.weight is new


@pytest.mark.parametrize("mode", ["jvp", "fd"])
def test_other_edits_do_not_act_on_the_second_run(mode: str) -> None:
    """The change is that of the model without edits, whatever stands below."""
    model, shift = tiny.model(), {"shift": torch.linspace(-3, 3, 32)}
    below, edit = Intervention("custom", "affine", {"L0.resid_post": shift}), cold(mode=mode)
    alone = model.run(PROMPTS, [SITE], below)[SITE]
    both = model.run(PROMPTS, [SITE], [below, edit])
    assert [r.fired for r in both.receipts] == [1, 1]
    real = both.tokens.mask
    torch.testing.assert_close(
        (both[SITE] - alone)[real], change(model, edit, PROMPTS)[real], atol=2e-5, rtol=1e-3
    )


@pytest.mark.parametrize("make", [lambda: cold(), lambda: in_ra()], ids=["cold_steer", "in_ra"])
def test_recording_attention_changes_nothing(make: Any) -> None:
    """Attention is recorded through a stand-in, which the second run must not see."""
    model = tiny.model()
    parts = ["L0.pattern", "L1.attn_scores", SITE]
    torch.testing.assert_close(
        model.run(PROMPTS, parts, make()).logits[:, -1],
        model.run(PROMPTS, (), make()).logits[:, -1],
        atol=1e-4,
        rtol=1e-4,
    )
    edited, plain = model.run(PROMPTS, parts, make()), model.run(PROMPTS, parts)
    for below in parts[:2]:  # they stand before both edits
        assert torch.equal(edited[below], plain[below])


@pytest.mark.parametrize("make", [lambda: cold(), lambda: in_ra()], ids=["cold_steer", "in_ra"])
def test_a_live_session_gives_what_a_run_gives(make: Any) -> None:
    model, edit = tiny.model(), make()
    live = Live(model, PROMPTS)
    for strength in (1.0, -2.0, 0.0, 0.5):
        want = model.run(PROMPTS, (), edit.at(strength), logits="last").logits
        torch.testing.assert_close(live.run([edit.at(strength)]).logits, want, atol=1e-5, rtol=1e-5)
    swept = live.sweep(edit, [0.0, 1.0, -2.0]).logits
    for row, strength in zip(swept, (0.0, 1.0, -2.0), strict=True):
        want = model.run(PROMPTS, (), edit.at(strength), logits="last").logits
        torch.testing.assert_close(row, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: cold(), lambda: in_ra()], ids=["cold_steer", "in_ra"])
def test_branches_are_not_packed_under_it_and_score_right(make: Any) -> None:
    model = tiny.model()
    scores = model_scores(model, make())
    assert "looks at the tokens around" in scores.note
    alone = model_scores(model, make(), pack=False)
    assert torch.equal(scores.totals, alone.totals)
    assert not torch.allclose(scores.totals, model_scores(model, None).totals, atol=1e-4)


def model_scores(model: Model, edit: Intervention | None, **options: Any) -> Any:
    from workbench.model.branches import score_branches

    edits = [] if edit is None else [edit]
    return score_branches(model, "12+34=", [3, 5], ["46", "7"], edits, **options)


def test_a_packed_row_is_refused() -> None:
    frame = Frame([1], None, list)
    frame.visible = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(EditError, match="packed into one row"):
        again(frame, SITE, 1)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (SimpleNamespace(name="nnsight"), "backend 'nnsight'"),
        (SimpleNamespace(name="transformers", hf=SimpleNamespace(hf_device_map={})), "several"),
    ],
)
def test_where_there_is_no_second_run_it_says_so(backend: Any, said: str) -> None:
    with pytest.raises(EditError, match=said):
        Shadow(backend)


def test_parameters_of_another_model_are_refused() -> None:
    tensors = cold().tensors[SITE]
    strange = {"tangent.nowhere": torch.zeros(3), **tensors}
    with pytest.raises(EditError, match="parameters that do not fit"):
        tiny.model().run("12", (), replace(cold(), tensors={SITE: strange}))
    short = {k: v for i, (k, v) in enumerate(in_ra().tensors["logits"].items()) if i}
    with pytest.raises(EditError, match="other parameters than this model"):
        tiny.model().run("12", (), replace(in_ra(), tensors={"logits": short}))


# --- gradients ------------------------------------------------------------------------------------


def objective(hf: Any, groups: Any, loss: str = "dpo", beta: float = 0.1) -> Tensor:
    """The loss written anew, one unpadded sequence at a time."""
    tok, found = tiny.tokenizer(), []
    for group in groups:
        means = []
        for p in group:
            head = tok(p.text)["input_ids"]
            tail = tok(p.meta["completion"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([head + tail])
            told = log_softmax(hf(input_ids=ids).logits[0, len(head) - 1 : -1], -1)
            means.append(told[range(len(tail)), tail].mean())
        found.append(-means[0] if loss == "sft" else -logsigmoid(beta * (means[0] - means[1])))
    return torch.stack(found).mean()


def groups_of(loss: str) -> Any:
    sides = [p for p in asked() if p.label], [p for p in asked() if not p.label]
    return list(zip(*sides, strict=True)) if loss == "dpo" else [(p,) for p in sides[0]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_gradients_are_autograds(family: str, loss: str) -> None:
    model, groups = tiny.model(family), groups_of(loss)
    hf = copy.deepcopy(model.hf).requires_grad_()
    objective(hf, groups, loss).backward()
    found = gradient(model, groups, COLD(loss=loss)._objective, SITE, batch_size=4)
    true = dict(hf.named_parameters())
    assert set(found) == set(reaching(model.hf, model.layout, SITE, model.dims))
    for name, g in found.items():
        torch.testing.assert_close(g, true[name].grad, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None for p in model.hf.parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_parameters_of_a_site_are_those_below_it(family: str) -> None:
    """A parameter is among them if and only if changing it changes the site."""
    model = tiny.model(family)
    named = reaching(model.hf, model.layout, SITE, model.dims)
    tokens = model.tokens("a longer prompt, 7*8=?")
    values = partial(Shadow(model.backend).values, SITE, tokens.ids, tokens.mask)
    for name, p in model.hf.named_parameters():
        moved = values(added={name: torch.linspace(0.5, 1, p.numel()).reshape(p.shape)})
        assert torch.equal(moved, values()) == (name not in named), name


# --- COLD-Steer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_a_derivative(family: str) -> None:
    """Against a difference of two runs, with the step where float32 is best."""
    model = tiny.model(family)
    jvp = fit(COLD(layer=1), model)
    assert off(change(model, fit(COLD(layer=1, mode="fd"), model)), change(model, jvp)) < 0.01


def test_differences_converge_to_the_derivative_in_float64() -> None:
    """Falsifier (a): the error is linear in epsilon."""
    model = exact()
    jvp = fit(COLD(layer=1), model)
    true, errors = change(model, jvp), []
    for share in (1e-2, 1e-3, 1e-4, 1e-5):
        errors.append(off(change(model, fit(COLD(layer=1, mode="fd", epsilon=share), model)), true))
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(8 < r < 12 for r in ratios), errors
    assert errors[-1] < 1e-3


def test_in_float32_epsilon_follows_the_size_of_the_gradient() -> None:
    """Falsifier (b): the published 1e-6 is worse than the signal where the gradient is small."""
    model = tiny.model()

    def small(*args: Any, **options: Any) -> dict[str, Tensor]:
        return {k: 1e-3 * g for k, g in gradient(model, *args, **options).items()}

    weak, ours = (
        replace(fit(COLD(layer=1, mode=m), model, gradient=small), conditional=True)
        for m in ("jvp", "fd")
    )
    published = replace(ours, params={**ours.params, "epsilon": 1e-6})
    assert off(change(model, cold(mode="fd")), change(model, cold())) < 0.01
    assert off(change(model, ours), change(model, weak)) < 0.01
    assert off(change(model, published), change(model, weak)) > 1


def test_a_linear_loss_with_the_unit_kernel_is_addition() -> None:
    """Falsifier (c): the gradient of -<v, z> is -v, so that the edit adds v."""
    v, states = torch.linspace(-1, 2, 7), torch.randn(5, 7)
    (name, shift), *rest = folded(states, -v.expand(5, 7) / 5).items()
    assert name == "shift" and not rest
    torch.testing.assert_close(shift, v)


def test_strength_zero_is_no_step() -> None:
    """Falsifier (d)."""
    model = tiny.model()
    assert torch.equal(model.run(PROMPTS, (), cold().at(0.0)).logits, model.run(PROMPTS).logits)


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_it_is_one_real_step_to_first_order(loss: str) -> None:
    """Falsifier (e): what is left is of second order in the learning rate."""
    model, groups = exact(), groups_of(loss)
    edit = fit(COLD(layer=1, loss=loss), model)
    before, left = model.run(PROMPTS[1], [SITE])[SITE], []
    for eta in (0.02, 0.01, 0.005):
        hf = copy.deepcopy(model.hf).requires_grad_()
        objective(hf, groups, loss).backward()
        torch.optim.SGD(hf.parameters(), lr=eta).step()
        stepped = wb.load(hf.requires_grad_(False), tiny.tokenizer(), proof=False)
        real = stepped.run(PROMPTS[1], [SITE])[SITE] - before
        left.append(float((real - change(model, edit.at(eta), PROMPTS[1])).norm()))
        assert left[-1] < 0.2 * float(real.norm())
    assert all(3.5 < a / b < 4.5 for a, b in zip(left, left[1:], strict=False)), left


def test_a_step_of_the_loss_lowers_the_loss() -> None:
    model, groups = tiny.model(), groups_of("sft")
    edit = fit(COLD(layer=1, loss="sft"), model)

    def loss(strength: float) -> float:
        run = partial(handed_run, model, edits=[edit.at(strength)])
        return sum(_cross_entropy(run, p) for (p,) in groups) / len(groups)

    assert loss(0.3) < loss(0.0) < loss(-0.3)


def _cross_entropy(run: Any, prompt: wb.Prompt) -> float:
    tail = tiny.tokenizer()(prompt.meta["completion"], add_special_tokens=False)["input_ids"]
    logits = run([prompt], completions=[tail], logits="all").logits[0, -len(tail) - 1 : -1]
    return -float(log_softmax(logits, -1)[range(len(tail)), tail].mean())


@pytest.mark.parametrize("kernel", ["unit", "dot", "projection"])
def test_kernels_fold_into_an_affine_edit(kernel: str) -> None:
    """Against the sum over examples, with gradients of activations taken by hand."""
    model = tiny.model()
    edit = fit(COLD(mode="kernel", layer=1, kernel=kernel, loss="sft", width=5, seed=3), model)
    h, added = torch.randn(6, 32), torch.zeros(6, 32)
    for (prompt,) in groups_of("sft"):
        z, g = _by_hand(model, prompt)
        weight = torch.ones(6) if kernel == "unit" else h @ z
        if kernel == "projection":
            r = _projection(32, 5, 3)
            weight = ((h.double() @ r.mT) @ (r @ z.double()) / 5).float()
        added -= weight[:, None] * g / 6
    tensors = edit.tensors[SITE]
    got = tensors["shift"].expand(6, 32) if kernel == "unit" else h @ tensors["down"].mT
    got = got if kernel == "unit" else got @ tensors["up"]
    assert edit.operation == "affine"
    torch.testing.assert_close(got, added, atol=1e-5, rtol=1e-3)


def _projection(d: int, width: int, seed: int) -> Tensor:
    from workbench.seeds import derive

    generator = torch.Generator().manual_seed(derive(seed, "cold_steer", "projection"))
    return torch.randn(width, d, generator=generator, dtype=torch.float64)


def _by_hand(model: Model, prompt: wb.Prompt) -> tuple[Tensor, Tensor]:
    """The activation at the last prompt position and the loss's gradient there."""
    tok, hf = tiny.tokenizer(), copy.deepcopy(model.hf).requires_grad_()
    head = tok(prompt.text)["input_ids"]
    tail = tok(prompt.meta["completion"], add_special_tokens=False)["input_ids"]
    kept: list[Tensor] = []

    def keep(_module: Any, _args: Any, out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    hf.model.layers[1].register_forward_hook(keep)
    logits = hf(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
    (-log_softmax(logits, -1)[range(len(tail)), tail].mean()).backward()
    assert kept[0].grad is not None
    return kept[0][0, len(head) - 1].detach(), kept[0].grad[0, len(head) - 1]


def test_the_middle_recorded_layer_is_edited_unless_one_is_named() -> None:
    model = tiny.model()
    assert fit("cold_steer", model).sites == ("L1.resid_post",)
    assert fit(COLD(layer=2), model).sites == ("L2.resid_post",)
    assert fit("cold_steer", model, "L0.mlp_out").sites == ("L0.mlp_out",)
    with pytest.raises(UnknownName, match=r"L0.resid_post"):
        fit(COLD(layer=7), model)


@pytest.mark.parametrize("mode", ["jvp", "fd", "kernel"])
def test_a_part_of_a_site_is_refused(mode: Any) -> None:
    with pytest.raises(WorkbenchError, match=r"part of a site.*got L1.z\[head=1\]"):
        fit(COLD(mode=mode), tiny.model(), "L1.z[head=1]")


def test_its_random_control_has_parameters_of_the_same_norm() -> None:
    control = random_control(cold())
    assert control is not None
    for name, t in cold().tensors[SITE].items():
        drawn = control.tensors[SITE][name]
        torch.testing.assert_close(drawn.norm(), t.norm())
        flat = torch.nn.functional.cosine_similarity(drawn.flatten(), t.flatten(), dim=0)
        assert abs(float(flat)) < 0.8
    model = tiny.model()
    assert off(change(model, control), change(model, cold())) > 0.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(beta=0), "more than 0"),
        (dict(width=0), "more than 0"),
        (dict(epsilon=float("nan")), "not finite"),
        (dict(batch_size=0), "more than 0"),
    ],
)
def test_cold_steer_refuses_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        fit(COLD(**options), tiny.model())


@pytest.mark.parametrize("option", ["mode", "loss", "kernel"])
def test_cold_steer_knows_its_words(option: str) -> None:
    with pytest.raises(UnknownName, match=option):
        made = COLD()
        object.__setattr__(made, option, "sideways")
        made._check()


def test_prompts_without_completions_and_without_pairs_are_refused() -> None:
    bare = wb.prompts.pairs(positive=["a+b", "c+d"], negative=["a-b", "c-d"])
    for method in (COLD(), COLD(loss="sft"), IN_RA(progress=False)):
        with pytest.raises(WorkbenchError, match="without"):
            fit(method, tiny.model(), prompts=bare)
    alone = [replace(p, pair=None) for p in asked()]
    with pytest.raises(WorkbenchError, match="needs pairs"):
        fit(COLD(), tiny.model(), prompts=alone)
    assert fit(COLD(loss="sft"), tiny.model(), prompts=alone).sites


def test_examples_without_a_gradient_are_refused() -> None:
    def flat(groups: Any, *_: Any, **__: Any) -> dict[str, Tensor]:
        return {"w": torch.zeros(3)}

    with pytest.raises(WorkbenchError, match="no gradient to step along"):
        fit(COLD(), tiny.model(), gradient=flat)


# --- InRa -----------------------------------------------------------------------------------------


@cache
def in_ra(family: str = "llama") -> Intervention:
    return fit(IN_RA(steps=30, progress=False), tiny.model(family))


def untrained(model: Model) -> Intervention:
    tensors = inserted(dict(model.hf.named_parameters()), model.n_layers)
    return Intervention(
        "in_ra",
        "adaptive",
        {"logits": tensors},
        params={"rule": "inserted_block"},
        conditional=True,
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("share", [1.0, -3.0, 0.4])
def test_a_block_that_writes_nothing_changes_nothing(family: str, share: float) -> None:
    model = tiny.model(family)
    edited = model.run(PROMPTS, (), untrained(model).at(share)).logits
    torch.testing.assert_close(edited, model.run(PROMPTS).logits, atol=1e-5, rtol=0)


def test_the_full_share_is_the_model_with_the_block() -> None:
    """Against a real model of four layers."""
    model, edit = tiny.model(), in_ra()
    hf = tiny.module("llama", num_hidden_layers=4)
    weights = dict(model.hf.named_parameters())
    block = {k.partition(".")[2]: t for k, t in edit.tensors["logits"].items()}
    with torch.no_grad():
        for name, p in hf.named_parameters():
            head, _, rest = name.removeprefix("model.layers.").partition(".")
            if not name.startswith("model.layers."):
                p.copy_(weights[name])
            else:
                below = f"model.layers.{int(head) - 1}.{rest}"
                p.copy_(block[rest] if head == "0" else weights[below])
    four = wb.load(hf, tiny.tokenizer(), proof=False)
    want = four.run(PROMPTS, logits="last").logits
    base = model.run(PROMPTS, logits="last").logits
    for share in (1.0, 0.25, -1.0, 2.0):
        got = model.run(PROMPTS, (), edit.at(share), logits="last").logits
        torch.testing.assert_close(got, (1 - share) * base + share * want, atol=1e-4, rtol=1e-4)
    assert float((want - base).abs().max()) > 0.05


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_training_makes_the_completions_likelier(family: str) -> None:
    model, edit = tiny.model(family), in_ra(family)
    for prompt, *_ in groups_of("sft"):
        trained, plain = (
            _cross_entropy(partial(handed_run, model, edits=e), prompt) for e in ([edit], ())
        )
        assert trained < plain - 0.05


def test_only_the_block_is_trained_and_all_of_it() -> None:
    model, edit = tiny.model(), in_ra()
    start = untrained(model).tensors["logits"]
    trained = edit.tensors["logits"]
    assert trained.keys() == start.keys()
    assert {k.partition(".")[0] for k in trained} == {"block", "writer"}
    assert all(not torch.equal(t, start[k]) for k, t in trained.items())


def test_the_control_of_a_block_draws_its_writers_alone() -> None:
    control = random_control(in_ra())
    assert control is not None
    for name, t in in_ra().tensors["logits"].items():
        drawn = control.tensors["logits"][name]
        assert torch.equal(drawn, t) == name.startswith("block.")
        torch.testing.assert_close(drawn.norm(), t.norm())


def test_a_block_of_unknown_writers_is_refused() -> None:
    names = {"model.layers.0.mix.weight": torch.ones(2, 2)}
    with pytest.raises(WorkbenchError, match="no identity once its writers are 0"):
        inserted(names, 1)
    with pytest.raises(WorkbenchError, match="no block 0"):
        inserted({"head.weight": torch.ones(2)}, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_that_stays_no_identity_is_refused(dtype: torch.dtype) -> None:
    """A writer under another name beside a known one, even one that writes little."""
    hf = tiny.module("llama")
    hf.model.layers[0].mlp.down_proj.weight.data.mul_(0.03)
    model = wb.load(hf.to(dtype), tiny.tokenizer(), proof=False)
    renamed = {
        n.replace("down_proj", "ending") if ".mlp." in n else n: p
        for n, p in model.hf.named_parameters()
    }

    def run(*args: Any, edits: Any = (), **options: Any) -> Trace:
        named = [
            replace(
                e,
                tensors={
                    "logits": {
                        k.replace("ending", "down_proj"): t for k, t in e.tensors["logits"].items()
                    }
                },
            )
            for e in edits
        ]
        return handed_run(model, *args, edits=named, **options)

    with pytest.raises(WorkbenchError, match="before any training"):
        fit(IN_RA(progress=False), model, parameters=renamed, run=run)


@pytest.mark.parametrize("options", [dict(steps=0), dict(lr=-1.0), dict(batch=0)])
@pytest.mark.parametrize("method", [IN_RA, TR_RA])
def test_training_options_out_of_range_are_refused(method: Any, options: dict[str, Any]) -> None:
    with pytest.raises(WorkbenchError, match="out of range"):
        fit(method(progress=False, **options), tiny.model())


# --- TrRa -----------------------------------------------------------------------------------------


def test_log_odds_are_linear_in_the_share() -> None:
    aligned, reference = torch.randn(2, 5, 9, dtype=torch.float64).unbind(0)

    def odds(lam: float) -> Tensor:
        told = mixed(aligned, reference, lam)
        return told[:, :1] - told

    torch.testing.assert_close(odds(2.5), odds(0.0) + 2.5 * (odds(1.0) - odds(0.0)))
    torch.testing.assert_close(mixed(aligned, reference, 0.0), log_softmax(reference, -1))
    torch.testing.assert_close(mixed(aligned, reference, 1.0), log_softmax(aligned, -1))


def far(model: Model, edit: Intervention | None, prompts: Any, other: Any, lam: float) -> float:
    """Mean KL(student || teacher) in nats on the negative prompts' completions, one row at a time."""
    tok, found = tiny.tokenizer(), []
    positive, negative = ([p for p in prompts if p.label is kind] for kind in (True, False))
    for p, n in zip(positive, negative, strict=True):
        tail = tok(n.meta["completion"], add_special_tokens=False)["input_ids"]
        rows = [
            of.run([prompt], completions=[tail], edits=e).logits[0, -len(tail) - 1 :]
            for of, prompt, e in (
                (other or model, n if other else p, ()),
                (model, n, ()),
                (model, n, [] if edit is None else [edit]),
            )
        ]
        student = log_softmax(rows[2], -1)
        found.append((student.exp() * (student - mixed(*rows[:2], lam))).sum(-1).mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("lam", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("divergence", ["student_teacher", "teacher_student"])
def test_the_student_comes_nearer_to_the_teacher(lam: float, divergence: Any) -> None:
    model, prompts = tiny.model(), asked(same=True)
    edit = fit(TR_RA(lam=lam, divergence=divergence, progress=False), model, None, prompts)
    assert far(model, edit, prompts, None, lam) < 0.5 * far(model, None, prompts, None, lam)


def test_another_model_can_be_the_aligned_one() -> None:
    model, prompts = tiny.model(), asked(same=True)
    below = Intervention("custom", "affine", {SITE: {"shift": torch.linspace(-3, 3, 32)}})

    def moved(asked: Any, **options: Any) -> Trace:
        return model.run(asked, **{**options, "edits": below})

    other = SimpleNamespace(run=moved)
    edit = fit(TR_RA(progress=False), model, None, prompts, aligned=other)
    assert far(model, edit, prompts, other, 1.0) < 0.1 * far(model, None, prompts, other, 1.0)


def test_a_model_of_another_vocabulary_cannot_be_the_aligned_one() -> None:
    other = wb.load(tiny.module("llama", vocab_size=120), tiny.tokenizer(), proof=False)
    with pytest.raises(WorkbenchError, match="another vocabulary"):
        fit(TR_RA(progress=False), tiny.model(), aligned=other)


def test_padding_does_not_count() -> None:
    """The loss of a padded batch is that of its rows, weighted by their positions."""
    model, method = tiny.model(), TR_RA(progress=False)
    contrast = _contrast(model, asked(same=True))
    run = partial(handed_run, model)
    examples = method._of_pairs(contrast, run, tiny_encode)
    assert len({len(e.ids) + len(e.prompt.text) for e in examples}) > 1

    def loss(some: Any) -> Tensor:
        tails = [list(e.ids) for e in some]
        shift = {SITE: {"shift": torch.linspace(-1, 1, 32)}}
        edits = [Intervention("custom", "affine", shift)]
        trace = run([e.prompt for e in some], (), edits, completions=tails, logits="all")
        return method._loss(trace, some)

    sizes = [len(e.extra) for e in examples]
    alone = sum(n * loss([e]) for n, e in zip(sizes, examples, strict=True)) / sum(sizes)
    torch.testing.assert_close(loss(examples), alone, atol=1e-5, rtol=1e-4)


def tiny_encode(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def _contrast(model: Model, prompts: Any) -> Contrast:
    return model.record(prompts, SITE, progress=False).contrast()


def test_the_start_of_a_student_is_the_reference() -> None:
    """Strength 0, and no training, leave the model as it is."""
    model, method = tiny.model(), TR_RA(progress=False)
    contrast = _contrast(model, asked())
    start = replace(method._edit(method._start({SITE: 32}), contrast), conditional=True)
    assert torch.equal(model.run(PROMPTS, (), start).logits, model.run(PROMPTS).logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(lam=0), "makes the teacher the reference"),
        (dict(lam=float("inf")), "not finite"),
        (dict(rank=0), "1 to 32"),
        (dict(rank=33), "1 to 32"),
    ],
)
def test_tr_ra_refuses_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        fit(TR_RA(progress=False, **options), tiny.model())


def test_tr_ra_without_prompts_or_pairs_is_refused() -> None:
    model = tiny.model()
    contrast = _contrast(model, asked())
    with pytest.raises(WorkbenchError, match="no prompts to learn on"):
        TR_RA(progress=False).fit(
            replace(contrast, prompts=None), run=partial(handed_run, model), encode=tiny_encode
        )
    alone = [replace(p, pair=None) for p in asked()]
    with pytest.raises(WorkbenchError, match="needs pairs"):
        fit(TR_RA(progress=False), model, prompts=alone)


def test_the_released_direction_is_another_objective() -> None:
    model, prompts = tiny.model(), asked(same=True)
    a, b = (
        fit(TR_RA(divergence=d, steps=20, progress=False), model, SITE, prompts)
        for d in ("student_teacher", "teacher_student")
    )
    assert not torch.allclose(a.tensors[SITE]["shift"], b.tensors[SITE]["shift"], atol=1e-4)


def test_all_three_are_registered_with_their_rules() -> None:
    assert {"cold_steer", "in_ra", "tr_ra"} <= {e.name for e in registry.entries("steering")}
    assert {"tangent", "inserted_block"} <= {e.name for e in registry.entries("rules")}
