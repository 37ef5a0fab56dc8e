"""Edits that are decided step by step: the machinery, DIRECTER, ReBalance, ATA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from workbench import steering
from workbench.decoding import Sample
from workbench.errors import EditError, UnknownName, WorkbenchError
from workbench.interventions.calibrate import kl_nats
from workbench.interventions.rollout import continuation_logprobs
from workbench.model import steps
from workbench.records import Generation, Prompt, Prompts
from workbench.rules.base import Around
from workbench.rules.exclusive_spans import ExclusiveSpans
from workbench.steering import Ata, Directer, MeanDifference, Rebalance
from workbench.stepwise.ata import advanced
from workbench.stepwise.control_law import ControlLaw, slope
from workbench.tensors import Contrast, Intervention

ASKED = ["12+34=", "a longer prompt, 7*8=?", "bcd"]
N = 8
BOUNDARY = tuple(range(5, 76, 3))
"""Tokens that random weights do draw."""


def pairs() -> Prompts:
    asked = [f"{a}+{b}=" for a in (1, 23, 4) for b in (5, 66, 7)]
    return wb.prompts.pairs(
        positive=[f"sum {p}" for p in asked], negative=[f"say {p}" for p in asked]
    )


def fit(method: Any, model: Any = None) -> Intervention:
    return steering.fit(method, model or tiny.model(), pairs(), progress=False)


def written(*edits: Intervention, asked: list[str] = ASKED, **options: Any) -> list[Any]:
    texts = tiny.model().generate(asked, edits, max_new_tokens=N, **options)
    return [(g.ids, g.logprobs) for g in texts]


def same(a: list[Any], b: list[Any]) -> bool:
    """Equal ids, and log-probabilities but for the other attention kernel under a tap."""
    return [ids for ids, _ in a] == [ids for ids, _ in b] and all(
        logs == pytest.approx(more, abs=1e-5) for (_, logs), (_, more) in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def rebalance() -> Intervention:
    return fit(Rebalance(boundary=BOUNDARY, sets="released", max_new_tokens=40))


# --- the machinery --------------------------------------------------------------------------------


@pytest.fixture(params=["directer", "rebalance", "ata"])
def stepwise(request: Any, rebalance: Intervention) -> Intervention:
    made = {
        "directer": lambda: fit(Directer(beta=0.0)),
        "rebalance": lambda: rebalance,
        "ata": lambda: fit(Ata(spans=((1, 3), (3, 5)))),
    }
    return made[request.param]()


def test_it_writes_something_else(stepwise: Intervention) -> None:
    assert not same(written(stepwise), written())


def test_strength_zero_takes_the_plain_path(
    stepwise: Intervention, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = written()
    monkeypatch.setattr(steps, "Driver", None)
    assert written(stepwise.at(0.0)) == plain == written()


def test_permuting_the_rows_permutes_what_is_written(stepwise: Intervention) -> None:
    order = [2, 0, 1]
    there, back = written(stepwise), written(stepwise, asked=[ASKED[i] for i in order])
    for new, old in enumerate(order):
        assert back[new][0] == there[old][0]
        torch.testing.assert_close(torch.tensor(back[new][1]), torch.tensor(there[old][1]))


def test_rows_do_not_know_of_each_other_even_when_one_ends(stepwise: Intervention) -> None:
    together = tiny.model().generate(ASKED, stepwise, max_new_tokens=N, stop=["8", "b", "k"])
    for text, prompt in zip(together, ASKED, strict=True):
        (alone,) = tiny.model().generate([prompt], stepwise, max_new_tokens=N, stop=["8", "b", "k"])
        assert alone.ids == text.ids
        torch.testing.assert_close(
            torch.tensor(alone.logprobs), torch.tensor(text.logprobs), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rows_that_end_early_leave_the_others_what_they_decided(
    stepwise: Intervention, family: str
) -> None:
    """Tokens are forced, so that rows end at known steps and no row is the same as another."""
    draw = torch.Generator().manual_seed(1)
    model = wb.load(deep(family), tiny.tokenizer())
    method = {"directer": Directer(beta=0.3, alpha=30.0), "ata": Ata(spans=((1, 3), (3, 5)))}
    edit = stepwise
    if stepwise.method in method:
        edit = fit(method[stepwise.method], model)
    else:
        (tensors,) = stepwise.tensors.values()
        edit = replace(stepwise, tensors={"L1.resid_post": tensors}, model=None)
        edit = with_params(edit, think_start=5, think_end=8)
    ids = [torch.randint(4, 76, (n,), generator=draw).tolist() for n in (2, 12, 5, 16)]
    ids[1][:1], ids[3][:1] = [5], [5]
    prompts = [Prompt(p) for p in ("ab=", "12+34=", "xyzw", "a longer prompt, 7*8=?")]
    edit = edit.at(torch.tensor([1.0, -0.5, 2.0, 1.5]))
    together = list(continuation_logprobs(model, prompts, ids, [edit]))
    moved = 0.0
    for row, logs in enumerate(together):
        one = edit.at(float(edit.strength[row]))
        (alone,) = continuation_logprobs(model, prompts[row : row + 1], [ids[row]], [one])
        torch.testing.assert_close(logs, alone, atol=1e-4, rtol=1e-4)
        (plain,) = continuation_logprobs(model, prompts[row : row + 1], [ids[row]])
        moved = max(moved, float((plain - alone)[-2:].abs().max()))
    assert moved > 1e-3


def deep(family: str) -> Any:
    return tiny.module(family, num_hidden_layers=6)


@pytest.mark.parametrize("name", ["rebalance", "ata"])
def test_sampling_goes_on_as_it_does_without(name: str, rebalance: Intervention) -> None:
    edit = rebalance if name == "rebalance" else fit(Ata(spans=((1, 3), (3, 5))))
    drawn = written(edit, decoder=Sample(temperature=2.0), seed=1)
    assert same(drawn, written(edit, decoder=Sample(temperature=2.0), seed=1))
    assert not same(drawn, written(edit, decoder=Sample(temperature=2.0), seed=2))
    assert not same(drawn, written(edit))


def test_a_replay_of_what_was_written_gives_its_log_probabilities(stepwise: Intervention) -> None:
    texts = tiny.model().generate(ASKED, stepwise, max_new_tokens=N)
    ids = [text.ids for text in texts]
    replayed = continuation_logprobs(tiny.model(), [Prompt(p) for p in ASKED], ids, [stepwise])
    for text, logs in zip(texts, replayed, strict=True):
        assert logs.shape == (len(text.ids), tiny.N_VOCAB)
        at = logs[torch.arange(len(text.ids)), torch.tensor(text.ids)]
        torch.testing.assert_close(at, torch.tensor(text.logprobs), atol=1e-5, rtol=1e-5)


def test_a_replay_forces_tokens_nobody_would_draw(stepwise: Intervention) -> None:
    ids = [[70, 3, 9], [], [5]]
    prompts = [Prompt(p) for p in ASKED]
    replayed = list(continuation_logprobs(tiny.model(), prompts, ids, [stepwise]))
    assert [len(logs) for logs in replayed] == [3, 0, 1]
    for logs in replayed[::2]:
        torch.testing.assert_close(logs.exp().sum(-1), torch.ones(len(logs)))
    plain = list(continuation_logprobs(tiny.model(), prompts, ids, [stepwise.at(0.0)]))
    in_one = tiny.model().run(ASKED[:1], completions=ids[:1]).logits[0, -4:-1].log_softmax(-1)
    torch.testing.assert_close(plain[0], in_one, atol=1e-4, rtol=1e-4)


def test_its_divergence_can_be_measured(stepwise: Intervention) -> None:
    nats = kl_nats(tiny.model(), ASKED, [stepwise], n_tokens=6)
    assert max(float(row.max()) for row in nats) > 1e-4
    assert min(float(row.min()) for row in nats) > -1e-5


def test_without_a_cache_it_is_refused_in_words(stepwise: Intervention) -> None:
    with pytest.raises(EditError, match="needs the KV cache; expected use_cache=True"):
        written(stepwise, use_cache=False)


def test_finished_text_in_one_forward_is_refused_in_words(stepwise: Intervention) -> None:
    model = tiny.model()
    with pytest.raises(EditError, match="decides anew.*use model.generate"):
        model.run(ASKED[:1], edits=[stepwise], completions=[[5, 6]])
    with pytest.raises(EditError, match="use model.generate"):
        from workbench.model.branches import score_branches

        score_branches(model, Prompt(ASKED[0]), [4], [[[5, 6], [7, 8]]], [stepwise])
    model.run(ASKED, edits=[stepwise])  # a prompt alone is what the first step reads


def test_two_of_them_in_one_call_are_refused(stepwise: Intervention) -> None:
    for other in (replace(stepwise, name="again"), stepwise):
        with pytest.raises(EditError, match="not the only edit decided step by step"):
            written(stepwise, other)


def test_plain_edits_in_the_same_call_go_on_working(stepwise: Intervention) -> None:
    plain = fit(MeanDifference())
    both = written(plain, stepwise)
    assert not same(both, written(plain)) and not same(both, written(stepwise))
    assert written(plain, stepwise.at(0.0)) == written(plain)


def test_an_unknown_controller_is_an_error(rebalance: Intervention) -> None:
    with pytest.raises(UnknownName, match="rebalance"):
        written(replace(rebalance, params={**rebalance.params, "stepwise": "rebalence"}))


def test_strengths_per_row_are_kept_apart(rebalance: Intervention) -> None:
    mixed = written(rebalance.at(torch.tensor([0.0, 1.0, 0.0])))
    plain, steered = written(), written(rebalance)
    for row, want in enumerate((plain, steered, plain)):
        assert mixed[row][0] == want[row][0]


# --- DIRECTER -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"beta": 1.0}])
def test_directer_that_may_not_steer_is_raw_greedy(options: dict[str, float]) -> None:
    """Amplified by 1, or required to beat the best token."""
    assert same(written(fit(Directer(**options))), written())


def test_directer_with_an_empty_span_is_raw_greedy() -> None:
    assert same(written(fit(Directer(span=(90, 95)))), written())


def test_beta_zero_steers_always_and_everywhere() -> None:
    """The emitted distributions are those of scaled keys over the raw cache at each step."""
    model, edit = tiny.model(), fit(Directer(beta=0.0, alpha=3.0))
    texts = model.generate(ASKED[:1], edit, max_new_tokens=4)
    always = replace(edit, params={}, conditional=False)
    ids = list(texts[0].ids)
    raw = model.run(ASKED[:1], completions=[ids[:2]])
    assert torch.equal(raw.logits[0, -3].argmax(), torch.tensor(ids[0]))  # the first token is raw
    cache = model.backend.new_cache()
    tokens = model.tokens(ASKED[:1])
    with torch.no_grad():
        model.backend.forward(
            tokens.ids, mask=None, positions=None, cache=cache, use_cache=True, keep=1
        )
        read = []
        for i, token in enumerate(ids[:3]):
            one, before = torch.tensor([[token]]), tokens.ids[0].tolist() + ids[:i]
            start = steps._copied(cache)
            session = model.session(tokens, [always], ())
            session.advance(torch.tensor([before]), None, padded=False)
            session.advance(one, torch.tensor([[len(before)]]), padded=False)
            options = {"mask": None, "positions": None, "use_cache": True, "keep": 1}
            with session.attached():
                read.append(model.backend.forward(one, cache=start, **options).logits[0, -1])
            model.backend.forward(one, cache=cache, **options)  # the raw one advances the cache
    for logits, token, logprob in zip(read, ids[1:], texts[0].logprobs[1:], strict=True):
        assert int(logits.argmax()) == token
        assert float(logits.log_softmax(-1)[token]) == pytest.approx(logprob, abs=1e-4)


def test_the_cache_is_that_of_a_raw_run_over_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caches: list[Any] = []
    took = steps.Driver.took

    def spied(self: Any, logits: Tensor, chosen: Tensor) -> None:
        caches.append(self._state.cache)
        took(self, logits, chosen)

    monkeypatch.setattr(steps.Driver, "took", spied)
    model = tiny.model()
    (text,) = model.generate(ASKED[:1], fit(Directer(beta=0.0)), max_new_tokens=5)
    tokens = model.tokens(ASKED[:1], [text.ids[:-1]])
    raw = model.backend.new_cache()
    with torch.no_grad():
        model.backend.forward(
            tokens.ids, mask=None, positions=None, cache=raw, use_cache=True, keep=1
        )
    for ours, theirs in zip(caches[-1].layers, raw.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-5, rtol=1e-4)


class PlannedStep:
    """A model of 8 layers that says token 1 raw, and token 0 while more than `few` layers act."""

    def __init__(self, few: int, raw: list[float], steered: list[float]):
        self.few, self.raw, self.steered = few, torch.tensor([raw]), torch.tensor([steered])
        self.number, self.layers, self.sizes = 1, tuple(range(8)), []
        self.ids, self.values = [[5]], {}

    prompts, confidences, positions = [[1]], [[0.5]], torch.zeros(1, 2)

    def forward(self, factors: Any, *, commit: bool = True, told: Any = None) -> Tensor:
        assert told is None
        acting = [n for n, f in factors.items() if f.any()] if isinstance(factors, dict) else []
        if not commit:
            self.sizes.append(acting)
        steered = self.few < len(acting)
        return (self.steered if steered else self.raw).log()


def controller(**options: Any) -> Any:
    from workbench.stepwise.directer import Directer as Controller

    made = Controller({"beta": 0.5, "max_trials": 10, "ranking": "paper"} | options, 1)
    made.order = torch.tensor([[3, 1, 0, 2, 7, 6, 5, 4]]).T
    return made


def test_a_token_must_exceed_its_part_of_the_largest_probability() -> None:
    step = PlannedStep(0, raw=[0.4, 0.4, 0.2], steered=[0.9, 0.05, 0.05])
    made = controller(beta=1.0)
    assert torch.equal(made.step(step), step.raw.log())
    assert step.sizes and made.accepted == [[]]


def test_directer_halves_the_layers_until_the_token_is_plausible() -> None:
    """Token 0 has 0.1 of the raw mass, less than half of 0.5: all 8 and the top 4 are refused."""
    step = PlannedStep(3, raw=[0.1, 0.5, 0.4], steered=[0.9, 0.05, 0.05])
    made = controller()
    out = made.step(step)
    assert [len(acting) for acting in step.sizes] == [8, 4, 2]
    assert step.sizes[1] == [0, 1, 2, 3] and step.sizes[2] == [1, 3]  # in the order of sensitivity
    assert int(out.argmax()) == 1 and made.accepted == [[2]]


def test_directer_never_tries_a_single_layer() -> None:
    step = PlannedStep(0, raw=[0.1, 0.5, 0.4], steered=[0.9, 0.05, 0.05])
    made = controller()
    out = made.step(step)
    assert [len(acting) for acting in step.sizes] == [8, 4, 2]
    assert torch.equal(out, step.raw.log()) and made.accepted == [[]]


def test_directer_leaves_a_sure_model_alone() -> None:
    step = PlannedStep(3, raw=[0.2, 0.7, 0.1], steered=[0.9, 0.05, 0.05])
    controller().step(step)
    assert step.sizes == []  # the second has less than half of the first
    controller(beta=0.25).step(step)
    assert [len(acting) for acting in step.sizes] == [8]  # 0.2 is more than a quarter of 0.7


def test_directer_gives_up_after_its_trials() -> None:
    step = PlannedStep(0, raw=[0.1, 0.5, 0.4], steered=[0.9, 0.05, 0.05])
    controller(max_trials=1).step(step)
    assert [len(acting) for acting in step.sizes] == [8]


class Disturbed:
    """Two layers; steering layer 0 turns the stream of layer 1 by a lot, steering 1 nothing."""

    number, layers, ids = 1, (0, 1), [[5]]
    prompts, confidences, positions = [[1]], [[0.5]], torch.zeros(1, 2)

    def __init__(self) -> None:
        self.values = self._values(0.0)

    def _values(self, turn: float) -> dict[str, Tensor]:
        made = {}
        for layer, angle in ((0, 0.0), (1, turn)):
            made[f"L{layer}.resid_pre"] = torch.tensor([[[1.0, 0.0]]])
            stop = torch.tensor([[[math.cos(angle), math.sin(angle)]]])
            made[f"L{layer}.attn_out"] = stop - made[f"L{layer}.resid_pre"]
        return made

    def forward(self, factors: Any, *, commit: bool = True, told: Any = None) -> Tensor:
        assert told is None and not commit
        acts_0 = isinstance(factors, dict) and 0 in factors
        self.values = self._values(1.0 if acts_0 else 0.0)
        return torch.zeros(1, 3)


def test_sensitivity_ranks_who_disturbs_and_the_released_code_who_is_disturbed() -> None:
    from workbench.stepwise.directer import _around

    for ranking, first in (("paper", 0), ("released", 1)):
        step, made = Disturbed(), controller(ranking=ranking)
        order = made._ranked(step, _around(step))
        assert int(order[0, 0]) == first


class Streams:
    """Four layers with random streams: the raw ones, and those of each layer steered alone."""

    number, layers, ids = 1, (0, 1, 2, 3), [[5], [6]]
    prompts, confidences, positions = [[1], [1]], [[0.5], [0.5]], torch.zeros(2, 2)

    def __init__(self, seed: int):
        draw = torch.Generator().manual_seed(seed)
        self.pre, self.post = torch.randn(2, 5, 4, 2, 6, generator=draw)
        self._show(4)

    def _show(self, steered: int) -> None:
        pre, post = self.pre[steered], self.post[steered]
        self.values = {f"L{n}.resid_pre": pre[n][:, None] for n in range(4)}
        self.values |= {f"L{n}.attn_out": (post - pre)[n][:, None] for n in range(4)}

    def forward(self, factors: Any, *, commit: bool = True, told: Any = None) -> Tensor:
        assert not commit and told is None
        (layer,) = factors
        self._show(layer)
        return torch.zeros(2, 3)


@pytest.mark.parametrize("ranking", ["paper", "released"])
@pytest.mark.parametrize("seed", range(4))
def test_sensitivity_is_the_formula(ranking: str, seed: int) -> None:
    from workbench.stepwise.directer import _around

    def far(a: Tensor, b: Tensor) -> Tensor:
        return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))

    step = Streams(seed)
    pre, post, table = step.pre[4], step.post[4], []
    for steered in range(4):
        moved = far(pre, step.post[steered]) + far(step.pre[steered], post)
        table.append(moved - 2 * far(pre, post) if ranking == "paper" else moved)
    wanted = torch.stack(table).mean(1 if ranking == "paper" else 0)
    order = controller(ranking=ranking)._ranked(step, _around(step))
    assert torch.equal(order, wanted.argsort(0, descending=True))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_rejected_steering_leaves_a_sliding_cache_alone(family: str) -> None:
    model, long = tiny.model(family), ["a prompt much longer than the window", "bcd"]
    raw = model.generate(long, max_new_tokens=20)
    tried = model.generate(long, fit(Directer(beta=0.9999, alpha=3.0), model), max_new_tokens=20)
    assert [text.ids for text in tried] == [text.ids for text in raw]
    always = model.generate(long, fit(Directer(beta=0.0), model), max_new_tokens=20)
    assert [text.ids for text in always] != [text.ids for text in raw]


def test_directer_is_greedy() -> None:
    with pytest.raises(EditError, match="greedy decoding alone"):
        written(fit(Directer()), decoder=Sample())


@pytest.mark.parametrize(
    "options",
    [{"beta": 1.5}, {"beta": -0.1}, {"alpha": 0.0}, {"max_trials": 0}, {"alpha": float("inf")}],
)
def test_directer_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(WorkbenchError, match="out of range|not finite"):
        fit(Directer(**options))
    with pytest.raises(WorkbenchError):
        fit(Directer(span=(5, 5)))


# --- ReBalance ------------------------------------------------------------------------------------

PUBLISHED = [
    (15.4, 0.662, 0.948, -1.02, 0.00056, 0.0116, -1.91),
    (18.0, 0.666, 0.928, -1.19, 0.00049, 0.0099, -2.34),
    (22.4, 0.701, 0.918, -1.31, 0.00039, 0.0073, -2.73),
    (30.2, 0.816, 0.965, -1.03, 0.00015, 0.0036, -1.13),
]


@pytest.mark.parametrize(("k", "q25", "q75", "low1", "v25", "v75", "low2"), PUBLISHED)
def test_the_law_meets_its_anchors_at_the_published_settings(
    k: float, q25: float, q75: float, low1: float, v25: float, v75: float, low2: float
) -> None:
    found = slope(q25, q75, low1)
    assert found == pytest.approx(k, rel=5e-3)
    law = ControlLaw(q25, q75, v25, v75, low1, low2, 0.1, found)
    assert law.f1(q25) == pytest.approx(low1)
    assert law.f1(q75) == pytest.approx(0, abs=1e-12)
    assert law.f1(1.0) == pytest.approx(0.01)
    # the corners: unsure and uneven, sure and even; elsewhere the first part alone
    assert law.alpha(q25, v75) == pytest.approx(low2)
    assert law.alpha(1.0, v25) == pytest.approx(0.1)
    middle = (q25 + q75) / 2
    assert law.alpha(middle, v75) == pytest.approx(low1 / 2)
    assert law.alpha(q25 - 0.05, v25) == pytest.approx(law.f1(q25 - 0.05), abs=1e-6)
    sure = (1 + q75) / 2  # beyond the corner the second part is there once, not twice
    assert law.alpha(sure, 0.0) == pytest.approx(law.f1(sure) + 0.09, abs=1e-6)
    assert min(low1, low2) <= law.alpha(0.0, 1.0) <= law.alpha(0.99, 0.0) <= 0.1


def test_a_law_without_a_slope_is_a_straight_line() -> None:
    assert slope(0.2, 1.0, -1.0) == 0.0
    law = ControlLaw(0.2, 1.0, 0.0, 0.1, -1.0, -2.0, 0.1, 0.0)
    assert law.f1(0.2) == pytest.approx(-1) and law.f1(0.6) == pytest.approx(-0.5)


def test_there_is_one_injection_per_boundary_token_that_is_read(rebalance: Intervention) -> None:
    texts = tiny.model().generate(ASKED, rebalance, max_new_tokens=30)
    ends = set(rebalance.params["boundary"])
    read = sum(sum(i in ends for i in text.ids[:-1]) for text in texts)  # the last is never read
    (receipt,) = texts.receipts
    assert read > 3 and receipt.positions == read


def with_params(edit: Intervention, **changed: Any) -> Intervention:
    return replace(edit, params={**edit.params, **changed})


def test_thinking_ends_and_injections_with_it(rebalance: Intervention) -> None:
    plain = [list(ids) for ids, _ in written()]
    closed = with_params(rebalance, think_end=plain[0][0])
    texts = tiny.model().generate(ASKED[:1], closed, max_new_tokens=N)
    assert texts.receipts[0].positions == 0 and list(texts[0].ids) == plain[0]
    never = with_params(rebalance, think_start=95)
    assert tiny.model().generate(ASKED[:1], never, max_new_tokens=N).receipts[0].positions == 0
    (opened,) = tiny.tokenizer()("=", add_special_tokens=False)["input_ids"]
    begun = with_params(rebalance, think_start=opened)
    assert written(begun, asked=ASKED[:1]) == written(rebalance, asked=ASKED[:1])


def test_the_injection_is_the_vector_times_the_law_of_the_step(rebalance: Intervention) -> None:
    """The first boundary token: its step has the mean of its tokens' largest probabilities."""
    model, ends = tiny.model(), set(rebalance.params["boundary"])
    (text,) = model.generate(ASKED[:1], rebalance, max_new_tokens=N)
    place = next(i for i, token in enumerate(text.ids) if token in ends)
    ids = list(text.ids[: place + 1])
    raw = model.run(ASKED[:1], completions=[ids]).logits[0, -len(ids) - 1 : -1].softmax(-1)
    c = float(raw.amax(-1).mean())
    alpha = ControlLaw(**rebalance.params["law"]).alpha(c, 0.0)
    (site,) = rebalance.sites
    shift = alpha * rebalance.tensors[site]["shift"]
    at = len(model.tokenizer(ASKED[0])["input_ids"]) + place
    once = Intervention("custom", "affine", {f"{site}[pos={at}]": {"shift": shift}})
    after = model.run(ASKED[:1], edits=[once], completions=[ids]).logits[0, -1]
    assert float(after.log_softmax(-1)[text.ids[place + 1]]) == pytest.approx(
        text.logprobs[place + 1], abs=1e-4
    )


