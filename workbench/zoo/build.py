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

from workbench.zoo.architectures import new_model
from workbench.zoo.card import Facts, card
from workbench.zoo.measure import measure
from workbench.zoo.tokenizer import make_tokenizer
from workbench.zoo.train import Plan, train
from workbench.zoo.world import World, whole_world

STEPS = {"reasoner": 9000, "reasoner-moe": 6000}
"""Training steps by default."""


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
    With ``checkpoint``, a file, an interrupted run continues there; nothing is written to ``out``
    before the model is finished. ``n`` is the number of prompts of each measured accuracy,
    ``world`` the mixture to learn, ``sizes`` replaces fields of the configuration.
    """
    model = new_model(name, seed, **(sizes or {}))
    plan = Plan(STEPS[name] if steps is None else steps, seed)
    world = world or whole_world()
    with torch_threads(threads):
        progress = train(model, world, plan, Path(checkpoint) if checkpoint else None)
        tokenizer = make_tokenizer()
        measured = measure(model, tokenizer, world.names(), n)
    facts = Facts(name, plan, progress, threads, tuple(measured), model.num_parameters())

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(facts), "utf-8")

    return put(Path(out) / name, fill)


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
