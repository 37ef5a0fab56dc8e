"""Training from rewards: what a trainer is, and the plainest one."""

from __future__ import annotations

from workbench.rl.base import Step, TrainArm, TrainedArm, Trainer
from workbench.rl.reinforce import Reinforce

__all__ = ["Reinforce", "Step", "TrainArm", "TrainedArm", "Trainer"]