class Listening(PlannedStep):
    """Keeps the factors it is asked for."""

    def forward(self, factors: Any, *, commit: bool = True, told: Any = None) -> Tensor:
        assert commit and told is None
        self.sizes += factors.tolist()
        return self.raw.log()


def test_each_step_is_judged_by_its_own_tokens_and_the_step_before() -> None:
    from workbench.stepwise.rebalance import Rebalance as Controller

    law = ControlLaw(0.6, 0.9, 0.001, 0.01, -1.0, -2.0, 0.1, slope(0.6, 0.9, -1.0))
    params = {"law": asdict(law), "boundary": [9], "think_start": None, "think_end": None}
    made, step = Controller(params, 1), Listening(0, [0.5, 0.5], [0.5, 0.5])
    ids, sure = [1, 9, 2, 3, 9], [0.6, 0.8, 0.9, 0.9, 0.6]
    for n in range(6):
        step.ids, step.confidences = [ids[:n]], [sure[:n]]
        made.step(step)
    expected = [0, 0, law.alpha(0.7, 0.0), 0, 0, law.alpha(0.8, 0.1**2 / 4)]
    assert step.sizes == pytest.approx(expected, rel=1e-5)


def test_the_state_of_a_row_goes_with_it(rebalance: Intervention) -> None:
    from workbench.stepwise.rebalance import Rebalance as Controller

    made = Controller(rebalance.params, 3)
    made.thinking, made.begun, made.before = [True, False, True], [1, 2, 3], [0.1, None, 0.3]
    made.keep([1, 2])
    assert (made.thinking, made.begun, made.before) == ([False, True], [2, 3], [None, 0.3])


