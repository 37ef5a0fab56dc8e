"""One shipped model from a seed: train, measure, describe, put the folder in its place whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from workbench.errors import WorkbenchError
from workbench.zoo.architectures import new_model
from workbench.zoo.card import Facts, card
from workbench.zoo.measure import measure
from workbench.zoo.tokenizer import make_tokenizer
from workbench.zoo.train import Plan, Progress, train
from workbench.zoo.upcycle import upcycle
from workbench.zoo.world import World, finishing_world, whole_world

STEPS = {"reasoner": 9000, "reasoner-moe": 800}
"""Training steps by default, before the finish; the mixture of experts starts from the reasoner."""

Course = tuple[tuple[World, Plan], ...]
"""What is learned, one after another."""


def course(name: str, steps: int, seed: int) -> Course:
    """The whole world, then for a quarter of the steps more of what is learned last.

    What starts from a finished model goes on with the finish alone.
    """
    if name == "reasoner-moe":
        return ((finishing_world(), Plan(steps, seed, rate=1e-3)),)
    finish = Plan(max(1, steps // 4), seed, rate=1e-3)
    return (whole_world(), Plan(steps, seed)), (finishing_world(), finish)


def begin(name: str, seed: int, out: Path, sizes: Mapping[str, Any]) -> PreTrainedModel:
    """The model before training: random, or for the mixture of experts the reasoner upcycled.

    Raises WorkbenchError where there is no reasoner in ``out`` to start from. A miniature
    (``sizes``) starts from a random one.
    """
    model = new_model(name, seed, **sizes)
    if name != "reasoner-moe":
        return model
    if sizes:
        return upcycle(new_model("reasoner", seed, **sizes), model, seed)
    if not (out / "reasoner" / "config.json").exists():
        raise WorkbenchError(
            "zoo.build('reasoner-moe')",
            "there is no reasoner to start from",
            expected=f"a folder {out / 'reasoner'}",
            got="none",
            do="build the reasoner first, or build all",
        )
    dense = AutoModelForCausalLM.from_pretrained(out / "reasoner", dtype=torch.float32)
    return upcycle(dense, model, seed)


def build(
    name: str = "reasoner",
    out: Path | str = "data/models",
    *,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    checkpoint: Path | str | None = None,
    n: int = 200,
    world: World | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> Path:
    """Trains a shipped model and writes it as a Hugging Face folder; returns ``out/name``.

    The steps and the seed decide the weights (bit for bit on one machine with equal ``threads``).
    With ``checkpoint``, a folder, an interrupted run continues there; nothing is written to ``out``
    before the model is finished. ``n`` is the number of prompts of each measured accuracy,
    ``world`` one mixture to learn in place of the course, ``sizes`` replaces fields of the configuration.
    """
    model = begin(name, seed, Path(out), sizes or {})
    steps = STEPS[name] if steps is None else steps
    stages = ((world, Plan(steps, seed)),) if world else course(name, steps, seed)
    with torch_threads(threads):
        progress = follow(stages, model, Path(checkpoint) if checkpoint else None)
        tokenizer = make_tokenizer()
        rounded(model)
        measured = measure(model, tokenizer, stages[0][0].names(), n)
    plans = tuple(plan for _, plan in stages)
    facts = Facts(name, plans, progress, threads, tuple(measured), model.num_parameters())

    def fill(folder: Path) -> None:
        save(model, folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(facts), "utf-8")

    return put(Path(out) / name, fill)


def follow(stages: Course, model: PreTrainedModel, folder: Path | None) -> Progress:
    """Trains through the stages; a finished stage is taken from its checkpoint in ``folder``."""
    whole = Progress()
    for at, (world, plan) in enumerate(stages):
        done = train(model, world, plan, folder / f"stage-{at}.pt" if folder else None)
        whole.step += done.step
        whole.losses += done.losses
        whole.seconds += done.seconds
    return whole


HALF = ("mixtral",)
"""Kinds of model stored in float16, which halves their size; they compute in float32."""


@torch.no_grad()
def rounded(model: PreTrainedModel) -> None:
    """Rounds the weights to what is stored, so that what is measured is what is shipped."""
    if model.config.model_type in HALF:
        for weight in model.parameters():
            weight.copy_(weight.half())


def save(model: PreTrainedModel, folder: Path) -> None:
    """The model's folder; a configuration of float32 makes loading compute in it."""
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    if model.config.model_type in HALF:
        path = folder / "model.safetensors"
        half = {name: value.half() for name, value in load_file(path).items()}
        save_file(half, path, metadata={"format": "pt"})


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Runs the block with that many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def put(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fills a folder beside ``target`` and renames it there; a failure leaves ``target`` alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fresh = work / "fresh"
        fresh.mkdir()
        fill(fresh)
        for file in fresh.iterdir():
            file.chmod(0o644)
        if target.exists():
            os.replace(target, work / "former")
        os.replace(fresh, target)
    finally:
        shutil.rmtree(work)
    return target
