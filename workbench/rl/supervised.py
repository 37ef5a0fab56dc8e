"""Supervised fine-tuning: raise the probability of given completions, and of nothing else.

    loss = - 1/T sum_i sum_t log p(y_it | x_i, y_i,<t)

over the T completion tokens of a batch, the end-of-sequence token among them; tokens of the prompts
are read and not learned.

Shapes: a batch holds `batch_size` prompts with one completion each. Units: nats per token.
Source: Ouyang et al. (2022), Training language models to follow instructions with human feedback,
    https://arxiv.org/abs/2203.02155, section 3.5, the first of its three stages.
Differs from the paper: every prompt's completion is given once per epoch, the batch's tokens weigh
    the same whichever completion they are of, and AdamW has no weight decay.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench import seeds, tasks
from workbench.errors import PromptError, WorkbenchError, unknown
from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.rl.base import Check, OnStep, Step, TrainedArm
from workbench.rl.reinforce import check_trainable, descend, epochs, trainable_copy
from workbench.shapes import Float
from workbench.tensors import Intervention

Pair = tuple[Prompt, tuple[int, ...]]
"""A prompt and the token ids of its completion."""


@dataclass(frozen=True)
class Sft:
    """Fine-tuning on completions; a `Trainer`.

    Attributes:
        batch_size: prompts of a step.
        learning_rate: AdamW's, at its highest; weight decay is 0.
        schedule: "cosine" falls to a tenth at the last step, "constant" stays.
        warmup: steps over which the rate rises to its highest.
        max_grad_norm: a longer gradient is cut to this norm.
        completions: of every prompt of `train`, in order; the task's own chain and answer by default.
    """

    batch_size: int = 32
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup: int = 5
    max_grad_norm: float = 1.0
    completions: tuple[str, ...] | None = None

    def train(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        steps: int,
        edits: Iterable[Intervention] = (),
        seed: int = 0,
        on_step: OnStep | None = None,
        check: Check | None = None,  # noqa: ARG002  a completion is what is learned
        *,
        shuffle_rewards: bool = False,
    ) -> TrainedArm:
        """See `Trainer.train`. What a step calls a reward is 1 where greedy decoding would have given
        the completion exactly, before the step changed the weights.

        Args:
            edits: active while the model reads the completions.
            check: not used: the completion is what is learned.
            shuffle_rewards: give each prompt the completion of another, drawn at random: a control
                that trains as long on the same texts without what ties them to their prompts.

        Raises:
            WorkbenchError: the backend is not transformers, weights in half precision, no steps, a
                prompt without a completion, or a loss that is no number.
        """
        pairs = self._pairs(model, prompts)
        self._check(model, steps)
        if shuffle_rewards:
            pairs = _shuffled(pairs, seeds.derive(seed, "shuffle"))
        edits = [edits] if isinstance(edits, Intervention) else list(edits)
        policy = trainable_copy(model)
        weights = [p for p in policy.hf.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0)
        order, curve = epochs(pairs, self.batch_size, seed), []
        for i in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = self.rate_at(i, steps)
            loss, right = completion_loss(policy, next(order), edits)
            norm = descend(loss, weights, optimiser, self.max_grad_norm, f"Sft.train, step {i}")
            step = Step(i, steps, tuple(right.tolist()), loss.item(), norm)
            curve.append(step)
            if on_step is not None:
                on_step(step)
        policy.hf.requires_grad_(False)
        return TrainedArm(policy, tuple(curve))

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of that step, counted from 0."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "constant":
            return self.learning_rate * rising
        falling = 0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1))
        return self.learning_rate * rising * (0.1 + 0.9 * falling)

    def _pairs(self, model: Any, prompts: Sequence[Prompt]) -> list[Pair]:
        many = as_prompts(prompts)
        given = self.completions
        if given is not None and len(given) != len(many):
            raise _refused(
                "has completions for other prompts", len(many), len(given), "give one per prompt"
            )
        texts = [_gold(p) for p in many] if given is None else list(given)
        return [(p, completion_ids(model, text)) for p, text in zip(many, texts, strict=True)]

    def _check(self, model: Any, steps: int) -> None:
        check_trainable(model, steps, "Sft.train")
        if self.batch_size < 1:
            raise _refused("has empty batches", "at least 1 prompt", self.batch_size, "raise it")
        if self.warmup < 0:
            raise _refused("has a warmup of no steps", "0 or more", self.warmup, "raise warmup")
        if self.schedule not in ("cosine", "constant"):
            raise unknown("Sft(schedule=)", "schedule", self.schedule, ("cosine", "constant"))


def sft(
    model: Any,
    prompts: Any,
    completions: Sequence[str] | None = None,
    *,
    steps: int = 100,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    schedule: str = "cosine",
    edits: Iterable[Intervention] = (),
    seed: int = 0,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> TrainedArm:
    """A copy of the model fine-tuned on `completions`, and its curve; the model keeps its weights.

    Args:
        prompts: what is asked.
        completions: text wanted after each prompt; the task's own chain and answer by default.
        steps: batches; every prompt comes once before any comes again.
        schedule: of the learning rate, see `Sft`.
        edits: active while the model reads.
        on_step: called after every step; what it raises ends the training.
        progress: show a bar over steps.

    Raises:
        WorkbenchError: see `Sft.train`.
    """
    given = None if completions is None else tuple(completions)
    trainer = Sft(batch_size, learning_rate, schedule, completions=given)
    with tqdm(total=steps, desc="fine-tuning", unit="step", disable=not progress) as bar:

        def step_done(step: Step) -> None:
            bar.update()
            bar.set_postfix(loss=f"{step.loss:.3f}", refresh=False)
            if on_step is not None:
                on_step(step)

        return trainer.train(model, prompts, steps, edits, seed, step_done)


def completion_loss(
    policy: Any, pairs: Sequence[Pair], edits: Iterable[Intervention] = ()
) -> tuple[Float[Tensor, ""], Float[Tensor, " prompt"]]:
    """Mean cross-entropy in nats over the completions' tokens, and 1 for each prompt whose completion
    is the most probable token by token.
    """
    prompts, tails = [p for p, _ in pairs], [ids for _, ids in pairs]
    trace = policy.run(prompts, edits=list(edits), completions=tails, grad=True)
    longest = max(map(len, tails))
    # left padding: completions end together, and the last column decides a token that is not there
    logits = trace.logits[:, -longest - 1 : -1].float()
    wanted = torch.tensor([[-100] * (longest - len(t)) + list(t) for t in tails])
    wanted = wanted.to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    found = (logits.detach().argmax(-1) == wanted) | (wanted == -100)
    return loss, found.all(1).float()


def completion_ids(model: Any, text: str) -> tuple[int, ...]:
    """Token ids of a completion, closed by the end-of-sequence token where the model has one.

    Raises:
        PromptError: an empty completion, or text the vocabulary cannot spell.
    """
    tokenizer = model.tokenizer
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    unknown_id = tokenizer.unk_token_id
    if not ids or (unknown_id in ids and unknown_id != tokenizer.eos_token_id):
        raise PromptError(
            f"completion {text[:40]!r}",
            "is empty, or has a token outside the vocabulary",
            expected="text this tokenizer can spell",
            got=f"{len(ids)} tokens",
            do="correct the completion",
        )
    end = tokenizer.eos_token_id
    return (*ids, end) if end is not None else tuple(ids)


def _gold(prompt: Prompt) -> str:
    if prompt.answer is None or "thoughts" not in prompt.meta:
        raise _refused(
            "has nothing to learn for a prompt",
            "prompts made by workbench.tasks, or completions",
            repr((prompt.text or "")[:40]),
            "give the completions",
        )
    return tasks.gold(prompt).completion


def _shuffled(pairs: list[Pair], seed: int) -> list[Pair]:
    """Each prompt with the completion of the next one in a random ring: never with its own."""
    ring = random.Random(seed).sample(range(len(pairs)), len(pairs))
    giver = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [(prompt, pairs[giver[i]][1]) for i, (prompt, _) in enumerate(pairs)]


def _refused(wrong: str, expected: object, got: object, do: str) -> WorkbenchError:
    return WorkbenchError("Sft.train", wrong, expected=expected, got=got, do=do)
