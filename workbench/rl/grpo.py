"""GRPO: each completion against the others of its prompt, in units of their spread.

    A_i = (R_i - mean_j R_j) / std_j R_j                              over the completions of a prompt
    loss = - 1/N sum_i A_i log p(y_i | x_i) + beta 1/N sum_i sum_t KL(p(. | y_i,<t) || p_start)

Where all completions of a prompt earn the same, A is 0. Without `scale` and with beta = 0 this is
`Reinforce`, bit for bit.

Shapes: N = prompts_per_step x samples; rewards and A `[prompt, sample]`. Units: rewards as the check
gives them; log-probabilities and KL in nats, summed over a completion's tokens.
Source: Shao et al. (2024), DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1.
Differs from the paper: one update per batch of completions, so the ratio of new to old policy is 1
    and its clipping never acts; log-probabilities are summed and not divided by each completion's
    length, which would favour long wrong ones (Liu et al. 2025, https://arxiv.org/abs/2503.20783);
    the KL is summed over the vocabulary, not estimated from the drawn token; std is the population's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.records import Generation
from workbench.rl.reinforce import (
    Reinforce,
    completion_lines,
    drawn_logprob,
    instructive,
    policy_loss,
)
from workbench.shapes import Float
from workbench.tensors import Intervention


@dataclass(frozen=True)
class Grpo(Reinforce):
    """Group-relative policy gradient; a `Trainer`.

    Attributes:
        scale: divide advantages by the standard deviation of the prompt's rewards.
        kl: beta, the weight of staying near the model before training; 0 is without.
    """

    scale: bool = True
    kl: float | int = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.kl < float("inf"):
            raise WorkbenchError(
                "Grpo(kl=)",
                "is no weight",
                expected="a finite number, 0 or more",
                got=self.kl,
                do="raise it to stay nearer to the start",
            )

    def loss(
        self,
        policy: Any,
        start: Any,
        texts: Sequence[Generation],
        rewards: Float[Tensor, "prompt sample"],
        edits: Iterable[Intervention],
    ) -> Float[Tensor, ""]:
        """See `Reinforce.loss`."""
        share = 1.0
        if self.kl == 0:
            texts, rewards, share = instructive(texts, rewards, edits)
        lines = completion_lines(policy, texts, edits, grad=True)
        drawn = [drawn_logprob(line, text) for line, text in zip(lines, texts, strict=True)]
        given = advantages(rewards) if self.scale else rewards
        loss = share * policy_loss(torch.stack(drawn).reshape_as(rewards), given)
        if self.kl == 0:
            return loss
        before = completion_lines(start, texts, edits)
        return loss + self.kl * divergence(lines, before)


def advantages(rewards: Float[Tensor, "prompt sample"]) -> Float[Tensor, "prompt sample"]:
    """Rewards of each prompt with mean 0 and standard deviation 1; zeros where they are all one."""
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, correction=0, keepdim=True)
    # equal rewards may leave a rounding error, which a division would blow up
    same = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return torch.where(same, torch.zeros_like(centred), centred / spread)


def divergence(
    lines: Sequence[Float[Tensor, "_ vocab"]], start: Sequence[Float[Tensor, "_ vocab"]]
) -> Float[Tensor, ""]:
    """KL divergence in nats of `lines` from `start`, summed over tokens, mean over completions."""
    sums = [(new.exp() * (new - old)).sum() for new, old in zip(lines, start, strict=True)]
    return torch.stack(sums).mean()
