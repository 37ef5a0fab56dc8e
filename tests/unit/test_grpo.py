"""GRPO: its advantages, its gradient beside REINFORCE's, and its hold on the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import WorkbenchError
from workbench.rl import Grpo, Reinforce, Trainer
from workbench.rl.grpo import advantages, divergence
from workbench.rl.reinforce import completion_lines, instructive, trainable_copy

PROMPTS = [wb.Prompt(text=t) for t in ("abc", "hello there", "9+7=", "some more")]
SMALL = {"prompts_per_step": 2, "samples": 6, "learning_rate": 3e-3, "max_new_tokens": 4}


def likes_a(_prompt: wb.Prompt, text: str) -> float:
    return float("a" in text or "e" in text)


def all_of(model: wb.Model) -> list[torch.Tensor]:
    return [p for p in model.hf.parameters() if p.requires_grad]


def weights(model: wb.Model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.hf.parameters()])


def far(model: wb.Model, **options) -> float:
    """How far twelve steps lead from the start, in nats a completion, on texts of the start."""
    trained = Grpo(**SMALL, **options).train(model, PROMPTS, 12, check=likes_a).model
    texts = model.generate(PROMPTS, max_new_tokens=4)
    return divergence(
        completion_lines(trained, texts, []), completion_lines(model, texts, [])
    ).item()


def test_advantages_have_mean_0_and_spread_1_in_every_group() -> None:
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [5.0, 3.0, 1.0, 3.0]]))
    assert torch.allclose(found.mean(1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(found.std(1, correction=0), torch.ones(2))
    assert found[0].tolist() == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-8])
def test_equal_rewards_give_no_advantage(value: float) -> None:
    """Also where their mean rounds to another number than they are."""
    assert not advantages(torch.full((2, 7), value)).any()


def test_without_scaling_it_is_reinforce_bit_for_bit() -> None:
    model = tiny.model()
    plain = Reinforce(**SMALL).train(model, PROMPTS, 4, seed=5, check=likes_a)
    same = Grpo(**SMALL, scale=False).train(model, PROMPTS, 4, seed=5, check=likes_a)
    assert torch.equal(weights(plain.model), weights(same.model)) and plain.curve == same.curve
    scaled = Grpo(**SMALL).train(model, PROMPTS, 4, seed=5, check=likes_a)
    assert not torch.equal(weights(plain.model), weights(scaled.model))


def test_the_first_loss_is_the_formula() -> None:
    """Of completions drawn here again by the same seed."""
    model = tiny.model()
    trainer = Grpo(**SMALL)
    texts = model.generate(
        [p for p in PROMPTS[:2] for _ in range(24)],
        decoder=wb.decoding.Sample(),
        seed=1,
        max_new_tokens=8,
    )
    rewards = torch.tensor([likes_a(t.prompt, t.text) for t in texts]).reshape(2, 24)
    found = trainer.loss(model, model, texts, rewards, [])
    nats = np.array([sum(t.logprobs) for t in texts]).reshape(2, 24)
    spread = rewards.numpy().std(1, keepdims=True)
    assert (spread > 0).all()
    a = (rewards.numpy() - rewards.numpy().mean(1, keepdims=True)) / spread
    assert found.item() == pytest.approx(-(a * nats).mean(), abs=1e-4)


def test_training_raises_the_reward_of_a_copy_only() -> None:
    model = tiny.model()
    before = weights(model).clone()
    assert isinstance(Grpo(), Trainer)
    trained = Grpo(**SMALL).train(model, PROMPTS, 30, seed=1, check=likes_a)
    assert torch.equal(weights(model), before)
    rewards = [np.mean(s.rewards) for s in trained.curve]
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8]) + 0.2


def test_the_divergence_is_0_at_the_start_and_torchs_elsewhere() -> None:
    model = tiny.model()
    texts = model.generate(PROMPTS, max_new_tokens=3)
    lines = completion_lines(model, texts, [])
    assert divergence(lines, lines).item() == 0
    other = [line.roll(1, -1) for line in lines]
    kl = torch.nn.functional.kl_div
    want = [
        kl(o, n, log_target=True, reduction="sum").item() for n, o in zip(lines, other, strict=True)
    ]
    assert divergence(lines, other).item() == pytest.approx(np.mean(want), rel=1e-5)


def test_a_weight_on_the_divergence_keeps_it_near_the_start() -> None:
    model = tiny.model()
    assert 0 < far(model, kl=30.0) < far(model, kl=0) / 2


def test_a_weight_that_is_none_is_refused() -> None:
    for kl in (-1.0, float("nan"), float("inf")):
        with pytest.raises(WorkbenchError, match="kl"):
            Grpo(kl=kl)


def test_prompts_of_equal_rewards_are_not_read_and_change_nothing() -> None:
    """The gradient is that of all prompts; only what teaches is read."""
    model = tiny.model()
    policy = trainable_copy(model)
    texts = model.generate(
        [p for p in PROMPTS for _ in range(3)], decoder=wb.decoding.Sample(), max_new_tokens=5
    )
    rewards = torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    some, given, share = instructive(texts, rewards)
    assert [t.ids for t in some] == [t.ids for t in [*texts[3:6], *texts[9:]]]
    assert given.tolist() == rewards[[1, 3]].tolist() and share == 0.5
    found = torch.autograd.grad(Grpo().loss(policy, model, texts, rewards, []), all_of(policy))
    nats = torch.stack(
        [
            line.gather(1, torch.tensor(t.ids)[:, None]).sum()
            for line, t in zip(completion_lines(policy, texts, [], grad=True), texts, strict=True)
        ]
    )
    whole = -(advantages(rewards) * nats.reshape(4, 3)).mean()
    for one, other in zip(found, torch.autograd.grad(whole, all_of(policy)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_all_prompts_are_read_under_edits_and_one_where_none_teaches() -> None:
    texts = tiny.model().generate([p for p in PROMPTS[:2] for _ in range(2)], max_new_tokens=2)
    equal = torch.ones(2, 2)
    edit = wb.Intervention("custom", "affine", {"L1.resid_post": {"shift": torch.ones(32)}}, 1.0)
    assert len(instructive(texts, equal, [edit])[0]) == 4
    some, given, share = instructive(texts, equal)
    assert (len(some), given.tolist(), share) == (2, [[1.0, 1.0]], 0.5)
    trained = Grpo(**SMALL).train(tiny.model(), PROMPTS, 2, check=lambda *_: 1.0)
    assert [s.grad_norm for s in trained.curve] == [0.0, 0.0]
    assert torch.equal(weights(trained.model), weights(tiny.model()))


def test_the_rate_rises_over_the_warmup() -> None:
    """AdamW's first step moves a weight by the rate, or not at all."""

    def first(warmup: int) -> float:
        trainer = Grpo(**SMALL, warmup=warmup)
        trained = trainer.train(tiny.model(), PROMPTS, 1, check=lambda _, text: sum(map(ord, text)))
        return (weights(trained.model) - weights(tiny.model())).abs().max().item()

    assert first(0) == pytest.approx(3e-3, rel=0.01)
    assert first(4) == pytest.approx(3e-3 / 5, rel=0.01)
    with pytest.raises(WorkbenchError, match="warmup"):
        Grpo(**SMALL, warmup=-1).train(tiny.model(), PROMPTS, 1, check=likes_a)