def planted_fit(**options: Any) -> Intervention:
    """Traces of two-token steps; layer 1 holds the confidence, layer 0 noise."""
    draw = torch.Generator().manual_seed(0)
    sure = torch.rand(12, 6, generator=draw) * 0.6 + 0.35
    texts = [
        Generation(
            Prompt(f"p{i}"),
            "",
            0,
            (7, 9) * 6,
            "",
            (*sum(((math.log(c), math.log(c)) for c in row), ()),),
            "length",
        )
        for i, row in enumerate(sure.tolist())
    ]
    direction = torch.nn.functional.normalize(torch.randn(16, generator=draw), dim=0)

    def run(prompts: Any, record: Any, completions: Any) -> dict[str, Tensor]:
        rows = [int(p.text[1:]) for p in prompts]
        stream = torch.randn(len(rows), 3 + 12, 16, generator=draw)
        held = 0.05 * stream.clone()
        held[:, 3::2] += sure[rows][..., None] * direction  # at the first token of a step alone
        return {"L0.resid_post": stream, "L1.resid_post": held}

    class Two:
        n_layers = 2

    contrast = Contrast({}, {}, True, None, (tuple(t.prompt for t in texts), ()))
    method = Rebalance(**({"boundary": (9,), "sets": "released"} | options))
    made = method.fit(
        contrast, dims=Two, run=run, generate=lambda *_, **__: texts, encode=lambda _: [1]
    )
    (site,) = made.sites
    return replace(
        made, params={**made.params, "direction": direction.tolist(), "c": sure.flatten().tolist()}
    )


