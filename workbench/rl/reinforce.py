"""REINFORCE: raise the log-probability of completions that were better than the prompt's average.

    loss = - 1/N sum_i (R_i - b_i) log p(y_i | x_i),   b_i the mean reward of the prompt's completions

Shapes: N = prompts_per_step x samples completions a step; rewards `[N]`.
Units: rewards as the check gives them, 0 or 1; log-probabilities in nats, summed over tokens.
Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist
    reinforcement learning, https://doi.org/10.1007/BF00992696.
Differs from the paper: the baseline is the mean over the completions of the same prompt, its own
    among them, which scales the expected gradient by (samples - 1) / samples; the update is AdamW's
    on a clipped gradient. One update a step, so no ratio of old and new policy enters.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench import seeds, tasks
from workbench.decoding import Sample
from workbench.errors import WorkbenchError
from workbench.model import backends
from workbench.model.backends.turn import turn
from workbench.model.tokens import as_prompts
from workbench.records import Generation, Prompt
from workbench.rl.base import Check, OnStep, Step, TrainedArm
from workbench.shapes import Float
from workbench.tensors import Intervention


@dataclass(frozen=True)
class Reinforce:
    """Plain policy gradient with a mean baseline.

    Attributes:
        prompts_per_step, samples: prompts of a step, and completions of each.
        learning_rate: AdamW's; weight decay is 0.
        max_new_tokens: longest completion.
        max_grad_norm: a longer gradient is cut to this norm.
        stop: texts that end a completion.
        warmup: steps over which the rate rises to `learning_rate`. AdamW's first steps move every
            weight by the whole rate, however uncertain its gradient is.
    """

    prompts_per_step: int = 8
    samples: int = 8
    learning_rate: float = 1e-4
    max_new_tokens: int = 64
    max_grad_norm: float = 1.0
    stop: tuple[str, ...] = ()
    warmup: int = 0

    def train(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        steps: int,
        edits: Iterable[Intervention] = (),
        seed: int = 0,
        on_step: OnStep | None = None,
        check: Check | None = None,
        *,
        shuffle_rewards: bool = False,
    ) -> TrainedArm:
        """See `Trainer.train`.

        Raises:
            WorkbenchError: the backend is not transformers, weights in half precision, fewer than two
                samples, no steps, a prompt without a task where no check is given, or a reward that
                is no number.
        """
        asked, check = self._checked(model, prompts, steps, check), check or tasks.check
        name = type(self).__name__
        edits = [edits] if isinstance(edits, Intervention) else list(edits)
        policy = trainable_copy(model)
        weights = [p for p in policy.hf.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0)
        order, curve = epochs(asked, self.prompts_per_step, seed), []
        for i in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * min(1.0, (i + 1) / (self.warmup + 1))
            texts = self._sampled(policy, next(order), edits, seeds.derive(seed, "rollout", i))
            rewards = _rewards(texts, check).reshape(-1, self.samples)
            given = _shuffled(rewards, seeds.derive(seed, "shuffle", i))
            loss = self.loss(policy, model, texts, given if shuffle_rewards else rewards, edits)
            norm = descend(loss, weights, optimiser, self.max_grad_norm, f"{name}.train, step {i}")
            step = Step(i, steps, tuple(rewards.mean(1).tolist()), loss.item(), norm)
            curve.append(step)
            if on_step is not None:
                on_step(step)
        policy.hf.requires_grad_(False)
        return TrainedArm(policy, tuple(curve))

    def loss(
        self,
        policy: Any,
        start: Any,  # noqa: ARG002  for trainers that stay near it
        texts: Sequence[Generation],
        rewards: Float[Tensor, "prompt sample"],
        edits: Iterable[Intervention],
    ) -> Float[Tensor, ""]:
        """What a step lowers. `start` is the model before training."""
        texts, rewards, share = instructive(texts, rewards, edits)
        logprob = completion_logprob(policy, texts, edits)
        return share * policy_loss(logprob.reshape_as(rewards), rewards)

    def _sampled(
        self, policy: Any, prompts: list[Prompt], edits: list[Intervention], seed: int
    ) -> list[Generation]:
        return policy.generate(
            [prompt for prompt in prompts for _ in range(self.samples)],
            edits=edits,
            decoder=Sample(),
            seed=seed,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
        )

    def _checked(self, model: Any, prompts: Any, steps: int, check: Check | None) -> list[Prompt]:
        many = as_prompts(prompts)
        check_trainable(model, steps, f"{type(self).__name__}.train")
        if self.samples < 2:
            raise _refused("needs a baseline", "at least 2 samples", self.samples, "raise samples")
        if self.warmup < 0:
            raise _refused("has a warmup of no steps", "0 or more", self.warmup, "raise warmup")
        if check is None and any(p.task is None or p.answer is None for p in many):
            raise _refused(
                "has no reward",
                "prompts with a task and an answer, or check=",
                "a prompt without",
                "make them with workbench.tasks.make",
            )
        return many


def _rewards(texts: Sequence[Generation], check: Check) -> Tensor:
    rewards = torch.tensor([float(check(t.prompt, t.text)) for t in texts])
    if not bool(rewards.isfinite().all()):
        raise _refused(
            "got a reward that is no number", "finite rewards", rewards.tolist(), "correct check"
        )
    return rewards


def policy_loss(
    logprob: Float[Tensor, "prompt sample"], rewards: Float[Tensor, "prompt sample"]
) -> Tensor:
    """The scalar whose gradient is minus REINFORCE's. Where all rewards of a prompt are one, it adds 0."""
    advantage = rewards - rewards.mean(1, keepdim=True)
    return -(advantage.to(logprob) * logprob).mean()


