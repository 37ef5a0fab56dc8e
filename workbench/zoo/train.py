"""The training loop: a fixed number of steps from a seed, resumable, never half-written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from workbench.zoo.world import Batch, World, batches

SAVE_EVERY = 500


@dataclass(frozen=True)
class Plan:
    """What decides the result: the same plan on the same machine gives the same weights.

    ``tokens`` is the size of a batch, padding included; ``rate`` the peak learning rate, reached
    after ``warmup`` steps and lowered along a cosine to a fiftieth.
    """

    steps: int
    seed: int = 0
    tokens: int = 1200
    rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.02

    def rate_at(self, step: int) -> float:
        """The learning rate of that step, counted from 0."""
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * cosine)


@dataclass
class Progress:
    """How far a run is; ``losses`` holds the mean loss in nats per token of every step so far."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: PreTrainedModel, world: World, plan: Plan, checkpoint: Path | None = None
) -> Progress:
    """Trains the model in place and returns the losses.

    With ``checkpoint`` (a file) the run is saved there now and then, and continues from it where
    it exists; the result is the same as without a break.
    """
    optimiser = torch.optim.AdamW(
        groups(model), lr=plan.rate, betas=(0.9, 0.98), weight_decay=plan.decay
    )
    progress = restore(checkpoint, model, optimiser) if checkpoint else Progress()
    before = progress.seconds
    model.train()
    rows = islice(batches(world, plan.seed, plan.tokens), progress.step, plan.steps)
    bar = tqdm(
        rows, total=plan.steps, initial=progress.step, desc=type(model).__name__, mininterval=5
    )
    for batch in bar:
        progress.losses.append(step(model, optimiser, batch, plan.rate_at(progress.step)))
        progress.step += 1
        if progress.step % 50 == 0:
            bar.set_postfix(loss=f"{sum(progress.losses[-50:]) / 50:.3f}", refresh=False)
        if checkpoint and (progress.step % SAVE_EVERY == 0 or progress.step == plan.steps):
            progress.seconds = before + bar.format_dict["elapsed"]
            save(checkpoint, model, optimiser, progress)
    progress.seconds = before + bar.format_dict["elapsed"]
    model.eval()
    return progress


def groups(model: PreTrainedModel) -> list[dict[str, object]]:
    """Matrices with weight decay, gains without."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]


def step(
    model: PreTrainedModel, optimiser: torch.optim.Optimizer, batch: Batch, rate: float
) -> float:
    """One update; returns the loss before it."""
    ids, labels = batch
    for group in optimiser.param_groups:
        group["lr"] = rate
    # rows are padded on the right, so that the causal mask alone keeps padding out of sight
    routed = {"output_router_logits": True} if hasattr(model.config, "num_local_experts") else {}
    loss = model(input_ids=ids, labels=labels, use_cache=False, **routed).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def save(
    path: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    """Writes the checkpoint beside its place and moves it there whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "progress": vars(progress),
        },
        fresh,
    )
    os.replace(fresh, path)


def restore(path: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer) -> Progress:
    """The state at ``path`` put into model and optimiser; a fresh Progress where there is none."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return Progress(**state["progress"])