def test_the_layer_that_holds_the_confidence_is_found_with_its_vector() -> None:
    edit = planted_fit()
    assert edit.sites == ("L1.resid_post",)
    shift, truth = edit.tensors["L1.resid_post"]["shift"], torch.tensor(edit.params["direction"])
    # unsure minus sure points against the confidence
    assert float(torch.nn.functional.cosine_similarity(shift, truth, dim=0)) < -0.9
    r2 = edit.params["fit_r2"]
    assert r2["1"] > 0.5 > r2["0"]
    quarter = torch.tensor(edit.params["c"]).double().quantile(torch.tensor([0.25, 0.75]).double())
    law = edit.params["law"]
    assert [law["q25_c"], law["q75_c"]] == pytest.approx(quarter.tolist(), rel=1e-5)


def test_the_paper_asks_for_evenness_too_and_the_code_for_confidence_alone() -> None:
    from workbench.steering.rebalance import _Part

    law = ControlLaw(0.4, 0.8, 0.1, 0.3, -1.0, -2.0, 0.1, 1.0)
    found = [(0.3, 0.4), (0.3, 0.2), (0.9, 0.05), (0.9, 0.2), (0.6, 0.2)]
    parts = [_Part(0, 0, c, v, False) for c, v in found]
    for sets, wanted in (("paper", [1, 0, -1, 0, 0]), ("released", [0.5, 0.5, -0.5, -0.5, 0])):
        assert Rebalance(sets=sets)._vector(torch.eye(5), parts, law).tolist() == wanted


