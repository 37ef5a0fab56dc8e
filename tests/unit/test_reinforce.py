"""REINFORCE: the gradient it follows, what it trains, and what its controls are."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import WorkbenchError
from workbench.rl import Reinforce, TrainArm
from workbench.rl.reinforce import completion_logprob, policy_loss, trainable_copy
from workbench.seeds import derive

PROMPTS = [wb.Prompt(text=t) for t in ("abc", "hello there", "9+7=", "some more")]
SMALL = Reinforce(prompts_per_step=2, samples=6, learning_rate=3e-3, max_new_tokens=4)


def likes_a(_prompt: wb.Prompt, text: str) -> float:
    return float("a" in text or "e" in text)


def shift(strength: float = 3.0) -> wb.Intervention:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return wb.Intervention("custom", "affine", {"L1.resid_post": {"shift": vector}}, strength)


def test_the_loss_has_the_gradient_of_the_expected_reward() -> None:
    """Every outcome drawn as often as its probability says: the estimate is then the expectation."""
    counts = torch.tensor([1, 2, 3, 4])
    logits = (counts / 10).log().requires_grad_()
    reward = torch.tensor([1.0, 0.0, 0.5, 0.0])
    drawn = torch.repeat_interleave(torch.arange(4), counts)
    policy_loss(logits.log_softmax(0)[drawn][None], reward[drawn][None]).backward()
    exact = logits.detach().clone().requires_grad_()
    (exact.softmax(0) * reward).sum().backward()
    assert torch.allclose(-logits.grad, exact.grad, atol=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    logprob = torch.randn(2, 3, requires_grad=True)
    policy_loss(logprob, torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])).backward()
    assert not logprob.grad[0].any()
    assert logprob.grad[1].tolist() == pytest.approx([1 / 18, -1 / 9, 1 / 18])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logprobs_with_an_edit_are_those_that_generation_saw(family: str) -> None:
    model = tiny.model(family)
    texts = model.generate(PROMPTS, edits=[shift()], max_new_tokens=5, decoder=wb.decoding.Sample())
    found = completion_logprob(model, texts, [shift()]).detach()
    assert found.tolist() == pytest.approx([sum(t.logprobs) for t in texts], abs=1e-3)
    without = completion_logprob(model, texts, []).detach()
    assert not torch.allclose(found, without, atol=1e-2)


def test_training_raises_the_reward_of_a_copy_only() -> None:
    model = tiny.model("llama")
    before = {k: v.clone() for k, v in model.hf.state_dict().items()}
    steps = []
    trained = SMALL.train(model, PROMPTS, 30, seed=1, check=likes_a, on_step=steps.append)
    assert all(torch.equal(v, before[k]) for k, v in model.hf.state_dict().items())
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert not any(p.requires_grad for p in trained.model.hf.parameters())
    assert [s.i for s in steps] == list(range(30)) and tuple(steps) == trained.curve
    rewards = [np.mean(s.rewards) for s in steps]
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8]) + 0.2
    texts = trained.model.generate(PROMPTS, max_new_tokens=4)
    assert len(texts) == 4


def test_a_seed_says_everything() -> None:
    def weights(**options) -> torch.Tensor:
        trained = SMALL.train(tiny.model("llama"), PROMPTS, 2, check=likes_a, **options)
        return torch.cat([p.flatten() for p in trained.model.hf.parameters()])

    once = weights(seed=0)
    assert torch.equal(once, weights(seed=0))
    for other in (
        {"seed": 1},
        {"seed": 0, "edits": [shift()]},
        {"seed": 0, "shuffle_rewards": True},
    ):
        assert not torch.equal(once, weights(**other))


def test_shuffled_rewards_keep_the_curve_honest() -> None:
    """The curve shows the true rewards: the first step's are those of the plain training."""
    model = tiny.model("llama")
    many = replace(SMALL, prompts_per_step=4, samples=16, max_new_tokens=8)
    plain = many.train(model, PROMPTS, 1, check=likes_a).curve[0]
    shuffled = many.train(model, PROMPTS, 1, check=likes_a, shuffle_rewards=True).curve[0]
    assert 0 < np.mean(plain.rewards) < 1
    assert plain.rewards == shuffled.rewards
    assert plain.loss != shuffled.loss


def test_the_rollouts_of_training_have_the_edits_in_them() -> None:
    model, asked = tiny.model("llama"), []

    def noted(prompt: wb.Prompt, text: str) -> float:
        asked.append((prompt, text))
        return float(len(asked) % 2)

    SMALL.train(model, PROMPTS, 1, [shift()], seed=3, check=noted)
    prompts = [prompt for prompt, _ in asked]
    assert len(asked) == 12 and len(set(map(id, prompts))) == 2
    options = {"decoder": wb.decoding.Sample(), "max_new_tokens": 4}
    seed = derive(3, "rollout", 0)
    edited = model.generate(prompts, edits=[shift()], seed=seed, **options)
    assert [text for _, text in asked] == [g.text for g in edited]
    assert [text for _, text in asked] != [
        g.text for g in model.generate(prompts, seed=seed, **options)
    ]


def test_a_copy_shares_no_weight() -> None:
    model = tiny.model("gpt2")
    own = trainable_copy(model)
    mine = {p.data_ptr() for p in model.hf.parameters()}
    assert not mine & {p.data_ptr() for p in own.hf.parameters()}
    assert torch.equal(own.run(["abc"]).logits, model.run(["abc"]).logits)


def test_what_cannot_be_trained_is_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(WorkbenchError, match="no reward"):
        SMALL.train(model, PROMPTS, 1)
    with pytest.raises(WorkbenchError, match="baseline"):
        replace(SMALL, samples=1).train(model, PROMPTS, 1, check=likes_a)
    backend = copy(model.backend)
    backend.name = "nnsight"
    other = replace(model, backend=backend)
    with pytest.raises(WorkbenchError, match="nnsight"):
        SMALL.train(other, PROMPTS, 1, check=likes_a)
    with pytest.raises(WorkbenchError, match="no steps"):
        TrainArm("rl", 0)


def test_an_arm_to_train_names_its_controls() -> None:
    runs = TrainArm("rl", 3, seed=4).runs()
    assert list(runs) == ["rl", "rl (seed twin)", "rl (shuffled rewards)"]
    assert runs["rl (seed twin)"] == {"seed": 5}
    assert runs["rl (shuffled rewards)"] == {"seed": 4, "shuffle_rewards": True}
