"""Supervised fine-tuning: the loss it follows, what it changes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from workbench.errors import PromptError, WorkbenchError
from workbench.rl import Sft, Trainer, sft
from workbench.rl.supervised import _shuffled, completion_ids, completion_loss

PROMPTS = [wb.Prompt(text=t) for t in ("abc", "hello there", "9+7=", "some more")]
WANTED = ("xyz", "hi", "16", "of it all")
QUICK = {"batch_size": 4, "learning_rate": 5e-3, "progress": False}


def shift(strength: float = 3.0) -> wb.Intervention:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return wb.Intervention("custom", "affine", {"L1.resid_post": {"shift": vector}}, strength)


def pairs(model: wb.Model) -> list:
    return [(p, completion_ids(model, text)) for p, text in zip(PROMPTS, WANTED, strict=True)]


def weights(model: wb.Model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.hf.parameters()])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_completions_tokens_alone(family: str) -> None:
    """Row by row, without padding, from the module's own logits."""
    model = tiny.model(family)
    nats, right = [], []
    for prompt, ids in pairs(model):
        read = model.tokens(prompt).ids[0].tolist()
        logits = model.hf(torch.tensor([[*read, *ids]])).logits[0, len(read) - 1 : -1]
        nats += (-logits.log_softmax(-1)[range(len(ids)), list(ids)]).tolist()
        right.append(float(logits.argmax(-1).tolist() == list(ids)))
    loss, found = completion_loss(model, pairs(model))
    assert loss.item() == pytest.approx(np.mean(nats), rel=1e-5)
    assert found.tolist() == right


def test_a_completion_ends_with_the_end_of_sequence() -> None:
    ids = completion_ids(tiny.model(), "ab")
    assert len(ids) == 3 and ids[-1] == tiny.tokenizer().eos_token_id


def test_it_learns_the_completions_and_leaves_the_model_alone() -> None:
    model, steps = tiny.model(), []
    before = weights(model).clone()
    trained = sft(model, PROMPTS, WANTED, steps=60, on_step=steps.append, **QUICK)
    assert torch.equal(weights(model), before)
    assert not any(p.requires_grad for p in trained.model.hf.parameters())
    assert tuple(steps) == trained.curve and [s.i for s in steps] == list(range(60))
    assert steps[0].loss > 1 and steps[-1].loss < 0.3
    assert steps[0].rewards == (0.0,) * 4 and steps[-1].rewards == (1.0,) * 4
    texts = trained.model.generate(PROMPTS, max_new_tokens=12)
    assert [t.text for t in texts] == list(WANTED) and {t.stop for t in texts} == {"eos"}


def test_the_gold_chain_is_the_default_completion() -> None:
    model = wb.load("reasoner")
    prompts = wb.tasks.make("add", 8, seed=3)
    gold = [wb.tasks.gold(p).completion for p in prompts]
    options = {"steps": 2, "batch_size": 4, "progress": False}
    by_default = sft(model, prompts, **options)
    assert torch.equal(
        weights(by_default.model), weights(sft(model, prompts, gold, **options).model)
    )


def test_a_seed_says_everything() -> None:
    def trained(**options) -> torch.Tensor:
        few = {**QUICK, "batch_size": 2, "steps": 2, **options}
        return weights(sft(tiny.model(), PROMPTS, WANTED, **few).model)

    once = trained(seed=0)
    assert torch.equal(once, trained(seed=0))
    for other in ({"seed": 1}, {"edits": [shift()]}, {"schedule": "constant", "steps": 3}):
        assert not torch.equal(once, trained(**other))


def test_shuffled_completions_are_those_of_other_prompts() -> None:
    trainer = Sft(batch_size=4, learning_rate=3e-3, completions=WANTED)
    assert isinstance(trainer, Trainer)
    model = tiny.model()
    shuffled = trainer.train(model, PROMPTS, 60, shuffle_rewards=True).model
    texts = [t.text for t in shuffled.generate(PROMPTS, max_new_tokens=12)]
    assert sorted(texts) == sorted(WANTED)
    assert all(a != b for a, b in zip(texts, WANTED, strict=True))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shuffling_gives_nobody_their_own(n: int) -> None:
    some: list = [(wb.Prompt(text=f"p{i}"), (i,)) for i in range(n)]
    for seed in range(20):
        given = _shuffled(some, seed)
        assert [p for p, _ in given] == [p for p, _ in some]
        assert sorted(ids for _, ids in given) == [(i,) for i in range(n)]
        assert n == 1 or all(a[1] != b[1] for a, b in zip(given, some, strict=True))


def test_a_mixture_of_experts_learns_too() -> None:
    model = tiny.model("mixtral")
    trained = sft(model, PROMPTS, WANTED, steps=25, **QUICK)
    assert trained.curve[-1].loss < 0.7 * trained.curve[0].loss


def test_the_rate_rises_and_falls() -> None:
    rates = [Sft(learning_rate=1.0, warmup=4).rate_at(i, 50) for i in range(50)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[4] > 0.95
    assert rates[-1] == pytest.approx(0.1)
    flat = Sft(learning_rate=1.0, warmup=0, schedule="constant")
    assert {flat.rate_at(i, 50) for i in range(50)} == {1.0}


def test_training_ends_where_the_callback_raises() -> None:
    seen = []

    def stop(step: object) -> None:
        seen.append(step)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(tiny.model(), PROMPTS, WANTED, steps=50, on_step=stop, **QUICK)
    assert len(seen) == 3
    assert not any(p.requires_grad for p in tiny.model().hf.parameters())


def test_a_loss_that_is_no_number_ends_the_training_in_words() -> None:
    with pytest.raises(WorkbenchError, match="diverged.*lower the learning rate"):
        sft(tiny.model(), PROMPTS, WANTED, steps=50, **{**QUICK, "learning_rate": 1e30})


def test_what_cannot_be_learned_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(WorkbenchError, match="nothing to learn.*'abc'"):
        sft(model, PROMPTS, steps=1, **QUICK)
    with pytest.raises(WorkbenchError, match="completions for other prompts.*4.*2"):
        sft(model, PROMPTS, WANTED[:2], steps=1, **QUICK)
    with pytest.raises(WorkbenchError, match="no steps"):
        sft(model, PROMPTS, WANTED, steps=0, **QUICK)
    with pytest.raises(WorkbenchError, match="empty batches"):
        Sft(batch_size=0, completions=WANTED).train(model, PROMPTS, 1)
    with pytest.raises(WorkbenchError, match="warmup of no steps"):
        Sft(warmup=-1, completions=WANTED).train(model, PROMPTS, 1)
    with pytest.raises(WorkbenchError, match="cosine"):
        sft(model, PROMPTS, WANTED, steps=1, **QUICK, schedule="cosin")
    with pytest.raises(PromptError, match="outside the vocabulary"):
        sft(model, PROMPTS, ("xyz", "hi", "ß", ""), steps=1, **QUICK)
    with pytest.raises(PromptError, match="empty"):
        sft(model, PROMPTS, ("xyz", "hi", "16", ""), steps=1, **QUICK)
    half = replace(model, hf=tiny.module("llama").half())
    with pytest.raises(WorkbenchError, match="Sft.train.*rounding"):
        sft(half, PROMPTS, WANTED, steps=1, **QUICK)