def test_steps_lie_between_the_marks_of_thinking() -> None:
    from workbench.steering.rebalance import _parts

    ids = (9, 5, 1, 9, 2, 9, 6, 3, 9)
    trace = Generation(Prompt("q"), "", 0, ids, "", (math.log(0.5),) * 9, "length")
    parts = _parts(0, trace, [9], lambda _: [7], think_start=5, think_end=6)
    assert [(part.start, part.first) for part in parts] == [(2, True), (4, False)]
    opened = _parts(0, trace, [9], lambda _: [5], think_start=5, think_end=6)
    assert [part.start for part in opened] == [0, 2, 4]


def test_a_layer_can_be_named_and_the_vector_normed() -> None:
    edit = planted_fit(layer=0, unit=True)
    assert edit.sites == ("L0.resid_post",)
    assert float(edit.tensors["L0.resid_post"]["shift"].norm()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 9}, "beyond the model"),
        ({"low1": 0.5}, "do not make a law"),
        ({"boundary": ()}, "not a list of tokens"),
        ({"boundary": "\n\n"}, "not a list of tokens"),
        ({"sets": "released code"}, "unknown sets"),
        ({"boundary": ("no",)}, "not one token"),
        ({"boundary": (95,)}, "too few finished steps.*got 0"),
        ({"think_end": "xy"}, "think_end.*not one token"),
    ],
)
def test_rebalance_refuses_what_it_cannot_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        fit(past_annotations(Rebalance, {"boundary": BOUNDARY} | options))