def instructive(
    texts: Sequence[Generation],
    rewards: Float[Tensor, "prompt sample"],
    edits: Iterable[Intervention] = (),
) -> tuple[list[Generation], Float[Tensor, "some sample"], float]:
    """Completions and rewards of the prompts whose rewards differ, and their share of all prompts.

    The other prompts add nothing to the gradient and need not be read. One prompt is kept where there
    are no others, and all under edits, which may be of single rows.
    """
    differ = rewards.amax(1) > rewards.amin(1)
    if list(edits) or bool(differ.all()):
        return list(texts), rewards, 1.0
    kept = differ.nonzero()[:, 0].tolist() or [0]
    samples = rewards.shape[1]
    some = [text for k in kept for text in texts[k * samples : (k + 1) * samples]]
    return some, rewards[kept], len(kept) / len(rewards)


def completion_logprob(
    policy: Any, texts: Sequence[Generation], edits: Iterable[Intervention]
) -> Float[Tensor, " sample"]:
    """Log-probability in nats of each whole completion under the edited policy, with its gradient."""
    lines = completion_lines(policy, texts, edits, grad=True)
    return torch.stack([drawn_logprob(line, text) for line, text in zip(lines, texts, strict=True)])


def completion_lines(
    policy: Any, texts: Sequence[Generation], edits: Iterable[Intervention], grad: bool = False
) -> list[Float[Tensor, "_ vocab"]]:
    """Per completion, log-probabilities in nats of every token at each of its positions."""
    trace = policy.run(
        [t.prompt for t in texts], edits=list(edits), completions=[t.ids for t in texts], grad=grad
    )
    # left padding: the last column decides a token that nobody drew
    return [
        trace.logits[row, -len(text.ids) - 1 : -1].float().log_softmax(-1)
        for row, text in enumerate(texts)
    ]


def drawn_logprob(line: Float[Tensor, "token vocab"], text: Generation) -> Float[Tensor, ""]:
    """Log-probability of the whole completion."""
    return line.gather(1, torch.tensor(text.ids, device=line.device)[:, None]).sum()


def descend(
    loss: Tensor, weights: list[Tensor], optimiser: Any, max_grad_norm: float, where: str
) -> float:
    """One update down the gradient, cut to `max_grad_norm`; the norm that it had before.

    Raises:
        WorkbenchError: the loss or its gradient is no number: the weights stay as they were.
    """
    optimiser.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
    if not bool(loss.isfinite() & norm.isfinite()):
        raise WorkbenchError(
            where,
            "training has diverged",
            expected="a finite loss and gradient",
            got=f"loss {loss.item()}, gradient norm {norm.item()}",
            do="lower the learning rate",
        )
    optimiser.step()
    return norm.item()


def check_trainable(model: Any, steps: int, where: str) -> None:
    """WorkbenchError where `steps` or the model's dtype or backend rule training out."""
    if steps < 1:
        raise WorkbenchError(
            where, "has no steps", expected="at least 1", got=steps, do="raise steps"
        )
    if torch.finfo(model.dtype).bits < 32:
        raise WorkbenchError(
            where,
            "would lose its steps to rounding",
            expected="weights in float32",
            got=model.dtype,
            do="load the model with dtype='float32'",
        )
    if model.backend.name != "transformers":
        raise WorkbenchError(
            where,
            "trains the module itself",
            expected="the backend 'transformers'",
            got=model.backend.name,
            do="wb.load(..., backend='transformers')",
        )


def trainable_copy(model: Any) -> Any:
    """A model of its own weights, which ask for gradients; the original shares nothing with it."""
    with turn(model.backend):  # edits of a run under way are hooks, which a copy would keep
        hf = copy.deepcopy(model.hf)
    hf.requires_grad_(True)
    made = backends.make("transformers", hf, model.layout, model.dims, model.tokenizer)
    return replace(model, hf=hf, backend=made, name=f"{model.name} (trained)", source=None)


def epochs(prompts: list[Any], size: int, seed: int) -> Iterator[list[Any]]:
    """Batches without end; every prompt once before any comes again."""
    rng, waiting = random.Random(seeds.derive(seed, "order")), []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(prompts, len(prompts))
        batch, waiting = waiting[:size], waiting[size:]
        yield batch


def _shuffled(rewards: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rewards.numel(), generator=generator)
    return rewards.flatten()[order].reshape_as(rewards)


def _refused(wrong: str, expected: str, got: object, do: str) -> WorkbenchError:
    return WorkbenchError("Reinforce.train", wrong, expected=expected, got=got, do=do)
