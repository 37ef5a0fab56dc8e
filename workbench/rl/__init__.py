"""Training: from rewards (REINFORCE, GRPO) and on given completions (supervised fine-tuning)."""

from __future__ import annotations

from workbench.rl.base import Step, TrainArm, TrainedArm, Trainer
from workbench.rl.grpo import Grpo
from workbench.rl.reinforce import Reinforce
from workbench.rl.supervised import Sft, sft

__all__ = ["Grpo", "Reinforce", "Sft", "Step", "TrainArm", "TrainedArm", "Trainer", "sft"]