def past_annotations(kind: Any, options: dict[str, Any]) -> Any:
    """A method whose options nobody checked, as from a file."""
    made = kind()
    for name, value in options.items():
        object.__setattr__(made, name, value)
    return made


def test_the_reasoner_is_steered_at_its_line_ends() -> None:
    model = wb.load("reasoner")
    asked = [f"add {a} {7 * a % 900 + 13}?\n" for a in range(100, 116)]
    sides = wb.prompts.classes(positive=asked[:8], negative=asked[8:])
    edit = steering.fit(Rebalance(think_end="#", layer=3), model, sides, progress=False)
    texts = model.generate(asked[:4], edit, max_new_tokens=48)
    lines = sum(text.text.partition("#")[0].count("\n") for text in texts)
    assert texts.receipts[0].positions == lines > 0


# --- ATA ------------------------------------------------------------------------------------------

SPANS = ((1, 4), (4, 7))


def scores(edit: Intervention, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores of layer 0 before and after, `[query, key]` of head 0."""
    model, site = tiny.model(), "L0.attn_scores"
    runs = [model.run(["abcdefg"], [site], e)[site][0, 0] for e in ([], [edit.at(strength)])]
    return runs[0], runs[1]


def test_weights_between_exclusive_spans_are_a_hundredth() -> None:
    before, after = scores(fit(Ata(spans=SPANS)))
    ratio = (after - before).exp()
    lowered = torch.zeros(8, 8, dtype=torch.bool)
    lowered[4:7, 1:4] = True
    seen = torch.ones(8, 8).tril().bool()
    torch.testing.assert_close(ratio[lowered], torch.full_like(ratio[lowered], 0.01))
    torch.testing.assert_close(ratio[seen & ~lowered], torch.ones(int((seen & ~lowered).sum())))


def test_ten_thousand_nats_make_dormant_spans_unreadable() -> None:
    """The prompt holds nothing but its two spans, and the second is being worked on."""
    edit = fit(Ata(spans=((0, 4), (4, 7)), structure="branch", alpha=1e4))
    model = tiny.model()

    def last(text: str, edits: list[Intervention]) -> Tensor:
        return model.run([text], edits=edits, logits="last").logits[0, 0]

    assert torch.equal(last("abcxyz", [edit]), last("fedxyz", [edit]))
    assert not torch.allclose(last("abcxyz", []), last("fedxyz", []), atol=1e-4)


def test_a_generated_token_sees_nothing_of_what_excludes_the_active_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workbench.stepwise import ata

    seen: list[Tensor] = []
    add = ata.Ata._add

    def spied(self: Any, patterns: Any, positions: Tensor) -> None:
        inside = (positions >= 4) & (positions < 7)
        seen.append(torch.stack([(p[:, :, -1] * inside[:, None]).sum(-1) for p in patterns]))
        add(self, patterns, positions)

    monkeypatch.setattr(ata.Ata, "_add", spied)
    monkeypatch.setattr(ata, "advanced", lambda *_: 0)
    edit = fit(Ata(spans=SPANS, alpha=1e4))
    tiny.model().generate(["abcdefgh", "abcdefghijkl"], edit, max_new_tokens=4)
    assert float(seen[0].min()) > 0  # the prompt's last token, in no span, while none is active
    assert len(seen) > 2 and all(not later.any() for later in seen[1:])


def rule(active: int, positions: list[int], keys: int) -> Tensor:
    at, all_at = torch.tensor([positions]), torch.arange(keys)[None]
    around = Around(at, at, all_at, torch.tensor([[7]]), {"active": torch.tensor([active])})
    h = torch.zeros(1, 2, len(positions), keys)
    params = {"spans": [[1, 3], [3, 5], [5, 7]], "exclusive": [[0, 1], [0, 2]]}
    return ExclusiveSpans.change(h, {"bias": torch.tensor([-2.0, 0.0])}, params, around)


def test_later_tokens_are_kept_from_what_excludes_the_active_span() -> None:
    shut = rule(0, [8], 9)
    assert shut[0, 0, 0].tolist() == [0, 0, 0, -2, -2, -2, -2, 0, 0]
    assert not shut[0, 1].any()  # a head left alone
    assert rule(1, [8], 9)[0, 0, 0].tolist() == [0, -2, -2, 0, 0, 0, 0, 0, 0]
    assert not rule(-1, [8], 9).any()
    # in the prompt the token's own span decides, whatever is active
    assert rule(2, [5], 6)[0, 0, 0].tolist() == [0, -2, -2, 0, 0, 0]


@pytest.mark.parametrize("structure", ["chain", "parallel"])
def test_a_sequence_never_moves_backwards_nor_jumps(structure: str) -> None:
    sure = [[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]]
    assert advanced(-1, sure[0], structure, 0.5) == 0
    assert advanced(-1, sure[1], structure, 0.5) == -1
    assert advanced(0, sure[1], structure, 0.5) == 1
    assert advanced(1, sure[0], structure, 0.5) == 1
    assert advanced(0, sure[2], structure, 0.5) == 0
    assert advanced(0, [0.3, 0.4, 0.3], structure, 0.5) == 0  # too even


def test_a_branch_locks() -> None:
    assert advanced(-1, [0.01, 0.99], "branch", 0.5) == 1
    assert advanced(1, [0.99, 0.01], "branch", 0.5) == 1
    assert advanced(-1, [0.5, 0.5], "branch", 0.5) == -1
    assert advanced(-1, [0.0, 0.0], "branch", 0.5) == -1


def test_the_score_is_recency_weighted_mass_per_position() -> None:
    from workbench.stepwise.ata import Ata as Controller

    params = {"spans": [[0, 2], [2, 3]], "structure": "branch", "gamma": 0.5}
    made = Controller(params, 1)
    prompt = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]).reshape(1, 1, 1, 3, 3)
    made._add([prompt[0]], torch.tensor([[0, 1, 2]]))
    one = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 1, 1, 4)
    made._add([one, one[..., 1:]], torch.tensor([[0, 1, 2, 3]]))  # the second has a sliding cache
    found = made.scores(torch.tensor([[0, 1, 2, 3]]))
    first = ((1 + 0.5 + 0.2 + 0.1 / 2) / 3 + (0.5 + 0.3 + 0.2) / 2) / 2
    assert found[0].tolist() == pytest.approx([first, 0.5 + 0.3])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_scores_know_neither_padding_nor_sliding_caches(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.stepwise.ata import Ata as Controller

    found: list[list[float]] = []
    scores = Controller.scores

    def spied(self: Any, positions: Tensor) -> Tensor:
        made = scores(self, positions)
        found.append(made[0].tolist())
        return made

    monkeypatch.setattr(Controller, "scores", spied)
    model, long = tiny.model(family), "abcdefghijklmnopqrstuvwxyz"  # longer than the window of 16
    edit = fit(Ata(spans=SPANS), model)
    model.generate([long[:9]], edit, max_new_tokens=1)
    model.generate([long[:9], long], edit, max_new_tokens=1)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert len(model.generate([long], edit, max_new_tokens=5)[0].ids) == 5


def test_structures_say_what_excludes_what() -> None:
    three = ((1, 3), (3, 5), (5, 7))
    excluded = {
        s: fit(Ata(spans=three, structure=s)).params["exclusive"] for s in ("chain", "branch")
    }
    assert excluded["chain"] == [[0, 2]]
    assert excluded["branch"] == [[0, 1], [0, 2], [1, 2]]
    assert fit(Ata(spans=three, exclusive=((2, 1),))).params["exclusive"] == [[1, 2]]


def test_only_named_heads_are_edited() -> None:
    edit = fit(Ata(spans=SPANS, heads=((1, 2),), alpha=3.0))
    assert edit.sites == ("L1.attn_scores",)
    assert edit.tensors["L1.attn_scores"]["bias"].tolist() == [0, 0, -3, 0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spans": ((1, 3),)},
        {"spans": ((1, 3), (2, 5))},
        {"spans": ((1, 3), (3, 3))},
        {"spans": ((4, 6), (1, 3))},
        {"spans": SPANS, "structure": "chain"},
        {"spans": SPANS, "exclusive": ((0, 5),)},
        {"spans": SPANS, "gamma": 1.5},
        {"spans": SPANS, "heads": ((9, 0),)},
        {"spans": SPANS, "heads": ()},
        {"spans": SPANS, "alpha": float("nan")},
    ],
)
def test_ata_refuses_spans_and_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(WorkbenchError, match="Ata"):
        fit(Ata(**options))


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model().hf.modules())
